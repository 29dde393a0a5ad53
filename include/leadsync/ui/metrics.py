"""What Prometheus scrapes: counters of what the loads did, and gauges of what is so now. Behind a token of its own.

Labels are names of the pipeline file, never anything of a lead. A destination that has not taken part in a run yet has
no figures of the database.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from math import isinf

from fastapi import APIRouter, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from leadsync import figures, metering
from leadsync.config import Destination
from leadsync.figures import Facts, SourceState, Target
from leadsync.metering import RESULTS, STATUSES, Reading
from leadsync.redis_state import RedisState
from leadsync.ui.access import Backend, Uses, database
from leadsync.ui.probes import Seen
from leadsync.ui.services import Services, Watching

router = APIRouter()

OWN = ("pipeline", "destination")
HISTOGRAMS = {
    "latency": ("leadsync_crm_request_duration_seconds", "How long a CRM took to answer a request."),
    "freshness": (
        "leadsync_freshness_seconds",
        "From a change in the lead store (its watermark column) until the CRM accepted it, in runs.",
    ),
    "load": ("leadsync_load_duration_seconds", "How long one try of a load took."),
}
PIPELINE = ("pipeline",)
STATES = ("up_to_date", "behind", "failing", "parked")
# Text and labels of each.
GAUGES: Mapping[str, tuple[str, Sequence[str]]] = {
    "destination_state": ("1 for the state in which a destination is, 0 for the others.", (*OWN, "state")),
    "behind_seconds": ("Age of the oldest change that a destination has not got yet.", OWN),
    "watermark_lag_seconds": ("Age of a destination's watermark.", OWN),
    "queue_leads": (f"Leads in a queue, counted up to {figures.BOUND + 1}.", (*OWN, "queue")),
    "last_success_timestamp_seconds": ("When a load of the destination succeeded last.", OWN),
    "crm_quota_left": ("Requests that are left of a longer limit, as the CRM told last.", OWN),
    "crm_quota_limit": ("The longer limit, as the CRM told last.", OWN),
    "budget_used_requests": ("Requests of an account that Leadsync sent in a window.", (*OWN, "window_seconds")),
    "budget_allowed_requests": ("Requests that Leadsync may send in a window.", (*OWN, "window_seconds")),
    "lead_store_up": ("Whether the lead store answers.", PIPELINE),
    "held_back_seconds": ("For how long an open transaction has held the watermark back.", PIPELINE),
    "prepared_transactions": ("Prepared transactions in the lead store: they stop the watermark.", PIPELINE),
    "run_duration_seconds": ("From its opening to its commit, of the newest run committed.", PIPELINE),
    "redis_up": ("Whether Redis answers.", ()),
    "redis_memory_used_bytes": ("Memory that Redis uses.", ()),
    "redis_memory_max_bytes": ("Memory that Redis may use; 0: no limit.", ()),
    "redis_snapshots": ("Complete snapshots among the first keys of Redis.", ()),
    "redis_evicts": ("Whether Redis drops snapshots when it is full.", ()),
}

Name = tuple[str, str]  # pipeline and destination


@router.get("/metrics")
def metrics(request: Request, backend: Uses, watching: Watching) -> Response:
    """Prometheus's text format. 401 without the token, 403 where none is configured."""
    _authorize(request.headers.get("authorization", ""), backend.metrics_token())
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(backend, watching))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _authorize(header: str, token: str) -> None:
    if not token:
        raise HTTPException(
            403,
            "there is no token for this page yet: put one into LEADSYNC_METRICS_TOKEN or the Airflow variable "
            "leadsync_metrics_token, and give it to Prometheus as `authorization`",
        )
    scheme, _, given = header.partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise HTTPException(401, "this wants the token for metrics as a bearer token", {"WWW-Authenticate": "Bearer"})


class _Figures(Collector):
    """One scrape's."""

    def __init__(self, backend: Backend, services: Services) -> None:
        self._backend = backend
        self._services = services

    def collect(self) -> Iterable[Metric]:
        pipelines = self._backend.pipelines()
        with database(self._backend) as state:
            targets = {(each.pipeline, each.destination): each for each in figures.targets(state)}
            facts = figures.facts(state, [target.number for target in targets.values()])
            runs = figures.run_seconds(state, [pipeline.name for pipeline in pipelines])
        stores: dict[str, Seen[SourceState]] = {}
        for pipeline in pipelines:
            known = {target.destination: target for target in targets.values() if target.pipeline == pipeline.name}
            stores[pipeline.name] = self._services.store(pipeline, known)
        named = {(each.name, target.name): target for each in pipelines for target in each.destinations}
        shown = {name: targets[name] for name in named if name in targets}
        yield from _destinations(shown, facts, stores)
        yield from _pipelines(stores, runs)
        redis = self._services.redis()
        yield _gauge("redis_up", {(): redis.problem is None and redis.value is not None})
        if redis.value is not None:
            yield from _redis(redis.value, named)
        yield from _counters(self._services.counters().value or {})


def _destinations(
    targets: Mapping[Name, Target], facts: Mapping[int, Facts], stores: Mapping[str, Seen[SourceState]]
) -> Iterator[Metric]:
    now = datetime.now(UTC)
    own = {name: facts[target.number] for name, target in targets.items()}
    standings = {
        name: figures.standing(target, own[name], stores[target.pipeline].value, now)
        for name, target in targets.items()
    }
    yield _gauge(
        "destination_state",
        {(*name, state): standing.state == state for name, standing in standings.items() for state in STATES},
    )
    yield _gauge("behind_seconds", {name: standing.behind for name, standing in standings.items()})
    marks = {name: target.watermark for name, target in targets.items() if target.watermark}
    yield _gauge("watermark_lag_seconds", {name: (now - mark).total_seconds() for name, mark in marks.items()})
    queues: dict[tuple[str, ...], float | None] = {}
    for name, fact in own.items():
        waiting = {"main": standings[name].waiting, "retry": fact.retry, "dead": fact.dead}
        queues |= {(*name, queue): count for queue, count in waiting.items()}
    yield _gauge("queue_leads", queues)
    successes = {name: fact.last_success for name, fact in own.items() if fact.last_success}
    yield _gauge("last_success_timestamp_seconds", {name: at.timestamp() for name, at in successes.items()})


def _pipelines(stores: Mapping[str, Seen[SourceState]], runs: Mapping[str, float]) -> Iterator[Metric]:
    up = {name: seen.problem is None and seen.value is not None for name, seen in stores.items()}
    bounds = {(name,): seen.value.bound for name, seen in stores.items() if seen.value}
    yield _gauge("lead_store_up", {(name,): answers for name, answers in up.items()})
    yield _gauge("held_back_seconds", {name: bound.held_back if bound.pid else 0 for name, bound in bounds.items()})
    yield _gauge("prepared_transactions", {name: bound.prepared for name, bound in bounds.items()})
    yield _gauge("run_duration_seconds", {(name,): seconds for name, seconds in runs.items()})


def _redis(told: RedisState, targets: Mapping[Name, Destination]) -> Iterator[Metric]:
    yield _gauge("redis_memory_used_bytes", {(): told.used_memory})
    yield _gauge("redis_memory_max_bytes", {(): told.max_memory})
    yield _gauge("redis_snapshots", {(): told.snapshots})
    yield _gauge("redis_evicts", {(): told.eviction not in (None, "noeviction")})
    accounts = {name: told.requests.get(target.conn_id) for name, target in targets.items()}
    quotas = {
        (*name, f"{quota.seconds:.0f}"): quota
        for name, account in accounts.items()
        if account
        for quota in account.quotas
    }
    yield _gauge("budget_used_requests", {labels: quota.used for labels, quota in quotas.items()})
    yield _gauge("budget_allowed_requests", {labels: quota.allowed for labels, quota in quotas.items()})


def _counters(readings: Mapping[Name, Reading]) -> Iterator[Metric]:
    own = {name: reading for name, reading in readings.items() if name[1]}
    yield _counter("leads", "Leads that ended in loads, by how.", own, "leads", "result", RESULTS)
    yield _counter("crm_requests", "Requests; none: no whole reply.", own, "requests", "status", STATUSES)
    yield _counter("loads", "Tries of loads.", own, "loads", "result", ("success", "failure"))
    retries = CounterMetricFamily("leadsync_retries", "Leads that failed in passing and were queued.", labels=OWN)
    for owner, reading in own.items():
        retries.add_metric(owner, reading.total.get("retries", 0))
    yield retries
    for kind in ("rows", "bytes"):
        stored = CounterMetricFamily(
            f"leadsync_snapshot_{kind}", f"{kind.title()} of snapshots taken.", labels=PIPELINE
        )
        for (pipeline, destination), reading in readings.items():
            if not destination:
                stored.add_metric((pipeline,), reading.total.get(f"snapshot:{kind}", 0))
        yield stored
    for what, (name, text) in HISTOGRAMS.items():
        histogram = HistogramMetricFamily(name, text, labels=OWN)
        for owner, reading in own.items():
            buckets, total = metering.histogram(reading.total, what)
            named = [("+Inf" if isinf(bound) else str(float(bound)), count) for bound, count in buckets]
            histogram.add_metric(owner, named, total)
        yield histogram
    quotas = {name: reading.quota for name, reading in own.items() if reading.quota}
    yield _gauge("crm_quota_left", {name: quota.left for name, quota in quotas.items()})
    yield _gauge("crm_quota_limit", {name: quota.limit for name, quota in quotas.items()})


def _counter(
    name: str, text: str, readings: Mapping[Name, Reading], prefix: str, label: str, values: Sequence[str]
) -> Metric:
    family = CounterMetricFamily(f"leadsync_{name}", text, labels=(*OWN, label))
    for owner, reading in readings.items():
        for value in values:
            family.add_metric((*owner, value), reading.total.get(f"{prefix}:{value}", 0))
    return family


def _gauge(name: str, samples: Mapping[tuple[str, ...], float | None]) -> Metric:
    """By the values of its labels; without those that are not known."""
    text, labels = GAUGES[name]
    family = GaugeMetricFamily(f"leadsync_{name}", text, labels=labels)
    for values, number in samples.items():
        if number is not None:
            family.add_metric(values, float(number))
    return family
