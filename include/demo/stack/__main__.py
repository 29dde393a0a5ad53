"""The command line behind `make up`, `make down`, `make status` and `make clean`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo.stack import ports
from demo.stack.errors import StackError
from demo.stack.stack import Stack

ROOT = Path(__file__).absolute().parents[3]
STATE = ROOT / ".local"
DAG = "leads_sync"
NOT_RUNNING = 3


def main(argv: list[str] | None = None) -> int:
    """0: done; 1: it failed, with the problem on standard error; 3: `status`, and not everything runs."""
    parser = argparse.ArgumentParser(prog="python -m demo.stack", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status", "clean"])
    arguments = parser.parse_args(argv)
    try:
        return {"up": _up, "down": _down, "status": _status, "clean": _clean}[arguments.command]()
    except StackError as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return 1


def _last() -> Stack | None:
    """The stack that was last started here."""
    try:
        return Stack.load(STATE)
    except StackError:
        return None


def _up() -> int:
    last = _last()
    dag = DAG if any((ROOT / "dags").glob("*.py")) else None
    stack = last if last and last.runs() else Stack(STATE, ports.base_from_environment(), ROOT, dag=dag)
    stack.up(_say)
    addresses = stack.values()
    print(
        f"""
Leadsync runs: {stack.ui_url}
  login        admin, password {stack.ui_password}
  look first   {stack.ui_url}/dags/{DAG}: the runs, each destination by name
               {addresses["CRM_HUBSPOT_URL"]} (demo HubSpot) and
               {addresses["CRM_SALESFORCE_URL"]} (demo Salesforce): the leads as they arrive
               {addresses["LANDING_URL"]}: submit a lead of your own and watch it arrive
  make status  addresses, passwords and the state of every process
  make down    stops everything; the data stays, make up goes on with it"""
    )
    return 0


def _down() -> int:
    if last := _last():
        last.down(_say)
    else:
        print("Leadsync is not running")
    return 0


def _status() -> int:
    last = _last()
    if last is None:
        print("Leadsync is not running; make up starts it")
        return NOT_RUNNING
    for name, value in last.values().items():
        print(f"{name}={value}")
    states = last.status()
    for state in states:
        print(f"{state.name:<22} {state.state:<9} pid {state.pid or '-':<8} up {state.uptime} s")
    return 0 if all(state.state == "RUNNING" for state in states) else NOT_RUNNING


def _clean() -> int:
    if last := _last():
        last.clean(_say)
    else:
        print(f"there is no {STATE}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
