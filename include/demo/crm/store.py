"""What a simulated CRM holds, in SQLite: records, and a journal of every accepted change. Survives kill -9."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    external_id TEXT,
    fields TEXT NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS record_external_id ON record (external_id, deleted);
-- The values of unique fields, of live records only: a deleted record frees its own.
CREATE TABLE IF NOT EXISTS unique_value (
    field TEXT NOT NULL, value TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (field, value)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS unique_value_number ON unique_value (number);
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, action TEXT NOT NULL,
    number INTEGER NOT NULL, external_id TEXT, fields TEXT NOT NULL
);
-- What works by itself after its request was answered, in the vendor's words.
CREATE TABLE IF NOT EXISTS job (number INTEGER PRIMARY KEY AUTOINCREMENT, alive INTEGER NOT NULL, body TEXT NOT NULL);
-- Fields that were created through the vendor's API.
CREATE TABLE IF NOT EXISTS definition (name TEXT PRIMARY KEY, body TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One record. `fields` holds those with a value, the external id's among them; times are RFC 3339 in UTC."""

    number: int
    external_id: str | None
    fields: dict[str, Any]
    deleted: bool
    created_at: str
    updated_at: str


class Store:
    """One CRM's records. Used by one thread; changes are made inside `transaction`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "crm.sqlite"
        self._db = sqlite3.connect(self._path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def changes(self) -> int:
        """The number of the latest change in the journal, 0 when there is none."""
        last: int = self._db.execute("SELECT coalesce(max(seq), 0) FROM journal").fetchone()[0]
        return last

    def writes(self) -> int:
        """A number that grows with everything that is written, records or not."""
        return self._db.total_changes

    def get(self, number: int) -> Row | None:
        """The record with this number, deleted or not."""
        return next(self._rows("SELECT * FROM record WHERE number = ?", (number,)), None)

    def find(self, field: str, value: str) -> Row | None:
        """The live record that has this value in a unique field."""
        query = "SELECT record.* FROM unique_value JOIN record USING (number) WHERE field = ? AND value = ?"
        return next(self._rows(query, (field, value)), None)

    def select(
        self, *, external_ids: Sequence[str] | None = None, numbers: Sequence[int] | None = None, deleted: bool = False
    ) -> Iterator[Row]:
        """Records in the order of their creation, all or those with one of these external ids or numbers; live ones,
        and with `deleted` also deleted ones.
        """
        query = "SELECT * FROM record WHERE deleted <= ?"
        bound: list[Any] = [deleted]
        if external_ids is not None:
            query += " AND external_id IN (SELECT value FROM json_each(?))"
            bound.append(orjson.dumps(external_ids).decode())
        if numbers is not None:
            query += " AND number IN (SELECT value FROM json_each(?))"
            bound.append(orjson.dumps(numbers).decode())
        return self._rows(query + " ORDER BY number", bound)

    def create(
        self, external_id: str | None, fields: Mapping[str, Any], unique: Mapping[str, str], sent: Mapping[str, Any]
    ) -> Row:
        """Adds a record. `unique` are the values of its unique fields, `sent` what the journal is to show."""
        at = _now()
        number: int = self._db.execute(
            "INSERT INTO record (external_id, fields, created_at, updated_at) VALUES (?, ?, ?, ?) RETURNING number",
            (external_id, _text(fields), at, at),
        ).fetchone()[0]
        self._claim(number, unique)
        self._note(at, "create", number, external_id, sent)
        return Row(number, external_id, dict(fields), False, at, at)

    def update(
        self,
        row: Row,
        external_id: str | None,
        fields: Mapping[str, Any],
        unique: Mapping[str, str],
        sent: Mapping[str, Any],
    ) -> Row:
        """Replaces the fields of a record."""
        at = _now()
        self._db.execute(
            "UPDATE record SET external_id = ?, fields = ?, updated_at = ? WHERE number = ?",
            (external_id, _text(fields), at, row.number),
        )
        self._db.execute("DELETE FROM unique_value WHERE number = ?", (row.number,))
        self._claim(row.number, unique)
        self._note(at, "update", row.number, external_id, sent)
        return Row(row.number, external_id, dict(fields), False, row.created_at, at)

    def delete(self, row: Row) -> None:
        """Marks a live record as deleted."""
        at = _now()
        self._db.execute("UPDATE record SET deleted = 1, updated_at = ? WHERE number = ?", (at, row.number))
        self._db.execute("DELETE FROM unique_value WHERE number = ?", (row.number,))
        self._note(at, "delete", row.number, row.external_id, {})

    def add_job(self, body: Mapping[str, Any]) -> int:
        """Keeps a job that does nothing yet; returns its number."""
        added = self._db.execute("INSERT INTO job (alive, body) VALUES (0, ?) RETURNING number", (_text(body),))
        return int(added.fetchone()[0])

    def keep_job(self, number: int, body: Mapping[str, Any], *, alive: bool) -> None:
        """Replaces what is kept of a job."""
        self._db.execute("UPDATE job SET alive = ?, body = ? WHERE number = ?", (alive, _text(body), number))

    def forget_job(self, number: int) -> None:
        self._db.execute("DELETE FROM job WHERE number = ?", (number,))

    def jobs(self, *, alive: bool = False) -> list[tuple[int, dict[str, Any]]]:
        """All jobs in the order of their creation, or only those that are `alive`."""
        rows = self._db.execute("SELECT number, body FROM job WHERE alive >= ? ORDER BY number", (alive,))
        return [(number, orjson.loads(body)) for number, body in rows]

    def job(self, number: int) -> dict[str, Any] | None:
        found = self._db.execute("SELECT body FROM job WHERE number = ?", (number,)).fetchone()
        return orjson.loads(found[0]) if found else None

    def define(self, name: str, body: Mapping[str, Any]) -> None:
        """Keeps a field that was created through the vendor's API."""
        self._db.execute("INSERT INTO definition VALUES (?, ?)", (name, _text(body)))

    def definitions(self) -> list[dict[str, Any]]:
        """Those fields, oldest first."""
        return [orjson.loads(body) for (body,) in self._db.execute("SELECT body FROM definition ORDER BY rowid")]

    def stats(self) -> dict[str, int]:
        """Counts: live and deleted records, external ids with more than one live record, changes."""
        live, deleted = self._db.execute("SELECT count(*) - total(deleted), total(deleted) FROM record").fetchone()
        doubled = self._db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM record WHERE NOT deleted AND external_id IS NOT NULL"
            " GROUP BY external_id HAVING count(*) > 1)"
        ).fetchone()[0]
        journal = self._db.execute("SELECT count(*) FROM journal").fetchone()[0]
        return {"records": int(live), "deleted": int(deleted), "doubled": doubled, "journal": journal}

    def latest(self, limit: int) -> list[Row]:
        """The records that changed last, newest first."""
        query = (
            "SELECT record.* FROM (SELECT number, max(seq) AS seq FROM (SELECT number, seq FROM journal"
            " ORDER BY seq DESC LIMIT ?) GROUP BY number) JOIN record USING (number) ORDER BY seq DESC"
        )
        return list(self._rows(query, (limit,)))

    def journal(self, after: int, limit: int) -> list[dict[str, Any]]:
        """At most `limit` accepted changes in order, from the one after `after`."""
        query = "SELECT seq, at, action, external_id, fields FROM journal WHERE seq > ? ORDER BY seq LIMIT ?"
        names = ("seq", "at", "action", "external_id")
        return [
            {**dict(zip(names, entry, strict=True)), "fields": orjson.Fragment(fields)}
            for *entry, fields in self._db.execute(query, (after, limit))
        ]

    def dump(self, *, deleted: bool) -> Iterator[Row]:
        """One record per external id as of now, whatever changes while they are read: the live one, else the last."""
        reader = sqlite3.connect(self._path, isolation_level=None)
        try:
            # SQLite takes the other columns from the row that holds the maximum.
            query = (
                "SELECT *, max((1 - deleted) << 40 | number) FROM record WHERE deleted <= ?"
                " GROUP BY coalesce(external_id, number)"
            )
            for values in reader.execute(query, (deleted,)):
                yield _row(values[:-1])
        finally:
            reader.close()

    def reset(self) -> None:
        """Forgets everything; numbers are not used again."""
        with self.transaction():
            for table in ("record", "unique_value", "journal", "job", "definition"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - names of this module

    def _rows(self, query: str, bound: Iterable[Any]) -> Iterator[Row]:
        return map(_row, self._db.execute(query, tuple(bound)))

    def _claim(self, number: int, unique: Mapping[str, str]) -> None:
        self._db.executemany(
            "INSERT INTO unique_value VALUES (?, ?, ?)", [(field, value, number) for field, value in unique.items()]
        )

    def _note(self, at: str, action: str, number: int, external_id: str | None, sent: Mapping[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO journal (at, action, number, external_id, fields) VALUES (?, ?, ?, ?, ?)",
            (at, action, number, external_id, _text(sent)),
        )


def _row(values: tuple[Any, ...]) -> Row:
    number, external_id, fields, deleted, created_at, updated_at = values
    return Row(number, external_id, orjson.loads(fields), bool(deleted), created_at, updated_at)


def _text(fields: Mapping[str, Any]) -> str:
    return orjson.dumps(fields).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
