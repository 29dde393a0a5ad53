"""`python -m bench.sync [--resend | --again]`: one sync of the whole lead store into one CRM, all promises on.

A case of `bench.speed`, which starts the servers; the last line it prints is JSON: rows, and seconds by step.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import redis
import structlog

from leadsync import operations
from leadsync.clients import Clients
from leadsync.config import load_pipeline
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.request import read_request
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore
from leadsync.source import LeadStore

T = TypeVar("T")
KEY = "A" * 43 + "="
PIPELINE = Path(__file__).parents[1] / "include" / "pipelines" / "leads.yaml"
SINCE = "2000-01-01T00:00:00Z"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sync", description=__doc__)
    parser.add_argument("--adapter", choices=["hubspot", "salesforce"], default="hubspot")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--again", action="store_true", help="afterwards once more: nothing has changed")
    parser.add_argument("--resend", action="store_true", help="afterwards once more, and send all of it")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    shipped = load_pipeline(PIPELINE)
    (target,) = (each for each in shipped.destinations if each.name == arguments.adapter)
    # The pace of the real CRM is what this does not measure.
    settings: dict[str, Any] = {"requests_per_second": 1_000_000}
    if target.adapter == "salesforce":
        settings["bulk_above"] = None  # the benchmark's CRM has no bulk API
    changes = {"settings": settings, "in_flight": arguments.in_flight}
    target = target.model_copy(update=changes)
    pipeline = shipped.model_copy(update={"destinations": (target,)})

    @contextmanager
    def open_store() -> Iterator[LeadStore]:
        with psycopg.connect(os.environ["BENCH_HIVE"], autocommit=True) as connection:
            yield LeadStore(connection, pipeline.source)

    @contextmanager
    def open_adapter(name: str) -> Iterator[CRMAdapter]:
        adapter = registry.build(target, Endpoint(os.environ["BENCH_CRM"], "bench", "bench"))
        with (
            redis.Redis(port=int(os.environ["BENCH_REDIS"])) as counters,
            closing(adapter),
            adapter.meter.kept(counters, pipeline.name, name),
        ):
            yield adapter

    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        seconds[step] = round(time.perf_counter() - began, 3)
        return result

    with (
        psycopg.connect(os.environ["BENCH_STATE"], autocommit=True) as state,
        redis.Redis(port=int(os.environ["BENCH_REDIS"])) as client,
    ):
        sealer = Sealer(KEY)
        snapshots = SnapshotStore(client, sealer, pipeline.name, 3600)
        clients = Clients(state, sealer, snapshots, open_store, open_adapter)

        def sync(prefix: str, **parameters: Any) -> int:
            request = read_request(pipeline, parameters)
            with open_store() as store:
                (operation,) = operations.open_run(clients, store, pipeline, f"bench{prefix}", request).operations
                timed(
                    f"{prefix}snapshot", lambda: operations.take_snapshot(clients, store, pipeline, operation.sync_id)
                )
            counts = timed(f"{prefix}load", lambda: operations.load(clients, pipeline, operation.sync_id, target.name))
            operations.commit(clients, pipeline, [operation.sync_id])
            snapshots.drop(operation.snapshot_id)
            return counts["read"]

        rows = sync("")
        if arguments.again:
            sync("again ", since=SINCE)
        if arguments.resend:
            sync("resend ", since=SINCE, resend=True)
    print(json.dumps({"rows": rows, "seconds": seconds}))


if __name__ == "__main__":
    main()
