"""Leadsync on the servers of a benchmark, as its tasks put it together.

With all that its promises need: encryption, ledger, operation log, the fence, the budget of requests in Redis, metrics.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import redis
import yaml

from leadsync import operations
from leadsync.budget import Budget, Lane
from leadsync.clients import Clients
from leadsync.config import Pipeline
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.request import read_request
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore
from leadsync.source import LeadStore
from leadsync.state.operations import Operation

T = TypeVar("T")
KEY = "A" * 43 + "="
SHIPPED = Path(__file__).parents[1] / "include" / "pipelines" / "leads.yaml"
# The pace of the real CRMs is not what is measured. The limiter is at work all the same: every request asks it.
NO_LIMIT = {"requests_per_second": 1_000_000, "requests_per_day": 1_000_000_000}


def document(targets: Mapping[str, Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
    """A pipeline file: the shipped one with these destinations, each the shipped one of its `adapter` but for what is
    given here, and other changes."""
    shipped = yaml.safe_load(SHIPPED.read_text())
    kinds = shipped["destinations"]
    destinations = {
        name: {**kinds[target["adapter"]], **target, "settings": {**NO_LIMIT, **target.get("settings", {})}}
        for name, target in targets.items()
    }
    return {**shipped, "name": "bench", "destinations": destinations, **changes}


@contextmanager
def clients(pipeline: Pipeline, places: Mapping[str, str]) -> Iterator[Clients]:
    """`places`: see `World.environment`; a destination's CRM may have a place of its own, BENCH_CRM_<DESTINATION>."""
    port = int(places["BENCH_REDIS"])

    @contextmanager
    def open_store() -> Iterator[LeadStore]:
        with psycopg.connect(places["BENCH_HIVE"], autocommit=True) as connection:
            yield LeadStore(connection, pipeline.source)

    @contextmanager
    def open_adapter(name: str) -> Iterator[CRMAdapter]:
        (target,) = (each for each in pipeline.destinations if each.name == name)
        endpoint = Endpoint(places.get(f"BENCH_CRM_{name.upper()}", places["BENCH_CRM"]), "bench", "bench")
        with (
            redis.Redis(port=port) as client,
            closing(registry.build(target, endpoint, budget=Budget(client, Lane.NEW))) as adapter,
            adapter.meter.kept(client, pipeline.name, name),
        ):
            yield adapter

    with psycopg.connect(places["BENCH_STATE"], autocommit=True) as state, redis.Redis(port=port) as client:
        sealer = Sealer(KEY)
        snapshots = SnapshotStore(client, sealer, pipeline.name, round(pipeline.snapshot_ttl_hours * 3600))
        yield Clients(state, sealer, snapshots, open_store, open_adapter)


def open_run(using: Clients, pipeline: Pipeline, run_id: str, **parameters: Any) -> Operation:
    """The first step of a run over one window."""
    with using.open_store() as store:
        request = read_request(pipeline, parameters)
        (operation,) = operations.open_run(using, store, pipeline, run_id, request).operations
    return operation


def take_snapshot(using: Clients, pipeline: Pipeline, operation: Operation) -> int:
    """The second step; returns in how many shards its destinations load the window."""
    with using.open_store() as store:
        return max(operations.take_snapshots(using, store, pipeline, [operation.sync_id]).values())


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of processor time of this process and of those that it has waited for."""

    wall: float
    cpu: float


class Stopwatch:
    """How long the steps took, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, Spent] = {}

    def time(self, step: str, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), sum(os.times()[:4])
        result = work()
        self.spent[step] = Spent(round(time.perf_counter() - wall, 3), round(sum(os.times()[:4]) - cpu, 3))
        return result
