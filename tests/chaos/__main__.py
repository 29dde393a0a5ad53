"""`python -m tests.chaos`: plays random sequences and prints what they showed; `make chaos` runs it.

    --seed 42            one sequence, with its events
    --seconds 600        as many sequences as fit, from --first on
    --sequences 1000     so many, from --first on
    --events FILE        the events of a file, a JSON line each, as a failing sequence prints them

A failing sequence is printed and the next one goes on; the exit status is 1 when any failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.chaos import broken
from tests.chaos.events import dump, parse
from tests.chaos.generator import Generator, StackGenerator
from tests.chaos.sequence import Verdict, play
from tests.chaos.stack import running_stack
from tests.chaos.world import running_world

PROMISES = ("lost", "doubled", "stale", "alive", "back", "invented", "letter", "defect", "not calm")


class Totals:
    """The figures of all sequences."""

    def __init__(self) -> None:
        self.sequences = 0
        self.failed: list[int] = []
        self.counters: dict[str, Counter[str]] = {name: Counter() for name in ("figures", "events", "tasks", "kinds")}

    def add(self, seed: int, verdict: Verdict) -> None:
        self.sequences += 1
        if verdict.failures:
            self.failed.append(seed)
        for name, counter in self.counters.items():
            counter.update(getattr(verdict, name))

    def table(self, seconds: float) -> str:
        """All of them, one a line."""
        lines = [f"sequences {self.sequences} in {seconds:.0f} s, failed {len(self.failed)} {self.failed}"]
        for name, title in (("figures", ""), ("events", "event "), ("tasks", "task ")):
            lines += [f"{title}{key} {count}" for key, count in sorted(self.counters[name].items())]
        lines += [f"{kind} {self.counters['kinds'][kind]}" for kind in PROMISES]
        return "\n".join(lines)


def seeds(arguments: argparse.Namespace, began: float) -> Iterator[int]:
    """Those that were asked for."""
    seed = arguments.seed if arguments.seed is not None else arguments.first
    left = 1 if arguments.seed is not None or arguments.events else arguments.sequences
    while left is None or left > 0:
        if arguments.seconds is not None and time.monotonic() - began > arguments.seconds:
            return
        yield seed
        seed, left = seed + 1, None if left is None else left - 1


def main() -> int:
    """Exit status 0 when all sequences ended well."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--events", type=Path)
    parser.add_argument("--broken", choices=list(broken.RULES), help="break a rule of the product on purpose")
    parser.add_argument("--stack", action="store_true", help="on the whole stack, under Airflow's scheduler")
    parser.add_argument("--folder", type=Path, help="keeps the logs of workers and servers here")
    arguments = parser.parse_args()
    if all(each is None for each in (arguments.seed, arguments.seconds, arguments.sequences, arguments.events)):
        arguments.sequences = 20
    totals, began = Totals(), time.monotonic()
    running = running_stack if arguments.stack else running_world
    # Ctrl-C ends it with the figures so far.
    with suppress(KeyboardInterrupt), running(arguments.folder) as world:
        for seed in seeds(arguments, began):
            made = (StackGenerator if arguments.stack else Generator)(seed)
            events = parse(arguments.events.read_text()) if arguments.events else list(made.events())
            if arguments.seed is not None:
                print(dump(events), flush=True)
            at = time.monotonic()
            verdict = play(world, seed, events, broken=arguments.broken)
            totals.add(seed, verdict)
            said = "FAILED" if verdict.failures else "ok"
            print(
                f"seed {seed} {said} {time.monotonic() - at:.1f} s {dict(verdict.figures)} {dict(verdict.tasks)}",
                flush=True,
            )
            if verdict.failures:
                print(dump(events), *verdict.failures, sep="\n", flush=True)
    print(totals.table(time.monotonic() - began))
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
