"""Migrations from every revision to the newest and back, with rows in every table."""

from __future__ import annotations

from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from leadsync.state import migration
from leadsync.state.schema import MIGRATIONS

REVISIONS = sorted(path.stem.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
Rows = dict[str, dict[str, list[Any]]]  # table → column → values, in the order of the rows

# Parents before what refers to them.
COLUMNS: LiteralString = """
SELECT c.table_name, array_agg(ARRAY[c.column_name, c.data_type] ORDER BY c.ordinal_position)
  FROM information_schema.columns c
 WHERE c.table_schema = 'leadsync' AND c.table_name <> 'alembic_version' AND c.is_generated = 'NEVER'
 GROUP BY c.table_name
 ORDER BY EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = ('leadsync.' || c.table_name)::regclass
                     AND k.contype = 'f'), c.table_name
"""


def value(table: str, column: str, kind: str, number: int) -> Any:
    """What row `number` holds. What an older schema can't say is left out: more shards, superseded operations."""
    told: dict[str, Any] = {
        "reason": "rejected", "phase": "leads", "state": "done", "result": 1, "shard": 0, "superseded_at": None,
        "kind": "stale" if table == "reconciliation_finding" else "run", "shards": 1,
    }  # fmt: skip
    if column in told:
        return told[column]
    by_kind: dict[str, Any] = {
        "uuid": UUID(int=number), "text": f"{column} {number}", "ARRAY": [f"{column} {number}"], "boolean": True,
        "timestamp with time zone": f"2026-01-{number:02}T00:00:00Z", "jsonb": Jsonb({"n": number}),
        "bytea": b"sealed %d" % number,
    }  # fmt: skip
    return by_kind.get(kind, number)


def fill(connection: psycopg.Connection[Any]) -> None:
    for table, columns in connection.execute(COLUMNS).fetchall():
        names = sql.SQL(", ").join(sql.Identifier(name) for name, _ in columns)
        places = sql.SQL(", ").join(sql.Placeholder() for _ in columns)
        insert = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})").format(
            sql.Identifier("leadsync", table), names, places
        )
        for number in (1, 2):
            connection.execute(insert, [value(table, name, kind, number) for name, kind in columns])


def read(connection: psycopg.Connection[Any]) -> Rows:
    found: Rows = {}
    for table, columns in connection.execute(COLUMNS).fetchall():
        names = [name for name, _ in columns]
        order = next(name for name in ("id", "destination_id", "operation_id", "sync_id", "pipeline") if name in names)
        query = sql.SQL("SELECT * FROM {} ORDER BY {}").format(sql.Identifier("leadsync", table), sql.Identifier(order))
        with connection.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(query).fetchall()
        found[table] = {name: [row[name] for row in rows] for name in names}
    return found


def common(rows: Rows, other: Rows) -> Rows:
    """Of the rows what the other schema has a place for, too."""
    return {
        table: {name: values for name, values in columns.items() if name in other[table]}
        for table, columns in rows.items()
        if table in other
    }


@pytest.mark.parametrize("revision", REVISIONS)
def test_forth_and_back_keeps_every_row(database: str, revision: str) -> None:
    migration.migrate(database, revision)
    with psycopg.connect(database, autocommit=True) as connection:
        fill(connection)
        before = read(connection)
        assert all(len(values) == 2 for columns in before.values() for values in columns.values())
        migration.migrate(database)
        newest = read(connection)
        assert common(newest, before) == common(before, newest)
        migration.migrate(database, revision)
        assert read(connection) == before


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_back_and_forth_keeps_what_the_older_has_a_place_for(database: str, revision: str) -> None:
    migration.migrate(database)
    with psycopg.connect(database, autocommit=True) as connection:
        fill(connection)
        newest = read(connection)
        migration.migrate(database, revision)
        older = read(connection)
        assert common(older, newest) == common(newest, older)
        migration.migrate(database)
        assert common(read(connection), older) == common(newest, older)
