"""`python -m demo.stack.program STATE NAME`: becomes one program of the stack.

Supervisor starts it. What an earlier incarnation that was killed left behind (task processes, workers that hold the
port) is ended first.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil

from demo.stack import postgres
from demo.stack.layout import COMPONENT, MARKER, Layout


def left_behind(state: Path, name: str | None = None) -> list[psutil.Process]:
    """Processes of this stack, or of one of its programs, other than this one."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        mine = environment.get(MARKER) == str(state) and (name is None or environment.get(COMPONENT) == name)
        if mine and process.pid not in (os.getpid(), os.getppid()):
            found.append(process)
    return found


def end(processes: list[psutil.Process], patience: float) -> None:
    """Asks processes to end, and ends those that do not."""
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)


def main() -> None:
    """Never returns."""
    state, name = Path(sys.argv[1]), sys.argv[2]
    layout = Layout.load(state)
    if name != "postgres":  # PostgreSQL looks after its own
        end(left_behind(state, name), patience=1.0)
    command = layout.command(name)
    environment = layout.environment(name)
    user = postgres.owner()
    if name == "postgres":
        os.chdir(postgres.home(state / "postgres"))
        if user is not None:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
    os.execve(command[0], command, environment)  # noqa: S606


if __name__ == "__main__":
    main()
