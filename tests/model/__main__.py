"""`python -m tests.model SEEDS [--without RULE] [--first SEED]` walks random histories and says what became of them."""

from __future__ import annotations

import argparse
import time
from collections import Counter

from tests.model.protocol import RULES
from tests.model.walk import walk


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when every history kept its promises, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.model", description="Walks random histories of the protocol."
    )
    parser.add_argument("seeds", type=int, help="how many")
    parser.add_argument("--without", metavar="RULE", choices=RULES, action="append", default=[], help=", ".join(RULES))
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    options = parser.parse_args(arguments)

    began, broken, first = time.process_time(), Counter[str](), None
    for seed in range(options.first, options.first + options.seeds):
        violation = walk(seed, options.without)
        if violation:
            broken[violation.kind] += 1
            first = seed if first is None else first
    seconds = time.process_time() - began
    print(f"rules      {', '.join('without ' + rule for rule in options.without) or 'as designed'}")
    print(f"histories  {options.seeds} in {seconds:.0f} s of processor time")
    print(f"broken     {broken.total()} {dict(broken.most_common())}")
    if first is None:
        return 0
    log: list[str] = []
    walk(first, options.without, log)
    print(f"\nseed {first}, tick by tick:", *log, sep="\n")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
