"""The runner's side of worker.py: starts jobs, learns how they ended, kills them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(eq=False)
class Job:
    """One process that works on one task. `done` is set when it ended, or is believed to have."""

    number: int
    task: str
    answer: dict[str, Any] | None = None  # None: it was killed before it could answer
    abandoned: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


class Workers:
    """A process that forks workers."""

    def __init__(self, log: Path) -> None:
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._lock = threading.Lock()
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'include'}{os.pathsep}{ROOT}"}
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker"], cwd=ROOT, env=environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Ends the workers that are left, and their parent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, task: str, arguments: Mapping[str, Any], setup: Mapping[str, Any]) -> Job:
        """Starts a job."""
        job = Job(next(self._numbers), task)
        with self._lock:
            self._jobs[job.number] = job
        self._order({"job": job.number, "task": task, "arguments": arguments, "setup": setup})
        return job

    def running(self) -> list[Job]:
        """The jobs whose processes have not ended, oldest first."""
        with self._lock:
            return list(self._jobs.values())

    def signal(self, job: Job, what: str) -> None:
        """`kill`, `stop` or `go`, if its process still runs."""
        self._order({what: job.number})

    def _order(self, order: Mapping[str, Any]) -> None:
        line = json.dumps(order).encode() + b"\n"
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._lock:
                job = self._jobs[answer["job"]]
                if "status" not in answer:
                    job.answer = answer
                    continue
                del self._jobs[job.number]
            job.ended.set()
            job.done.set()
        with self._lock:
            left = list(self._jobs.values())
            self._jobs.clear()
        for job in left:
            job.ended.set()
            job.done.set()
