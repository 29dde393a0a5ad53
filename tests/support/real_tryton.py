"""A real Tryton server, from its pip packages, on SQLite."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import requests

from leadsync.crm.base import Endpoint
from tests.support.real import RealCRM, installed
from tests.support.servers import free_port
from tests.support.simulators import SECRETS

HOME = Path(__file__).with_name("tryton")
MODULE = HOME / "leadsync_party"
LOGIN, PASSWORD = SECRETS["DEMO_CRM_CLIENT_ID"], SECRETS["DEMO_CRM_CLIENT_SECRET"]
CONFIGURATION = """
[database]
uri = sqlite://
path = {folder}
[web]
listen = 127.0.0.1:{port}
"""
SERVER, ADMIN = "trytond.cli", "trytond.cli.admin"
RECORDS = "SELECT * FROM party_party WHERE code IS NOT NULL AND active >= ? ORDER BY active"
DOUBLED = "SELECT count(*) FROM (SELECT 1 FROM party_party WHERE active GROUP BY code HAVING count(*) > 1)"
# Of those that hang on a party, and of failed logins, which Tryton counts.
TABLES = ("party_contact_mechanism", "party_address", "party_party", "res_user_login_attempt")


class JSONRPC:
    """What the proxy has to know of Tryton's API."""

    def is_login(self, line: str, body: bytes) -> bool:
        return _method(body) == "common.db.login"

    def is_change(self, line: str, body: bytes) -> bool:
        return _method(body).endswith((".create", ".write", ".delete"))

    def conflict(self) -> tuple[int, Any]:
        return 200, {"id": 1, "error": ["ConcurrencyException", "Records were modified in the meanwhile"]}

    def half(self, line: str, body: bytes, reply: Any) -> Any | None:
        records = reply.get("result")
        if not _method(body).endswith(".search_read") or not records:
            return None
        return {**reply, "result": records[: len(records) // 2]}


class RealTryton(RealCRM):
    batches_are_atomic = True

    def __init__(self, home: Path) -> None:
        self._port = free_port()
        super().__init__("tryton", self._port, JSONRPC())
        self._folder = Path(tempfile.mkdtemp(prefix="leadsync-test-"))
        self._python = home / "bin" / "python"
        shutil.copy(home / "crm.sqlite", self._folder)
        self._database = self._folder / "crm.sqlite"
        self._log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.proxy.port}/crm", LOGIN, PASSWORD)

    def start(self) -> None:
        """Starts it and waits until it has loaded its modules, which the first login makes it do."""
        configuration = self._folder / "trytond.conf"
        configuration.write_text(CONFIGURATION.format(folder=self._folder, port=self._port))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                _command(self._python, SERVER, "-c", configuration, "-d", "crm"), stdout=log, stderr=log,
                env=_environment(),
            )  # fmt: skip
        login = {"id": 1, "method": "common.db.login", "params": [LOGIN, {"password": PASSWORD}, "en"]}
        for _ in range(600):
            if self._process.poll() is not None:
                break
            try:
                if requests.post(f"http://127.0.0.1:{self._port}/crm/rpc/", json=login, timeout=60).status_code == 200:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"Tryton did not start:\n{self._log.read_text()}")

    def records(self, *, deleted: bool = False) -> dict[str, dict[str, Any]]:
        return {
            row["code"]: {name: row[name] for name in row.keys() if row[name] is not None}  # noqa: SIM118
            for row in self._rows(RECORDS, 0 if deleted else 1)
        }

    def doubled(self) -> int:
        count: int = self._rows(DOUBLED)[0][0]
        return count

    def empty(self) -> None:
        with closing(sqlite3.connect(self._database, timeout=30)) as database, database:
            for table in TABLES:
                database.execute(f"DELETE FROM {table}")  # noqa: S608 - names of this module

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
        shutil.rmtree(self._folder)

    def _rows(self, query: str, *bound: object) -> list[sqlite3.Row]:
        with closing(sqlite3.connect(self._database, timeout=30)) as database:
            database.row_factory = sqlite3.Row
            return database.execute(query, bound).fetchall()


def start() -> RealTryton:
    """A started server with an empty database, a copy of one that is prepared once."""
    sources = [*(HOME / name for name in ("requirements.txt", "prepare.py", "run.py")), *sorted(MODULE.glob("*.*"))]
    crm = RealTryton(installed("tryton", sources, _prepare))
    try:
        crm.start()
    except BaseException:
        crm.stop()
        raise
    return crm


def _prepare(python: Path, home: Path) -> None:
    """Adds the module to the packages, and a database that has it, to the folder `home`."""
    modules = subprocess.run(
        [python, "-c", "import trytond.modules; print(trytond.modules.__path__[0])"], check=True, capture_output=True
    ).stdout.decode()
    shutil.copytree(MODULE, Path(modules.strip()) / MODULE.name, ignore=shutil.ignore_patterns("__pycache__"))
    configuration, password = home / "prepare.conf", home / "password"
    configuration.write_text(CONFIGURATION.format(folder=home, port=0))
    password.write_text(PASSWORD)
    (home / "crm.sqlite").touch()
    options = ["-d", "crm", "--all", "-u", MODULE.name, "--activate-dependencies", "--email", "a@example.org", "-p"]
    for command in (
        _command(python, ADMIN, "-c", configuration, *options),
        [python, HOME / "prepare.py", configuration, LOGIN, PASSWORD],
    ):
        done = subprocess.run(command, env=_environment(TRYTONPASSFILE=str(password)), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"Tryton's database can't be prepared:\n{done.stdout}{done.stderr}")


def _command(python: Path, module: str, *options: object) -> list[object]:
    return [python, HOME / "run.py", module, *options]


def _environment(**variables: str) -> dict[str, str]:
    """That of the tests, but for what is meant for other programs: Tryton reads TRYTOND_ variables and PYTHONPATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRYTON", "PYTHON"))}
    return kept | variables


def _method(body: bytes) -> str:
    found: str = orjson.loads(body)["method"]
    return found
