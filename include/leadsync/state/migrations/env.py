"""Alembic's environment: one connection, handed over by `leadsync.state.schema`."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="alembic_version",
    version_table_schema="leadsync",
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
