"""`python -m bench.memory`: the peak memory of every task of one run over a window of 1,000,000 leads.

Starts a whole stack of its own (real Airflow, PostgreSQL, Valkey) on free ports, fills the lead store, triggers one run
and watches the processes of its tasks. The CRMs are the benchmarks' own, in C (crm/crm.c); they count every lead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench import leads
from bench.product import NO_LIMIT
from bench.stack import running_stack
from bench.world import running_crms
from demo.stack.stack import Stack

LIMIT_MB = 300
DESTINATIONS = ("hubspot", "salesforce")
ACCOUNT = {"login": "bench", "password": "bench"}


def peak_mb(pid: int) -> float:
    """The peak resident memory of a process so far; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines.get("VmHWM", "0 kB").split()[0]) / 1024


def watch(stack: Stack, run_id: str) -> dict[str, dict[str, Any]]:
    """Peak memory, time and result of each task of a run, by name, once the run has ended."""
    peaks: dict[str, float] = {}
    path = f"/dags/leads_sync/dagRuns/{run_id}"
    said = time.monotonic()
    while True:
        ended = stack.api("GET", path).json()["state"] in ("success", "failed")
        tasks = stack.api("GET", f"{path}/taskInstances").json()["task_instances"]
        for task in tasks:
            if task["state"] == "running" and task["pid"]:
                name = task["rendered_map_index"] or task["task_id"]
                peaks[name] = max(peaks.get(name, 0.0), peak_mb(task["pid"]))
        if ended:
            names = {task["rendered_map_index"] or task["task_id"]: task for task in tasks}
            return {name: {**task, "peak_mb": peaks.get(name, 0.0)} for name, task in names.items()}
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print("  so far, MB: " + ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items()), flush=True)
        time.sleep(0.2)


def _quick(pipeline: dict[str, Any]) -> None:
    """Runs only when asked to; the CRMs' pace is not what is measured."""
    pipeline["schedule"].update(cron=None, watch=None)
    for target in pipeline["destinations"].values():
        target["settings"] = NO_LIMIT


def main() -> int:
    """0 when every task stayed below the limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    rows = parser.parse_args().rows
    with running_crms(len(DESTINATIONS)) as crms:
        connections = {
            f"AIRFLOW_CONN_CRM_{name.upper()}": json.dumps({"conn_type": "http", "host": crm.url, **ACCOUNT})
            for name, crm in zip(DESTINATIONS, crms, strict=True)
        }
        with running_stack(_quick, environment=connections) as stack:
            print(f"filling the lead store with {rows:,} leads", flush=True)
            leads.fill(stack.lead_store_dsn, rows)
            reply = stack.api("POST", "/dags/leads_sync/dagRuns", json={"logical_date": None})
            tasks = watch(stack, reply.json()["dag_run_id"])
        for crm in crms:
            crm.expect(rows, leads.keysum(rows))
    print(f"\n| task ({rows:,} leads) | peak RSS, MB | seconds | state |\n| --- | --- | --- | --- |")
    for name, task in tasks.items():
        print(f"| {name} | {task['peak_mb']:.0f} | {task['duration'] or 0:.0f} | {task['state']} |")
    well = all(task["state"] == "success" and task["peak_mb"] < LIMIT_MB for task in tasks.values())
    print(f"\nevery task succeeded and stayed below {LIMIT_MB} MB" if well else f"\nNOT every task below {LIMIT_MB} MB")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
