"""`python -m bench.shards`: how much sooner four workers load one large window than one does.

The workers load the shards of one window into one CRM, each in a process of its own with all promises on. Times are
from the moment at which all are ready until the last has ended. A worker has few requests in flight, so that the CRM's
latency holds it up: where the cores do, more workers do not help.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys

import structlog

from bench import leads, product
from bench.report import Row, table
from bench.workers import Done, working
from bench.world import World, running_world
from leadsync import operations
from leadsync.config import Pipeline

FASTER = 0.8  # the goal: of the number of workers


def run(world: World, workers: int, options: argparse.Namespace) -> list[Done]:
    """One window, by so many workers."""
    world.reset(latency_ms=options.latency)
    target = {"adapter": "hubspot", "in_flight": options.in_flight}
    document = product.document({"hubspot": target}, shard_rows=-(-options.rows // workers), max_shards=workers)
    pipeline = Pipeline.model_validate(document)
    with product.clients(pipeline, world.environment()) as using:
        operation = product.open_run(using, pipeline, "shards")
        if product.take_snapshot(using, pipeline, operation) != workers:
            raise SystemExit(f"{options.rows} leads do not make {workers} shards: take more --rows")
        loads = [("hubspot", operation.sync_id, shard) for shard in range(workers)]
        with working(world.environment(), document, loads) as processes:
            done = [process.result() for process in processes]
        operations.commit(using, pipeline, [operation.sync_id])
    world.crm.expect(options.rows, leads.keysum(options.rows))
    return done


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shards", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--latency", type=float, default=50, metavar="MS", help="of the CRM; default: %(default)s")
    parser.add_argument("--in-flight", type=int, default=2, help="requests of a worker; default: %(default)s")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found: dict[int, list[list[Done]]] = {1: [], options.workers: []}
    with running_world() as world:
        print(f"filling the lead store with {options.rows:,} leads", flush=True)
        leads.fill(world.hive, options.rows)
        for number in range(options.rounds):
            for workers, runs in found.items():
                runs.append(done := run(world, workers, options))
                print(f"round {number + 1}, {workers} workers: {wall(done):.1f} s", flush=True)
    walls = {workers: statistics.median(map(wall, runs)) for workers, runs in found.items()}
    faster, goal = walls[1] / walls[options.workers], FASTER * options.workers
    rows = [
        Row(f"{options.workers} workers, times one", f"{faster:.2f}", f">= {goal:.1f}", faster >= goal),
        *(
            Row(
                f"{workers} worker{'s' * (workers > 1)}",
                f"{options.rows / seconds:,.0f} leads/s; {cpu(found[workers], options.rows):.2f} CPU s per 100,000",
            )
            for workers, seconds in walls.items()
        ),
    ]
    title = (
        f"{options.rows:,} leads, {options.latency:.0f} ms, {options.in_flight} requests in flight a worker, median of "
        f"{options.rounds} rounds"
    )
    print(table(title, rows))
    return 0


def wall(done: list[Done]) -> float:
    """Seconds until the last of the workers had ended."""
    return max(each.ended for each in done) - min(each.ended - each.wall for each in done)


def cpu(runs: list[list[Done]], rows: int) -> float:
    """Seconds of the workers' processor time per 100,000 leads."""
    return statistics.median(sum(each.cpu for each in done) for done in runs) * 100_000 / rows


if __name__ == "__main__":
    sys.exit(main())
