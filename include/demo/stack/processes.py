"""Finds and ends processes of a stack that its supervisor does not answer for: it was killed, or their parent was.

A process is known by two variables that it inherits: the stack's folder and its program. Two kinds hide theirs.
PostgreSQL runs as another user when root starts it; its processes carry a mark in their titles. Airflow makes the
processes that run tasks unreadable for others, its own user included; they are known by the supervisor's session.
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
RUNS_TASKS = "airflow-scheduler"


def of_program(state_dir: Path, program: str) -> list[psutil.Process]:
    """What runs of one program, its descendants included, whoever their parent is now."""
    session = _session(state_dir) if program == RUNS_TASKS else None
    return _where(lambda process: _marks(process) == (str(state_dir), program) or _is_hidden(process, session))


def of_stack(state_dir: Path, postgres_mark: str) -> list[psutil.Process]:
    """What runs of a stack, its supervisor included."""
    session = _session(state_dir)
    return _where(
        lambda process: (
            _marks(process)[0] == str(state_dir) or _is_hidden(process, session) or _is_postgres(process, postgres_mark)
        )
    )


def of_postgres(postgres_mark: str) -> list[psutil.Process]:
    """What runs of a PostgreSQL cluster."""
    return _where(lambda process: _is_postgres(process, postgres_mark))


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
    try:
        environment = process.environ()
    except psutil.AccessDenied:
        return None, None
    return environment.get(STACK), environment.get(PROGRAM)


def _session(state_dir: Path) -> int | None:
    """The session of the stack's supervisor, alive or killed; its number is not given away while a member lives."""
    try:
        session = int((state_dir / "supervisord.pid").read_text())
    except (FileNotFoundError, ValueError):
        return None
    # After a restart of the machine the number may be another's.
    with suppress(psutil.NoSuchProcess):
        return session if _marks(psutil.Process(session))[0] == str(state_dir) else None
    return session


def _is_hidden(process: psutil.Process, session: int | None) -> bool:
    if session is None or os.getsid(process.pid) != session or process.uids().real != os.getuid():
        return False
    try:
        process.environ()
    except psutil.AccessDenied:
        return True
    return False


def _is_postgres(process: psutil.Process, mark: str) -> bool:
    return process.name() == "postgres" and mark in " ".join(process.cmdline())
