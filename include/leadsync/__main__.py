"""The command line: `python -m leadsync check`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from leadsync.config import load_pipelines
from leadsync.errors import LeadsyncError

PIPELINES = Path(__file__).parents[1] / "pipelines"


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 0 when all is well, 1 with the problem on standard error."""
    parser = argparse.ArgumentParser(prog="leadsync", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="read the pipeline files and say what is wrong")
    check.add_argument("--folder", type=Path, default=PIPELINES, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        for pipeline in load_pipelines(arguments.folder):
            names = ", ".join(destination.name for destination in pipeline.destinations)
            print(f"{pipeline.name}: right; {pipeline.source.table} → {names}")
    except LeadsyncError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
