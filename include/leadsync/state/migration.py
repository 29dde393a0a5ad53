"""Brings the schema of Leadsync's own database to a revision, by Alembic."""

from __future__ import annotations

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from leadsync.state.schema import MIGRATIONS


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def newest() -> str | None:
    """The last revision, as Alembic sees it."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def migrate(dsn: str, revision: str = "head") -> None:
    """Brings the schema to a revision, forth or back; `base` removes it."""
    # SQLAlchemy reads URLs of its own kind, so the connection is psycopg's and only wrapped.
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    config = _config()
    with engine.begin() as connection:
        # Two migrations at once: the second waits here and finds its work done.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('leadsync.migrate'))")
        # Where the schema is there its owner needs no right to make one; IF NOT EXISTS would ask for it all the same.
        if connection.exec_driver_sql("SELECT to_regnamespace('leadsync')").scalar() is None:
            connection.exec_driver_sql("CREATE SCHEMA leadsync")
        config.attributes["connection"] = connection
        context = MigrationContext.configure(connection, opts={"version_table_schema": "leadsync"})
        script, present = ScriptDirectory.from_config(config), context.get_current_revision()
        earlier = {found.down_revision for found in script.iterate_revisions(present, "base")} if present else set()
        if revision == "base" or revision in earlier:
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
    engine.dispose()
