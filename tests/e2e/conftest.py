"""The whole stack, as `make up` starts it, on ports and in a folder of its own."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from demo.stack import ports
from demo.stack.stack import Stack
from leadsync.config import load_pipeline
from tests.support.collector import Collector
from tests.support.receiver import Receiver
from tests.support.simulators import Simulator
from tests.support.world import assert_in_step

ROOT = Path(__file__).parents[2]
ENDED = {"success", "failed"}
# The checks of the schedule find nothing: an alert is when its test says so.
NO_ALERTS = {
    "behind_minutes": None, "parked": False, "dead_letters": None, "quota_left": None, "held_back_minutes": None,
    "unreachable": False, "redis_memory": None, "redis_unsafe": False,
}  # fmt: skip


def wrong_connections(base: int) -> dict[str, str]:
    """Connections as a person might have got them wrong."""
    database = {"conn_type": "postgres", "host": "127.0.0.1", "port": base + 1, "schema": "hive"}
    crm = {"conn_type": "http", "host": f"http://127.0.0.1:{base + 10}"}
    return {
        "AIRFLOW_CONN_WRONG_PASSWORD": json.dumps({**database, "login": "leadsync_reader", "password": "guessed"}),
        "AIRFLOW_CONN_WRONG_TOKEN": json.dumps({**crm, "password": "guessed"}),
    }


class Airflow:
    """A running stack, as a person at the UI sees it: everything goes through the public REST API."""

    def __init__(self, stack: Stack, pipelines: Path) -> None:
        self.stack = stack
        self.pipelines = pipelines
        self.dag = "leads_sync"
        self.pipeline = load_pipeline(pipelines / "leads.yaml")
        self.hive = psycopg.connect(stack.lead_store_dsn, autocommit=True)
        self.simulators = {name: _simulator(stack, name) for name in ("hubspot", "salesforce")}

    def shipped(self) -> dict[str, Any]:
        """What the pipeline file of this world says."""
        content: dict[str, Any] = yaml.safe_load((self.pipelines / "leads.yaml").read_text())
        return content

    def add(self, name: str, content: dict[str, Any]) -> Airflow:
        """Writes a pipeline file, waits until Airflow knows its DAG, and returns the handle on that."""
        (self.pipelines / f"{name}.yaml").write_text(yaml.safe_dump(content))
        other = copy.copy(self)
        other.dag, other.pipeline = f"{name}_sync", load_pipeline(self.pipelines / f"{name}.yaml")
        self.until(lambda: self.stack.api("GET", f"/dags/{other.dag}").ok, f"no DAG {other.dag}")
        return other

    def at(self, dag: str) -> Airflow:
        """The handle on another DAG of this world."""
        other = copy.copy(self)
        other.dag = dag
        return other

    def until(self, done: Callable[[], bool], complaint: str | Callable[[], str], *, seconds: float = 150) -> None:
        """Waits until something is so."""
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, complaint if isinstance(complaint, str) else complaint()
            time.sleep(0.3)

    def trigger(self, **conf: Any) -> str:
        """Starts a run; returns its id."""
        time.sleep(0.1)  # what was written before lies below the safe bound then
        body = {"logical_date": None, "conf": conf}
        reply = self.stack.api("POST", f"/dags/{self.dag}/dagRuns", json=body)
        assert reply.ok, reply.text
        return str(reply.json()["dag_run_id"])

    def wait(self, run_id: str, *, seconds: float = 240) -> str:
        """The state in which a run ended."""

        def state() -> str:
            return str(self.stack.api("GET", f"/dags/{self.dag}/dagRuns/{run_id}").json()["state"])

        self.until(lambda: state() in ENDED, lambda: f"not ended: {self.states(run_id)}", seconds=seconds)
        return state()

    def states(self, run_id: str) -> dict[str, tuple[Any, ...]]:
        """Task → its state, which try, and where."""
        return {
            f"{task['task_id']} {task['map_index']}": (task["state"], task["try_number"], task["hostname"])
            for task in self.task_instances(run_id)
        }

    def run(self, **conf: Any) -> str:
        """A run that succeeds; returns its id."""
        run_id = self.trigger(**conf)
        assert self.wait(run_id) == "success", self.tasks(run_id)
        return run_id

    def tasks(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Task instances by id; those of `load` by their label, once they have ended."""
        return {task["rendered_map_index"] or task["task_id"]: task for task in self.task_instances(run_id)}

    def load(self, run_id: str, index: int) -> dict[str, Any]:
        """The task instance of one mapped load, also while it is running; without a state before it exists."""
        loads = [task for task in self.task_instances(run_id) if task["task_id"] == "load"]
        return next((task for task in loads if task["map_index"] == index), {"state": None})

    def task_instances(self, run_id: str) -> list[dict[str, Any]]:
        """All task instances of a run."""
        reply = self.stack.api("GET", f"/dags/{self.dag}/dagRuns/{run_id}/taskInstances")
        found: list[dict[str, Any]] = reply.json()["task_instances"]
        return found

    def counts(self, run_id: str, index: int, task: str = "load") -> dict[str, int]:
        """What a mapped task returned."""
        path = f"/dags/{self.dag}/dagRuns/{run_id}/taskInstances/{task}/xcomEntries/return_value?map_index={index}"
        counts: dict[str, int] = self.stack.api("GET", path).json()["value"]
        return counts

    def log(self, run_id: str, task: str, index: int = -1) -> str:
        """The log of a task's first try."""
        path = f"/dags/{self.dag}/dagRuns/{run_id}/taskInstances/{task}/logs/1?map_index={index}"
        return self.stack.api("GET", path).text

    def clear(self, run_id: str, task: str, index: int) -> None:
        """Clears a task and what follows it, as the UI does."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [[task, index]],
            "include_downstream": True,
            "reset_dag_runs": True,
            "only_failed": False,
        }
        reply = self.stack.api("POST", f"/dags/{self.dag}/clearTaskInstances", json=body)
        assert reply.ok, reply.text

    def assert_in_step(self) -> None:
        """Every record of every CRM is what the lead store says."""
        for name, simulator in self.simulators.items():
            target = next(target for target in self.pipeline.destinations if target.name == name)
            assert_in_step(self.pipeline, target, self.stack.lead_store_dsn, simulator)


def _simulator(stack: Stack, name: str) -> Simulator:
    simulator = Simulator(name, stack.state_dir)
    simulator.port, simulator.url = stack.port(f"crm-{name}"), stack.url(f"crm-{name}")
    return simulator


@contextmanager
def running(stack: Stack, pipelines: Path) -> Iterator[Airflow]:
    """The handle on a stack that is started, and deleted at the end."""
    try:
        stack.up()
        airflow = Airflow(stack, pipelines)
        yield airflow
        airflow.hive.close()
    finally:
        stack.clean()


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """What the alerts of `airflow` go to."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """What the spans of `airflow` go to."""
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="session")
def airflow(receiver: Receiver, collector: Collector) -> Iterator[Airflow]:
    with tempfile.TemporaryDirectory(prefix="leadsync-e2e-") as folder:
        pipelines = Path(folder) / "pipelines"
        pipelines.mkdir()
        shipped = yaml.safe_load((ROOT / "include" / "pipelines" / "leads.yaml").read_text())
        shipped["schedule"] = {"cron": None, "watch": None}  # a run is when the test says so
        shipped["alerts"] = NO_ALERTS
        shipped["shard_rows"] = 6000  # and chunks of the snapshot are a megabyte each
        for target in shipped["destinations"].values():
            target["settings"] = {"read_timeout": 2, "connect_timeout": 0.5, "requests_per_second": 1000}
        (pipelines / "leads.yaml").write_text(yaml.safe_dump(shipped))
        alerts = {"AIRFLOW_CONN_LEADSYNC_ALERTS": json.dumps({"conn_type": "generic", "password": receiver.url})}
        base = ports.free_base(20_000 + os.getpid() * 20 % 10_000)
        stack = Stack(
            Path(folder) / "state",
            base,
            ROOT,
            generator=False,
            dag="leads_sync",
            environment={
                "LEADSYNC_PIPELINES": str(pipelines),
                **wrong_connections(base),
                **alerts,
                **collector.environment,
            },
        )
        with running(stack, pipelines) as airflow:
            yield airflow
