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
from leadsync.figures import SourceState, Target
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
STATES = ("up_to_date", "behind", "failing", "parked")


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
        redis, counters = self._services.redis(), self._services.counters()
        yield _gauge("leadsync_redis_up", "Whether Redis answers.", [((), redis.problem is None and redis.value)])
        if redis.value is not None:
            yield from _redis(redis.value)
            accounts = {name: redis.value.requests.get(target.conn_id) for name, target in named.items()}
            used = [((*name, f"{quota.seconds:.0f}"), quota) for name, account in accounts.items() if account
                    for quota in account.quotas]  # fmt: skip
            window = (*OWN, "window_seconds")
            yield _gauge("leadsync_budget_used_requests", "Requests of an account that Leadsync sent in a window.",
                         [(labels, quota.used) for labels, quota in used], window)  # fmt: skip
            yield _gauge("leadsync_budget_allowed_requests", "Requests that Leadsync may send in a window.",
                         [(labels, quota.allowed) for labels, quota in used], window)  # fmt: skip
        yield from _counters(counters.value or {})


def _destinations(
    targets: Mapping[tuple[str, str], Target],
    facts: Mapping[int, figures.Facts],
    stores: Mapping[str, Seen[SourceState]],
) -> Iterator[Metric]:
    now = datetime.now(UTC)
    standings = {
        name: figures.standing(target, facts[target.number], stores[target.pipeline].value, now)
        for name, target in targets.items()
    }
    own = {name: facts[target.number] for name, target in targets.items()}
    yield _gauge("leadsync_destination_state", "1 for the state in which a destination is, 0 for the others.",
                 [((*name, state), standing.state == state) for name, standing in standings.items()
                  for state in STATES], (*OWN, "state"))  # fmt: skip
    yield _gauge("leadsync_behind_seconds", "Age of the oldest change that a destination has not got yet.",
                 [(name, standing.behind) for name, standing in standings.items()], OWN)  # fmt: skip
    yield _gauge("leadsync_watermark_lag_seconds", "Age of a destination's watermark.",
                 [(name, (now - target.watermark).total_seconds()) for name, target in targets.items()
                  if target.watermark], OWN)  # fmt: skip
    queues = [((*name, "main"), standing.waiting) for name, standing in standings.items()]
    queues += [((*name, "retry"), fact.retry) for name, fact in own.items()]
    queues += [((*name, "dead"), fact.dead) for name, fact in own.items()]
    yield _gauge("leadsync_queue_leads", f"Leads in a queue, counted up to {figures.BOUND + 1}.",
                 [(labels, count) for labels, count in queues if count is not None], (*OWN, "queue"))  # fmt: skip
    yield _gauge("leadsync_last_success_timestamp_seconds", "When a load of the destination succeeded last.",
                 [(name, fact.last_success.timestamp()) for name, fact in own.items() if fact.last_success],
                 OWN)  # fmt: skip


def _pipelines(stores: Mapping[str, Seen[SourceState]], runs: Mapping[str, float]) -> Iterator[Metric]:
    label = ("pipeline",)
    bounds = {(name,): seen.value.bound for name, seen in stores.items() if seen.value}
    yield _gauge("leadsync_lead_store_up", "Whether the lead store answers.",
                 [((name,), seen.problem is None and seen.value is not None) for name, seen in stores.items()],
                 label)  # fmt: skip
    yield _gauge("leadsync_held_back_seconds", "For how long an open transaction has held the watermark back.",
                 [(name, bound.held_back if bound.pid else 0.0) for name, bound in bounds.items()], label)  # fmt: skip
    yield _gauge("leadsync_prepared_transactions", "Prepared transactions in the lead store: they stop the watermark.",
                 [(name, bound.prepared) for name, bound in bounds.items()], label)  # fmt: skip
    yield _gauge("leadsync_run_duration_seconds", "From its opening to its commit, of the newest run committed.",
                 [((name,), seconds) for name, seconds in runs.items()], label)  # fmt: skip


def _redis(told: RedisState) -> Iterator[Metric]:
    yield _gauge("leadsync_redis_memory_used_bytes", "Memory that Redis uses.", [((), told.used_memory)])
    yield _gauge("leadsync_redis_memory_max_bytes", "Memory that Redis may use; 0: no limit.", [((), told.max_memory)])
    yield _gauge("leadsync_redis_snapshots", "Complete snapshots in Redis, of its first keys.", [((), told.snapshots)])
    evicts = told.eviction not in (None, "noeviction")
    yield _gauge("leadsync_redis_evicts", "Whether Redis drops snapshots when it is full.", [((), evicts)])


def _counters(readings: Mapping[tuple[str, str], Reading]) -> Iterator[Metric]:
    own = {name: reading for name, reading in readings.items() if name[1]}
    pipelines = {name[:1]: reading for name, reading in readings.items() if not name[1]}

    def counter(name: str, text: str, label: str, values: Sequence[str], prefix: str) -> Metric:
        family = CounterMetricFamily(name, text, labels=(*OWN, label))
        for owner, reading in own.items():
            for value in values:
                family.add_metric((*owner, value), reading.total.get(f"{prefix}:{value}", 0))
        return family

    yield counter("leadsync_leads", "Leads that ended in loads, by how.", "result", RESULTS, "leads")
    yield counter("leadsync_crm_requests", "Requests by status; none: no whole reply.", "status", STATUSES, "requests")
    yield counter("leadsync_loads", "Tries of loads.", "result", ("success", "failure"), "loads")
    retries = CounterMetricFamily("leadsync_retries", "Leads that failed in passing and were queued.", labels=OWN)
    for owner, reading in own.items():
        retries.add_metric(owner, reading.total.get("retries", 0))
    yield retries
    for what, (name, text) in HISTOGRAMS.items():
        histogram = HistogramMetricFamily(name, text, labels=OWN)
        for owner, reading in own.items():
            buckets, total = metering.histogram(reading.total, what)
            histogram.add_metric(
                owner, [("+Inf" if isinf(bound) else str(float(bound)), count) for bound, count in buckets], total
            )
        yield histogram
    for kind in ("rows", "bytes"):
        family = CounterMetricFamily(f"leadsync_snapshot_{kind}", f"Snapshots: {kind} stored.", labels=("pipeline",))
        for pipeline, reading in pipelines.items():
            family.add_metric(pipeline, reading.total.get(f"snapshot:{kind}", 0))
        yield family
    quotas = {name: reading.quota for name, reading in own.items() if reading.quota}
    yield _gauge("leadsync_crm_quota_left", "Requests that are left of a longer limit, as the CRM told last.",
                 [(name, quota.left) for name, quota in quotas.items()], OWN)  # fmt: skip
    yield _gauge("leadsync_crm_quota_limit", "The longer limit that the CRM told.",
                 [(name, quota.limit) for name, quota in quotas.items() if quota.limit is not None], OWN)  # fmt: skip


def _gauge(name: str, text: str, samples: Iterable[tuple[Sequence[str], object]], labels: Sequence[str] = ()) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value) if isinstance(value, int | float) else float(bool(value)))
    return family
