"""Locks. The fence keeps loads of one destination apart, and what a dead sender had under way is waited out.

The lock is PostgreSQL's advisory lock of a session, so it is gone the moment its holder dies. The same session
claims and settles: a holder that lost the lock can't write the ledger either. `busy_until` in the destination's row
is infinity from the first claim until every request was answered; whoever finds it set waits as long as a request
may take at most, and then ends what a CRM was handed and may still be at work on: no time bounds that. As long as it
can't be ended nobody sends, and `busy_until` stays infinity.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg

from leadsync.errors import FenceLost, LeadsyncError, Unavailable

DESTINATION_LOCKS = 7_301_401
PIPELINE_LOCKS = 7_301_402
RECONCILE_LOCKS = 7_301_403
# A sender relies at most this long on the last time that the lock was seen to be its own.
CHECK_SECONDS = 4.0
# A sender whose lock nobody confirms for so long gives up: its load is stuck or dead.
PATIENCE_SECONDS = 60.0

TRY: LiteralString = "SELECT pg_try_advisory_lock(%(class)s, %(number)s)"
RELEASE: LiteralString = "SELECT pg_advisory_unlock(%(class)s, %(number)s)"
PIPELINE_NUMBER: LiteralString = "SELECT hashtext(%(pipeline)s)"

# Seconds that a request of an earlier sender may still be under way.
BUSY_FOR: LiteralString = """
SELECT extract(epoch FROM least(busy_until, now() + %(longest)s * interval '1 second') - now())::float8
  FROM leadsync.watermark
 WHERE destination_id = %(destination)s AND busy_until > now()
"""
SET_BUSY: LiteralString = """
UPDATE leadsync.watermark SET busy_until = 'infinity'
 WHERE destination_id = %(destination)s AND busy_until IS DISTINCT FROM 'infinity'
"""
SET_FREE: LiteralString = """
UPDATE leadsync.watermark
   SET busy_until = CASE WHEN %(seconds)s > 0 THEN now() + %(seconds)s * interval '1 second' END
 WHERE destination_id = %(destination)s
"""


class Fence:
    """Held while a load sends. Its connection is the load's own, in autocommit between transactions."""

    def __init__(self, connection: psycopg.Connection[Any], destination: int, longest_request: float) -> None:
        self._connection = connection
        self._destination = destination
        self._longest = longest_request
        self._lost = threading.Event()
        self._known = time.monotonic()
        self._unanswered_until = 0.0
        self._left = False

    def busy(self) -> None:
        """Says that requests may be under way from here on; in the transaction of the claims."""
        self._connection.execute(SET_BUSY, {"destination": self._destination})

    def unanswered(self) -> None:
        """A request got no answer: it may still land, as long as a request may take."""
        self._unanswered_until = time.monotonic() + self._longest

    def left_at_work(self, left: bool = True) -> None:
        """The CRM may be at work on what it was handed for no known time: whoever comes next has to end that."""
        self._left = left

    def free(self) -> None:
        """All requests are over, but for those without an answer."""
        if self._left:
            return
        seconds = self._unanswered_until - time.monotonic()
        self._connection.execute(SET_FREE, {"destination": self._destination, "seconds": seconds})

    def confirm(self) -> None:
        """Asks the database whether the lock's session still lives; only by the thread that owns the connection."""
        asked = time.monotonic()
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            self.abandon()
            raise FenceLost("the connection that holds the destination's lock was lost; nothing more is sent") from None
        self._known = asked

    def abandon(self) -> None:
        """Nothing more is to be sent."""
        self._lost.set()

    def check(self) -> None:
        """Asked by every sender before every request; waits for a confirmation, raises FenceLost without one."""
        while not self._lost.is_set():
            age = time.monotonic() - self._known
            if age <= CHECK_SECONDS:
                return
            if age > PATIENCE_SECONDS:
                self.abandon()
            self._lost.wait(0.05)
        raise FenceLost("the destination's lock may be lost; nothing more is sent")


@contextmanager
def hold(
    connection: psycopg.Connection[Any],
    destination: int,
    longest_request: float,
    *,
    end_work: Callable[[], bool] = lambda: False,
    patience: float = 3600.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Fence]:
    """Waits for the destination's lock and holds it. Raises Unavailable when another load holds it for too long.

    `end_work` ends what a sender that died left at work in the CRM, and tells whether that may have an effect for as
    long as a request may take; what it raises leaves all as it was.
    """
    with _lock(connection, DESTINATION_LOCKS, destination, patience, "another load of this destination", sleep):
        longest = longest_request + CHECK_SECONDS
        row = connection.execute(BUSY_FOR, {"destination": destination, "longest": longest}).fetchone()
        if row:
            # First the wait: until then a request of the dead sender's may hand the CRM work that was not there yet.
            sleep(row[0])
            if end_work():
                sleep(longest)
        fence = Fence(connection, destination, longest)
        fence.confirm()
        try:
            yield fence
        except FenceLost:
            raise
        except LeadsyncError:
            fence.free()
            raise
        finally:
            fence.abandon()
        fence.free()  # not after a surprise: whoever comes next then waits


def wait_for_load(
    connection: psycopg.Connection[Any],
    destination: int,
    *,
    patience: float = 300.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns once a load of the destination that is under way has ended. Raises Unavailable when it takes too long."""
    with _lock(connection, DESTINATION_LOCKS, destination, patience, "a load of this destination", sleep):
        pass


@contextmanager
def pipeline_lock(
    connection: psycopg.Connection[Any],
    pipeline: str,
    *,
    patience: float = 3600.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """The lock under which a sequence is taken and the lead store is read, so that a higher sequence is newer."""
    row = connection.execute(PIPELINE_NUMBER, {"pipeline": pipeline}).fetchone()
    number = row[0] if row else 0
    with _lock(connection, PIPELINE_LOCKS, number, patience, "another snapshot of this pipeline", sleep):
        yield


@contextmanager
def reconcile_lock(
    connection: psycopg.Connection[Any],
    destination: int,
    *,
    patience: float = 3600.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """The lock that keeps two reconciliations of one destination apart: each would take the other's quota and place."""
    holder = "another reconciliation of this destination"
    with _lock(connection, RECONCILE_LOCKS, destination, patience, holder, sleep):
        yield


@contextmanager
def _lock(
    connection: psycopg.Connection[Any],
    kind: int,
    number: int,
    patience: float,
    holder: str,
    sleep: Callable[[float], None],
) -> Iterator[None]:
    key = {"class": kind, "number": number}
    until = time.monotonic() + patience
    while True:
        row = connection.execute(TRY, key).fetchone()
        if row and row[0]:
            break
        if time.monotonic() > until:
            raise Unavailable(f"{holder} has held its lock for {patience:.0f} s")
        sleep(0.2)
    try:
        yield
    finally:
        if not connection.broken and not connection.closed:
            connection.execute(RELEASE, key)
