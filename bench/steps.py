"""`python -m bench.steps`: what reading the lead store costs, what leads take in Redis and PostgreSQL, and how fast
leads that have not changed are passed over.

In each round: the rows as COPY text, read and thrown away; then a sync of all of them, and a second one in which
nothing has changed. The sync is a process of its own with all promises on; every lead is counted by the CRM.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import psycopg

from bench import leads, product
from bench.report import Row, table
from bench.speed import Run, run
from bench.world import World, running_world
from leadsync.config import Pipeline

# The goals: of the speed of bare COPY; seconds of processor time per 100,000 leads; leads checked per second.
READ, CPU, CHECKED = 0.75, 0.2, 100_000


def copy(world: World, pipeline: Pipeline, *, ordered: bool) -> float:
    """Seconds for reading all rows to nowhere."""
    source = pipeline.source
    order = ", ".join((source.watermark, *source.key))
    query = f"SELECT {', '.join(source.columns)} FROM {source.table}" + (f" ORDER BY {order}" if ordered else "")  # noqa: S608
    with psycopg.connect(world.hive) as connection, connection.cursor() as cursor:
        began = time.perf_counter()
        with cursor.copy(f"COPY ({query}) TO STDOUT".encode()) as rows:
            for _ in rows:
                pass
        return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    arguments = parser.parse_args()
    rows = arguments.rows
    pipeline = Pipeline.model_validate(product.document({"hubspot": {"adapter": "hubspot"}}))
    command = [sys.executable, "-m", "bench.sync", "--again"]
    found: list[tuple[float, float, Run]] = []
    with running_world() as world:
        print(f"filling the lead store with {rows:,} leads", flush=True)
        leads.fill(world.hive, rows)
        expected = leads.keysum(rows)
        for number in range(arguments.rounds):
            plain, same = (copy(world, pipeline, ordered=ordered) for ordered in (False, True))
            one = run(world, command, rows, expected, 0)
            print(f"round {number + 1}: COPY {same:.2f} s, unordered {plain:.2f} s; {one.seconds}", flush=True)
            found.append((plain, same, one))
    print(table(f"{rows:,} leads, median of {arguments.rounds} rounds", list(judged(found, rows, pipeline))))
    return 0


def judged(found: list[tuple[float, float, Run]], rows: int, pipeline: Pipeline) -> list[Row]:
    """The lines of the table."""

    def median(figure: Callable[[float, float, Run], float]) -> float:
        return statistics.median(figure(*each) for each in found)

    def read(one: Run) -> float:
        return one.seconds["extract"] + one.seconds["snapshot"]

    of_same = median(lambda plain, same, one: same / read(one))
    of_plain = median(lambda plain, same, one: plain / read(one))
    cpu = median(lambda plain, same, one: one.told["cpu"]["extract"] + one.told["cpu"]["snapshot"]) * 100_000 / rows
    speed = median(lambda plain, same, one: rows / read(one))
    checked = median(lambda plain, same, one: rows / one.seconds["again load"])
    checking = median(lambda plain, same, one: one.told["cpu"]["again load"]) * 100_000 / rows
    requests = max(one.told["requests"]["again run"] for _, _, one in found)
    stored = median(lambda plain, same, one: one.told["snapshot_bytes"]) * 1_000_000 / rows / 1e6
    ledger, log = (
        median(lambda plain, same, one, name=name: one.told["table_bytes"][name] / rows)
        for name in ("delivery", "operation_data")
    )
    return [
        Row("extract + snapshot, of the same rows by bare COPY", f"{of_same:.2f}", f">= {READ}", of_same >= READ),
        Row("the same, of bare COPY in no order", f"{of_plain:.2f}"),
        Row("extract + snapshot, leads/s", f"{speed:,.0f}"),
        Row("extract + snapshot, CPU s per 100,000 leads", f"{cpu:.3f}", f"<= {CPU}", cpu <= CPU),
        Row("unchanged leads checked per second", f"{checked:,.0f}", f">= {CHECKED:,}", checked >= CHECKED),
        Row("unchanged leads, CPU s per 100,000", f"{checking:.2f}"),
        Row("requests for unchanged leads", str(requests), "0", requests == 0),
        Row("a snapshot in Redis, MB per 1,000,000 leads", f"{stored:.0f}"),
        Row("a lead in the ledger after its first delivery, bytes with indexes", f"{ledger:.0f}"),
        Row("a sent change in the operation log, bytes", f"{log:.0f}"),
        Row(
            "a snapshot is kept for",
            f"{pipeline.snapshot_keep_hours:g} hours after its run, {pipeline.snapshot_ttl_hours:g} at most",
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
