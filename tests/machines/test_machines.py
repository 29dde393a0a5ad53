"""Celery workers on two machines with addresses of their own: they share work, its code changes, and one is lost.

The tests go over one stack in order; each ends in step. `make test-machines` runs them where links may be cut.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.stack import ports
from demo.stack.layout import Layout, Settings
from demo.stack.stack import Stack
from tests.e2e.conftest import NO_ALERTS, ROOT, Airflow, running
from tests.machines.machine import Machine

SLOTS = 4  # of each worker: half of the loads of a large window
REQUESTS = 5.0  # a second and CRM, so that a load lasts


@pytest.fixture(scope="module")
def airflow() -> Iterator[Airflow]:
    """A stack whose tasks go to Celery, with no worker."""
    with tempfile.TemporaryDirectory(prefix="leadsync-machines-") as folder:
        pipelines, state, checkout = (Path(folder) / name for name in ("pipelines", "state", "checkout"))
        pipelines.mkdir()
        for part in ("dags", "include", "plugins"):
            shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        shipped = yaml.safe_load((ROOT / "include" / "pipelines" / "leads.yaml").read_text())
        shipped |= {
            "schedule": {"cron": None, "watch": None},
            "alerts": NO_ALERTS,
            "shard_rows": 1500,
            "patience": 3600,
        }
        for target in shipped["destinations"].values():
            target["settings"] = {"requests_per_second": REQUESTS, "read_timeout": 5, "connect_timeout": 1}
        (pipelines / "leads.yaml").write_text(yaml.safe_dump(shipped))
        base = ports.free_base(20_000 + os.getpid() * 20 % 10_000)
        valkey = Layout(state, Settings(str(checkout), base, "")).redis_url
        celery = {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
            "AIRFLOW__CELERY__BROKER_URL": valkey.removesuffix("/0") + "/1",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": str(SLOTS),
            "LEADSYNC_PIPELINES": str(pipelines),
        }
        stack = Stack(state, base, checkout, generator=False, dag="leads_sync", environment=celery)
        with running(stack, pipelines) as airflow:
            yield airflow


@pytest.fixture(scope="module")
def machines(airflow: Airflow) -> Iterator[list[Machine]]:
    """Two with a worker each."""
    machines = [Machine(1), Machine(2)]
    command = [sys.executable, "-m", "airflow", "celery", "worker", "--skip-serve-logs"]
    for machine in machines:
        home = airflow.stack.state_dir / machine.name
        environment = {**airflow.stack.environment(), "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs")}
        home.mkdir()
        machine.start(command, environment, home / "worker.log")
    yield machines
    for machine in machines:
        machine.close()


def fill(airflow: Airflow, appkey: str, count: int) -> None:
    """With long answers, so that a few thousand leads are several chunks of a snapshot, and so several shards."""
    airflow.hive.execute(
        "INSERT INTO customer (appkey, uid, name, answers) SELECT %s, n, 'Lead ' || n, "
        "jsonb_build_object('note', repeat('n', 1000)) FROM generate_series(1, %s) n",
        (appkey, count),
    )


def change(airflow: Airflow, appkey: str) -> None:
    """A newer state of every lead."""
    airflow.hive.execute("UPDATE customer SET name = 'Changed ' || uid WHERE appkey = %s", (appkey,))


def loads(airflow: Airflow, run_id: str) -> list[dict[str, Any]]:
    return [task for task in airflow.task_instances(run_id) if task["task_id"] == "load"]


def test_a_large_window_is_loaded_by_both_machines(airflow: Airflow, machines: list[Machine]) -> None:
    fill(airflow, "BOTH", 6_000)
    run_id = airflow.run()
    tasks = loads(airflow, run_id)
    assert len(tasks) == 8
    assert {task["hostname"] for task in tasks} == {machine.name for machine in machines}
    airflow.assert_in_step()


def test_a_run_that_is_under_way_while_its_tasks_are_renamed(airflow: Airflow, machines: list[Machine]) -> None:
    fill(airflow, "RENAMED", 6_000)
    run_id = airflow.trigger()
    airflow.until(lambda: "running" in {task["state"] for task in loads(airflow, run_id)}, "not at work")
    file = airflow.stack.root / "dags" / "pipelines.py"
    before = file.read_text()
    renamed = before.replace("def load(", "def deliver(").replace("load.partial", "deliver.partial")
    file.write_text(renamed.replace("commit_watermark(opened", "commit(opened"))

    def names() -> set[str]:
        return {task["task_id"] for task in airflow.stack.api("GET", f"/dags/{airflow.dag}/tasks").json()["tasks"]}

    airflow.until(lambda: names() == {"extract", "snapshot", "deliver", "commit"}, "the new code is not seen")
    state = airflow.wait(run_id, seconds=400)
    print(f"\nthe run under way ends {state}: {airflow.states(run_id)}")
    fill(airflow, "AFTERWARDS", 100)
    airflow.run()
    airflow.assert_in_step()
    file.write_text(before)
    airflow.until(lambda: "load" in names(), "the old code is not seen")
    fill(airflow, "BACK", 100)
    airflow.run()
    airflow.assert_in_step()


def test_a_machine_that_loses_its_link_and_then_its_power(airflow: Airflow, machines: list[Machine]) -> None:
    lost, other = machines
    fill(airflow, "LOST", 6_000)
    hubspot = airflow.simulators["hubspot"]
    before = hubspot.stats()["requests"]
    run_id = airflow.trigger()
    airflow.until(lambda: hubspot.stats()["requests"] > before, "nothing arrives")

    def on(machine: Machine) -> list[dict[str, Any]]:
        return [task for task in loads(airflow, run_id) if task["hostname"] == machine.name]

    # What it has taken and not begun yet comes back only after `[scheduler] task_queued_timeout`, ten minutes.
    airflow.until(lambda: {task["state"] for task in loads(airflow, run_id)} <= {"running", "success"}, "not at work")
    lost.cut()
    began = time.monotonic()
    # Its tasks are still at work for all that anybody knows, until they have given no sign for a minute.
    indexes = {task["map_index"] for task in on(lost) if task["state"] == "running"}
    assert indexes
    airflow.until(
        lambda: indexes <= {task["map_index"] for task in on(other)}, "nobody takes the work over", seconds=300
    )
    print(f"\nits work goes on elsewhere after {time.monotonic() - began:.0f} s")
    assert airflow.wait(run_id, seconds=400) == "success", airflow.tasks(run_id)
    print(f"the run has ended after {time.monotonic() - began:.0f} s")
    airflow.assert_in_step()
    # What it had on its way when the link was cut is not to come after what was sent since.
    change(airflow, "LOST")
    airflow.run()
    lost.mend()
    time.sleep(10)
    airflow.assert_in_step()
    lost.kill()
    fill(airflow, "LATER", 500)
    airflow.run()
    airflow.assert_in_step()
