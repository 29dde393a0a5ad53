"""`python -m bench.idle`: what a run with nothing to do costs, on a whole stack: time, processor time, metadata.

The lead store is empty, nobody watches it, and runs are triggered one after the other. Processor time of the tasks is
what the executor's workers have got back from the task processes that they waited for. Beside it the same number of
runs of a DAG of the same shape whose tasks do nothing (dags/empty.py): what is left is Leadsync's own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
from croniter import croniter
from psycopg import sql

from bench.product import SHIPPED
from bench.report import Row, table
from bench.stack import running_stack
from demo.stack import processes
from demo.stack.stack import Stack
from leadsync.config import load_pipeline

EMPTY = Path(__file__).parent / "dags" / "empty.py"
SECONDS, CPU = 3.0, 0.3  # the goals
PATIENCE = 120
DATABASES = ("airflow", "leadsync")
TABLES: LiteralString = """
SELECT n.nspname, c.relname, pg_total_relation_size(c.oid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND n.nspname IN ('public', 'leadsync')
"""


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds from trigger to success, by run; processor seconds of its tasks, and of the executor's
    workers that looked after them.
    """

    seconds: list[float]
    tasks: float
    workers: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def runs(stack: Stack, dag: str, count: int) -> Cost:
    """So many runs, one after the other; what one of them cost."""
    time.sleep(2)
    before = processor_seconds(stack)
    seconds = []
    for number in range(1, count + 1):
        seconds.append(one_run(stack, dag))
        if number % 10 == 0:
            print(f"  {dag}: {number} runs, the last took {seconds[-1]:.1f} s", flush=True)
    time.sleep(2)
    return Cost(seconds, *((now - then) / count for now, then in zip(processor_seconds(stack), before, strict=True)))


def one_run(stack: Stack, dag: str) -> float:
    """Triggers a run and waits for its end; seconds from one to the other."""
    asked = datetime.now(UTC)
    run_id = stack.api("POST", f"/dags/{dag}/dagRuns", json={"logical_date": None}).json()["dag_run_id"]
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(0.25)
        run: dict[str, Any] = stack.api("GET", f"/dags/{dag}/dagRuns/{run_id}").json()
        if run["state"] == "success":
            return (datetime.fromisoformat(run["end_date"]) - asked).total_seconds()
        if run["state"] == "failed":
            raise SystemExit(f"the run {run_id} failed")
    raise SystemExit(f"the run {run_id} did not end within {PATIENCE} s")


def processor_seconds(stack: Stack) -> tuple[float, float]:
    """Processor time so far of all tasks that have ended, and of the executor's workers that looked after them."""
    tasks = workers = 0.0
    for process in processes.of_program(stack.state_dir, processes.RUNS_TASKS):
        try:
            if "LocalExecutor" in " ".join(process.cmdline()):
                times = process.cpu_times()
                tasks += times.children_user + times.children_system
                workers += times.user + times.system
        except psutil.Error:
            continue
    return tasks, workers


def sizes(stack: Stack) -> dict[str, tuple[int, int]]:
    """Rows and bytes, indexes included, of every table of Airflow and Leadsync, as `database.table`."""
    found = {}
    for database in DATABASES:
        with psycopg.connect(stack.postgres.dsn(database), autocommit=True) as connection:
            for schema, name, size in connection.execute(TABLES).fetchall():
                query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, name))
                row = connection.execute(query).fetchone()
                found[f"{database}.{name}"] = (row[0] if row else 0, size)
    return found


def logs(stack: Stack) -> int:
    """Bytes of the tasks' logs."""
    folder: Path = stack.state_dir / "airflow" / "logs"
    return sum(path.stat().st_size for path in folder.rglob("dag_id=leads_sync/**/*.log"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--runs", type=int, default=60, help="more make bytes more exact; default: %(default)s")
    count = parser.parse_args().runs
    pipeline = load_pipeline(SHIPPED)
    with running_stack(lambda pipeline: pipeline["schedule"].update(cron=None, watch=None), more_dags=[EMPTY]) as stack:
        for dag in ("leads_sync", "empty") * 3:  # the first makes the destinations known, and all warm what runs use
            one_run(stack, dag)
        before, written = sizes(stack), logs(stack)
        cost = runs(stack, "leads_sync", count)
        after, written = sizes(stack), (logs(stack) - written) // count
        empty = runs(stack, "empty", count)
    rows = [
        Row("trigger to success, median", f"{cost.median:.2f} s", f"<= {SECONDS:g} s", cost.median <= SECONDS),
        Row("longest", f"{max(cost.seconds):.2f} s"),
        Row("CPU of the tasks, a run", f"{cost.tasks:.2f} s", f"< {CPU} s", cost.tasks < CPU),
        Row("CPU of the executor's workers beside it", f"{cost.workers:.2f} s"),
        Row("the same of empty tasks: trigger to success, median", f"{empty.median:.2f} s"),
        Row("CPU of the empty tasks", f"{empty.tasks:.2f} s"),
    ]
    daily = runs_a_day(pipeline.schedule.cron)
    kept = {"airflow": "until somebody runs `airflow db clean`"}
    kept["leadsync"] = f"for {pipeline.retention.operation_log_days:g} days"
    for database in DATABASES:
        grown = {
            name: (after[name][0] - before[name][0], after[name][1] - before[name][1])
            for name in after
            if name.startswith(f"{database}.") and after[name][0] > before[name][0]
        }
        lines, size = (sum(each[place] for each in grown.values()) / count for place in (0, 1))
        measured = (
            f"{lines:.1f} rows, {size / 1000:.1f} kB; {lines * daily:,.0f} rows and {size * daily / 1e6:.0f} MB a day, "
            f"kept {kept[database]}"
        )
        rows.append(Row(f"database {database}, a run", measured))
        per_table = (f"{name.partition('.')[2]} {each[0] / count:.1f}" for name, each in sorted(grown.items()))
        rows.append(Row("of these, rows by table", ", ".join(per_table)))
    rows.append(Row("task logs, a run", f"{written / 1000:.1f} kB; {written * daily / 1e6:.0f} MB a day"))
    print(table(f"{count} runs with nothing to do; by the shipped schedule there are {daily} a day", rows))
    return 0


def runs_a_day(cron: str | None) -> int:
    """How many runs the fixed times make; the others have something to do."""
    if cron is None:
        return 0
    first = datetime(2026, 1, 1, tzinfo=UTC)
    times, number = croniter(cron, first - timedelta(seconds=1)), 0
    while times.get_next(datetime) < first + timedelta(days=1):
        number += 1
    return number


if __name__ == "__main__":
    sys.exit(main())
