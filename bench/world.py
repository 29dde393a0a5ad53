"""The servers of a benchmark: PostgreSQL, Valkey, and a CRM in C that is never the bottleneck (crm/crm.c)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import requests
from tests.support.servers import Postgres, free_port, running_valkey

from leadsync.state import migration

SOURCE = Path(__file__).parent / "crm" / "crm.c"


@dataclass(frozen=True)
class World:
    """Where the servers are, and the processes whose time is counted."""

    hive: str
    state: str
    redis_port: int
    crm: str
    postgres_pid: int

    def environment(self) -> dict[str, str]:
        """How a case's process learns it."""
        return {
            "BENCH_HIVE": self.hive,
            "BENCH_STATE": self.state,
            "BENCH_REDIS": str(self.redis_port),
            "BENCH_CRM": self.crm,
        }

    def reset(self, **options: float) -> None:
        """Forgets what Leadsync knows and what the CRM has counted; sets the CRM's options."""
        with psycopg.connect(self.state, autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS leadsync CASCADE")
        migration.migrate(self.state)
        wanted = {"latency_ms": 0, "limit": 0, "window_s": 10, **options}
        for what in ("_reset", "_config?" + "&".join(f"{name}={value}" for name, value in wanted.items())):
            requests.post(f"{self.crm}/{what}", timeout=5).raise_for_status()

    def stats(self) -> dict[str, Any]:
        """What the CRM has counted."""
        found: dict[str, Any] = requests.get(f"{self.crm}/_stats", timeout=5).json()
        return found

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
def running_world() -> Iterator[World]:
    """Everything on free ports of 127.0.0.1, in a folder that is thrown away."""
    postgres = Postgres(fsync="on", shared_buffers="512MB", max_wal_size="8GB", checkpoint_timeout="1h")
    try:
        postgres.start()
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            for name in ("hive", "leadsync"):
                connection.execute(f"CREATE DATABASE {name}")
        base = postgres.dsn.rpartition("/")[0]
        with running_valkey() as valkey, running_crm() as crm:
            port = int(valkey.get_connection_kwargs()["port"])
            yield World(f"{base}/hive", f"{base}/leadsync", port, crm, postgres.pid)
    finally:
        postgres.remove()


@contextmanager
def running_crm() -> Iterator[str]:
    """Compiles and starts the CRM; yields its address."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit(
            "the benchmark's CRM is written in C: install a C compiler (apt install gcc), or name it in CC"
        )
    with tempfile.TemporaryDirectory(prefix="leadsync-bench-") as folder:
        binary, port = Path(folder) / "crm", free_port()
        subprocess.run([compiler, "-O2", "-o", binary, SOURCE], check=True)
        process = subprocess.Popen([binary, str(port)])
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    requests.get(f"{url}/_stats", timeout=1)
                    break
                except requests.ConnectionError:
                    time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.wait(10)
