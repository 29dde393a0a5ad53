"""The fence: loads of one destination never overlap, and what a dead sender had under way is waited out.

The lock is PostgreSQL's advisory lock of a session, so it is gone the moment its holder dies. The same session
claims and settles: a holder that lost the lock can't write the ledger either. `sending` in the destination's row
is set with the first claim and cleared after the last request was answered; whoever finds it set took over from a
sender that died, and waits as long as its longest request may take.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg

from leadsync.errors import FenceLost, Unavailable

LOCK_CLASS = 7_301_401
# A sender asks at most this long after it last knew that the lock was its own.
CHECK_SECONDS = 2.0

TRY: LiteralString = "SELECT pg_try_advisory_lock(%(class)s, %(destination)s)"
RELEASE: LiteralString = "SELECT pg_advisory_unlock(%(class)s, %(destination)s)"
IS_SENDING: LiteralString = "SELECT sending FROM leadsync.watermark WHERE destination_id = %(destination)s"
SET_SENDING: LiteralString = """
UPDATE leadsync.watermark SET sending = %(sending)s
 WHERE destination_id = %(destination)s AND sending <> %(sending)s
"""


class Fence:
    """Held while a load sends. Its connection is the load's own, in autocommit between transactions."""

    def __init__(self, connection: psycopg.Connection[Any], destination: int) -> None:
        self._connection = connection
        self._destination = destination
        self._lost = threading.Event()
        self._known = time.monotonic()

    def sending(self, sending: bool) -> None:
        """Says whether requests may be under way from here on."""
        self._connection.execute(SET_SENDING, {"sending": sending, "destination": self._destination})

    def confirm(self) -> None:
        """Asks the database whether the lock's session still lives; only by the thread that owns the connection."""
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self._lost.set()
            raise FenceLost("the connection that holds the destination's lock was lost; nothing more is sent") from None
        self._known = time.monotonic()

    def check(self) -> None:
        """Raises FenceLost when the lock may be another's by now; asked by every sender before every request."""
        if self._lost.is_set() or time.monotonic() - self._known > CHECK_SECONDS * 2:
            raise FenceLost("the destination's lock may be lost; nothing more is sent")


@contextmanager
def hold(
    connection: psycopg.Connection[Any],
    destination: int,
    longest_request: float,
    *,
    patience: float = 3600.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Fence]:
    """Waits for the destination's lock and holds it. Raises Unavailable when another load holds it for too long."""
    key = {"class": LOCK_CLASS, "destination": destination}
    until = time.monotonic() + patience
    while not _one(connection, TRY, key):
        if time.monotonic() > until:
            raise Unavailable(f"another load of this destination has held its lock for {patience:.0f} s")
        sleep(0.2)
    if _one(connection, IS_SENDING, key):
        sleep(longest_request + CHECK_SECONDS * 2)
    fence = Fence(connection, destination)
    fence.sending(False)
    try:
        yield fence
    finally:
        if not connection.broken:
            connection.execute(RELEASE, key)


def _one(connection: psycopg.Connection[Any], query: LiteralString, values: dict[str, Any]) -> bool:
    row = connection.execute(query, values).fetchone()
    return bool(row and row[0])
