"""A real BottleCRM server, from its pip packages, on a PostgreSQL of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
import requests
from psycopg.rows import dict_row

from leadsync.crm.base import Endpoint
from tests.support.real import RealCRM, installed
from tests.support.servers import Postgres, free_port
from tests.support.simulators import SECRETS

HOME = Path(__file__).with_name("bottlecrm")
PYTHON = Path(__file__).parents[2] / ".ci" / "python-for-bottlecrm"
DATABASE = "bottlecrm"
# BottleCRM's policies, which keep organisations apart, do not bind a superuser; so it is none.
ROLE: LiteralString = "CREATE ROLE bottlecrm LOGIN"
CREATE: LiteralString = "CREATE DATABASE bottlecrm OWNER bottlecrm"
TOKENS = {role: f"bcrm_pat_{role}-{SECRETS['DEMO_CRM_TOKEN']}" for role in ("administrator", "member", "reader")}
RECORDS: LiteralString = """
SELECT custom_fields ->> 'leadsync_id' AS external_id, custom_fields, to_jsonb(lead) - 'custom_fields' AS fields
  FROM lead WHERE is_active OR %s ORDER BY is_active
"""
DOUBLED: LiteralString = """
SELECT count(*) FROM (SELECT 1 FROM lead GROUP BY custom_fields ->> 'leadsync_id' HAVING count(*) > 1) doubled
"""
# With all that hangs on a lead, and what a conversion makes.
EMPTY: LiteralString = "TRUNCATE lead, accounts, contacts, opportunity CASCADE"


class REST:
    """What the proxy has to know of BottleCRM's API."""

    def is_login(self, line: str, body: bytes) -> bool:
        return False

    def is_change(self, line: str, body: bytes) -> bool:
        return not line.startswith("GET ")

    def conflict(self) -> tuple[int, Any]:
        return 500, {"detail": "deadlock detected"}  # PostgreSQL's, which Django passes on

    def half(self, line: str, body: bytes, reply: Any) -> Any | None:
        """Each list has one lead's records, mostly a single one: half of these is none."""
        if not line.startswith("GET /api/leads/?") or not (records := reply["open_leads"]["open_leads"]):
            return None
        return {**reply, "open_leads": {**reply["open_leads"], "open_leads": records[: len(records) // 2]}}


class RealBottleCRM(RealCRM):
    batches_are_atomic = True  # one record a call

    def __init__(self, home: Path) -> None:
        self._port = free_port()
        super().__init__("bottlecrm", self._port, REST())
        self._python = home / "bin" / "python"
        self._folder = Path(tempfile.mkdtemp(prefix="leadsync-test-"))
        self._log = self._folder / "log"
        self._postgres = _database()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.proxy.port}", password=TOKENS["administrator"])

    def start(self, dump: Path) -> None:
        """Starts it with the database of a dump, and waits until it answers."""
        _run([self._postgres.binaries / "pg_restore", "--dbname", _dsn(self._postgres), dump])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, "-m", "gunicorn", "serve", "--pythonpath", HOME, "--bind", f"127.0.0.1:{self._port}",
                 "--preload", "--workers", "2", "--threads", "4", "--no-control-socket"],
                cwd=self._folder, env=_environment(self._postgres), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        for _ in range(3600):
            if self._process.poll() is not None:
                break
            try:
                if requests.get(f"http://127.0.0.1:{self._port}/healthz/", timeout=60).status_code == 200:
                    return
            except requests.ConnectionError:
                time.sleep(0.05)
        raise RuntimeError(f"BottleCRM did not start:\n{self._log.read_text()}")

    def records(self, *, deleted: bool = False) -> dict[str, dict[str, Any]]:
        return {
            row["external_id"]: {
                name: value for name, value in (row["fields"] | row["custom_fields"]).items() if value is not None
            }
            for row in self.query(RECORDS, deleted)
        }

    def doubled(self) -> int:
        (row,) = self.query(DOUBLED)
        count: int = row["count"]
        return count

    def empty(self) -> None:
        with psycopg.connect(_dsn(self._postgres)) as connection:
            connection.execute(EMPTY)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # with its workers, which take seconds to end by themselves
            self._process.wait(30)
        self._postgres.remove()
        shutil.rmtree(self._folder)

    def query(self, query: LiteralString, *bound: object) -> list[dict[str, Any]]:
        """The rows that a query of a superuser's finds or changes."""
        with psycopg.connect(_dsn(self._postgres), row_factory=dict_row) as connection:
            return connection.execute(query, bound).fetchall()


def start() -> RealBottleCRM:
    """A started server with an empty database, a copy of one that is prepared once."""
    found = subprocess.run([PYTHON, "--cached"], capture_output=True, text=True)
    if found.returncode:
        remedy = "BottleCRM needs Python 3.12 or newer: put one on the PATH, or run .ci/python-for-bottlecrm once"
        if os.environ.get("CI"):
            raise RuntimeError(remedy)
        pytest.skip(remedy)
    home = installed("bottlecrm", [HOME / "requirements.txt", HOME / "prepare.py"], _prepare, found.stdout.strip())
    crm = RealBottleCRM(home)
    try:
        crm.start(home / "dump")
    except BaseException:
        crm.stop()
        raise
    return crm


def _prepare(python: Path, home: Path) -> None:
    """Adds a dump of a database without leads to the folder `home`."""
    postgres = _database()
    try:
        _run([python, HOME / "prepare.py", *TOKENS.values()], cwd=home, env=_environment(postgres))
        _run([postgres.binaries / "pg_dump", "--format=custom", "--file", home / "dump", _dsn(postgres)])
    finally:
        postgres.remove()


def _database() -> Postgres:
    """A server that runs, with an empty database and its owner."""
    postgres = Postgres(synchronous_commit="off", full_page_writes="off")
    postgres.start()
    with psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(ROLE)
        connection.execute(CREATE)
    return postgres


def _dsn(postgres: Postgres) -> str:
    return f"{postgres.dsn.rpartition('/')[0]}/{DATABASE}"


def _run(command: list[Any], **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"BottleCRM's database can't be prepared:\n{done.stdout}{done.stderr}")


def _environment(postgres: Postgres) -> dict[str, str]:
    """That of the tests, but for what is meant for Leadsync's own Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {
        "DJANGO_SETTINGS_MODULE": "crm.settings",
        "SECRET_KEY": "of-the-test-" * 4,
        "ENV_TYPE": "dev",
        "DBNAME": DATABASE,
        "DBUSER": "bottlecrm",
        "DBPASSWORD": "",
        "DBHOST": "127.0.0.1",
        "DBPORT": str(postgres.port),
        "DB_POOL_ENABLED": "true",
        "CELERY_BROKER_URL": "memory://",
    }
