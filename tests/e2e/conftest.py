"""The whole stack, as `make up` starts it, on ports and in a folder of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from demo.stack import ports
from demo.stack.stack import Stack
from leadsync.config import load_pipeline
from tests.support.simulators import Simulator
from tests.support.world import assert_in_step

ROOT = Path(__file__).parents[2]
ENDED = {"success", "failed"}


class Airflow:
    """A running stack, as a person at the UI sees it: everything goes through the public REST API."""

    def __init__(self, stack: Stack, pipelines: Path) -> None:
        self.stack = stack
        self.pipeline = load_pipeline(pipelines / "leads.yaml")
        self.hive = psycopg.connect(stack.lead_store_dsn, autocommit=True)
        self.simulators = {name: _simulator(stack, name) for name in ("hubspot", "salesforce")}

    def trigger(self, **conf: Any) -> str:
        """Starts a run; returns its id."""
        time.sleep(0.1)  # what was written before lies below the safe bound then
        body = {"logical_date": None, "conf": conf}
        reply = self.stack.api("POST", "/dags/leads_sync/dagRuns", json=body)
        assert reply.ok, reply.text
        return str(reply.json()["dag_run_id"])

    def wait(self, run_id: str, *, seconds: float = 120) -> str:
        """The state in which a run ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            state = self.stack.api("GET", f"/dags/leads_sync/dagRuns/{run_id}").json()["state"]
            if state in ENDED:
                return str(state)
            time.sleep(0.3)
        raise AssertionError(f"run {run_id} has not ended: {self.tasks(run_id)}")

    def run(self, **conf: Any) -> str:
        """A run that succeeds; returns its id."""
        run_id = self.trigger(**conf)
        assert self.wait(run_id) == "success", self.tasks(run_id)
        return run_id

    def tasks(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Task instances by id; those of `load` by their label, once they have ended."""
        return {task["rendered_map_index"] or task["task_id"]: task for task in self._task_instances(run_id)}

    def load(self, run_id: str, index: int) -> dict[str, Any]:
        """The task instance of one mapped load, also while it is running; without a state before it exists."""
        loads = [task for task in self._task_instances(run_id) if task["task_id"] == "load"]
        return next((task for task in loads if task["map_index"] == index), {"state": None})

    def _task_instances(self, run_id: str) -> list[dict[str, Any]]:
        reply = self.stack.api("GET", f"/dags/leads_sync/dagRuns/{run_id}/taskInstances")
        found: list[dict[str, Any]] = reply.json()["task_instances"]
        return found

    def counts(self, run_id: str, index: int) -> dict[str, int]:
        """What the mapped load returned."""
        path = f"/dags/leads_sync/dagRuns/{run_id}/taskInstances/load/xcomEntries/return_value?map_index={index}"
        counts: dict[str, int] = self.stack.api("GET", path).json()["value"]
        return counts

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
        reply = self.stack.api("POST", "/dags/leads_sync/clearTaskInstances", json=body)
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


@pytest.fixture(scope="session")
def airflow() -> Iterator[Airflow]:
    with tempfile.TemporaryDirectory(prefix="leadsync-e2e-") as folder:
        pipelines = Path(folder) / "pipelines"
        pipelines.mkdir()
        shipped = yaml.safe_load((ROOT / "include" / "pipelines" / "leads.yaml").read_text())
        shipped["schedule"]["cron"] = None  # a run is when the test says so
        for target in shipped["destinations"].values():
            target["settings"] = {"read_timeout": 1, "connect_timeout": 1, "requests_per_second": 1000}
        (pipelines / "leads.yaml").write_text(yaml.safe_dump(shipped))
        stack = Stack(
            Path(folder) / "state",
            ports.free_base(30_000 + os.getpid() * 20 % 10_000),
            ROOT,
            generator=False,
            dag="leads_sync",
            environment={"LEADSYNC_PIPELINES": str(pipelines)},
        )
        try:
            stack.up()
            airflow = Airflow(stack, pipelines)
            yield airflow
            airflow.hive.close()
        finally:
            stack.clean()
