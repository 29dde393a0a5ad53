"""What the page asks the lead store: how far behind everybody is, and which leads have a phone number or an address."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import LiteralString

import psycopg
from psycopg import sql

from leadsync import figures
from leadsync.config import Pipeline, Source
from leadsync.copytext import parse_line
from leadsync.figures import SourceState
from leadsync.mapping import Row, join_key, split_key
from leadsync.source import LeadStore
from leadsync.ui.access import Backend, Connection

# A search ends then: where a column has no index it would read the whole table.
TIMEOUT: LiteralString = "SET statement_timeout = '2s'"
READ_ONLY: LiteralString = "SET default_transaction_read_only = on"
# So many applications (values of the first key column) is a uid tried with.
APPLICATIONS = 1000
FOUND = 20

# Both spellings, for shops write addresses in lower case. The column's type decides what is compared.
FIND: LiteralString = "SELECT {keys} FROM {table} WHERE {column} IN (%(text)s, %(lower)s) LIMIT %(limit)s"

EXISTS: LiteralString = "SELECT EXISTS (SELECT FROM {table} WHERE {same})"

# From one value to the next along the key's index, instead of over every row.
FIRST_KEYS: LiteralString = """
WITH RECURSIVE step (value) AS (
    (SELECT {key} FROM {table} WHERE {key} IS NOT NULL ORDER BY {key} LIMIT 1)
    UNION ALL
    SELECT (SELECT {key} FROM {table} WHERE {key} > step.value ORDER BY {key} LIMIT 1)
      FROM step WHERE step.value IS NOT NULL)
SELECT value::text FROM step WHERE value IS NOT NULL LIMIT %(limit)s
"""


def ask(backend: Backend, pipeline: Pipeline, marks: Mapping[str, datetime | None]) -> SourceState:
    """Looks with these watermarks, by destination. Raises LeadsyncError and psycopg.Error."""
    with _open(backend, pipeline) as connection:
        return figures.source_state(connection, pipeline, marks)


def find(backend: Backend, pipeline: Pipeline, text: str) -> tuple[list[str], list[str]]:
    """External ids of leads that have this value in a `lookup` column, and the columns that took too long."""
    source, found, slow = pipeline.source, dict[str, None](), []
    with _open(backend, pipeline) as connection:
        for column in source.lookup:
            keys = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in source.key)
            query = sql.SQL(FIND).format(keys=keys, table=_table(source), column=sql.Identifier(column))
            try:
                values = {"text": text, "lower": text.lower(), "limit": FOUND}
                rows = connection.execute(query, values).fetchall()
            except psycopg.errors.QueryCanceled:
                slow.append(column)
            except psycopg.DataError:
                pass  # not a value of the column's type
            else:
                found.update(dict.fromkeys(join_key(row) for row in rows if None not in row))
    return list(found), slow


def with_uid(backend: Backend, pipeline: Pipeline, uid: str) -> list[str]:
    """The external ids that a uid may stand for: one for each application. None when the key has not two columns."""
    source = pipeline.source
    if len(source.key) != 2:
        return []
    with _open(backend, pipeline) as connection:
        query = sql.SQL(FIRST_KEYS).format(key=sql.Identifier(source.key[0]), table=_table(source))
        rows = connection.execute(query, {"limit": APPLICATIONS}).fetchall()
    return [join_key((first, uid)) for (first,) in rows]


def is_there(backend: Backend, pipeline: Pipeline, external_id: str) -> bool:
    """Whether the lead store has such a lead; whatever a person typed goes there as parameters."""
    source, values = pipeline.source, split_key(external_id)
    if len(values) != len(source.key):
        return False
    same = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in source.key)
    with _open(backend, pipeline) as connection:
        try:
            row = connection.execute(sql.SQL(EXISTS).format(table=_table(source), same=same), values).fetchone()
        except psycopg.DataError:
            return False  # no values of the key columns' types
    return bool(row and row[0])


def row_of(backend: Backend, pipeline: Pipeline, external_id: str) -> Row | None:
    """The lead's present row; None when there is none."""
    key = split_key(external_id)
    if len(key) != len(pipeline.source.key):
        return None
    with _open(backend, pipeline) as connection:
        try:
            lines = b"".join(map(bytes, LeadStore(connection, pipeline.source).read([key]))).decode().split("\n")[:-1]
        except psycopg.DataError:
            return None  # no value of the key columns' types
    return parse_line(lines[0]) if lines else None


@contextmanager
def _open(backend: Backend, pipeline: Pipeline) -> Iterator[Connection]:
    with backend.source(pipeline) as connection:
        connection.execute(TIMEOUT)
        connection.execute(READ_ONLY)
        yield connection


def _table(source: Source) -> sql.Identifier:
    return sql.Identifier(*source.table.split("."))
