"""The command line behind `make up`, `make down`, `make status` and `make clean`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo.stack import ports
from demo.stack.errors import StackError
from demo.stack.stack import Stack

ROOT = Path(__file__).absolute().parents[3]
DAG = "leads_sync"
NOT_RUNNING = 3


def main(argv: list[str] | None = None) -> int:
    """0: done; 1: it failed, with the problem on standard error; 3: `status`, and not everything runs."""
    parser = argparse.ArgumentParser(prog="python -m demo.stack", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".local", help="holds the state; default: %(default)s")
    parser.add_argument("command", choices=["up", "down", "status", "clean"])
    arguments = parser.parse_args(argv)
    command = {"up": _up, "down": _down, "status": _status, "clean": _clean}[arguments.command]
    try:
        return command(arguments.folder)
    except StackError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return 1


def _last(folder: Path) -> Stack | None:
    """The stack that was last started from this folder."""
    try:
        return Stack.load(folder)
    except StackError:
        return None


def _up(folder: Path) -> int:
    last = _last(folder)
    stack = last if last and last.runs() else Stack(folder, ports.base_from_environment(), ROOT, dag=DAG)
    stack.up(_say)
    addresses = stack.values()
    print(
        f"""
Leadsync runs: {stack.ui_url}
  login        admin, password {stack.ui_password}
  look first   {stack.ui_url}/plugin/leadsync: whether every CRM is up to date
               {stack.ui_url}/dags/{DAG}: the runs, each destination by name
               {addresses["CRM_HUBSPOT_URL"]} (demo HubSpot) and
               {addresses["CRM_SALESFORCE_URL"]} (demo Salesforce): the leads as they arrive
               {addresses["LANDING_URL"]}: submit a lead of your own and watch it arrive
  make status  addresses, passwords and the state of every process
  make down    stops everything; the data stays, make up goes on with it"""
    )
    return 0


def _down(folder: Path) -> int:
    if last := _last(folder):
        last.down(_say)
    else:
        print("Leadsync is not running")
    return 0


def _status(folder: Path) -> int:
    last = _last(folder)
    if last is None:
        print("Leadsync is not running; make up starts it")
        return NOT_RUNNING
    for name, value in last.values().items():
        print(f"{name}={value}")
    states = last.status()
    for state in states:
        print(f"{state.name:<22} {state.state:<9} pid {state.pid or '-':<8} up {state.uptime} s")
    return 0 if all(state.state == "RUNNING" for state in states) else NOT_RUNNING


def _clean(folder: Path) -> int:
    if last := _last(folder):
        last.clean(_say)
    else:
        print(f"there is nothing to remove in {folder}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
