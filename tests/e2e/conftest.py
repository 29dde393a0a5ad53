"""The whole stack, as `make up` starts it, on ports and in a folder of its own."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from demo.stack.layout import Layout
from demo.stack.stack import Stack, StackError
from leadsync.config import load_pipeline
from tests.support.simulators import Simulator
from tests.support.world import assert_in_step

ROOT = Path(__file__).parents[2]
ENDED = {"success", "failed"}


class Airflow:
    """A running stack, as a person at the UI sees it: everything goes through the public REST API."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.layout = stack.layout
        self.pipeline = load_pipeline(self.layout.pipelines / "leads.yaml")
        self.hive = psycopg.connect(self.layout.dsn("hive_owner", "hive"), autocommit=True)
        self.simulators = {name: _simulator(self.layout, name) for name in ("hubspot", "salesforce")}

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
        """Task instances by id; those of `load` by their label."""
        found = self.stack.api("GET", f"/dags/leads_sync/dagRuns/{run_id}/taskInstances").json()["task_instances"]
        return {task["rendered_map_index"] or task["task_id"]: task for task in found}

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
            assert_in_step(self.pipeline, target, self.layout.dsn("hive_owner", "hive"), simulator)


def _simulator(layout: Layout, name: str) -> Simulator:
    simulator = Simulator(name, layout.state)
    simulator.port, simulator.url = layout.port_of(name), layout.url(name)
    return simulator


def _free_base() -> int:
    while True:
        base = random.randrange(20_000, 60_000)  # noqa: S311
        stack = Stack(Layout(ROOT, Path("/nowhere"), base, ROOT))
        try:
            stack.check_ports()
        except StackError:
            continue
        return base


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
        before = os.environ.get("LEADSYNC_DEMO_RATE")
        os.environ["LEADSYNC_DEMO_RATE"] = "0"
        stack = Stack(Layout(ROOT, Path(folder) / "state", _free_base(), pipelines))
        try:
            stack.up()
            airflow = Airflow(stack)
            yield airflow
            airflow.hive.close()
        finally:
            stack.clean()
            if before is None:
                del os.environ["LEADSYNC_DEMO_RATE"]
            else:
                os.environ["LEADSYNC_DEMO_RATE"] = before
