"""Finds and ends processes of a stack that its supervisor does not answer for: it was killed, or their parent was.

A process is known by two variables that it inherits, the stack's folder and its program. PostgreSQL overwrites its
environment with its title, so its processes are known by the data folder that they work in.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

STACK = "LEADSYNC_STACK"
PROGRAM = "LEADSYNC_PROGRAM"


def of_program(state_dir: Path, program: str) -> list[psutil.Process]:
    """What runs of one program, its descendants included, whoever their parent is now."""
    return _where(lambda process: _marks(process) == (str(state_dir), program))


def of_stack(state_dir: Path, data: Path) -> list[psutil.Process]:
    """What runs of a stack, its supervisor included; `data` is PostgreSQL's folder."""
    return _where(lambda process: _marks(process)[0] == str(state_dir) or _is_postgres(process, data))


def of_postgres(data: Path) -> list[psutil.Process]:
    return _where(lambda process: _is_postgres(process, data))


def end(find: Callable[[], list[psutil.Process]], patience: float) -> int:
    """Asks the processes to stop, kills those that have not after `patience` seconds; returns how many there were."""
    found = find()
    for process in found:
        with suppress(psutil.Error):
            if process.name() != "postgres":
                process.terminate()
            elif psutil.Process(process.ppid()).name() != "postgres":
                # The postmaster ends its own; INT means: do not wait for clients.
                process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + patience
    # A fresh search each time: what is ended may have started something, and nobody may be there to reap the dead.
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.1)
    while left:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
        left = find()
    return len(found)


def _where(wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        # A process that is gone, dead or another user's is none of ours.
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and wanted(process):
                found.append(process)
    return found


def _marks(process: psutil.Process) -> tuple[str | None, str | None]:
    environment = process.environ()
    return environment.get(STACK), environment.get(PROGRAM)


def _is_postgres(process: psutil.Process, data: Path) -> bool:
    return bool(process.name() == "postgres" and process.cwd() == str(data))
