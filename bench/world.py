"""The servers of a benchmark: PostgreSQL, Valkey, and CRMs in C that are never the bottleneck (crm/crm.c)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import redis
import requests
from tests.support.servers import Postgres, free_port, running_valkey

from bench import certificate
from bench.crms import CRM
from leadsync.state import migration

SOURCES = sorted((Path(__file__).parent / "crm").glob("*.c"))
# Where requests, and what asks OpenSSL, look for certificates that they trust.
TRUST = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


@dataclass(frozen=True)
class World:
    """Where the servers are, and the processes whose time is counted."""

    hive: str
    state: str
    redis_port: int
    crms: tuple[CRM, ...]
    postgres_pid: int

    @property
    def crm(self) -> CRM:
        """The first, where one is all that is needed."""
        return self.crms[0]

    def environment(self) -> dict[str, str]:
        """How a case's process learns it."""
        return {
            "BENCH_HIVE": self.hive,
            "BENCH_STATE": self.state,
            "BENCH_REDIS": str(self.redis_port),
            "BENCH_CRM": self.crm.url,
        }

    def reset(self, **options: float) -> None:
        """Forgets what Leadsync knows and what the CRMs have counted; sets the CRMs' options."""
        with psycopg.connect(self.state, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS leadsync CASCADE")
        migration.migrate(self.state)
        with redis.Redis(port=self.redis_port) as client:
            client.flushall()
        for crm in self.crms:
            crm.reset(**options)

    def postgres_seconds(self) -> float:
        """Processor time of PostgreSQL so far, of all its processes, those that have ended too."""
        whole = psutil.Process(self.postgres_pid)
        own = whole.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in whole.children(recursive=True):
            try:
                times = child.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return float(total)


@contextmanager
def running_world(crms: int = 1, *, tls: bool = False, **settings: str) -> Iterator[World]:
    """Everything on free ports of 127.0.0.1, in a folder that is thrown away; `settings` are PostgreSQL's, and `tls` is
    how the CRMs are reached."""
    options = {"fsync": "on", "shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "1h", **settings}
    postgres = Postgres(**options)
    try:
        postgres.start()
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            for name in ("hive", "leadsync"):
                connection.execute(f"CREATE DATABASE {name}")
        base = postgres.dsn.rpartition("/")[0]
        with running_valkey() as valkey, running_crms(crms, tls=tls) as found:
            port = int(valkey.get_connection_kwargs()["port"])
            yield World(f"{base}/hive", f"{base}/leadsync", port, found, postgres.pid)
    finally:
        postgres.remove()


@contextmanager
def running_crms(count: int, *, tls: bool = False) -> Iterator[tuple[CRM, ...]]:
    """Compiles the CRM and starts so many. Over TLS, processes that begin meanwhile trust their certificate."""
    with tempfile.TemporaryDirectory(prefix="leadsync-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        flags, options = (["-DTLS"], ["-lssl", "-lcrypto"]) if tls else ([], [])
        done = subprocess.run([compiler(), "-O2", *flags, "-o", folder / "crm", *SOURCES, *options], check=False)
        if done.returncode:
            raise SystemExit(
                "the CRM does not compile" + (": TLS needs OpenSSL (apt install libssl-dev)" if tls else "")
            )
        command = [str(folder / "crm")]
        if tls:
            both, alone = certificate.make(folder)
            command.append(f"certificate={both}")
            stack.enter_context(_trusting(alone))
        yield tuple(stack.enter_context(_running_crm(command)) for _ in range(count))


@contextmanager
def _trusting(alone: Path) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in TRUST}
    os.environ.update(dict.fromkeys(TRUST, str(alone)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def compiler() -> str:
    """Raises SystemExit when there is none."""
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if found is None:
        raise SystemExit(
            "the benchmark's CRM is written in C: install a C compiler (apt install gcc), or name it in CC"
        )
    return found


@contextmanager
def _running_crm(command: Sequence[str]) -> Iterator[CRM]:
    """The port is the first argument."""
    port = free_port()
    program, *options = command
    process = subprocess.Popen([program, str(port), *options])
    try:
        crm = CRM(f"{'https' if options else 'http'}://127.0.0.1:{port}")
        for _ in range(100):
            try:
                crm.stats()
                break
            except requests.ConnectionError:
                time.sleep(0.05)
        yield crm
    finally:
        process.terminate()
        process.wait(10)
