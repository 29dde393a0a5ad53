"""Starts, stops and watches a stack.

    stack = Stack(state_dir, base_port, root)
    stack.up()
    stack.restart("airflow-scheduler")
    stack.down()

`make up` is one of these in `.local`; end-to-end tests make others, in folders and on ports of their own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import psycopg
import requests

from demo import lead_store
from demo.stack import environment, health, ports, processes
from demo.stack.errors import StackError
from demo.stack.layout import Layout, Settings, load_settings, save_settings
from demo.stack.programs import AIRFLOW, DEMO, STORES, Program, python
from demo.stack.secrets import write_private
from demo.stack.supervisord import ProcessState, Supervisord
from leadsync.state import migration

Progress = Callable[[str], object]
# Seconds; a slow machine with cold disks takes a while to import Airflow.
PATIENCE = {STORES: 60, DEMO: 60, AIRFLOW: 180}
DAG_PATIENCE = 90
IMPORT_PATIENCE = 15
LOG_LINES = 15
# So often a program may end and be started again before it counts as broken.
LIVES = 3


class Stack(Layout):
    """A stack and its supervisor."""

    def __init__(
        self,
        state_dir: Path,
        base_port: int,
        root: Path,
        *,
        generator: bool = True,
        dags_folder: Path | None = None,
        dag: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`root` is the checkout; `environment` is added to that of Airflow's processes; `dag` is waited for."""
        dags = str((dags_folder or root / "dags").absolute())
        super().__init__(
            state_dir, Settings(str(root.absolute()), base_port, dags, dag, generator, dict(environment or {}))
        )
        self._supervisor = Supervisord(self.state_dir)

    @classmethod
    def load(cls, state_dir: Path) -> Stack:
        """The stack that was last started from this folder. Raises StackError when there was none."""
        kept = load_settings(state_dir)
        return cls(
            state_dir, kept.base_port, Path(kept.root), generator=kept.generator, dags_folder=Path(kept.dags_folder),
            dag=kept.dag, environment=kept.environment,
        )  # fmt: skip

    def runs(self) -> bool:
        """Whether there is a supervisor that answers."""
        return self._supervisor.answers()

    def up(self, progress: Progress = print) -> None:
        """Starts what does not run and returns when all of it is healthy.

        On failure, what this call started is stopped again and StackError tells what did not come up; only when all
        runs and just the DAG is missing, the stack stays up, for its page shows why.
        """
        with self._lock():
            first = not self.runs()
            if first:
                self._begin(progress)
            elif all(state.state == "RUNNING" for state in self.status()):
                progress("Leadsync runs already")
                return
            try:
                self._start(progress)
            except (StackError, KeyboardInterrupt):
                if first:
                    self._stop(lambda line: None)
                raise
            if self.settings.dag:
                self._await_dag(self.settings.dag, progress)

    def down(self, progress: Progress = print) -> None:
        """Stops everything, also what a killed supervisor left, and makes sure that nothing is left."""
        if not self.state_dir.exists():
            progress("Leadsync is not running")
            return
        with self._lock():
            started = time.monotonic()
            if not self._stop(progress):
                progress("Leadsync is not running")
                return
            # The kernel closes the sockets of a process that was killed a moment after it is gone.
            while (held := ports.taken(self.settings.base_port)) and time.monotonic() < started + 30:
                time.sleep(0.05)
            if held:
                raise StackError(f"every process has ended, but ports are held by others: {list(held.values())}")
            progress(f"stopped: no process and no port is left ({time.monotonic() - started:.1f} s)")

    def clean(self, progress: Progress = print) -> None:
        """Stops everything and deletes the state."""
        self.down(progress)
        self.postgres.remove()
        shutil.rmtree(self.state_dir, ignore_errors=True)
        progress(f"removed {self.state_dir}")

    def status(self) -> list[ProcessState]:
        """Every program in the order of starting."""
        states = self._supervisor.states() if self.runs() else {}
        names = [program.name for program in self.programs()]
        return [states.get(name, ProcessState(name, "STOPPED")) for name in names]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs of the stack: the supervisor, the programs and what they have started."""
        return processes.of_stack(self.state_dir, self.postgres.mark)

    def pid(self, name: str) -> int:
        """The process id of a program, 0 when it does not run."""
        return self._supervisor.states()[name].pid

    def restart(self, name: str) -> None:
        """Stops one program in an orderly way, starts it and returns when it is healthy."""
        program = self.program(name)
        self._supervisor.stop(name)
        self._await_stopped([program])
        self._start_programs([program], lambda line: None)

    def api(self, method: str, path: str, **more: Any) -> requests.Response:
        """One call of Airflow's REST API as `admin`; `path` is what follows /api/v2, the rest goes to requests."""
        return health.call(self, method, path, **more)

    def _begin(self, progress: Progress) -> None:
        if left := processes.end(self.processes, patience=3):
            progress(f"ended {left} processes that a killed supervisor had left")
        ports.check_free(self.settings.base_port)
        save_settings(self.state_dir, self.settings)
        self.write_files()
        self.postgres.prepare()
        marked = {processes.STACK: str(self.state_dir)}
        inherited = {**environment.basic(self.root), **environment.connections_of_the_user(), **marked}
        self._supervisor.launch(self.programs(), inherited, as_root=os.geteuid() == 0)

    def _start(self, progress: Progress) -> None:
        tiers = {tier: [each for each in self.programs() if each.tier == tier] for tier in (STORES, DEMO, AIRFLOW)}
        self._start_programs(tiers[STORES], progress)
        self.postgres.create_databases()
        with ThreadPoolExecutor(1) as pool:
            # Importing Airflow takes longer than the demo world takes to start.
            migrated = pool.submit(self._migrate, progress)
            lead_store.create(self.lead_store_dsn)
            self._start_programs(tiers[DEMO], progress)
            migrated.result()
        self._start_programs(tiers[AIRFLOW], progress)

    def _migrate(self, progress: Progress) -> None:
        started = time.monotonic()
        migration.migrate(self.leadsync_dsn)
        # Asking Airflow itself costs ten seconds of CPU, so what was done is remembered.
        done, needed = self.state_dir / "airflow" / "migrated", version("apache-airflow")
        with psycopg.connect(self.postgres.dsn("airflow")) as connection:
            row = connection.execute("SELECT to_regclass('public.alembic_version')").fetchone()
        if not (row and row[0] and done.exists() and done.read_text() == needed):
            log = self.state_dir / "logs" / "airflow-migrate.log"
            marked = {**self.environment(), processes.STACK: str(self.state_dir)}
            with log.open("wb") as file:
                result = subprocess.run(  # noqa: S603 the arguments are ours
                    python("airflow", "db", "migrate"), env=marked, stdout=file, stderr=file, cwd=self.state_dir
                )
            if result.returncode:
                raise StackError(f"the migration of Airflow's tables fails:\n{_tail(log)}")
            write_private(done, needed)
        progress(f"migrations … done ({time.monotonic() - started:.1f} s)")

    def _start_programs(self, programs: Sequence[Program], progress: Progress) -> None:
        """Starts programs together, waits until all are healthy; raises StackError with the log of one that is not."""
        started = time.monotonic()
        for program in programs:
            self._supervisor.start(program.name)
        waiting, lives = list(programs), {program.name: set[int]() for program in programs}
        while waiting:
            states = self._supervisor.states()
            for program in list(waiting):
                state = states[program.name]
                lives[program.name].add(state.pid)
                problem = self.problem(state)
                elapsed = time.monotonic() - started
                if problem is None:
                    progress(f"{program.title} … ready ({elapsed:.1f} s)")
                    waiting.remove(program)
                elif elapsed > PATIENCE[program.tier] or len(lives[program.name]) > LIVES:
                    log = self.state_dir / "logs" / f"{program.name}.log"
                    raise StackError(f"{program.title} does not come up: {problem}\n{_tail(log)}")
            time.sleep(0.1)

    def problem(self, state: ProcessState) -> str | None:
        """What keeps a program from being healthy; None when nothing does."""
        if state.state not in ("STARTING", "RUNNING"):
            return f"its process is {state.state}"
        if state.name == "generator" and state.state == "STARTING":
            return "its process has just started"
        return health.check(self, state.name, state.started)

    def _await_dag(self, dag: str, progress: Progress) -> None:
        started = time.monotonic()
        while not health.knows_dag(self, dag):
            errors = health.import_errors(self)
            # Another file may be the one that is wrong.
            if time.monotonic() - started > (IMPORT_PATIENCE if errors else DAG_PATIENCE):
                raise StackError("\n".join([f"everything runs, but Airflow does not know the DAG {dag}", *errors]))
            time.sleep(0.3)
        progress(f"DAG {dag} … known ({time.monotonic() - started:.1f} s)")

    def _stop(self, progress: Progress) -> bool:
        """Stops tier after tier, the last first; whether there was anything to stop."""
        supervised = self.runs()
        if supervised:
            for tier in (AIRFLOW, DEMO, STORES):
                started = time.monotonic()
                programs = [each for each in self.programs() if each.tier == tier]
                for program in programs:
                    self._supervisor.stop(program.name)
                self._await_stopped(programs)
                titles = ", ".join(program.title for program in programs)
                progress(f"{titles} … stopped ({time.monotonic() - started:.1f} s)")
            self._supervisor.shutdown()
            deadline = time.monotonic() + 5
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.05)
        left = processes.end(self.processes, patience=3)
        if left and not supervised:
            progress(f"ended {left} processes that a killed supervisor had left")
        return supervised or left > 0

    def _await_stopped(self, programs: Sequence[Program]) -> None:
        # The supervisor kills what does not stop in its time.
        names = {program.name for program in programs}
        while any(
            state.state in ("RUNNING", "STARTING", "STOPPING")
            for name, state in self._supervisor.states().items()
            if name in names
        ):
            time.sleep(0.05)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One `up` or `down` at a time."""
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (owner := self.state_dir.stat().st_uid) != os.geteuid():
            raise StackError(f"{self.state_dir} belongs to user {owner}: be that user, or choose another checkout")
        with (self.state_dir / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackError("another make up or make down is at work in this checkout; wait for it") from None
            yield


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    return "\n".join([*(f"  {line}" for line in lines), f"the whole log: {log}"])
