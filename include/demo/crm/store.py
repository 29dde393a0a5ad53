"""What a simulated CRM holds, in SQLite: records, and a journal of every accepted change. Survives kill -9."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS record (
    number INTEGER PRIMARY KEY, external_id TEXT, email TEXT, fields TEXT NOT NULL, deleted INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS record_external_id ON record (external_id);
CREATE INDEX IF NOT EXISTS record_email ON record (email);
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, action TEXT NOT NULL, external_id TEXT, fields TEXT NOT NULL
);
"""


class Store:
    """One CRM's records. All access is inside `transaction`, which also keeps threads apart."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(folder / "crm.sqlite", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def find(self, column: str, value: Any) -> tuple[int, dict[str, Any]] | None:
        """Number and fields of the live record with this `number`, `external_id` or `email`."""
        queries = {
            "number": "SELECT number, fields FROM record WHERE NOT deleted AND number = ?",
            "external_id": "SELECT number, fields FROM record WHERE NOT deleted AND external_id = ?",
            "email": "SELECT number, fields FROM record WHERE NOT deleted AND email = ?",
        }
        row = self._db.execute(queries[column], (value,)).fetchone()
        return (row[0], json.loads(row[1])) if row else None

    def exists(self, number: int) -> bool:
        """Whether there is, or ever was, a record with this number."""
        return self._db.execute("SELECT 1 FROM record WHERE number = ?", (number,)).fetchone() is not None

    def create(self, external_id: str | None, fields: Mapping[str, Any], email: str | None) -> int:
        """Adds a record; returns its number."""
        text = json.dumps(fields)
        row = self._db.execute(
            "INSERT INTO record (external_id, email, fields) VALUES (?, ?, ?) RETURNING number",
            (external_id, email, text),
        ).fetchone()
        self._note("create", external_id, text)
        return int(row[0])

    def update(self, number: int, external_id: str | None, fields: Mapping[str, Any], email: str | None) -> None:
        """Replaces a record's fields."""
        text = json.dumps(fields)
        self._db.execute("UPDATE record SET fields = ?, email = ? WHERE number = ?", (text, email, number))
        self._note("update", external_id, text)

    def delete(self, number: int) -> None:
        """Marks a record deleted."""
        row = self._db.execute(
            "UPDATE record SET deleted = 1 WHERE number = ? AND NOT deleted RETURNING external_id", (number,)
        ).fetchone()
        if row:
            self._note("delete", row[0], "{}")

    def records(self, *, deleted: bool = False) -> dict[str, Any]:
        """External id → number, fields; also deleted ones if asked for (a live one wins)."""
        query = """
            SELECT external_id, number, fields, deleted FROM record
             WHERE NOT deleted OR ? ORDER BY deleted DESC, number
        """
        with self._lock:
            rows = self._db.execute(query, (deleted,)).fetchall()
        return {
            str(key): {"id": number, "fields": json.loads(text), "deleted": bool(gone)}
            for key, number, text, gone in rows
        }

    def journal(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Accepted changes in order, from the one after `after` on."""
        query = "SELECT seq, at, action, external_id, fields FROM journal WHERE seq > ? ORDER BY seq LIMIT ?"
        with self._lock:
            rows = self._db.execute(query, (after, limit)).fetchall()
        names = ("seq", "at", "action", "external_id")
        return [{**dict(zip(names, row[:4], strict=True)), "fields": json.loads(row[4])} for row in rows]

    def stats(self) -> dict[str, int]:
        """Counts; `doubled` are external ids with more than one live record."""
        doubled = """
            SELECT 1 FROM record WHERE NOT deleted AND external_id IS NOT NULL
             GROUP BY external_id HAVING count(*) > 1
        """
        queries = {
            "records": "SELECT count(*) FROM record WHERE NOT deleted",
            "deleted": "SELECT count(*) FROM record WHERE deleted",
            "doubled": f"SELECT count(*) FROM ({doubled})",  # noqa: S608
            "journal": "SELECT count(*) FROM journal",
            "last": "SELECT coalesce(max(seq), 0) FROM journal",
        }
        with self._lock:
            return {name: self._db.execute(query).fetchone()[0] for name, query in queries.items()}

    def reset(self) -> None:
        """Forgets everything."""
        with self.transaction():
            self._db.execute("DELETE FROM record")
            self._db.execute("DELETE FROM journal")

    def _note(self, action: str, external_id: str | None, text: str) -> None:
        self._db.execute(
            "INSERT INTO journal (at, action, external_id, fields) VALUES (?, ?, ?, ?)",
            (time.time(), action, external_id, text),
        )
