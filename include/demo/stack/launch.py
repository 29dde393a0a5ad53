"""How a program begins: `python -m demo.stack.launch <state folder> <program>`, run by the supervisor.

It ends what an earlier life of the program left (after a kill -9 of the main process its children live on, and may
hold its port), sets the program's environment, and becomes the program: the supervisor watches the program itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from demo.stack import processes
from demo.stack.layout import Layout


def main(state_dir: Path, name: str) -> None:
    layout = Layout.load(state_dir)
    program = layout.program(name)
    processes.end(lambda: processes.of_program(state_dir, name), patience=0)
    if name == "postgres":
        layout.postgres.clear_the_way()
        os.chdir(layout.postgres.folder)
        layout.postgres.become_its_user()
    marks = {processes.STACK: str(state_dir), processes.PROGRAM: name}
    os.execve(program.command[0], program.command, {**program.environment, **marks})  # noqa: S606 no shell is wanted


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
