"""`python -m bench.sync [--resend | --again]`: one sync of the whole lead store into one CRM, all promises on.

Each shard of the window is loaded by a process of its own, all at once, forked with all imported as Airflow's are.

A case of `bench.speed`, which starts the servers. The last line it prints is JSON: rows; seconds, and of processor
time, by step; requests by run; the bytes that a snapshot takes in Redis, and ledger and operation log on disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import redis
import structlog

from bench.crms import CRM
from bench.product import Stopwatch, clients, document, open_run, take_snapshot
from leadsync import operations
from leadsync.config import Pipeline

SIZE = "SELECT pg_total_relation_size(%(table)s)"
SINCE = "2000-01-01T00:00:00Z"


def load_shard(content: dict[str, Any], name: str, sync_id: str, shard: int) -> int:
    """The leads that were read."""
    pipeline = Pipeline.model_validate(content)
    with clients(pipeline, os.environ) as using:
        return operations.load(using, pipeline, sync_id, name, shard)["read"]


def load(content: dict[str, Any], name: str, sync_id: str, shards: int) -> int:
    """The leads that were read by all shards."""
    with ProcessPoolExecutor(shards, get_context("fork")) as pool:
        return sum(pool.map(partial(load_shard, content, name, sync_id), range(shards)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sync", description=__doc__)
    parser.add_argument("--adapter", choices=["hubspot", "salesforce"], default="hubspot")
    parser.add_argument("--bulk", action="store_true", help="through Salesforce's Bulk API 2.0, as shipped")
    parser.add_argument("--in-flight", type=int, default=16, help="requests of all shards; default: %(default)s")
    parser.add_argument("--again", action="store_true", help="afterwards once more: nothing has changed")
    parser.add_argument("--resend", action="store_true", help="afterwards once more, and send all of it")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    name = arguments.adapter
    settings = {"bulk_above": None} if name == "salesforce" and not arguments.bulk else {}
    target = {"adapter": name, "settings": settings, "in_flight": arguments.in_flight}
    pipeline = Pipeline.model_validate(document({name: target}))
    watch, crm, requests = Stopwatch(), CRM(os.environ["BENCH_CRM"]), dict[str, int]()

    with clients(pipeline, os.environ) as using, redis.Redis(port=int(os.environ["BENCH_REDIS"])) as client:

        def used_memory() -> int:
            return int(client.info("memory")["used_memory"])

        def sync(prefix: str, **parameters: Any) -> tuple[int, int]:
            sent, empty = crm.stats()["requests"], used_memory()
            operation = watch.time(f"{prefix}extract", lambda: open_run(using, pipeline, f"run {prefix}", **parameters))
            shards = watch.time(f"{prefix}snapshot", lambda: take_snapshot(using, pipeline, operation))
            stored = used_memory() - empty
            share = document({name: {**target, "in_flight": max(1, arguments.in_flight // shards)}})
            read = watch.time(f"{prefix}load", lambda: load(share, name, operation.sync_id, shards))
            watch.time(f"{prefix}commit", lambda: operations.commit(using, pipeline, [operation.sync_id]))
            using.snapshots.drop(operation.snapshot_id)
            requests[f"{prefix}run"] = crm.stats()["requests"] - sent
            return read, stored

        rows, stored = sync("")
        tables = {
            name: using.state.execute(SIZE, {"table": f"leadsync.{name}"}).fetchone()
            for name in ("delivery", "operation_data")
        }
        if arguments.again:
            sync("again ", since=SINCE)
        if arguments.resend:
            sync("resend ", since=SINCE, resend=True)
    told = {
        "rows": rows,
        "seconds": {step: spent.wall for step, spent in watch.spent.items()},
        "cpu": {step: spent.cpu for step, spent in watch.spent.items()},
        "requests": requests,
        "snapshot_bytes": stored,
        "table_bytes": {name: row[0] if row else 0 for name, row in tables.items()},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
