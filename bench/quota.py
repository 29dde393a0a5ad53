"""`python -m bench.quota`: how much of a CRM's published quota eight workers use that share one account.

They are processes, as Airflow's tasks are, and load the shards of one window; the account's budget in Redis is all that
they share. The CRM takes 190 requests in any ten seconds and refuses the others.
"""

from __future__ import annotations

import argparse
import logging
import sys

import structlog

from bench import leads, product
from bench.report import Row, table
from bench.workers import working
from bench.world import running_world
from leadsync import operations
from leadsync.config import Pipeline

BATCH = 100  # leads in a request to HubSpot
USED, REFUSED = 0.95, 0.005  # the goals


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quota", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="of sending; default: %(default)s")
    parser.add_argument("--workers", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--limit", type=int, default=190, help="requests in a window; default: %(default)s")
    parser.add_argument("--window", type=float, default=10, metavar="S", help="seconds; default: %(default)s")
    parser.add_argument("--latency", type=float, default=50, metavar="MS", help="of the CRM; default: %(default)s")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    rate = arguments.limit / arguments.window
    rows = round(rate * arguments.seconds) * BATCH
    # The account is Leadsync's alone.
    target = {"adapter": "hubspot", "settings": {"requests_per_second": rate, "reserve": 0}}
    document = product.document(
        {"hubspot": target}, shard_rows=-(-rows // arguments.workers), max_shards=arguments.workers
    )
    pipeline = Pipeline.model_validate(document)
    with running_world() as world:
        print(f"filling the lead store with {rows:,} leads", flush=True)
        leads.fill(world.hive, rows)
        world.reset(latency_ms=arguments.latency, limit=arguments.limit, window_s=arguments.window)
        with product.clients(pipeline, world.environment()) as using:
            operation = product.open_run(using, pipeline, "quota")
            shards = product.take_snapshot(using, pipeline, operation)
            if shards != arguments.workers:
                raise SystemExit(f"{rows} leads make no more than {shards} shards: take more --seconds")
            print(f"{shards} workers send for some {arguments.seconds:.0f} s", flush=True)
            loads = [("hubspot", operation.sync_id, shard) for shard in range(shards)]
            with working(world.environment(), document, loads) as workers:
                done = [worker.result() for worker in workers]
            operations.commit(using, pipeline, [operation.sync_id])
        stats = world.crm.expect(rows, leads.keysum(rows))
    used = (stats["taken"] - 1) / stats["seconds"] / rate
    refused = stats["throttled"] / stats["requests"]
    sent = sorted(each.counts["read"] for each in done)
    title = (
        f"{rows:,} leads, {arguments.workers} workers, {arguments.limit} requests in {arguments.window:g} s, "
        f"{arguments.latency:.0f} ms"
    )
    rows_of_table = [
        Row("of the quota used", f"{used:.3f}", f">= {USED}", used >= USED),
        Row("429s, of all requests", f"{refused:.2%}", f"< {REFUSED:.1%}", refused < REFUSED),
        Row("requests that were taken", f"{stats['taken']:,} in {stats['seconds']:.1f} s"),
        Row("leads of a worker, fewest and most", f"{sent[0]:,} and {sent[-1]:,}"),
        Row("CPU s of a worker per 100,000 leads", f"{sum(each.cpu for each in done) * 100_000 / rows:.2f}"),
    ]
    print(table(title, rows_of_table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
