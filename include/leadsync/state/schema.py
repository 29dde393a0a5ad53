"""The schema of Leadsync's own database: migrated by Alembic, checked before every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from leadsync.errors import SchemaError

MIGRATE = "python -m leadsync migrate"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    return config


def newest() -> str:
    """The revision that this code needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise SchemaError("the migrations are missing from this installation")
    return head


def migrate(dsn: str, revision: str = "head") -> None:
    """Brings the schema to a revision, forth or back; `base` removes it."""
    # SQLAlchemy reads URLs of its own kind, so the connection is psycopg's and only wrapped.
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    config = _config()
    with engine.begin() as connection:
        # Two migrations at once: the second waits here and finds its work done.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('leadsync.migrate'))")
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS leadsync")
        config.attributes["connection"] = connection
        context = MigrationContext.configure(connection, opts={"version_table_schema": "leadsync"})
        script, present = ScriptDirectory.from_config(config), context.get_current_revision()
        earlier = {found.down_revision for found in script.iterate_revisions(present, "base")} if present else set()
        if revision == "base" or revision in earlier:
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
    engine.dispose()


def check(connection: psycopg.Connection[Any]) -> None:
    """Raises SchemaError unless the database has exactly the schema that this code needs."""
    needed = newest()
    exists = connection.execute("SELECT to_regclass('leadsync.alembic_version')").fetchone()
    row = None
    if exists and exists[0]:
        row = connection.execute("SELECT version_num FROM leadsync.alembic_version").fetchone()
    if row is None:
        raise SchemaError(f"the database of connection leadsync_db has no Leadsync tables yet; run: {MIGRATE}")
    if row[0] != needed:
        raise SchemaError(f"the Leadsync tables are at revision {row[0]}, this code needs {needed}; run: {MIGRATE}")
