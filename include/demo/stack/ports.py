"""The ports of a stack: all on 127.0.0.1, all counted from one base."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

import psutil

from demo.stack.errors import StackError

HOST = "127.0.0.1"
VARIABLE = "LEADSYNC_PORT"
DEFAULT_BASE = 8080
# Program → distance from the base. Fixed: scripts and people rely on it.
OFFSETS: Mapping[str, int] = {
    "airflow-api-server": 0,
    "postgres": 1,
    "valkey": 2,
    "landing": 9,
    "crm-hubspot": 10,
    "crm-salesforce": 11,
}


def base_from_environment() -> int:
    """LEADSYNC_PORT, or 8080. Raises StackError when it is no port with room above it."""
    text = os.environ.get(VARIABLE, "").strip() or str(DEFAULT_BASE)
    highest = 65535 - max(OFFSETS.values())
    if not text.isdecimal() or not 1 <= int(text) <= highest:
        raise StackError(f"{VARIABLE}={text!r} is not a port: give a number from 1 to {highest}")
    return int(text)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # A connection that just ended (TIME_WAIT) is no obstacle: servers set the same option.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_base(start: int) -> int:
    """The first base from `start` on, in steps of 20, all of whose ports are free."""
    for base in range(start, 65500, 20):
        if not taken(base):
            return base
    raise StackError(f"no run of free ports from {start} on")


def taken(base: int) -> dict[str, int]:
    """Program → port, of the ports that are not free."""
    return {name: base + offset for name, offset in OFFSETS.items() if not is_free(base + offset)}


def check_free(base: int) -> None:
    """Raises StackError that names every port that is taken, who holds it where that can be seen, and the remedy."""
    held = taken(base)
    if not held:
        return
    lines = [f"  {port} ({name}) is taken by {_holder(port)}" for name, port in held.items()]
    remedy = f"end what holds them, or choose another base: {VARIABLE}={free_base(base + 20)} make up"
    raise StackError("\n".join(["nothing was started, for these ports are not free:", *lines, remedy]))


def _holder(port: int) -> str:
    # An ordinary user does not see the processes of others, and some systems show none at all.
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "a process that this user cannot see"
