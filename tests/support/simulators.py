"""Simulated CRMs for the tests: each a process of its own, as in the demo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from leadsync.crm.base import Endpoint
from tests.support.servers import free_port

SECRETS = {
    "DEMO_CRM_TOKEN": "token-of-the-test",
    "DEMO_CRM_CLIENT_ID": "client-of-the-test",
    "DEMO_CRM_CLIENT_SECRET": "secret-of-the-test",
}
INCLUDE = Path(__file__).parents[2] / "include"


class Simulator:
    """A handle on one simulator."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """What the connection of a destination says."""
        if self.kind == "hubspot":
            return Endpoint(self.url, password=SECRETS["DEMO_CRM_TOKEN"])
        return Endpoint(self.url, SECRETS["DEMO_CRM_CLIENT_ID"], SECRETS["DEMO_CRM_CLIENT_SECRET"])

    def start(self) -> None:
        """Starts it (again) on its port and its data."""
        command = [sys.executable, "-m", "demo.crm", self.kind, "--port", str(self.port), "--data", str(self._folder)]
        with (self._folder / "log").open("ab") as log:
            environment = {**os.environ, **SECRETS, "PYTHONPATH": str(INCLUDE)}
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        for _ in range(400):
            try:
                requests.get(f"{self.url}/_demo/health", timeout=1)
                return
            except requests.ConnectionError:
                time.sleep(0.025)
        raise RuntimeError((self._folder / "log").read_text())

    def stop(self, how: int = signal.SIGTERM) -> None:
        """Ends it; SIGKILL for a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            self._process = None

    def get(self, what: str) -> Any:
        """What `/_demo/<what>` says."""
        return requests.get(f"{self.url}/_demo/{what}", timeout=10).json()

    def records(self) -> dict[str, dict[str, Any]]:
        """Live records: external id → fields."""
        return {key: record["fields"] for key, record in self.get("records").items()}

    def journal(self) -> list[dict[str, Any]]:
        """Accepted changes, in order."""
        found: list[dict[str, Any]] = self.get("journal")
        return found

    def faults(self, **faults: Any) -> None:
        """Replaces the faults; none are left without arguments."""
        requests.post(f"{self.url}/_demo/faults", json=faults, timeout=10).raise_for_status()

    def reset(self) -> None:
        """Forgets records and faults."""
        requests.post(f"{self.url}/_demo/reset", timeout=10).raise_for_status()


@contextmanager
def running_simulator(kind: str) -> Iterator[Simulator]:
    """A started simulator with empty records."""
    with tempfile.TemporaryDirectory(prefix="leadsync-test-") as folder:
        simulator = Simulator(kind, Path(folder))
        simulator.start()
        try:
            yield simulator
        finally:
            simulator.stop()
