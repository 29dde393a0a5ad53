"""`python -m bench.ledger`: how much longer a run over 10,000 changes takes with a ledger of 100,000,000 rows than with
an empty one; and beside them with one that knows the changed leads only, as the large one does.

The changes are of leads that lie anywhere in the large ledger. The rounds take turns, each with leads of its own, so
that none is in a cache from the round before. A run is extract, snapshot, load and commit with all promises on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import LiteralString

import psycopg
import structlog

from bench import large_ledger, leads, product
from bench.report import Row, table
from bench.world import World, running_world
from demo import lead_store
from leadsync import operations
from leadsync.config import Pipeline
from leadsync.mapping import lead_key
from leadsync.state import migration

LONGER = 1.2  # the goal
READ: LiteralString = """
SELECT blks_read, blk_read_time / 1000 FROM pg_stat_database WHERE datname = current_database()
"""
FOUND: LiteralString = """
SELECT count(*) FROM leadsync.delivery
 WHERE destination_id = 1 AND lead_key = ANY (%(lead_keys)s) AND sequence > 0 AND crm_id IS NOT NULL
"""


def change(world: World, uids: Sequence[int]) -> str:
    """Makes these leads, and no others, the lead store's; the keysum that they have in the CRM."""
    with psycopg.connect(world.hive, autocommit=True) as connection:
        connection.execute("TRUNCATE customer")
        connection.execute(leads.FILL_SOME, (list(uids),))
        connection.execute("VACUUM ANALYZE customer")
    return leads.keysum_of(uids)


@dataclass(frozen=True)
class Run:
    """The seconds of the steps of a run; PostgreSQL's processor time; what it read from outside its buffers."""

    steps: dict[str, float]
    cpu: float
    pages: int
    reading: float  # seconds

    @property
    def seconds(self) -> float:
        return sum(self.steps.values())


def pages_read(world: World) -> tuple[int, float]:
    """Pages that PostgreSQL has read for Leadsync's database so far, and the seconds that it took."""
    with psycopg.connect(world.state) as connection:
        return connection.execute(READ).fetchone() or (0, 0.0)


def run(world: World, pipeline: Pipeline, name: str, uids: Sequence[int]) -> Run:
    """One run over these leads."""
    keysum = change(world, uids)
    time.sleep(0.2)  # the safe bound stays a little behind the clock
    world.crm.reset()
    watch, cpu, (pages, reading) = product.Stopwatch(), world.postgres_seconds(), pages_read(world)
    with product.clients(pipeline, world.environment()) as using:
        operation = watch.time("extract", lambda: product.open_run(using, pipeline, name))
        watch.time("snapshot", lambda: product.take_snapshot(using, pipeline, operation))
        watch.time("load", lambda: operations.load(using, pipeline, operation.sync_id, "hubspot"))
        watch.time("commit", lambda: operations.commit(using, pipeline, [operation.sync_id]))
        using.snapshots.drop(operation.snapshot_id)
    world.crm.expect(len(uids), keysum)
    time.sleep(1.1)  # a session's statistics are written when it ends, after its last answer
    after = pages_read(world)
    steps = {step: spent.wall for step, spent in watch.spent.items()}
    return Run(steps, round(world.postgres_seconds() - cpu, 2), after[0] - pages, round(after[1] - reading, 2))


def check(dsn: str, uids: Sequence[int]) -> None:
    """Raises SystemExit unless the run found its leads in the filled ledger."""
    keys = [lead_key(f"{leads.APPKEY}:{uid}") for uid in uids]
    with psycopg.connect(dsn) as connection:
        if connection.execute(FOUND, {"lead_keys": keys}).fetchone() != (len(uids),):
            raise SystemExit("the run did not find its leads in the large ledger")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000, help="of the ledger; default: %(default)s")
    parser.add_argument("--changes", type=int, default=10_000, help="of a run; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    large_ledger.announce(options.rows)
    chance = random.Random(1)  # noqa: S311 - no secret
    uids = chance.sample(range(1, options.rows + 1), (options.rounds + 1) * options.changes)
    parts = [uids[first : first + options.changes] for first in range(0, len(uids), options.changes)]
    pipeline = Pipeline.model_validate(product.document({"hubspot": {"adapter": "hubspot", "in_flight": 16}}))
    found: dict[str, list[Run]] = {"empty": [], "small": [], "large": []}
    # With wal_level minimal what a transaction fills that emptied it needs no log. Runs log as ever.
    with running_world(wal_level="minimal", max_wal_senders="0", track_io_timing="on") as small:
        with psycopg.connect(small.state, autocommit=True) as connection:
            connection.execute("CREATE DATABASE large")
        large = replace(small, state=f"{small.state.rpartition('/')[0]}/large")
        lead_store.create(small.hive)
        small.reset()
        migration.migrate(large.state)
        large_ledger.fill(large.state, options.rows, uids)
        # The first round is not counted: it makes the destinations known, and warms what every run uses.
        for number, part in enumerate(parts):
            with psycopg.connect(small.state, autocommit=True) as connection:
                connection.execute("TRUNCATE leadsync.delivery")
            for name, world in (("empty", small), ("small", small), ("large", large)):
                found[name].append(run(world, pipeline, f"{name} {number}", part))
                print(f"round {number}, {name}: {json.dumps(asdict(found[name][-1]))}", flush=True)
            check(large.state, part)

    def median(name: str, figure: Callable[[Run], float]) -> float:
        return statistics.median(map(figure, found[name][1:]))

    longer = median("large", lambda run: run.seconds) / median("empty", lambda run: run.seconds)
    rows = [Row("a run, times one with an empty ledger", f"{longer:.2f}", f"<= {LONGER}", longer <= LONGER)]
    for name in found:
        whole, load = median(name, lambda run: run.seconds), median(name, lambda run: run.steps["load"])
        pages, reading = median(name, lambda run: run.pages), median(name, lambda run: run.reading)
        cpu = median(name, lambda run: run.cpu)
        told = (
            f"{whole:.2f} s (load {load:.2f}; PostgreSQL: {cpu:.2f} CPU s, {pages:,.0f} pages read in {reading:.2f} s)"
        )
        rows.append(Row(f"ledger {name}", told))
    title = f"{options.changes:,} changes, a ledger of {options.rows:,} rows, median of {options.rounds} rounds"
    print(table(title, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
