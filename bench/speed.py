"""`python -m bench.speed`: how fast leads reach one CRM, and at what cost, beside other ways to do it.

The cases take turns, so that what else the machine does weighs on all of them; ratios hold, times of two runs do not.
Each is a process of its own, start included. What a case sent is checked: every lead, and each once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import leads, report
from bench.peers.environments import binary
from bench.world import World, running_world

ROOT = Path(__file__).parents[1]
PEERS = "bench/peers"
SALESFORCE, BULK = "Leadsync, Salesforce", "Leadsync, Salesforce, bulk jobs"
TIMES_BATCHES = 1.3  # the goal
# What the latency alone allows: so many requests at once, each with so many leads.
IN_FLIGHT = 16
BATCH = {"Leadsync": 100, SALESFORCE: 200}
OF_ALLOWED = 0.85  # the goal


def sync(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bench.sync", "--in-flight", str(IN_FLIGHT), *arguments]


def dlt(*arguments: str) -> list[str]:
    return [binary("dlt", "python"), f"{PEERS}/dlt_sync.py", *arguments]


# The commands are made late: a tool is installed only when it is measured.
CASES: dict[str, Callable[[], list[str]]] = {
    "Leadsync": sync,
    SALESFORCE: lambda: sync("--adapter", "salesforce"),
    BULK: lambda: sync("--adapter", "salesforce", "--bulk"),
    "script, batches of 100": lambda: [sys.executable, f"{PEERS}/script.py"],
    "dlt, sqlalchemy": lambda: dlt("sqlalchemy"),
    "dlt, pyarrow": lambda: dlt("pyarrow"),
    "dlt, connectorx": lambda: dlt("connectorx"),
    "dlt, connectorx, tuned": lambda: dlt("connectorx", "--tuned"),
    "drt, batches of 100": lambda: [sys.executable, f"{PEERS}/drt.py", binary("drt", "drt")],
}


@dataclass(frozen=True)
class Run:
    """One run of one case. Seconds of processor time are of the process with its children, and of PostgreSQL."""

    wall: float
    client: float
    postgres: float
    peak_mb: float
    told: dict[str, Any]

    @property
    def seconds(self) -> dict[str, float]:
        """On the clock, of the steps that the case tells of."""
        found: dict[str, float] = self.told["seconds"]
        return found


def run(world: World, command: Sequence[str], rows: int, expected: str, latency: float) -> Run:
    """Raises SystemExit when the case fails or a lead did not arrive, or arrived twice."""
    world.reset(latency_ms=latency)
    environment = {**os.environ, **world.environment(), "PYTHONPATH": f"{ROOT / 'include'}{os.pathsep}{ROOT}"}
    before = world.postgres_seconds()
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, env=environment, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().decode().splitlines()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {process.returncode}")
    told: dict[str, Any] = json.loads(lines[-1])
    time.sleep(0.5)  # until the connection's process has ended, and its time is its parent's
    world.crm.expect(rows, expected)
    if told["rows"] != rows:
        raise SystemExit(f"{' '.join(command)} counted {told['rows']} of {rows} leads")
    return Run(
        wall,
        usage.ru_utime + usage.ru_stime,
        world.postgres_seconds() - before,
        usage.ru_maxrss / 1024,
        told,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--latency", type=float, default=0, metavar="MS", help="of the CRM; default: %(default)s")
    parser.add_argument("--tls", action="store_true", help="to the CRM (needs OpenSSL's headers)")
    parser.add_argument("--only", action="append", choices=list(CASES), help="default: all of them")
    arguments = parser.parse_args()
    rows, names = arguments.rows, arguments.only or list(CASES)
    commands = {name: CASES[name]() for name in names}
    found: dict[str, list[Run]] = {name: [] for name in names}
    with running_world(tls=arguments.tls) as world:
        print(f"filling the lead store with {rows:,} leads", flush=True)
        leads.fill(world.hive, rows)
        expected = leads.keysum(rows)
        for number in range(arguments.rounds):
            for name in names:
                found[name].append(one := run(world, commands[name], rows, expected, arguments.latency))
                print(f"round {number + 1}: {name}: {one.wall:.1f} s {one.seconds}", flush=True)
    title = f"{rows:,} leads, {arguments.latency:.0f} ms{', over TLS' if arguments.tls else ''}"
    print(table(found, rows, title))
    print(judged(found, rows, arguments.latency, title))
    return 0


def judged(found: dict[str, list[Run]], rows: int, latency: float, title: str) -> str:
    """What the loads alone are to reach, as Markdown."""

    def speed(name: str) -> float:
        return statistics.median(rows / each.seconds["load"] for each in found[name])

    lines = []
    for name in BATCH if latency else ():
        if name in found:
            allowed = IN_FLIGHT * BATCH[name] / (latency / 1000)
            share = speed(name) / allowed
            what = f"{name}: load, of the {allowed:,.0f} leads/s that {IN_FLIGHT} requests at once allow"
            lines.append(report.Row(what, f"{share:.2f}", f">= {OF_ALLOWED}", share >= OF_ALLOWED))
    if {SALESFORCE, BULK} <= set(found):
        times = speed(BULK) / speed(SALESFORCE)
        lines.append(
            report.Row(f"{BULK}: load, times batches", f"{times:.2f}", f">= {TIMES_BATCHES}", times >= TIMES_BATCHES)
        )
    return report.table(title, lines) if lines else ""


def table(found: dict[str, list[Run]], rows: int, title: str) -> str:
    """Medians of all rounds, as Markdown."""
    lines = [
        f"\n{title}, median of {len(next(iter(found.values())))} rounds\n",
        "| case | leads/s (lowest to highest) | CPU s per 100,000 | of PostgreSQL | peak MB | times the first |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    first = None
    for name, runs in found.items():
        speeds = sorted(rows / each.wall for each in runs)
        speed = statistics.median(speeds)
        first = first or speed
        cost, postgres = (
            statistics.median(getattr(each, what) * 100_000 / rows for each in runs) for what in ("client", "postgres")
        )
        peak = statistics.median(each.peak_mb for each in runs)
        lines.append(
            f"| {name} | {speed:,.0f} ({speeds[0]:,.0f} to {speeds[-1]:,.0f}) | {cost:.2f} | {postgres:.2f} "
            f"| {peak:.0f} | {speed / first:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
