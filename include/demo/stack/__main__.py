"""`python -m demo.stack up|down|status|clean`: the whole of Leadsync on this machine, all on 127.0.0.1."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from demo.stack.layout import Layout
from demo.stack.stack import PROGRAMS, Stack, StackError

ROOT = Path(__file__).parents[3]
PIPELINES = ROOT / "include" / "pipelines"


def main() -> int:
    """0 when all is well, 1 with the reason on standard error, 3 from `status` when not all runs."""
    parser = argparse.ArgumentParser(prog="python -m demo.stack", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status", "clean"])
    arguments = parser.parse_args()
    state = ROOT / ".local"
    known = (state / "stack.json").exists()
    port = int(os.environ.get("LEADSYNC_PORT") or 8080)
    stack = Stack(Layout.load(state) if known else Layout(ROOT, state, port, PIPELINES))
    if arguments.command == "up" and known and not stack.running():
        stack = Stack(Layout(ROOT, state, port if "LEADSYNC_PORT" in os.environ else stack.layout.port, PIPELINES))
    if arguments.command == "status":
        return _status(stack, known)
    try:
        if arguments.command == "up":
            _up(stack)
        elif arguments.command == "clean":
            stack.clean()
            print("everything is stopped and .local is gone")
        else:
            was = known and stack.down()
            print("everything is stopped; `make up` goes on with the data" if was else "nothing was running")
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _up(stack: Stack) -> None:
    if stack.running():
        print("Leadsync runs already")
    else:
        print("starting Leadsync")
        stack.up()
        stack.run_now()
    layout = stack.layout
    print(
        f"""
Airflow   {layout.url("api-server")}/dags/leads_sync   login: admin / {layout.logins["admin"]}
CRMs      {layout.url("hubspot")} (HubSpot)   {layout.url("salesforce")} (Salesforce)   both simulated
Landing   {layout.url("landing")}   leave a lead and watch it arrive

Look first at the DAG's grid: each run delivers what changed, one `load` per CRM. `make status`, `make down`."""
    )


def _status(stack: Stack, known: bool) -> int:
    if not known or not stack.running():
        print("not running: make up")
        return 3
    for name, value in stack.layout.values().items():
        print(f"{name}={value}")
    processes = stack.processes()
    for name in PROGRAMS:
        info = processes[name]
        uptime = f"pid {info['pid']}, up {time.time() - info['start']:.0f} s" if info["pid"] else ""
        print(f"{name:14} {info['statename']:9} {uptime}".rstrip())
    return 0 if all(info["statename"] == "RUNNING" for info in processes.values()) else 3


if __name__ == "__main__":
    sys.exit(main())
