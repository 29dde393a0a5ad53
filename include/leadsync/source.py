"""The lead store: the safe bound of a window, and its rows as a stream of COPY text.

The connection is psycopg's, in autocommit, as a role that can read the table and `pg_stat_activity` in full.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from leadsync.config import Source
from leadsync.copytext import parse_line
from leadsync.errors import SourceError

Buffer = bytes | bytearray | memoryview

APPLICATION_NAME = "leadsync"
# A transaction takes its start time a moment before others can see it in pg_stat_activity.
MARGIN = timedelta(milliseconds=50)

# The oldest transaction of this database that could still write: its start, process and role. Our own readers
# are left out (they are read-only), and so are roles that the pipeline file excludes, and processes that
# never write a table of a user.
OLDEST_WRITER: LiteralString = """
SELECT xact_start, pid, usename
  FROM pg_stat_activity
 WHERE datname = current_database()
   AND xact_start IS NOT NULL
   AND pid <> pg_backend_pid()
   AND backend_type NOT IN ('autovacuum worker', 'walsender', 'parallel worker')
   AND NOT (usename = current_user AND application_name = %(application)s)
   AND NOT (usename = ANY (%(ignored)s))
 ORDER BY xact_start
 LIMIT 1
"""

# A prepared transaction is in no process list and its start can't be seen.
PREPARED: LiteralString = """
SELECT count(*), coalesce(extract(epoch FROM now() - min(prepared)), 0)::float8
  FROM pg_prepared_xacts WHERE database = current_database()
"""

# Without these rights xact_start of other roles is silently NULL.
MAY_SEE_TRANSACTIONS: LiteralString = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')"

COLUMNS_OF: LiteralString = """
SELECT attname, format_type(atttypid, NULL)
  FROM pg_attribute
 WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
"""

# Whether the key columns are exactly, or contain, the columns of a unique index: else one external id is two leads.
IS_UNIQUE: LiteralString = """
SELECT EXISTS (
    SELECT FROM pg_index i
     WHERE i.indrelid = to_regclass(%(table)s) AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
       AND (SELECT array_agg(a.attname::text)
              FROM pg_attribute a
             WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])) <@ %(key)s)
"""

_KINDS = {
    "timestamptz": {"timestamp with time zone"},
    "timestamp": {"timestamp without time zone"},
    "epoch_s": {"integer", "bigint", "numeric"},
    "epoch_ms": {"bigint", "numeric"},
}


@dataclass(frozen=True, slots=True)
class Bound:
    """Up to where it is safe to read, and what holds it back: seconds behind the clock, process and role.

    `prepared` transactions are open, the oldest for `prepared_seconds`.
    """

    upper: datetime
    held_back: float = 0.0
    pid: int | None = None
    role: str | None = None
    prepared: int = 0
    prepared_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Window:
    """`[lower, upper)` on the watermark column; `lower` None is the beginning."""

    lower: datetime | None
    upper: datetime


# Every lead has a place on a ring of so many, by a hash of its key.
RING = 2**32


@dataclass(frozen=True, slots=True)
class Sample:
    """The leads on `width` places of the ring from `start` on, and those whose watermark is `recent` or later."""

    start: int = 0
    width: int = RING
    recent: datetime | None = None


class LeadStore:
    """One pipeline's source, on an open connection."""

    def __init__(self, connection: psycopg.Connection[Any], source: Source) -> None:
        self._connection = connection
        self._source = source
        self._table = sql.Identifier(*source.table.split("."))
        connection.execute("SET timezone = 'UTC'")
        connection.execute("SET datestyle = 'ISO'")
        connection.execute("SET default_transaction_read_only = on")

    def check(self) -> None:
        """Raises SourceError, naming table or column and the remedy, when the source can't be read safely."""
        source, where = self._source, f"connection {self._source.connection}"
        found = {name: kind for name, kind in self._connection.execute(COLUMNS_OF, {"table": source.table})}
        if not found:
            raise SourceError(f"{where}: there is no table {source.table}, or it is not in the search_path")
        for column in source.columns:
            if column not in found:
                raise SourceError(f"{where}: table {source.table} has no column {column}; it has {', '.join(found)}")
        if found[source.watermark] not in _KINDS[source.watermark_kind]:
            raise SourceError(
                f"{where}: column {source.watermark} is {found[source.watermark]}, but `watermark_kind` in the "
                f"pipeline file says {source.watermark_kind}"
            )
        if not self._one("SELECT has_table_privilege(%(table)s, 'SELECT')", {"table": source.table}):
            raise SourceError(f"{where}: no right to read; run: GRANT SELECT ON {source.table} TO <role>")
        if not self._one(IS_UNIQUE, {"table": source.table, "key": list(source.key)}):
            raise SourceError(
                f"{where}: the key columns ({', '.join(source.key)}) of {source.table} are not unique; "
                "name the columns of its primary key or of a unique index as `key`"
            )
        if source.bound == "transactions" and not self._one(MAY_SEE_TRANSACTIONS):
            raise SourceError(
                f"{where}: no right to see other roles' transactions; run: GRANT pg_read_all_stats TO <role>, "
                "or set `bound: lag` with a `lag` in the pipeline file"
            )

    def bound(self) -> Bound:
        """The safe upper bound, taken now: every change that commits later has a later watermark."""
        source = self._source
        clock: datetime = self._one("SELECT clock_timestamp()")
        if source.bound == "lag":
            return Bound(self._floor(clock - timedelta(seconds=source.lag)))
        # The list is read before and after the prepared ones: PREPARE moves a transaction from one to the other.
        first = self._oldest_writer()
        prepared = self._connection.execute(PREPARED).fetchone() or (0, 0.0)
        second = self._oldest_writer()
        upper = clock - MARGIN
        writer = min((w for w in (first, second) if w), key=lambda w: w[0], default=None)
        if writer is None or writer[0] >= upper:
            return Bound(self._floor(upper), 0.0, None, None, *prepared)
        return Bound(self._floor(writer[0]), (clock - writer[0]).total_seconds(), writer[1], writer[2], *prepared)

    def stream(self, window: Window) -> Generator[Buffer, None, None]:
        """The rows of a window as COPY text, a row an item, ordered by watermark and key; constant memory.

        Who stops before the end has to close it: until then the connection can do nothing else, not even end.
        """
        source = self._source
        query = sql.SQL("COPY (SELECT {} FROM {} WHERE {} ORDER BY {}) TO STDOUT").format(
            self._names(source.columns),
            self._table,
            self._within(window, source.lookback),
            self._names((source.watermark, *(key for key in source.key if key != source.watermark))),
        )
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            yield from copy

    def count(self, window: Window, at_most: int = 100_000) -> int:
        """How many rows a window holds; counting stops at `at_most`."""
        query = sql.SQL("SELECT count(*) FROM (SELECT FROM {} WHERE {} LIMIT {}) rows").format(
            self._table, self._within(window), sql.Literal(at_most)
        )
        return int(self._one(query))

    def oldest(self, lower: datetime | None) -> datetime | None:
        """The oldest watermark at `lower` or later; None where there is none."""
        column = sql.Identifier(self._source.watermark)
        within = sql.SQL("{} >= {}").format(column, self._literal(lower)) if lower else sql.SQL("true")
        query = sql.SQL("SELECT {moment} FROM {table} WHERE {within} ORDER BY {column} LIMIT 1")
        found: datetime | None = self._one(
            query.format(moment=self._moment(), table=self._table, within=within, column=column)
        )
        return found

    def slice_end(self, lower: datetime | None, upper: datetime, rows: int) -> datetime:
        """The end of the first window from `lower` on that holds at least `rows` rows, or else `upper`.

        It is the first watermark above that of the last row: rows with one watermark are never parted.
        """
        column, within = sql.Identifier(self._source.watermark), self._within(Window(lower, upper))
        query = sql.SQL(
            "SELECT {moment} FROM {table} WHERE {within} AND {column} > "
            "(SELECT {column} FROM {table} WHERE {within} ORDER BY {column} OFFSET {skipped} LIMIT 1) "
            "ORDER BY {column} LIMIT 1"
        ).format(moment=self._moment(), table=self._table, within=within, column=column, skipped=sql.Literal(rows - 1))
        return self._one(query) or upper

    def read(self, keys: Sequence[Sequence[str]], window: Window | None = None) -> Iterator[Buffer]:
        """The present rows of the leads with these key values, as COPY text; leads that are gone are left out.

        With a window also those whose watermark is not in it.
        """
        yield from self._chosen(keys, self._source.columns, window)

    def present(self, keys: Sequence[Sequence[str]]) -> set[tuple[str | None, ...]]:
        """Which of these leads, by their key values, are in the lead store."""
        try:
            return {tuple(parse_line(bytes(row).decode()[:-1])) for row in self._chosen(keys, self._source.key, None)}
        except psycopg.DataError:  # its text quotes the value
            raise SourceError("an external id that was delivered does not fit the types of the key columns") from None

    def scan(self, after: Sequence[str] | None, limit: int, window: Window, sample: Sample) -> list[str]:
        """The next `limit` rows of a sample of a window, in the order of the key, from the one behind `after` on.

        COPY lines without the newline; all are read when it returns, so that no transaction stays open here.
        """
        key = self._names(self._source.key)
        conditions = [self._within(window)]
        conditions += [sql.SQL("{} IS NOT NULL").format(sql.Identifier(name)) for name in self._source.key]
        if after is not None:
            conditions.append(sql.SQL("({}) > ({})").format(key, self._values(after)))
        if sample.width < RING:
            place = sql.SQL("(hashtextextended(concat_ws(':', {}), 0) & {})").format(key, sql.Literal(RING - 1))
            chosen = sql.SQL("({place} - {start} + {ring}) % {ring} < {width}").format(
                place=place, start=sql.Literal(sample.start), ring=sql.Literal(RING), width=sql.Literal(sample.width)
            )
            if sample.recent is not None:
                column = sql.Identifier(self._source.watermark)
                chosen = sql.SQL("({} OR {} >= {})").format(chosen, column, self._literal(sample.recent))
            conditions.append(chosen)
        query = sql.SQL("COPY (SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT {}) TO STDOUT").format(
            self._names(self._source.columns), self._table, sql.SQL(" AND ").join(conditions), key, sql.Literal(limit)
        )
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            return [bytes(row).decode()[:-1] for row in copy]

    def _chosen(self, keys: Sequence[Sequence[str]], columns: Sequence[str], window: Window | None) -> Iterator[Buffer]:
        if not keys:
            return
        query = sql.SQL("COPY (SELECT {} FROM {} WHERE {} AND {}) TO STDOUT").format(
            self._names(columns),
            self._table,
            self._among(keys),
            self._within(window) if window else sql.SQL("true"),
        )
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            yield from copy

    def awaits(self, key: Sequence[str], watermark: datetime | None) -> bool:
        """Whether a window from this watermark on, however far it goes, holds the lead with these key values."""
        condition = self._among([key])
        if watermark is not None:
            lower = self._literal(watermark - timedelta(seconds=self._source.lookback))
            condition += sql.SQL(" AND {} >= {}").format(sql.Identifier(self._source.watermark), lower)
        return bool(self._one(sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(self._table, condition)))

    def _among(self, keys: Sequence[Sequence[str]]) -> sql.Composed:
        values = sql.SQL(", ").join(sql.SQL("({})").format(self._values(key)) for key in keys)
        return sql.SQL("({}) IN ({})").format(self._names(self._source.key), values)

    def _oldest_writer(self) -> tuple[datetime, int, str] | None:
        values = {"application": APPLICATION_NAME, "ignored": list(self._source.ignore_roles)}
        return self._connection.execute(OLDEST_WRITER, values).fetchone()

    def _within(self, window: Window, lookback: float = 0.0) -> sql.Composable:
        column = sql.Identifier(self._source.watermark)
        conditions = [sql.SQL("{} < {}").format(column, self._literal(window.upper))]
        if window.lower is not None:
            lower = window.lower - timedelta(seconds=lookback)
            conditions.append(sql.SQL("{} >= {}").format(column, self._literal(lower)))
        return sql.SQL(" AND ").join(conditions)

    def _moment(self) -> sql.Composable:
        """The watermark column as timestamptz."""
        kind, column = self._source.watermark_kind, sql.Identifier(self._source.watermark)
        if kind == "timestamptz":
            return column
        if kind == "timestamp":
            return sql.SQL("({} AT TIME ZONE {})").format(column, sql.Literal(self._source.timezone))
        unit = sql.Literal("1 second" if kind == "epoch_s" else "1 millisecond")
        return sql.SQL("(timestamptz 'epoch' + {} * {}::interval)").format(column, unit)

    def _one(self, query: LiteralString | sql.Composed, values: dict[str, Any] | None = None) -> Any:
        row = self._connection.execute(query, values).fetchone()
        return row[0] if row else None

    def _floor(self, moment: datetime) -> datetime:
        """The bound in the resolution of the column: a later change may carry the same second as an earlier one."""
        kind = self._source.watermark_kind
        moment = moment.astimezone(UTC)
        if kind == "epoch_s":
            return moment.replace(microsecond=0)
        if kind == "epoch_ms":
            return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
        return moment

    def _literal(self, moment: datetime) -> sql.Composable:
        kind = self._source.watermark_kind
        if kind == "timestamptz":
            return sql.Literal(moment)
        if kind == "timestamp":
            return sql.SQL("({} AT TIME ZONE {})").format(sql.Literal(moment), sql.Literal(self._source.timezone))
        microseconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        return sql.Literal(microseconds // (1_000_000 if kind == "epoch_s" else 1000))

    def _values(self, values: Sequence[str]) -> sql.Composable:
        return sql.SQL(", ").join(map(sql.Literal, values))

    def _names(self, columns: Sequence[str]) -> sql.Composable:
        return sql.SQL(", ").join(map(sql.Identifier, columns))
