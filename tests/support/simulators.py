"""Simulated CRMs for the tests: each a process of its own, as in the demo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import requests

from demo.crm.vendor import kinds
from leadsync.crm.base import Endpoint
from tests.support import real
from tests.support.servers import free_port

SECRETS = {
    "DEMO_CRM_TOKEN": "token-of-the-test",
    "DEMO_CRM_CLIENT_ID": "client-of-the-test",
    "DEMO_CRM_CLIENT_SECRET": "secret-of-the-test",
}
INCLUDE = Path(__file__).parents[2] / "include"


class Simulator:
    """A handle on one simulator; it keeps port and data over `stop` or `kill` and `start`."""

    token = SECRETS["DEMO_CRM_TOKEN"]
    client_id = SECRETS["DEMO_CRM_CLIENT_ID"]
    client_secret = SECRETS["DEMO_CRM_CLIENT_SECRET"]

    def __init__(self, kind: str, data_dir: Path) -> None:
        self.kind = kind
        self.credentials = kinds()[kind].credentials
        self.token_name = kinds()[kind].token_name
        self.addresses = kinds()[kind].addresses
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._data = data_dir
        self.log = data_dir / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """What the connection of a destination says."""
        if self.credentials == ("DEMO_CRM_TOKEN",):
            return Endpoint(self.url, password=self.token)
        extra = {name: self.url + path for name, path in self.addresses.items()}
        if "DEMO_CRM_TOKEN" in self.credentials:
            extra[self.token_name] = self.token
        return Endpoint(self.url, self.client_id, self.client_secret, extra)

    def start(self, *options: str) -> None:
        """Starts it (again) on its port and its data; `options` are those of the command line."""
        self._data.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "demo.crm", self.kind, "--port", str(self.port), "--data", str(self._data)]
        with self.log.open("ab") as log:
            environment = {**os.environ, **SECRETS, "PYTHONPATH": str(INCLUDE)}
            self._process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
        for _ in range(800):
            if self._process.poll() is not None:
                break
            try:
                if requests.get(f"{self.url}/_demo/health", timeout=1).status_code == 200:
                    return
            except requests.RequestException:
                time.sleep(0.025)
        self.kill()
        raise RuntimeError(f"the {self.kind} simulator did not start:\n{self.log.read_text()}")

    def stop(self) -> int | None:
        """Ends it in order (SIGTERM); returns its exit status, None when it was not running."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once, as a crash does (SIGKILL)."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(how)
        return process.wait(10)

    def get(self, what: str) -> Any:
        """What `/_demo/<what>` says."""
        reply = requests.get(f"{self.url}/_demo/{what}", timeout=30)
        reply.raise_for_status()
        return reply.json()

    def records(self, *, deleted: bool = False) -> dict[str, dict[str, Any]]:
        """External id → fields, of live records, and with `deleted` also of deleted ones."""
        found = self.get("records?deleted=true" if deleted else "records")
        return {key: record["fields"] for key, record in found.items()}

    def journal(self, after: int = 0) -> list[dict[str, Any]]:
        """Accepted changes, in order."""
        found: list[dict[str, Any]] = self.get(f"journal?after={after}")
        return found

    def stats(self) -> dict[str, Any]:
        """Counts of records, doubles, changes and requests."""
        found: dict[str, Any] = self.get("stats")
        return found

    def faults(self, **faults: Any) -> None:
        """Replaces the faults."""
        requests.post(f"{self.url}/_demo/faults", json=faults, timeout=10).raise_for_status()

    def clear_faults(self) -> None:
        """Switches all faults off."""
        self.faults()

    def reset(self) -> None:
        """Forgets records, journal, faults and counters."""
        requests.post(f"{self.url}/_demo/reset", timeout=10).raise_for_status()


class Simulators(Mapping[str, Simulator]):
    """Each simulator, or the real CRM where the tests have one, from the first time that somebody asks for it on.

    `stop` ends them all.
    """

    def __init__(self) -> None:
        self._running = ExitStack()
        self._found: dict[str, Simulator] = {}

    def __getitem__(self, kind: str) -> Simulator:
        if kind not in self._found:
            started = real.running(kind) if real.is_real(kind) else running_simulator(kind)
            self._found[kind] = self._running.enter_context(started)
        return self._found[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def stop(self) -> None:
        self._running.close()


@contextmanager
def running_simulator(kind: str, data_dir: Path | None = None) -> Iterator[Simulator]:
    """A started simulator; its records are kept in `data_dir`, or thrown away without one."""
    with tempfile.TemporaryDirectory(prefix="leadsync-test-") as folder:
        simulator = Simulator(kind, data_dir or Path(folder))
        try:
            simulator.start()
            yield simulator
        finally:
            simulator.stop()
