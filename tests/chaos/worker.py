"""`python -m tests.chaos.worker`: forks a process for each task of a run, so that one costs milliseconds.

Reads JSON lines: `{"job": 1, "task": "load", "arguments": {…}, "setup": {…}}` starts a job, `{"kill": 1}` ends it
(SIGKILL), `{"stop": 1}` and `{"go": 1}` freeze it and let it go on, `{"trace": 1}` logs its stack.

Writes `{"job": 1, "result": …}` or `{"job": 1, "error": "AccessError", "text": …, "reaction": …, "retry_after": …}`
from the job itself, then `{"job": 1, "status": wait status}` when its process has ended. Logs and tracebacks go to
standard error.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
import structlog

from leadsync.errors import FailNow, LeadsyncError, TryAgain
from tests.chaos import broken, hazards, tasks

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "go": signal.SIGCONT, "trace": signal.SIGUSR1}


def serve() -> None:
    """Runs until standard input ends; whatever still runs then is killed."""
    jobs: dict[int, int] = {}  # process → job
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _reap(jobs)
        if 0 not in ready:
            continue
        piece = os.read(0, 65536)
        if not piece:
            break
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "task" in order:
                jobs[_fork(order)] = order["job"]
                continue
            (what, job), *_ = order.items()
            for process in [process for process, number in jobs.items() if number == job]:
                os.kill(process, SIGNALS[what])
    for process in jobs:
        os.kill(process, signal.SIGKILL)


def _reap(jobs: dict[int, int]) -> None:
    while jobs:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        _say({"job": jobs.pop(process), "status": status})


def _fork(order: Mapping[str, Any]) -> int:
    process = os.fork()
    if process == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _work(order)
        finally:
            os._exit(0)
    return process


def _work(order: Mapping[str, Any]) -> None:
    setup = order["setup"]
    task: Callable[..., Any] = getattr(tasks, order["task"])
    answer: dict[str, Any] = {"job": order["job"]}
    structlog.contextvars.bind_contextvars(job=order["job"], task=order["task"])
    try:
        hazards.shift_clock(setup["clock"])
        if setup.get("broken"):
            broken.RULES[setup["broken"]]()
        if setup.get("dies_at"):
            hazards.die_at(setup["dies_at"])
        answer["result"] = task(setup, **order["arguments"])
    except LeadsyncError as error:
        reaction = "fail" if isinstance(error, FailNow) else "retry" if isinstance(error, TryAgain) else "odd"
        after = error.retry_after if isinstance(error, TryAgain) else None
        answer |= {"error": type(error).__name__, "text": str(error), "reaction": reaction, "retry_after": after}
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        answer |= {"error": type(error).__name__, "text": error.sqlstate or "", "reaction": "retry"}
    except BaseException as error:
        traceback.print_exc()
        answer |= {"error": type(error).__name__, "text": traceback.format_exc()[-1500:], "reaction": "surprise"}
    _say(answer)


def _say(answer: Mapping[str, Any]) -> None:
    # One write, shorter than PIPE_BUF: lines of several processes do not mix.
    line = json.dumps(answer).encode() + b"\n"
    os.write(1, line if len(line) < select.PIPE_BUF else _shortened(answer))


def _shortened(answer: Mapping[str, Any]) -> bytes:
    return json.dumps({**answer, "text": str(answer.get("text"))[-1000:]}).encode() + b"\n"


if __name__ == "__main__":
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
            structlog.processors.LogfmtRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    tasks.make_small()
    gc.freeze()  # a fork then copies less
    serve()
