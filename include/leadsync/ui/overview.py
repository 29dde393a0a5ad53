"""View 1: whether every CRM is up to date, at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import Any, LiteralString

from fastapi import APIRouter, Request

from leadsync.config import Destination, Pipeline
from leadsync.state.fence import DESTINATION_LOCKS
from leadsync.ui import lead_store, redis_state
from leadsync.ui.access import Asks, Backend, Connection, Target, User, Uses, database, visible
from leadsync.ui.probes import Probe, Seen
from leadsync.ui.queries import BOUND, count, dag_of

router = APIRouter()

# Seconds that a destination may be behind and still counts as up to date: a run a minute, and the time it takes.
IN_STEP = 180.0
BUCKET_MINUTES = 15
BUCKETS = 24 * 60 // BUCKET_MINUTES

# What the loads of a day delivered, spread evenly over the time that each took, by quarters of an hour. Loads that lie
# within one quarter (nearly all) are added up first.
DELIVERED: LiteralString = """
WITH loads AS MATERIALIZED (
    SELECT destination_id, start_at, greatest(coalesce(end_at, now()), start_at) AS end_at, delivered
      FROM leadsync.operation_log
     WHERE start_at > now() - interval '48 hours' AND coalesce(end_at, now()) > now() - interval '24 hours'),
summed AS (
    SELECT destination_id, date_bin('15 minutes', start_at, 'epoch') AS at, sum(delivered)::float8 AS delivered
      FROM loads WHERE date_bin('15 minutes', start_at, 'epoch') = date_bin('15 minutes', end_at, 'epoch')
     GROUP BY 1, 2
     UNION ALL
    SELECT destination_id, b.at, delivered * extract(epoch FROM least(end_at, b.at + interval '15 minutes')
                                                                - greatest(start_at, b.at))::float8
                                           / extract(epoch FROM end_at - start_at)::float8
      FROM loads, generate_series(date_bin('15 minutes', start_at, 'epoch'), end_at, interval '15 minutes') AS b (at)
     WHERE date_bin('15 minutes', start_at, 'epoch') < date_bin('15 minutes', end_at, 'epoch') AND delivered > 0)
SELECT destination_id,
       (extract(epoch FROM date_bin('15 minutes', now(), 'epoch') - at) / 900)::int AS ago, sum(delivered)
  FROM summed GROUP BY 1, 2
"""

# Of the last day: leads delivered and dead, loads and those that failed.
RATES: LiteralString = """
SELECT destination_id, sum(delivered)::bigint, sum(dead)::bigint, count(*), count(*) FILTER (WHERE result = 0)
  FROM leadsync.operation_log
 WHERE start_at > now() - interval '24 hours'
 GROUP BY 1
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

# Loads of which a shard has not ended. One that was followed by another of its kind was killed, and will not be taken
# up again. Whether one is at work its destination's lock tells.
UNDER_WAY: LiteralString = """
SELECT o.sync_id::text, o.pipeline, o.kind, o.run_id, l.destination_id, l.start_at, l.rows_read, o.rows_read,
       EXISTS (SELECT FROM pg_locks k
                WHERE k.locktype = 'advisory' AND k.classid = %(locks)s AND k.objid = l.destination_id
                  AND k.objsubid = 2 AND k.granted
                  AND k.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
  FROM (SELECT sync_id, destination_id, min(start_at) AS start_at, sum(rows_read)::bigint AS rows_read, max(id) AS id
          FROM leadsync.operation_log
         WHERE (sync_id, destination_id) IN (SELECT sync_id, destination_id FROM leadsync.operation_log
                                              WHERE end_at IS NULL AND destination_id = ANY (%(numbers)s))
         GROUP BY sync_id, destination_id) l
  JOIN leadsync.sync_operation o USING (sync_id)
 WHERE o.superseded_at IS NULL
   AND NOT EXISTS (SELECT FROM leadsync.operation_log n JOIN leadsync.sync_operation p USING (sync_id)
                    WHERE n.destination_id = l.destination_id AND n.id > l.id AND p.kind = o.kind
                      AND n.sync_id <> l.sync_id)
 ORDER BY l.start_at DESC LIMIT 50
"""

# Windows that are being read just now.
READING: LiteralString = """
SELECT sync_id::text, pipeline, kind, run_id, destinations, started_at
  FROM leadsync.sync_operation
 WHERE snapshot_at IS NULL AND superseded_at IS NULL AND committed_at IS NULL
   AND started_at > now() - interval '1 hour' AND pipeline = ANY (%(pipelines)s)
 ORDER BY started_at DESC LIMIT 10
"""


@dataclass(frozen=True, slots=True)
class Day:
    """The last 24 hours of each destination, by number: delivered per minute by quarters of an hour, the oldest first;
    and leads delivered, leads dead, loads, loads that failed."""

    sparks: Mapping[int, list[float]]
    rates: Mapping[int, Sequence[int]]


class Probes:
    """For Redis, for the lead store of each pipeline, and for the sums of a day."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.redis: Probe[redis_state.RedisState] = Probe()
        self.day: Probe[Day] = Probe(slow=True)
        self._stores: dict[str, Probe[lead_store.SourceState]] = {}

    def store(self, pipeline: str) -> Probe[lead_store.SourceState]:
        with self._lock:
            return self._stores.setdefault(pipeline, Probe())


def _probes(request: Request) -> Probes:
    if not hasattr(request.app.state, "probes"):
        request.app.state.probes = Probes()
    probes: Probes = request.app.state.probes
    return probes


@router.get("/overview")
def overview(request: Request, backend: Uses, user: Asks) -> dict[str, Any]:
    """All pipelines that the user may see, each with its destinations; what is running; Redis."""
    probes, every = _probes(request), backend.pipelines()
    with database(backend) as state:
        targets = visible(state, user)
        facts = _facts(state, targets)
    pipelines = [pipeline for pipeline in every if user.sees(pipeline.name)]
    facts["day"] = probes.day.look(partial(_day, backend)).value
    store = probes.redis.look(partial(redis_state.ask, backend, every))
    shown = []
    for pipeline in pipelines:
        known = {t.destination: t for t in targets.values() if t.pipeline == pipeline.name}
        marks = {target.name: known[target.name].watermark for target in pipeline.destinations if target.name in known}
        source = probes.store(pipeline.name).look(partial(lead_store.ask, backend, pipeline, marks))
        shown.append(_pipeline(pipeline, known, source, store.value, facts, user))
    return {"now": datetime.now(UTC), "user": user.name, "pipelines": shown, "running": facts["running"],
            "redis": _redis(store)}  # fmt: skip


def _day(backend: Backend) -> Day:
    sparks: dict[int, list[float]] = {}
    with database(backend) as state:
        for number, ago, delivered in state.execute(DELIVERED):
            if 0 <= ago < BUCKETS:
                spark = sparks.setdefault(number, [0.0] * BUCKETS)
                spark[BUCKETS - 1 - ago] = round(delivered / BUCKET_MINUTES, 2)
        return Day(sparks, {number: rest for number, *rest in state.execute(RATES)})


def _facts(state: Connection, targets: Mapping[int, Target]) -> dict[str, Any]:
    values = {"numbers": list(targets), "bound": BOUND + 1, "locks": DESTINATION_LOCKS}
    running = []
    for sync_id, pipeline, kind, run_id, number, start_at, done, rows, working in state.execute(UNDER_WAY, values):
        running.append(
            {
                **_run(sync_id, pipeline, kind, run_id),
                "destinations": [targets[number].destination],
                "state": "running" if working else "stopped",
                "started_at": start_at,
                "done": done,
                "rows": rows,
                "seconds_left": _seconds_left(start_at, done, rows) if working else None,
            }
        )
    names = list({target.pipeline for target in targets.values()})
    for sync_id, pipeline, kind, run_id, destinations, started_at in state.execute(READING, {"pipelines": names}):
        running.append(
            {**_run(sync_id, pipeline, kind, run_id), "destinations": destinations, "state": "reading",
             "started_at": started_at, "done": None, "rows": None, "seconds_left": None}
        )  # fmt: skip
    return {
        "last": {number: rest for number, *rest in state.execute(LAST, values)},
        "queues": {number: rest for number, *rest in state.execute(QUEUES, values)},
        "running": running,
    }


def _run(sync_id: str, pipeline: str, kind: str, run_id: str) -> dict[str, Any]:
    return {"sync_id": sync_id, "pipeline": pipeline, "kind": kind, "dag_id": dag_of(kind, pipeline), "run_id": run_id}


def _seconds_left(start_at: datetime, done: int, rows: int | None) -> float | None:
    """At the pace so far; None before the first leads were settled."""
    if not rows or not done:
        return None
    return round((datetime.now(UTC) - start_at).total_seconds() / done * max(0, rows - done), 1)


def _pipeline(
    pipeline: Pipeline,
    known: Mapping[str, Target],
    source: Seen[lead_store.SourceState],
    redis: redis_state.RedisState | None,
    facts: Mapping[str, Any],
    user: User,
) -> dict[str, Any]:
    now = datetime.now(UTC)
    bound = source.value.bound if source.value else None
    marks = [target.watermark for target in known.values() if target.watermark and target.parked_at is None]
    oldest = min(marks, default=None)
    return {
        "name": pipeline.name,
        "dag_id": f"{pipeline.name}_sync",
        "may_edit": user.edits(pipeline.name),
        "watermark": oldest,
        "lag": (now - oldest).total_seconds() if oldest else None,
        "source": {
            "table": pipeline.source.table,
            "connection": pipeline.source.connection,
            "reachable": None if source.value is None and source.problem is None else source.problem is None,
            "problem": source.problem,
            "age": source.age,
            "bound": bound.upper if bound else None,
            "held_back": {"seconds": bound.held_back, "pid": bound.pid, "role": bound.role} if bound and bound.pid else
            None,
            "prepared": bound.prepared if bound else 0,
        },
        "destinations": [
            _destination(target, known.get(target.name), source.value, redis, facts, now)
            for target in pipeline.destinations
        ],
    }  # fmt: skip


def _destination(
    target: Destination,
    known: Target | None,
    source: lead_store.SourceState | None,
    redis: redis_state.RedisState | None,
    facts: Mapping[str, Any],
    now: datetime,
) -> dict[str, Any]:
    requests = redis.requests.get(target.conn_id) if redis else None
    card: dict[str, Any] = {
        "name": target.name,
        "adapter": target.adapter,
        "requests": asdict(requests) if requests else None,
        "state": "not_started",
    }
    if known is None:
        return card
    succeeded, ended, result, failure, error = facts["last"][known.number]
    day: Day | None = facts["day"]
    delivered, dead, loads, failed = day.rates.get(known.number, (0, 0, 0, 0)) if day else (0, 0, 0, 0)
    retry, letters = facts["queues"][known.number]
    behind, waiting, exact = _behind(known, source, now)
    loading = any(
        run["state"] == "running" and run["pipeline"] == known.pipeline and known.destination in run["destinations"]
        for run in facts["running"]
    )
    if known.parked_at is not None:
        card["state"] = "parked"
    elif result == 0:
        card["state"] = "failing"
    else:
        card["state"] = "up_to_date" if behind <= IN_STEP else "behind"
    return {
        **card,
        "loading": loading,
        "watermark": known.watermark,
        "behind": behind,
        "behind_is_exact": exact,
        "parked": known.parked_at
        and {"since": known.parked_at, "because": known.parked_because, "probe_after": known.probe_after},
        "queues": {
            "main": None if waiting is None else count(waiting),
            "retry": count(retry),
            "dead": count(letters),
        },
        "per_minute": day.sparks.get(known.number, [0.0] * BUCKETS) if day else None,
        "delivered": delivered if day else None,
        "error_rate": dead / (delivered + dead) if delivered + dead else None,
        "loads": loads if day else None,
        "failed_loads": failed if day else None,
        "last_success": succeeded,
        "last_failure": {"at": ended, "failure": failure, "error": error} if result == 0 else None,
    }


def _behind(known: Target, source: lead_store.SourceState | None, now: datetime) -> tuple[float, int | None, bool]:
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


def _redis(seen: Seen[redis_state.RedisState]) -> dict[str, Any]:
    told = asdict(seen.value) if seen.value else {}
    told.pop("requests", None)
    reachable = None if seen.value is None and seen.problem is None else seen.problem is None
    return {**told, "reachable": reachable, "problem": seen.problem, "age": seen.age}
