"""Plays runs as Airflow does: tasks in their order, tries, retries with a pause, one ordinary run at a time.

A try that was killed counts as failed and is repeated; so is one that asks to be tried again. What calls for a person
fails at once. Loads run side by side; the commit runs when none of them failed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

from tests.chaos.workers import Job
from tests.chaos.world import World

TRIES = 4
PAUSE = 0.1  # seconds; a CRM's Retry-After is taken at its word up to the second
LONGEST_PAUSE = 0.3


class Failed(Exception):
    """A task failed for good."""


@dataclass(eq=False)
class DagRun:
    """One run with what its tasks returned. `state` is that of each task: success, failed, skipped."""

    parameters: Mapping[str, Any]
    run_id: str = field(default_factory=lambda: str(uuid4()))
    opened: dict[str, Any] | None = None
    snapped: bool = False
    shards: dict[str, int] = field(default_factory=dict)
    loads: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    committed: bool = False
    thread: threading.Thread | None = None

    @property
    def ordinary(self) -> bool:
        return not self.parameters

    @property
    def active(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def reached(self, task: str) -> bool:
        """Whether `extract`, `snapshot` or the load of this destination was ever due."""
        if task == "extract" or self.opened is None:
            return task == "extract"
        return task == "snapshot" or (self.snapped and task in self.opened["destinations"])


@dataclass(eq=False)
class Chore:
    """What a person started besides: a replay, a recovery, a reconciliation. `result` is None while there is none."""

    result: Any = None
    thread: threading.Thread | None = None


class Scheduler:
    """Starts and clears runs; each is driven by a thread."""

    def __init__(self, world: World, broken: str | None = None) -> None:
        self._world = world
        self._broken = broken
        self._doomed: dict[str, deque[int]] = defaultdict(deque)
        self.runs: list[DagRun] = []
        self.chores: list[Chore] = []
        self.tasks: Counter[str] = Counter()  # ended how
        self.defects: list[str] = []  # errors that no hazard explains
        self.closing = False

    def run(self, parameters: Mapping[str, Any] | None = None) -> DagRun | None:
        """Starts a run; None when an ordinary one is due and one still goes on."""
        run = DagRun(parameters or {})
        if run.ordinary and any(other.ordinary and other.active for other in self.runs):
            return None
        self.runs.append(run)
        self._play(run, "extract")
        return run

    def clear(self, back: int, task: str) -> bool:
        """Clears a task of an earlier run that has ended and has come so far; False when there is none."""
        ended = [run for run in self.runs if not run.active and run.reached(task)]
        if not ended:
            return False
        self._play(ended[-1 - back % len(ended)], task)
        return True

    def replay(self, destination: str) -> Chore:
        """All dead letters of a destination."""
        return self._begin(lambda run_id: self._task("replay", run_id=run_id, destination=destination))

    def recover(self, parameters: Mapping[str, Any]) -> Chore:
        """From snapshots, for one destination."""

        def work(run_id: str) -> None:
            for item in self._task("choose_snapshots", parameters=parameters):
                self._task("recover", run_id=run_id, item=item)

        return self._begin(work)

    def reconcile(self, destination: str) -> Chore:
        """All leads of a destination, with repair."""
        return self._begin(lambda run_id: self._task("reconcile", run_id=run_id, destination=destination))

    def _begin(self, work: Callable[[str], Any]) -> Chore:
        chore = Chore()

        def drive() -> None:
            with suppress(Failed):
                chore.result = work(f"manual__{uuid4()}")

        chore.thread = threading.Thread(target=drive, daemon=True)
        self.chores.append(chore)
        chore.thread.start()
        return chore

    def doom(self, task: str, point: int) -> None:
        """The next worker with this task that is not doomed yet is to die at this point."""
        self._doomed[task].append(point)

    def spare(self) -> None:
        """Forgets who was doomed."""
        self._doomed.clear()

    def wait(self, seconds: float) -> bool:
        """Waits for all runs; False when they have not ended by then."""
        until = time.monotonic() + seconds
        threads = [each.thread for each in (*self.runs, *self.chores) if each.thread is not None]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _play(self, run: DagRun, first: str) -> None:
        run.thread = threading.Thread(target=self._drive, args=(run, first), daemon=True)
        run.thread.start()

    def _drive(self, run: DagRun, first: str) -> None:
        try:
            if first in ("extract", "snapshot"):
                run.snapped, run.committed = False, False
                run.loads, run.counts = {}, {}
            if first == "extract":
                run.opened = None
                run.opened = self._task("extract", run_id=run.run_id, parameters=run.parameters)
            assert run.opened is not None
            if first in ("extract", "snapshot"):
                run.shards = self._task("take_snapshot", opened=run.opened)
                run.snapped = True
                _at_once(partial(self._load, run, name) for name in run.opened["destinations"])
            else:
                self._load(run, first)
            states = [run.loads.get(name) for name in run.opened["destinations"]]
            if all(state in ("success", "skipped") for state in states):
                self._task("commit", opened=run.opened)
                run.committed = True
        except Failed:
            return

    def _load(self, run: DagRun, destination: str) -> None:
        """All shards of one destination."""
        found: list[dict[str, int] | None] = []

        def load(shard: int) -> None:
            with suppress(Failed):
                found.append(self._task("load", opened=run.opened, destination=destination, shard=shard))

        shards = run.shards.get(destination, 1)
        _at_once(partial(load, shard) for shard in range(shards))
        if len(found) < shards:
            run.loads[destination] = "failed"
            return
        counts = Counter[str]()
        for each in found:
            counts.update(each or {})
        run.loads[destination] = "skipped" if None in found else "success"
        run.counts[destination] = dict(counts)

    def _task(self, task: str, **arguments: Any) -> Any:
        """What the task returns. Raises Failed."""
        for _ in range(TRIES):
            if self.closing:
                break
            setup = self._world.setup() | {"broken": self._broken}
            if self._doomed[task]:
                setup["dies_at"] = self._doomed[task].popleft()
            job = self._world.workers.start(task, arguments, setup)
            job.done.wait()
            pause = PAUSE
            if job.abandoned:
                self.tasks["abandoned"] += 1
            elif job.answer is None:
                self.tasks["killed"] += 1
            elif "result" in job.answer:
                self.tasks["success"] += 1
                return job.answer["result"]
            else:
                pause = self._failed(job, job.answer)
            time.sleep(pause)
        raise Failed(task)

    def _failed(self, job: Job, answer: Mapping[str, Any]) -> float:
        """Counts an error; the pause before the next try. Raises Failed when there is none."""
        self.tasks[answer["error"]] += 1
        reaction, text = answer["reaction"], answer.get("text", "")
        if reaction == "surprise" or (reaction == "odd" and "the sum" in text):
            self.defects.append(f"{job.task}: {answer['error']}: {text}")
        if reaction == "fail":
            raise Failed(job.task)
        return min(answer.get("retry_after") or PAUSE, LONGEST_PAUSE)


def _at_once(work: Iterable[Callable[[], None]]) -> None:
    """Does it all in threads, and returns when all have ended."""
    threads = [threading.Thread(target=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
