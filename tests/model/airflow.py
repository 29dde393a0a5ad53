"""Airflow's part: starts the tasks of runs, tries them again, and loses, kills and clears them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.model import protocol
from tests.model.database import Attempt, LeftBehind, Operation, SessionLost, Steps, TaskFailed
from tests.model.world import Request

if TYPE_CHECKING:
    from tests.model.walk import World

TRIES = 3

Key = tuple[Any, ...]


@dataclass(eq=False)
class Run:
    """A run of any of the DAGs: `run`, `backfill`, `replay`, `recover` or `repair`."""

    number: int
    kind: str
    destinations: list[int]
    since: int = 0
    until: int = 0
    resend: bool = False
    leads: list[int] | None = None
    sources: list[Operation] = field(default_factory=list)
    cleared: bool = False
    current: Attempt | None = None  # in Leadsync's database: the newest attempt
    handed: Attempt | None = None  # in Airflow's: what `extract` returned
    phase: str = "extract"
    over: bool = False
    done: set[Key] = field(default_factory=set)
    tries: dict[Key, int] = field(default_factory=dict)
    not_before: int = 0  # when what failed is tried again
    settled: bool = False  # nothing is to be started until something happens
    working: dict[Key, Worker] = field(default_factory=dict)

    def tasks(self) -> list[Key]:
        """The tasks of this phase."""
        if self.phase != "load":
            return [(self.phase,)]
        operations = self.handed.operations if self.handed else []
        return [("load", o, name, shard) for o in operations for name in o.destinations for shard in range(o.shards)]


class Worker:
    """A process that runs one task, with a database session of its own."""

    def __init__(self, world: World, run: Run, key: Key, name: str) -> None:
        self.world = world
        self.run = run
        self.key = key
        self.name = name
        self.connected = True
        self.confirmed = world.now
        self.requests: list[Request] = []
        self.paused = 0  # stands still until this tick
        self.pace = world.chance.choice((0.3, 0.6, 0.9))
        self.steps: Steps = _steps(self, run, key)
        self.attempt: Attempt | None = None

    def __repr__(self) -> str:
        return self.name

    def use_session(self) -> None:
        """Every transaction needs the session; raises SessionLost when it is gone."""
        if not self.connected:
            raise SessionLost(self.name)

    def confirm(self) -> None:
        """Sees that the session, and so the lock, is still there."""
        self.use_session()
        self.confirmed = self.world.now


def _steps(worker: Worker, run: Run, key: Key) -> Steps:
    attempt = run.handed
    if key[0] == "extract":
        worker.attempt = yield from protocol.extract(worker, run)
        return
    if attempt is None:
        raise TaskFailed("extract has returned nothing")
    if key[0] == "snapshot":
        yield from protocol.snapshot(worker, run, attempt)
    elif key[0] == "load":
        yield from protocol.load(worker, run, attempt, *key[1:])
    else:
        yield from protocol.commit(worker, run, attempt)


class Airflow:
    def __init__(self, world: World) -> None:
        self._world = world
        self.workers: list[Worker] = []
        self.active: list[Run] = []

    def trigger(self, kind: str, destinations: list[int], **request: Any) -> Run:
        run = Run(len(self._world.database.runs), kind, destinations, **request)
        self._world.database.runs.append(run)
        self.active.append(run)
        self._world.note("run %d: %s of CRMs %s", run.number, kind, destinations)
        return run

    def clear(self, run: Run, phase: str, name: int | None = None, *, rewind: bool = False) -> None:
        """Clears a task and what follows it: `extract`, `snapshot`, or the loads of one destination, or of all."""
        self._world.note("run %d is cleared from %s on, CRM %s%s", run.number, phase, name, ", rewound" * rewind)
        for worker in list(run.working.values()):
            self.lose(worker, dead=False)
        if phase == "extract":
            run.done = set()
        elif phase == "snapshot":
            run.done = {("extract",)}
        else:
            run.done = {k for k in run.done if k[0] in ("extract", "snapshot") or name not in (None, *k[2:3])}
            run.done.discard(("commit",))
        run.tries, run.phase, run.over, run.cleared, run.settled = {}, phase, False, True, False
        if rewind and run.handed:
            for operation in run.handed.operations:
                for destination in operation.destinations:
                    if name in (None, destination):
                        operation.rewind(destination)
        if run not in self.active:
            self.active.append(run)

    def lose(self, worker: Worker, *, dead: bool) -> None:
        """Airflow takes the task for dead, and its process was killed, or goes on unknown to anybody."""
        self._world.note("%s %s", worker, "is killed" if dead else "is believed dead")
        self._failed(worker)
        if dead:
            self.workers.remove(worker)
            worker.steps.close()
            self._world.database.break_session(worker)
            self._world.network.sender_died(worker.requests)

    def step(self) -> None:
        now, chance = self._world.now, self._world.chance.random
        for run in list(self.active):
            if not run.settled and now >= run.not_before:
                self._go_on(run)
        for worker in list(self.workers):
            if now >= worker.paused and chance() < worker.pace:
                self._advance(worker)

    def _go_on(self, run: Run) -> None:
        """Starts what is due, or goes on to the next phase when nothing is left."""
        left = [key for key in run.tasks() if key not in run.done]
        ready = [key for key in left if key not in run.working and run.tries.get(key, 0) < TRIES]
        for key in ready:
            worker = Worker(self._world, run, key, f"run {run.number} {' '.join(map(str, (key[0], *key[2:])))}")
            run.working[key] = worker
            self.workers.append(worker)
        if run.working:
            run.settled = True
        elif left and (run.phase != "load" or self._world.obeys("all_loads")):
            self._end(run, "failed")
        elif run.phase == "commit":
            self._end(run, "done")
        else:
            run.phase = {"extract": "snapshot", "snapshot": "load", "load": "commit"}[run.phase]

    def _end(self, run: Run, how: str) -> None:
        self._world.note("run %d %s", run.number, how)
        run.over = True
        self.active.remove(run)

    def _advance(self, worker: Worker) -> None:
        """Lets a worker take its next step."""
        try:
            next(worker.steps)
        except StopIteration:
            self._over(worker)
        except LeftBehind:
            self._world.note("%s is left behind", worker)
            self._over(worker)
        except TaskFailed as failure:
            self._world.note("%s fails: %s", worker, failure)
            self.workers.remove(worker)
            self._failed(worker)

    def _over(self, worker: Worker) -> None:
        """The task is done. Nobody listens to one that was given up."""
        run, key = worker.run, worker.key
        self.workers.remove(worker)
        if run.working.get(key) is worker:
            del run.working[key]
            run.done.add(key)
            run.handed = worker.attempt or run.handed
            run.settled = False

    def _failed(self, worker: Worker) -> None:
        """The task is tried again some time later."""
        run = worker.run
        if run.working.get(worker.key) is worker:
            del run.working[worker.key]
            run.tries[worker.key] = run.tries.get(worker.key, 0) + 1
            run.not_before = self._world.now + self._world.chance.choice((0, 0, 4))
            run.settled = False
