"""View 1: whether every CRM is up to date, at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, LiteralString

from fastapi import APIRouter, Request

from leadsync import figures, metering
from leadsync.config import Destination, Pipeline
from leadsync.figures import Facts, SourceState, Target
from leadsync.metering import RECENT_MINUTES, Reading
from leadsync.redis_state import RedisState
from leadsync.state import alerts
from leadsync.state.fence import DESTINATION_LOCKS
from leadsync.ui.access import Asks, Backend, Connection, User, Uses, database, visible
from leadsync.ui.probes import Probe, Seen
from leadsync.ui.queries import count, dag_of
from leadsync.ui.services import Watching

router = APIRouter()

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


@dataclass(frozen=True, slots=True)
class _About:
    """All that the cards of a pipeline are made of; what a service has not told is None."""

    facts: Mapping[int, Facts]
    running: Sequence[Mapping[str, Any]]
    day: Day | None
    source: SourceState | None
    redis: RedisState | None
    counters: Mapping[tuple[str, str], Reading]


def _day_probe(request: Request) -> Probe[Day]:
    if not hasattr(request.app.state, "day"):
        request.app.state.day = Probe(slow=True)
    probe: Probe[Day] = request.app.state.day
    return probe


@router.get("/overview")
def overview(request: Request, backend: Uses, watching: Watching, user: Asks) -> dict[str, Any]:
    """All pipelines that the user may see, each with its destinations; what is wrong; what is running; Redis."""
    with database(backend) as state:
        targets = visible(state, user)
        facts = figures.facts(state, list(targets))
        running = _running(state, targets)
        wrong = _alerts(state, user)
    day = _day_probe(request).look(partial(_day, backend)).value
    store, counters = watching.redis(), watching.counters().value or {}
    shown = []
    for pipeline in backend.pipelines():
        if user.sees(pipeline.name):
            known = {target.destination: target for target in targets.values() if target.pipeline == pipeline.name}
            source = watching.store(pipeline, known)
            about = _About(facts, running, day, source.value, store.value, counters)
            shown.append(_pipeline(pipeline, known, source, about, user))
    return {"now": datetime.now(UTC), "user": user.name, "alerts": wrong, "pipelines": shown,
            "running": running, "redis": _redis(store)}  # fmt: skip


def _day(backend: Backend) -> Day:
    sparks: dict[int, list[float]] = {}
    with database(backend) as state:
        for number, ago, delivered in state.execute(DELIVERED):
            if 0 <= ago < BUCKETS:
                spark = sparks.setdefault(number, [0.0] * BUCKETS)
                spark[BUCKETS - 1 - ago] = round(delivered / BUCKET_MINUTES, 2)
        return Day(sparks, {number: rest for number, *rest in state.execute(RATES)})


def _alerts(state: Connection, user: User) -> list[dict[str, Any]]:
    """What people have been alerted of and is not over; of all pipelines together where `pipeline` is empty."""
    return [
        {**alert.name._asdict(), "since": alert.started_at, "text": alert.detail}
        for alert in alerts.read(state)
        if alert.ended_at is None and (not alert.name.pipeline or user.sees(alert.name.pipeline))
    ]


def _running(state: Connection, targets: Mapping[int, Target]) -> list[dict[str, Any]]:
    values = {"numbers": list(targets), "locks": DESTINATION_LOCKS}
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
    return running


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
    source: Seen[SourceState],
    about: _About,
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
            _destination(pipeline, target, known.get(target.name), about, now)
            for target in pipeline.destinations
        ],
    }  # fmt: skip


def _destination(
    pipeline: Pipeline, target: Destination, known: Target | None, about: _About, now: datetime
) -> dict[str, Any]:
    requests = about.redis.requests.get(target.conn_id) if about.redis else None
    card: dict[str, Any] = {
        "name": target.name,
        "adapter": target.adapter,
        "requests": asdict(requests) if requests else None,
        "traffic": _traffic(about.counters.get((pipeline.name, target.name))),
        "state": "not_started",
    }
    if known is None:
        return card
    facts, day = about.facts[known.number], about.day
    standing = figures.standing(known, facts, about.source, now)
    delivered, dead, loads, failed = day.rates.get(known.number, (0, 0, 0, 0)) if day else (0, 0, 0, 0)
    loading = any(
        run["state"] == "running" and run["pipeline"] == known.pipeline and known.destination in run["destinations"]
        for run in about.running
    )
    return {
        **card,
        "state": standing.state,
        "loading": loading,
        "watermark": known.watermark,
        "behind": standing.behind,
        "behind_is_exact": standing.exact,
        "parked": known.parked_at
        and {"since": known.parked_at, "because": known.parked_because, "probe_after": known.probe_after},
        "queues": {
            "main": None if standing.waiting is None else count(standing.waiting),
            "retry": count(facts.retry),
            "dead": count(facts.dead),
        },
        "per_minute": day.sparks.get(known.number, [0.0] * BUCKETS) if day else None,
        "delivered": delivered if day else None,
        "error_rate": dead / (delivered + dead) if delivered + dead else None,
        "loads": loads if day else None,
        "failed_loads": failed if day else None,
        "last_success": facts.last_success,
        "last_failure": {"at": facts.ended, "failure": facts.failure, "error": facts.error}
        if facts.result == 0
        else None,
    }


def _traffic(reading: Reading | None) -> dict[str, Any] | None:
    """Requests, their latency and freshness of the last minutes, in seconds; and what the CRM told of a quota."""
    if reading is None:
        return None
    recent = reading.recent
    return {
        "minutes": RECENT_MINUTES,
        "per_second": sum(recent.get(f"requests:{status}", 0) for status in metering.STATUSES) / reading.seconds,
        "throttled": recent.get("requests:429", 0),
        "latency": _quantiles(recent, "latency", (0.5, 0.95)),
        "freshness": _quantiles(recent, "freshness", (0.5, 0.95, 0.99)),
        "quota": reading.quota._asdict() if reading.quota else None,
    }


def _quantiles(counts: Mapping[str, int], what: str, shares: Sequence[float]) -> dict[str, float] | None:
    found = {f"p{share * 100:.0f}": metering.quantile(counts, what, share) for share in shares}
    known = {name: seconds for name, seconds in found.items() if seconds is not None}
    return known or None


def _redis(seen: Seen[RedisState]) -> dict[str, Any]:
    told = asdict(seen.value) if seen.value else {}
    told.pop("requests", None)
    reachable = None if seen.value is None and seen.problem is None else seen.problem is None
    return {**told, "reachable": reachable, "problem": seen.problem, "age": seen.age}
