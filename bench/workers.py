"""`python -m bench.workers DESTINATION SYNC_ID SHARD`: one load in a process of its own, as each of Airflow's tasks is.

It begins when it is told to, so that all begin together and none is measured while it starts.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from bench.product import clients
from leadsync import operations
from leadsync.config import Pipeline

ROOT = Path(__file__).parents[1]
PIPELINE = "BENCH_PIPELINE"


@dataclass(frozen=True)
class Done:
    """One load: its counts, seconds on the clock and of processor time, and when it ended (of `time.time`)."""

    destination: str
    counts: dict[str, int]
    wall: float
    cpu: float
    ended: float


class Worker:
    """The parent's end of one process."""

    def __init__(self, destination: str, sync_id: str, shard: int, environment: Mapping[str, str]) -> None:
        self.destination = destination
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.workers", destination, sync_id, str(shard)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(environment),
        )  # fmt: skip

    def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a load of {self.destination} failed: {self._process.wait()}")
        return line

    def await_ready(self) -> None:
        self._line()

    def go(self) -> None:
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> Done:
        """Waits for the end of the load."""
        return Done(self.destination, **json.loads(self._line()))

    def end(self) -> None:
        """Whatever it is at: a load that is not waited for is killed."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def working(
    environment: Mapping[str, str], document: Mapping[str, Any], loads: Sequence[tuple[str, str, int]]
) -> Iterator[list[Worker]]:
    """Starts a worker for each load (destination, sync_id, shard) and lets them go together, once all are ready."""
    path = f"{ROOT / 'include'}{os.pathsep}{ROOT}"
    environment = {**os.environ, **environment, PIPELINE: json.dumps(document), "PYTHONPATH": path}
    workers: list[Worker] = []
    try:
        workers += (Worker(*load, environment) for load in loads)
        for worker in workers:
            worker.await_ready()
        for worker in workers:
            worker.go()
        yield workers
    finally:
        for worker in workers:
            worker.end()


def main() -> None:
    destination, sync_id, shard = sys.argv[1:]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    pipeline = Pipeline.model_validate_json(os.environ[PIPELINE])
    with clients(pipeline, os.environ) as using:
        print("ready", flush=True)
        sys.stdin.readline()
        began, cpu = time.time(), time.process_time()
        counts = operations.load(using, pipeline, sync_id, destination, int(shard))
        ended = time.time()
    told = {"counts": counts, "wall": ended - began, "cpu": time.process_time() - cpu, "ended": ended}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
