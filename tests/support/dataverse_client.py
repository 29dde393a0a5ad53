"""Microsoft's client for Dataverse, in a process of its own with packages of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.support.real import installed
from tests.support.simulators import Simulator
from tests.support.tls import certificate, tls_before

HOME = Path(__file__).with_name("dataverse")
TENANT = "tenant-of-the-demo"


class ClientError(Exception):
    """What the client raised: the name of its class, and what it says of itself."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(told["message"])
        self.kind: str = told["raised"]
        self.status: int | None = told.get("status_code")
        self.code: str | None = told.get("details", {}).get("service_error_code")
        self.told = told


class DataverseClient:
    """The client of one process."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process = process
        self._log = log

    def connect(self, *login: str) -> None:
        """Address, tenant, client id and secret; before all other calls."""
        self._ask(login)

    def call(self, operation: str, *arguments: Any, **options: Any) -> Any:
        """What `client.<operation>(*arguments, **options)` returns, as JSON has it. Raises ClientError.

        The operation "batch" takes lists: the name of a method of `records`, then its arguments.
        """
        return self._ask((operation, arguments, options))

    def _ask(self, line: tuple[Any, ...]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise RuntimeError(f"the client has ended:\n{self._log.read()}")
        told: dict[str, Any] = json.loads(answer)
        if "raised" in told:
            raise ClientError(told)
        return told["returned"]


@contextmanager
def running_client(crm: Simulator, secret: str | None = None) -> Iterator[DataverseClient]:
    """A client of the simulator, with another secret than the right one when it is given.

    The client and its login take no address without TLS, so that ends right before the simulator.
    """
    python = installed("dataverse", [HOME / "requirements.txt"]) / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AZURE_"))}
    with tempfile.TemporaryDirectory(prefix="leadsync-test-") as folder, tempfile.TemporaryFile("w+") as log:
        trusted = certificate(Path(folder), "127.0.0.1")
        environment |= {"REQUESTS_CA_BUNDLE": str(trusted), "no_proxy": "127.0.0.1"}
        with (
            tls_before(crm.port, trusted) as port,
            subprocess.Popen(
                [python, HOME / "run.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=environment,
            ) as process,
        ):  # fmt: skip
            try:
                client = DataverseClient(process, log)
                client.connect(f"https://127.0.0.1:{port}", TENANT, crm.client_id, secret or crm.client_secret)
                yield client
            finally:
                process.kill()
