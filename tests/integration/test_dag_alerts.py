"""The DAG `leadsync_alerts` as Airflow reads it, and its task with Airflow's connections."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
import redis
from tests.support.receiver import Receiver
from tests.support.servers import free_port

from demo import lead_store

ROOT = Path(__file__).parents[2]
READ = """
import sys, orjson
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
dag = bag.dags["leadsync_alerts"]
told = [str(dag.schedule), dag.max_active_runs, [task.task_id for task in dag.tasks], sorted(dag.allowed_run_types)]
told.append({name: dag.params.get_param(name).schema["type"] for name in dag.params})
print("=" + orjson.dumps(told).decode())
"""
CHECK = """
import sys, orjson
from types import SimpleNamespace
from leadsync import alerting, alerts
from leadsync.errors import LeadsyncError
alerts.PAUSE_SECONDS = 0
try:
    told = alerting.check({"dag_run": SimpleNamespace(conf=orjson.loads(sys.argv[1]))})
except LeadsyncError as error:
    told = {"error": type(error).__name__, "text": str(error)}
print("=" + orjson.dumps(told).decode())
"""


class Task:
    """The task in a process of its own, which finds these connections."""

    def __init__(self, home: Path, connections: dict[str, dict[str, Any]]) -> None:
        self.home = home
        self.connections = connections
        self.output = ""

    def run(self, program: str, argument: str) -> Any:
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__API__BASE_URL": "http://127.0.0.1:8080/",
            "PYTHONPATH": str(ROOT / "include"),
            **{f"AIRFLOW_CONN_{name.upper()}": orjson.dumps(each).decode() for name, each in self.connections.items()},
        }
        command = [sys.executable, "-c", program, argument]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=self.home)
        assert done.returncode == 0, done.stderr
        self.output = done.stdout + done.stderr
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("="))
        return orjson.loads(line[1:])

    def check(self, **conf: Any) -> Any:
        return self.run(CHECK, orjson.dumps(conf).decode())


@pytest.fixture
def task(tmp_path: Path, database: str, state: psycopg.Connection[Any], valkey: redis.Redis) -> Task:
    lead_store.create(database)

    def postgres(dsn: str) -> dict[str, Any]:
        told = psycopg.conninfo.conninfo_to_dict(dsn)
        return {"conn_type": "postgres", "host": told["host"], "port": told["port"], "login": told["user"],
                "schema": told["dbname"]}  # fmt: skip

    port = valkey.connection_pool.connection_kwargs["port"]
    connections = {
        "lead_store": postgres(database),
        "leadsync_db": postgres(state.info.dsn),
        "leadsync_redis": {"conn_type": "redis", "host": "127.0.0.1", "port": port},
    }
    return Task(tmp_path, connections)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_it_runs_every_five_minutes_and_by_hand(tmp_path: Path) -> None:
    found = Task(tmp_path, {}).run(READ, str(ROOT / "dags"))
    assert found == ["*/5 * * * *", 1, ["check"], ["manual", "scheduled"], {"test": "boolean"}]


def test_without_the_connection_nobody_is_told_and_all_is_kept(task: Task, state: psycopg.Connection[Any]) -> None:
    task.connections["lead_store"]["port"] = free_port()
    task.connections["leadsync_redis"]["port"] = free_port()
    done = task.check()
    kinds = ["Redis: redis", "leads: lead_store"]
    assert {**done, "started": sorted(done["started"])} == {
        "started": kinds, "ended": [], "running": done["running"], "messages": 0, "addresses": 0,
    }  # fmt: skip
    assert "there is no connection leadsync_alerts" in task.output
    rows = state.execute("SELECT message FROM leadsync.recovery_log WHERE kind = 'alert' ORDER BY message").fetchall()
    assert [row[0] for row in rows] == [
        "Redis does not answer (connection leadsync_redis: ConnectionError); nothing is sent without it",
        "the lead store does not answer (connection lead_store: the PostgreSQL server can't be reached); nothing new "
        "is read",
    ]
    assert task.check(test=True)["error"] == "ConfigError"


def test_with_the_connection_it_is_told_whatever_else_is_in_it(task: Task, receiver: Receiver) -> None:
    task.connections["leadsync_alerts"] = {"conn_type": "generic", "password": receiver.url}
    assert task.check() == {"started": [], "ended": [], "running": [], "messages": 0, "addresses": 1}
    assert task.check(test=True) == {"messages": 1, "addresses": 1}
    assert [each["title"] for each in receiver.taken()] == ["Leadsync: test"]
    store = task.connections["lead_store"]
    port, store["port"] = store["port"], free_port()
    task.connections["leadsync_alerts"]["password"] += "\nnothing://s3cret"
    done = task.check()
    assert done == {
        "error": "ConfigError",
        "text": "Apprise does not know address 2 of connection leadsync_alerts",
    }
    (message,) = receiver.taken()
    assert message["title"] == "Leadsync: leads without its lead store"
    assert "http://127.0.0.1:8080/plugin/leadsync" in message["message"]
    assert "s3cret" not in task.output
    assert "hook-secret" not in task.output
    store["port"] = port
    assert task.check(what=True)["text"] == "unknown parameter 'what'; allowed: test"
