"""Whether Leadsync's own database has the schema that this code needs; migration.py brings it there.

Every task asks, so this does without Alembic, which takes a third of a second to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from leadsync.errors import SchemaError

MIGRATE = "python -m leadsync migrate"
MIGRATIONS = Path(__file__).with_name("migrations")


def newest() -> str:
    """The revision that this code needs: the number that the last migration's file begins with."""
    found = sorted(path.stem.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    if not found:
        raise SchemaError("the migrations are missing from this installation")
    return found[-1]


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
