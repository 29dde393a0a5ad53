"""supervisord: its configuration, and the few calls over its control socket that the stack needs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from demo.stack.errors import StackError
from demo.stack.programs import Program
from demo.stack.secrets import write_private

# The length of a unix socket's path is limited to 104 (macOS) or 108 (Linux) bytes.
LONGEST_SOCKET_PATH = 100
LAUNCH = "demo.stack.launch"

_HEAD = """\
[unix_http_server]
file = {folder}/supervisor.sock
chmod = 0600

[supervisord]
logfile = {folder}/logs/supervisord.log
logfile_maxbytes = 1MB
logfile_backups = 1
pidfile = {folder}/supervisord.pid
childlogdir = {folder}/logs
directory = {folder}
umask = 077
{user}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
# A program that needs PostgreSQL fails as long as PostgreSQL is away: retried for ever, with a delay that grows by a
# second each time.
_PROGRAM = """
[program:{program.name}]
command = {command} {program.name}
autostart = false
autorestart = true
startsecs = 2
startretries = 1000000
stopsignal = {program.stop_signal}
stopwaitsecs = {program.stop_seconds}
stopasgroup = {program.whole_group}
killasgroup = {program.whole_group}
redirect_stderr = true
stdout_logfile = {folder}/logs/{program.name}.log
stdout_logfile_maxbytes = 10MB
stdout_logfile_backups = 1
"""


@dataclass(frozen=True)
class ProcessState:
    """One program as its supervisor sees it; `started` is in epoch seconds, `uptime` in seconds."""

    name: str
    state: str
    pid: int = 0
    started: int = 0
    uptime: int = 0


class Supervisord:
    """The supervisor of one state folder. Start, stop and states raise StackError when it does not answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "supervisor.sock"

    def launch(self, programs: Sequence[Program], environment: Mapping[str, str], *, as_root: bool) -> None:
        """Starts supervisord as a daemon that runs nothing yet."""
        if len(str(self.socket).encode()) > LONGEST_SOCKET_PATH:
            raise StackError(f"the path of this checkout is too long for a unix socket: {self.socket}")
        (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
        # In supervisor's files % begins an expansion; commands are split as a shell would split them.
        folder, command = (
            text.replace("%", "%%")
            for text in (str(self.folder), shlex.join([sys.executable, "-m", LAUNCH, str(self.folder)]))
        )
        parts = [_HEAD.format(folder=folder, user="user = root" if as_root else "")]
        parts += [_PROGRAM.format(program=each, folder=folder, command=command) for each in programs]
        configuration = self.folder / "supervisord.conf"
        write_private(configuration, "".join(parts))
        result = subprocess.run(  # noqa: S603 the arguments are ours
            [sys.executable, "-m", "supervisor.supervisord", "-c", configuration],
            env=dict(environment), capture_output=True, text=True, cwd=self.folder,
        )  # fmt: skip
        if result.returncode:
            raise StackError(f"supervisord does not start: {(result.stdout + result.stderr).strip()}")

    def answers(self) -> bool:
        try:
            self._call("getState")
        except StackError:
            return False
        return True

    def states(self) -> dict[str, ProcessState]:
        return {
            info["name"]: ProcessState(
                name=info["name"],
                state=info["statename"],
                pid=info["pid"],
                started=info["start"],
                uptime=info["now"] - info["start"] if info["statename"] == "RUNNING" else 0,
            )
            for info in self._call("getAllProcessInfo")
        }

    def start(self, name: str) -> None:
        """Asks for a start and returns at once; one that runs already is left alone."""
        self._call("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Asks for a stop and returns at once."""
        self._call("stopProcess", name, False)

    def shutdown(self) -> None:
        self._call("shutdown")

    def _call(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        try:
            with ServerProxy(f"http://{self.socket.name}", transport=transport) as server:
                return getattr(server.supervisor, method)(*arguments)
        except Fault as fault:
            if fault.faultString.partition(":")[0] in ("ALREADY_STARTED", "NOT_RUNNING"):
                return None
            raise StackError(f"supervisord refuses {method}: {fault.faultString}") from None
        except OSError as error:
            raise StackError(f"supervisord does not answer: {error}") from None
