"""The suite's second level: the same events and the same checker on the whole stack, under Airflow's own scheduler.

`StackWorld` and `StackScheduler` stand in for `World` and `Scheduler`. Runs are triggered and cleared through Airflow's
REST API, workers are the processes of its tasks, and a service that is killed is healed by the stack's supervisor.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import psutil
import psycopg
import redis
import requests
import yaml

from demo.stack import environment, ports
from demo.stack.postgres import Postgres
from demo.stack.secrets import Secrets
from demo.stack.stack import Stack
from tests.chaos import hive
from tests.chaos.world import CRMS, EMPTY
from tests.support.proxy import Proxy
from tests.support.simulators import Simulator

ROOT = Path(__file__).parents[2]
DAG = "leads_sync"
SETTINGS = {"connect_timeout": 1, "read_timeout": 2, "requests_per_second": 1000}
PROGRAMS = {"redis": "valkey", "postgres": "postgres", **{name: f"crm-{name}" for name in CRMS}}
# Seconds: what a killed scheduler was running is noticed sooner than in production, so that a sequence ends sooner.
HASTE = {
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "4",
}
ACTIVE = ("queued", "running")
HEALING_SECONDS = 120.0


@dataclass(eq=False)
class Task:
    """A running task's process, as `Player` sees a job."""

    task: str
    pid: int
    abandoned: bool = False
    ended: Event = field(default_factory=Event)


class Tasks:
    """The processes of Airflow's running tasks."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def running(self) -> list[Task]:
        found = get(self._stack, f"/dags/{DAG}/dagRuns/~/taskInstances?state=running")
        tasks = (found or {"task_instances": []})["task_instances"]
        return [Task(task["task_id"], task["pid"]) for task in tasks if task["pid"] and psutil.pid_exists(task["pid"])]

    def signal(self, job: Task, what: str) -> None:
        """`kill`, `stop` or `go`, if it still runs; a task of Airflow's can't `trace`."""
        number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "go": signal.SIGCONT}.get(what)
        if number is not None:
            with suppress(ProcessLookupError):
                os.kill(job.pid, number)


class StackWorld:
    """A stack without a schedule and without a lead generator; the product reaches every service through a proxy."""

    patience = 400.0  # seconds; four tries of a load, and what Airflow takes to notice that a task died

    def __init__(self, folder: Path) -> None:
        pipelines = folder / "pipelines"
        pipelines.mkdir()
        shipped = yaml.safe_load((ROOT / "include" / "pipelines" / "leads.yaml").read_text())
        shipped["schedule"] = {"cron": None, "watch": None}
        for target in shipped["destinations"].values():
            target["settings"] = SETTINGS
        shipped["catch_up_rows"], shipped["patience"] = 7, 1
        (pipelines / "leads.yaml").write_text(yaml.safe_dump(shipped))
        base, state_dir = ports.free_base(22_000 + os.getpid() * 20 % 10_000), folder / "state"
        upstreams = {"state": base + 1, "hive": base + 1, "redis": base + 2}
        self.proxies = {name: Proxy(port, http=False) for name, port in upstreams.items()}
        self.proxies |= {name: Proxy(base + ports.OFFSETS[f"crm-{name}"], http=True) for name in CRMS}
        connections = self._connections(base, state_dir)
        self.stack = Stack(
            state_dir, base, ROOT, generator=False, dag=DAG,
            environment={"LEADSYNC_PIPELINES": str(pipelines), **HASTE, **connections},
        )  # fmt: skip
        for proxy in self.proxies.values():
            proxy.start()
        self.stack.up()
        hive.prepare(self.stack.lead_store_dsn)
        self.hive, self.state = self.stack.lead_store_dsn, self.stack.leadsync_dsn
        self.crms = {name: Simulator(name, folder / name) for name in CRMS}
        for name, crm in self.crms.items():
            crm.port, crm.url = self.stack.port(f"crm-{name}"), self.stack.url(f"crm-{name}")
        self.writers = hive.Writers(self.hive)
        self.workers = Tasks(self.stack)
        # The supervisor heals at once, so nothing stays stopped.
        self.stopped: frozenset[str] = frozenset()
        self.clock = 0.0

    def _connections(self, base: int, state_dir: Path) -> dict[str, str]:
        """Leadsync's connections, through the proxies."""
        secrets = Secrets(state_dir / "secrets")
        found = environment.connections(base, Postgres(state_dir, base + 1, secrets), secrets)
        names = {"LEAD_STORE": "hive", "LEADSYNC_DB": "state", "LEADSYNC_REDIS": "redis"}
        for connection, name in {**names, **{f"CRM_{name.upper()}": name for name in CRMS}}.items():
            content = json.loads(found[f"AIRFLOW_CONN_{connection}"])
            port = self.proxies[name].port
            content |= {"host": f"http://127.0.0.1:{port}"} if name in CRMS else {"port": port}
            found[f"AIRFLOW_CONN_{connection}"] = json.dumps(content)
        return found

    def close(self) -> None:
        self.writers.end_all()
        self.stack.clean(lambda line: None)
        for proxy in self.proxies.values():
            proxy.stop()

    def reset(self, seed: int) -> None:
        """An empty world for the next sequence; no run is going on."""
        self.heal()
        for number, proxy in enumerate(self.proxies.values()):
            proxy.drain()
            proxy.set({}, seed * 10 + number)
        with psycopg.connect(self.state, autocommit=True) as connection:
            connection.execute(EMPTY)
        with psycopg.connect(self.hive, autocommit=True) as connection:
            connection.execute("TRUNCATE customer, history")
        with redis.Redis.from_url(self.stack.redis_url) as client:
            client.flushall()
        for crm in self.crms.values():
            crm.reset()

    def heal(self) -> None:
        """Faults off, and all programs up; open transactions of writers commit."""
        for proxy in self.proxies.values():
            proxy.set({})
        self._await_health()
        for crm in self.crms.values():
            crm.clear_faults()
        self.fill_redis(full=False)
        self.writers.end_all()

    def _await_health(self) -> None:
        until = time.monotonic() + HEALING_SECONDS
        while True:
            problems = [problem for state in self.stack.status() if (problem := self.stack.problem(state))]
            if not problems:
                return
            assert time.monotonic() < until, problems
            time.sleep(0.3)

    def stop(self, service: str, *, lose: bool = False) -> None:
        """kill -9 of a service, which the supervisor starts again; `lose` takes Redis's data before."""
        if lose:
            with suppress(redis.RedisError), redis.Redis.from_url(self.stack.redis_url) as client:
                client.flushall()
        pid = self.stack.pid(PROGRAMS.get(service, service))
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self, service: str) -> None:
        """The supervisor has done it."""

    def fill_redis(self, *, full: bool) -> None:
        with suppress(redis.RedisError), redis.Redis.from_url(self.stack.redis_url) as client:
            client.config_set("maxmemory", "1kb" if full else "0")


@dataclass(eq=False)
class StackRun:
    """One run of the DAG with what its tasks returned, as `calm` reads it."""

    run_id: str
    opened: dict[str, Any] | None = None
    loads: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    committed: bool = False


@dataclass(eq=False)
class StackChore:
    """A run of one of the DAGs that people trigger besides; `result` is what its one mapped task returned."""

    dag: str
    task: str
    run_id: str
    result: Any = None


class StackScheduler:
    """Triggers and clears runs of the real scheduler."""

    def __init__(self, world: StackWorld) -> None:
        self._world = world
        self._stack = world.stack
        self.runs: list[StackRun] = []
        self.chores: list[StackChore] = []
        self.tasks: Counter[str] = Counter()
        self.defects: list[str] = []
        self.closing = False

    def run(self, parameters: Mapping[str, Any] | None = None) -> StackRun | None:
        """Triggers a run; None when Airflow can't be reached."""
        run = StackRun(f"chaos__{uuid4()}")
        if not parameters and self._busy(DAG):
            return None
        if not self._trigger(DAG, run.run_id, parameters or {}):
            return None
        self.runs.append(run)
        return run

    def replay(self, destination: str) -> StackChore:
        """All dead letters of a destination."""
        return self._begin("replay", {"destinations": [destination], "all": True})

    def recover(self, parameters: Mapping[str, Any]) -> StackChore:
        """From snapshots, for one destination."""
        return self._begin("recover", parameters)

    def reconcile(self, destination: str) -> StackChore:
        """All leads of a destination, with repair."""
        return self._begin("reconcile", {"destinations": [destination], "sample": 1, "repair": True})

    def _begin(self, task: str, parameters: Mapping[str, Any]) -> StackChore:
        chore = StackChore(f"leadsync_{task}", task, f"chaos__{uuid4()}")
        if self._trigger(chore.dag, chore.run_id, {"pipeline": "leads", **parameters}):
            self.chores.append(chore)
        return chore

    def _trigger(self, dag: str, run_id: str, parameters: Mapping[str, Any]) -> bool:
        conf = {name: value for name, value in parameters.items() if value}
        return self._post(f"/dags/{dag}/dagRuns", {"logical_date": None, "dag_run_id": run_id, "conf": conf})

    def clear(self, back: int, task: str) -> bool:
        """Clears a task, and what follows it, of an earlier run that has ended."""
        if not self.runs:
            return False
        run = self.runs[-1 - back % len(self.runs)]
        state = get(self._stack, f"/dags/{DAG}/dagRuns/{run.run_id}")
        if state is None or state["state"] in ACTIVE:
            return False
        what: str | list[str | int] = task
        if task in CRMS:
            what = ["load", CRMS.index(task)]
        body = {
            "dry_run": False, "dag_run_id": run.run_id, "task_ids": [what], "include_downstream": True,
            "reset_dag_runs": True, "only_failed": False,
        }  # fmt: skip
        return self._post(f"/dags/{DAG}/clearTaskInstances", body)

    def spare(self) -> None:
        """Nobody is doomed here."""

    def wait(self, seconds: float) -> bool:
        """Waits for all runs and reads what became of them; False when they have not ended by then."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not self._busy():
                for run in self.runs:
                    self._read(run)
                for chore in self.chores:
                    path = f"/dags/{chore.dag}/dagRuns/{chore.run_id}/taskInstances"
                    chore.result = self._returned(path, chore.task, 0)
                return True
            time.sleep(0.3)
        return False

    def _read(self, run: StackRun) -> None:
        path = f"/dags/{DAG}/dagRuns/{run.run_id}/taskInstances"
        tasks = (get(self._stack, path) or {"task_instances": []})["task_instances"]
        run.opened = self._returned(path, "extract", -1)
        for task in tasks:
            if task["task_id"] == "commit_watermark":
                run.committed = task["state"] == "success"
            elif task["task_id"] == "load" and task["map_index"] >= 0:
                name = CRMS[task["map_index"]] if not run.opened else run.opened["destinations"][task["map_index"]]
                run.loads[name] = task["state"]
                run.counts[name] = self._returned(path, "load", task["map_index"]) or {}

    def _returned(self, path: str, task: str, index: int) -> Any:
        found = get(self._stack, f"{path}/{task}/xcomEntries/return_value?map_index={index}")
        return found["value"] if found else None

    def count(self) -> None:
        """How the tasks of all runs ended."""
        for run in self.runs:
            found = get(self._stack, f"/dags/{DAG}/dagRuns/{run.run_id}/taskInstances") or {"task_instances": []}
            for task in found["task_instances"]:
                self.tasks[str(task["state"])] += 1
                self.tasks["retries"] += max(0, task["try_number"] - 1)

    def _busy(self, dag: str = "~") -> bool:
        found = get(self._stack, f"/dags/{dag}/dagRuns?" + "&".join(f"state={state}" for state in ACTIVE))
        return found is None or bool(found["dag_runs"])

    def _post(self, path: str, body: Mapping[str, Any]) -> bool:
        try:
            return self._stack.api("POST", path, json=body).ok
        except requests.RequestException:
            return False


def get(stack: Stack, path: str) -> dict[str, Any] | None:
    """An answer of Airflow's REST API; None when it can't be reached or has nothing."""
    try:
        reply = stack.api("GET", path)
    except requests.RequestException:
        return None
    found: dict[str, Any] | None = reply.json() if reply.ok else None
    return found


@contextmanager
def running_stack(folder: Path | None = None) -> Iterator[StackWorld]:
    """A stack; its logs are kept in `folder`, or thrown away without one."""
    with tempfile.TemporaryDirectory(prefix="leadsync-chaos-") as temporary:
        world = StackWorld(folder or Path(temporary))
        try:
            yield world
        finally:
            world.close()
