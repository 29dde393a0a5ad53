"""`python -m bench.destinations`: whether a CRM that is 50 times slower than three others delays them.

The three load one window side by side, each in a process of its own, and then once more beside the slow one; the rounds
take turns. Each CRM is a server of its own. The slow load is not waited for: it is killed when the three have ended.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Sequence

import structlog

from bench import leads, product
from bench.report import Row, table
from bench.workers import working
from bench.world import World, running_world
from leadsync.config import Pipeline

FAST, SLOW = ("one", "two", "three"), "slow"
LONGER = 0.10  # the goal: the others' time may grow by so much


def run(world: World, names: Sequence[str], slow_ms: float, options: argparse.Namespace) -> dict[str, float]:
    """One window to these destinations; the seconds that the load of each of the fast ones took."""
    world.reset(latency_ms=options.latency)
    world.crms[-1].reset(latency_ms=slow_ms)
    target = {"adapter": "hubspot", "in_flight": options.in_flight}
    document = product.document({name: target for name in names}, shard_rows=options.rows)
    pipeline = Pipeline.model_validate(document)
    places = {f"BENCH_CRM_{name.upper()}": crm.url for name, crm in zip((*FAST, SLOW), world.crms, strict=True)}
    environment = {**world.environment(), **places}
    with product.clients(pipeline, environment) as using:
        operation = product.open_run(using, pipeline, "destinations")
        product.take_snapshot(using, pipeline, operation)
        loads = [(name, operation.sync_id, 0) for name in names]
        with working(environment, document, loads) as workers:
            done = [worker.result() for worker in workers if worker.destination != SLOW]
            if SLOW in names:
                stats = world.crms[-1].stats()
                if not 0 < stats["records"] < options.rows:
                    raise SystemExit(f"the slow load was not under way all the time: {stats}")
    keysum = leads.keysum(options.rows)
    for crm in world.crms[: len(FAST)]:
        crm.expect(options.rows, keysum)
    return {each.destination: each.wall for each in done}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.destinations", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--latency", type=float, default=100, metavar="MS", help="of the fast ones; default: %(default)s"
    )
    parser.add_argument("--times", type=float, default=50, help="so much slower is the slow one; default: %(default)s")
    parser.add_argument("--in-flight", type=int, default=4, help="requests of a load; default: %(default)s")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with running_world(crms=len(FAST) + 1) as world:
        print(f"filling the lead store with {options.rows:,} leads", flush=True)
        leads.fill(world.hive, options.rows)
        for number in range(options.rounds):
            for beside_slow, names in ((False, FAST), (True, (*FAST, SLOW))):
                seconds = run(world, names, options.latency * options.times, options)
                found[beside_slow].append(seconds)
                told = ", ".join(f"{name} {wall:.1f} s" for name, wall in seconds.items())
                print(f"round {number + 1}, {len(names)} destinations: {told}", flush=True)
    rows = []
    for name in FAST:
        without, beside = (statistics.median(each[name] for each in found[kind]) for kind in (False, True))
        longer = beside / without - 1
        measured = f"{without:.1f} s, beside the slow one {beside:.1f} s: {longer:+.1%}"
        rows.append(Row(f"CRM {name}", measured, f"<= {LONGER:+.0%}", longer <= LONGER))
    title = (
        f"{options.rows:,} leads to three CRMs with {options.latency:.0f} ms, and to a fourth with "
        f"{options.latency * options.times / 1000:g} s; {options.in_flight} requests in flight each; median of "
        f"{options.rounds} rounds"
    )
    print(table(title, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
