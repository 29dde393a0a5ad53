"""How far each destination is in step with its source, and whether it is parked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg

# A destination appears with its first run. Its start is fixed then: NULL is the beginning.
REGISTER: LiteralString = """
INSERT INTO leadsync.watermark (pipeline, destination, watermark, starts_at)
VALUES (%(pipeline)s, %(destination)s, %(start)s, %(start)s)
ON CONFLICT (pipeline, destination) DO NOTHING
"""

READ: LiteralString = """
SELECT destination, destination_id, watermark, parked_at, parked_because, probe_after, starts_at
  FROM leadsync.watermark
 WHERE pipeline = %(pipeline)s AND destination = ANY (%(destinations)s)
"""

# It only advances, for all destinations that took part at once.
ADVANCE: LiteralString = """
UPDATE leadsync.watermark
   SET watermark = greatest(watermark, %(upper)s), updated_at = now()
 WHERE pipeline = %(pipeline)s AND destination = ANY (%(destinations)s)
"""

PARK: LiteralString = """
UPDATE leadsync.watermark SET parked_at = now(), parked_because = %(because)s, probe_after = %(probe_after)s
 WHERE destination_id = %(destination)s AND parked_at IS NULL
"""

UNPARK: LiteralString = """
UPDATE leadsync.watermark SET parked_at = NULL, parked_because = NULL, probe_after = NULL, unparked_at = now()
 WHERE destination_id = %(destination)s AND parked_at IS NOT NULL
"""

# The last loads of a destination in runs, newest first: result, class of the error, when its quota is filled again.
# Those before it was last unparked do not count, but for the newest of them: one more failure parks it again. A load in
# shards is one, and fails with any of them.
LAST_LOADS: LiteralString = """
SELECT CASE WHEN bool_or(result = 0) THEN 0 WHEN bool_and(result IS NOT NULL) THEN 1 END, max(failure), max(resets_at),
       bool_and(since_unparked)
  FROM (SELECT l.sync_id, l.id, l.result, l.failure, l.resets_at,
               l.start_at > coalesce(w.unparked_at, '-infinity') AS since_unparked
          FROM leadsync.operation_log l
          JOIN leadsync.sync_operation o USING (sync_id)
          JOIN leadsync.watermark w USING (destination_id)
         WHERE l.destination_id = %(destination)s AND o.kind = 'run'
         ORDER BY l.id DESC LIMIT %(count)s * 64) newest
 GROUP BY sync_id ORDER BY max(id) DESC LIMIT %(count)s
"""


@dataclass(frozen=True, slots=True)
class Watermark:
    """One destination's place; `at` None is before the first row. `parked_at` is None while it takes part in runs.

    `starts_at` is where it began: older leads are not its business unless a backfill delivered them. None: all are.
    """

    destination: str
    destination_id: int
    at: datetime | None
    parked_at: datetime | None = None
    parked_because: str | None = None
    probe_after: datetime | None = None
    starts_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LastLoad:
    """How a load in a run ended: `result` 1, 0 or None (killed, or still running); `failure` is the error's class."""

    result: int | None
    failure: str | None
    resets_at: datetime | None
    since_unparked: bool


def register(connection: psycopg.Connection[Any], pipeline: str, destination: str, start: datetime | None) -> None:
    """Makes the destination known; one that is known keeps its watermark."""
    connection.execute(REGISTER, {"pipeline": pipeline, "destination": destination, "start": start})


def read(connection: psycopg.Connection[Any], pipeline: str, destinations: Sequence[str]) -> dict[str, Watermark]:
    """The watermarks of the destinations that are known, by name."""
    rows = connection.execute(READ, {"pipeline": pipeline, "destinations": list(destinations)})
    return {row[0]: Watermark(*row) for row in rows}


def advance(connection: psycopg.Connection[Any], pipeline: str, destinations: Sequence[str], upper: datetime) -> None:
    """Moves the watermarks to `upper`, never back."""
    connection.execute(ADVANCE, {"pipeline": pipeline, "destinations": list(destinations), "upper": upper})


def park(connection: psycopg.Connection[Any], destination: int, because: str, probe_after: datetime | None) -> bool:
    """Takes a destination out of the runs; False when it was parked already."""
    values = {"destination": destination, "because": because, "probe_after": probe_after}
    return connection.execute(PARK, values).rowcount == 1


def unpark(connection: psycopg.Connection[Any], destination: int) -> bool:
    """Lets a destination take part again; False when it was not parked."""
    return connection.execute(UNPARK, {"destination": destination}).rowcount == 1


def last_loads(connection: psycopg.Connection[Any], destination: int, count: int) -> list[LastLoad]:
    """How the last loads of a destination in runs ended, newest first."""
    return [LastLoad(*row) for row in connection.execute(LAST_LOADS, {"destination": destination, "count": count})]
