"""Locks. The fence keeps loads of one destination apart, and what a dead sender had under way is waited out.

The lock is PostgreSQL's advisory lock of a session, so it is gone the moment its holder dies. The same session
claims and settles: a holder that lost the lock can't write the ledger either. Shards of one load hold different leads:
they share the destination's lock with each other, and with nobody else.

`busy_until` in a sender's row is infinity from its first claim until every request was answered. Whoever finds one set
has to be alone: it waits as long as a request may take at most, and then ends what a CRM was handed and may still be at
work on, since no time bounds that. As long as it can't be ended nobody sends, and `busy_until` stays infinity.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from leadsync.errors import FenceLost, LeadsyncError, Unavailable

DESTINATION_LOCKS = 7_301_401
PIPELINE_LOCKS = 7_301_402
RECONCILE_LOCKS = 7_301_403
SHARD_LOCKS = 7_301_404
ALERT_LOCK = 7_301_405
MOST_SHARDS = 64
# A sender relies at most this long on the last time that the lock was seen to be its own.
CHECK_SECONDS = 4.0
# A sender whose lock nobody confirms for so long gives up: its load is stuck or dead.
PATIENCE_SECONDS = 60.0
ANOTHER_LOAD = "another load of this destination"

TRY: LiteralString = "SELECT pg_try_advisory_lock(%(class)s, %(number)s)"
TRY_SHARED: LiteralString = "SELECT pg_try_advisory_lock_shared(%(class)s, %(number)s)"
RELEASE: LiteralString = "SELECT pg_advisory_unlock(%(class)s, %(number)s)"
RELEASE_SHARED: LiteralString = "SELECT pg_advisory_unlock_shared(%(class)s, %(number)s)"
PIPELINE_NUMBER: LiteralString = "SELECT hashtext(%(pipeline)s)"

# Whose shards share the destination's lock; it changes under the exclusive lock only.
LOADING: LiteralString = "SELECT loading FROM leadsync.watermark WHERE destination_id = %(destination)s"
SET_LOADING: LiteralString = """
UPDATE leadsync.watermark SET loading = %(sync_id)s WHERE destination_id = %(destination)s
"""

# Seconds that a request of an earlier sender may still be under way.
BUSY_FOR: LiteralString = """
SELECT extract(epoch FROM max(least(busy_until, now() + %(longest)s * interval '1 second')) - now())::float8
  FROM leadsync.sender
 WHERE destination_id = %(destination)s AND busy_until > now()
"""
IS_BUSY: LiteralString = """
SELECT EXISTS (SELECT FROM leadsync.sender
                WHERE destination_id = %(destination)s AND shard = %(shard)s AND busy_until > now())
"""
SET_BUSY: LiteralString = """
INSERT INTO leadsync.sender AS s (destination_id, shard, busy_until) VALUES (%(destination)s, %(shard)s, 'infinity')
ON CONFLICT (destination_id, shard) DO UPDATE SET busy_until = 'infinity' WHERE s.busy_until IS DISTINCT FROM 'infinity'
"""
SET_FREE: LiteralString = """
UPDATE leadsync.sender
   SET busy_until = CASE WHEN %(seconds)s > 0 THEN now() + %(seconds)s * interval '1 second' END
 WHERE destination_id = %(destination)s AND shard = %(shard)s
"""
SET_ALL_FREE: LiteralString = "UPDATE leadsync.sender SET busy_until = NULL WHERE destination_id = %(destination)s"


class Fence:
    """Held while a load sends. Its connection is the load's own, in autocommit between transactions."""

    def __init__(
        self, connection: psycopg.Connection[Any], destination: int, longest_request: float, shard: int = 0
    ) -> None:
        self._connection = connection
        self._sender = {"destination": destination, "shard": shard}
        self._longest = longest_request
        self._lost = threading.Event()
        self._known = time.monotonic()
        self._unanswered_until = 0.0
        self._left = False

    def busy(self) -> None:
        """Says that requests may be under way from here on; in the transaction of the claims."""
        self._connection.execute(SET_BUSY, self._sender)

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
        self._connection.execute(SET_FREE, {**self._sender, "seconds": seconds})

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
    longest = longest_request + CHECK_SECONDS
    with _lock(connection, DESTINATION_LOCKS, destination, patience, ANOTHER_LOAD, sleep):
        _wait_out(connection, destination, longest, end_work, sleep)
        yield from _held(Fence(connection, destination, longest))


@contextmanager
def share(
    connection: psycopg.Connection[Any],
    destination: int,
    longest_request: float,
    sync_id: str,
    shard: int,
    *,
    end_work: Callable[[], bool] = lambda: False,
    patience: float = 3600.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Fence]:
    """As `hold`, but together with the other shards of the same load.

    A shard whose predecessor died waits until the others have ended: what it left at work in the CRM can't be told from
    their work.
    """
    longest, until = longest_request + CHECK_SECONDS, time.monotonic() + patience
    whole = {"class": DESTINATION_LOCKS, "number": destination}
    part = {"class": SHARD_LOCKS, "number": destination * MOST_SHARDS + shard}
    loading = {"destination": destination, "shard": shard, "sync_id": UUID(sync_id)}
    while not _join(
        connection, whole, part, loading, lambda: _wait_out(connection, destination, longest, end_work, sleep)
    ):
        if time.monotonic() > until:
            raise Unavailable(f"{ANOTHER_LOAD} has held its lock for {patience:.0f} s")
        sleep(0.2)
    try:
        yield from _held(Fence(connection, destination, longest, shard))
    finally:
        _release(connection, (RELEASE, part), (RELEASE_SHARED, whole))


def _join(
    connection: psycopg.Connection[Any],
    whole: dict[str, int],
    part: dict[str, int],
    loading: dict[str, Any],
    wait_out: Callable[[], None],
) -> bool:
    """Takes a shard's lock, and its share of the destination's; False when somebody else has one of them."""
    if _one(connection, TRY, whole):
        # Nobody else is here: what earlier loads have left is waited out before any shard of this one gets in.
        try:
            wait_out()
            connection.execute(SET_LOADING, loading)
            connection.execute(TRY_SHARED, whole)
        finally:
            _release(connection, (RELEASE, whole))
    elif not _one(connection, TRY_SHARED, whole):
        return False
    # While it is shared nobody changes what is loading.
    mine = _one(connection, LOADING, loading) == loading["sync_id"] and not _one(connection, IS_BUSY, loading)
    if mine and _one(connection, TRY, part):
        return True
    _release(connection, (RELEASE_SHARED, whole))
    return False


def _held(fence: Fence) -> Iterator[Fence]:
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


def _wait_out(
    connection: psycopg.Connection[Any],
    destination: int,
    longest: float,
    end_work: Callable[[], bool],
    sleep: Callable[[float], None],
) -> None:
    """Waits until nothing that dead senders left can have an effect any more; only by whoever is alone."""
    seconds = _one(connection, BUSY_FOR, {"destination": destination, "longest": longest})
    if seconds is not None:
        # First the wait: until then a request of the dead sender's may hand the CRM work that was not there yet.
        sleep(seconds)
        if end_work():
            sleep(longest)
        connection.execute(SET_ALL_FREE, {"destination": destination})


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
def alert_lock(
    connection: psycopg.Connection[Any], *, patience: float = 300.0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """The lock that keeps two checks for alerts apart: each would send the same message."""
    with _lock(connection, ALERT_LOCK, 0, patience, "another check for alerts", sleep):
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
    while not _one(connection, TRY, key):
        if time.monotonic() > until:
            raise Unavailable(f"{holder} has held its lock for {patience:.0f} s")
        sleep(0.2)
    try:
        yield
    finally:
        _release(connection, (RELEASE, key))


def _release(connection: psycopg.Connection[Any], *locks: tuple[LiteralString, dict[str, int]]) -> None:
    """A session that is gone has lost its locks already."""
    for statement, key in locks:
        if not connection.broken and not connection.closed:
            connection.execute(statement, key)


def _one(connection: psycopg.Connection[Any], query: LiteralString, values: dict[str, Any]) -> Any:
    row = connection.execute(query, values).fetchone()
    return row[0] if row else None
