"""Machines of their own for workers: a network namespace with one link to ours, a host name, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def iptables(*arguments: str) -> None:
    subprocess.run(["iptables", "-t", "nat", *arguments], check=True)


class Machine:
    """Reaches our loopback servers at `gateway`, over a link that can be cut; is itself `address`.

    Our side has to be a namespace of its own too, for links, rules and settings end with it.
    """

    def __init__(self, number: int) -> None:
        self.name = f"machine{number}"
        self.gateway, self.address = f"10.199.{number}.1", f"10.199.{number}.2"
        self._link = f"link{number}"
        self._programs: list[subprocess.Popen[bytes]] = []
        self._holder = subprocess.Popen(["unshare", "--net", "--uts", "sleep", "infinity"])
        ours = os.readlink("/proc/self/ns/net")
        namespace = Path(f"/proc/{self._holder.pid}/ns/net")
        while os.readlink(namespace) == ours:
            time.sleep(0.01)
        ip("link", "add", self._link, "type", "veth", "peer", "name", "uplink", "netns", str(self._holder.pid))
        ip("address", "add", f"{self.gateway}/24", "dev", self._link)
        ip("link", "set", self._link, "up")
        # Servers listen on the loopback alone: what comes over the link goes there, as if it came from there.
        Path(f"/proc/sys/net/ipv4/conf/{self._link}/route_localnet").write_text("1")
        iptables("-A", "PREROUTING", "-i", self._link, "-p", "tcp", "-j", "DNAT", "--to-destination", "127.0.0.1")
        iptables("-A", "INPUT", "-s", self.address, "-p", "tcp", "-j", "SNAT", "--to-source", "127.0.0.1")
        inside = f"hostname {self.name}; ip link set lo up; ip address add {self.address}/24 dev uplink; "
        self.start(["sh", "-ec", f"{inside} ip link set uplink up"], {"PATH": os.environ["PATH"]}).wait()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """A program on this machine, told of our servers by the address that they have there."""
        there = {name: self._seen_from_here(value) for name, value in environment.items()}
        there["LEADSYNC_PLAINTEXT_HOSTS"] = self.gateway
        enter = ["nsenter", "--target", str(self._holder.pid), "--net", "--uts"]
        with open(log or os.devnull, "wb") as output:
            program = subprocess.Popen(
                [*enter, *map(self._seen_from_here, command)],
                env=there,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._programs.append(program)
        return program

    def _seen_from_here(self, text: str) -> str:
        return text.replace("127.0.0.1", self.gateway)

    def cut(self) -> None:
        """Nothing comes through any more, in neither direction; nobody is told."""
        ip("link", "set", self._link, "down")

    def mend(self) -> None:
        ip("link", "set", self._link, "up")

    def processes(self) -> list[psutil.Process]:
        """Everything that runs there, but for what holds the machine itself."""
        there = os.readlink(f"/proc/{self._holder.pid}/ns/net")
        found = []
        for process in psutil.process_iter():
            try:
                namespace = os.readlink(f"/proc/{process.pid}/ns/net")
            except OSError:
                continue
            if namespace == there and process.pid != self._holder.pid:
                found.append(process)
        return found

    def kill(self) -> None:
        """Every process at once, as when the power fails; returns when they are gone."""
        processes = self.processes()
        for process in processes:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=10)
        for program in self._programs:
            program.wait(10)

    def close(self) -> None:
        self.kill()
        self._holder.kill()
        self._holder.wait()
