"""`python -m bench.memory`: the peak memory of every task of one run over a window of 1,000,000 leads.

Starts a whole stack of its own (real Airflow, PostgreSQL, Valkey, both simulated CRMs) on free ports, fills the lead
store, triggers one run and watches the processes of its tasks. Takes many minutes: the simulated CRMs are the brake.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from bench.stack import running_stack
from demo.stack.stack import Stack

LIMIT_MB = 300

FILL = """
INSERT INTO customer (appkey, uid, phone, name, email, city, answers)
SELECT 'BENCH', n, '+86 ' || n, 'Lead 李 ' || n, 'lead' || n || '@example.com', 'Shanghai',
       jsonb_build_object('budget', '<100', 'utm', jsonb_build_object('source', 'wx', 'campaign', md5(n::text)))
  FROM generate_series(1, %s) n
"""


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


def main() -> int:
    """0 when every task stayed below the limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    rows = parser.parse_args().rows
    with running_stack(lambda pipeline: pipeline["schedule"].update(cron=None, watch=None)) as stack:
        print(f"filling the lead store with {rows:,} leads", flush=True)
        with psycopg.connect(stack.lead_store_dsn) as connection:
            connection.execute(FILL, (rows,))
        time.sleep(1)
        reply = stack.api("POST", "/dags/leads_sync/dagRuns", json={"logical_date": None})
        tasks = watch(stack, reply.json()["dag_run_id"])
    print(f"\n| task ({rows:,} leads) | peak RSS, MB | seconds | state |\n| --- | --- | --- | --- |")
    for name, task in tasks.items():
        print(f"| {name} | {task['peak_mb']:.0f} | {task['duration'] or 0:.0f} | {task['state']} |")
    well = all(task["state"] == "success" and task["peak_mb"] < LIMIT_MB for task in tasks.values())
    print(f"\nevery task succeeded and stayed below {LIMIT_MB} MB" if well else f"\nNOT every task below {LIMIT_MB} MB")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
