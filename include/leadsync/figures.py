"""What is so now: of each destination whether it is up to date and what waits, of each pipeline what holds it back.

For all who watch: the page, Prometheus, alerts. Leadsync's own database answers at once, by index, and counts end at a
bound. Lead store and Redis (redis_state.py) may be slow or away: whoever asks them decides how long to wait, and hands
in what they told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg

from leadsync.config import Pipeline
from leadsync.source import Bound, LeadStore, Window

# Counting ends here; people read "10,000+".
BOUND = 10_000
# Seconds that a destination may be behind and still counts as up to date: a run a minute, and the time it takes.
IN_STEP = 180.0

TARGETS: LiteralString = """
SELECT destination_id, pipeline, destination, watermark, parked_at, parked_because, probe_after
  FROM leadsync.watermark ORDER BY pipeline, destination
"""

# The newest load that has ended, and the last one that ended well.
LAST: LiteralString = """
SELECT d.number, s.end_at, l.end_at, l.result, l.failure, l.error
  FROM unnest(%(numbers)s::int[]) AS d (number)
  LEFT JOIN LATERAL (SELECT end_at FROM leadsync.operation_log
                      WHERE destination_id = d.number AND result = 1 ORDER BY end_at DESC LIMIT 1) s ON true
  LEFT JOIN LATERAL (SELECT end_at, result, failure, error FROM leadsync.operation_log
                      WHERE destination_id = d.number AND end_at IS NOT NULL ORDER BY id DESC LIMIT 1) l ON true
"""

QUEUES: LiteralString = """
SELECT d.number,
       (SELECT count(*) FROM (SELECT FROM leadsync.retry_queue WHERE destination_id = d.number LIMIT %(bound)s) r),
       (SELECT count(*) FROM (SELECT FROM leadsync.dead_letter
                               WHERE destination_id = d.number AND resolved_at IS NULL LIMIT %(bound)s) l)
  FROM unnest(%(numbers)s::int[]) AS d (number)
"""

# From the opening of a run's window to its commit, of the newest run of each pipeline that was committed.
RUN_SECONDS: LiteralString = """
SELECT p.name, r.seconds FROM unnest(%(pipelines)s::text[]) AS p (name)
  CROSS JOIN LATERAL (SELECT extract(epoch FROM committed_at - started_at)::float8 AS seconds
                        FROM leadsync.sync_operation
                       WHERE pipeline = p.name AND kind = 'run' AND committed_at IS NOT NULL
                         AND started_at > now() - interval '1 day'
                       ORDER BY started_at DESC LIMIT 1) r
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A destination as the database knows it."""

    number: int
    pipeline: str
    destination: str
    watermark: datetime | None
    parked_at: datetime | None
    parked_because: str | None
    probe_after: datetime | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the database knows of a destination: its newest load that has ended, and its queues (bounded counts).

    `result` is 1 or 0, None before the first load; `failure` the class of the error.
    """

    last_success: datetime | None = None
    ended: datetime | None = None
    result: int | None = None
    failure: str | None = None
    error: str | None = None
    retry: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Behind:
    """One destination: its watermark when it was asked, the oldest change from there on, and how many (bounded)."""

    watermark: datetime | None
    oldest: datetime | None
    waiting: int


@dataclass(frozen=True, slots=True)
class SourceState:
    """The lead store of one pipeline, and what each destination (by name) has not got yet."""

    bound: Bound
    behind: Mapping[str, Behind]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a destination stands: `state` is up_to_date, behind, failing or parked.

    `behind` are seconds since the oldest change that is not delivered yet, the most that it can be unless `exact`;
    `waiting` the leads in the main queue, bounded, None where the lead store does not tell.
    """

    state: str
    behind: float
    exact: bool
    waiting: int | None


def targets(state: psycopg.Connection[Any]) -> list[Target]:
    """All destinations that the database knows."""
    return [Target(*row) for row in state.execute(TARGETS)]


def facts(state: psycopg.Connection[Any], numbers: Sequence[int]) -> dict[int, Facts]:
    """By the destination's number."""
    values = {"numbers": list(numbers), "bound": BOUND + 1}
    last = {number: rest for number, *rest in state.execute(LAST, values)}
    return {number: Facts(*last[number], *queues) for number, *queues in state.execute(QUEUES, values)}


def run_seconds(state: psycopg.Connection[Any], pipelines: Sequence[str]) -> dict[str, float]:
    """How long the newest run that was committed took, by pipeline; none without one in the last day."""
    return dict(state.execute(RUN_SECONDS, {"pipelines": list(pipelines)}).fetchall())


def source_state(
    connection: psycopg.Connection[Any], pipeline: Pipeline, marks: Mapping[str, datetime | None]
) -> SourceState:
    """Asks the lead store with these watermarks, by destination. Raises LeadsyncError and psycopg.Error."""
    store = LeadStore(connection, pipeline.source)
    bound = store.bound()
    far = bound.upper.replace(year=9000)
    found = {
        mark: Behind(mark, store.oldest(mark), store.count(Window(mark, far), BOUND + 1))
        for mark in set(marks.values())
    }
    return SourceState(bound, {name: found[mark] for name, mark in marks.items()})


def standing(known: Target, facts: Facts, source: SourceState | None, now: datetime) -> Standing:
    """By what the database and, where it told anything, the lead store say."""
    behind, waiting, exact = _behind(known, source, now)
    if known.parked_at is not None:
        state = "parked"
    elif facts.result == 0 and facts.failure != "LeftBehind":
        state = "failing"
    else:
        state = "up_to_date" if behind <= IN_STEP else "behind"
    return Standing(state, behind, exact, waiting)


def _behind(known: Target, source: SourceState | None, now: datetime) -> tuple[float, int | None, bool]:
    """Seconds since the oldest change that is not delivered yet, how many wait (bounded), and whether that is known.

    When the lead store does not tell, the watermark's own age is the most that it can be.
    """
    told = source.behind.get(known.destination) if source else None
    if told is None:
        since = known.watermark
        return ((now - since).total_seconds() if since else 0.0, None, False)
    oldest, waiting = told.oldest, told.waiting
    if (
        known.watermark is not None
        and told.watermark != known.watermark
        and (oldest is None or oldest < known.watermark)
    ):
        oldest, waiting = None, 0  # it has moved on since
    return (max(0.0, (now - oldest).total_seconds()) if oldest else 0.0, waiting, True)
