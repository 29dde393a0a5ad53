"""Starts, watches and stops one stack."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
import requests
from psycopg import sql
from supervisor.xmlrpc import SupervisorTransport

from demo import lead_store
from demo.stack import postgres
from demo.stack.layout import AIRFLOW, BASE, DEMO, MARKER, OFFSETS, ROLES, Layout
from demo.stack.program import end, left_behind
from leadsync.state import schema

PROGRAMS = (*BASE, *DEMO, *AIRFLOW)
DATABASES = {"airflow": "airflow", "leadsync": "leadsync", "hive": "hive_owner"}
PATIENCE = 120.0


class StackError(Exception):
    """The stack can't start; the text names what and the remedy."""


class Stack:
    """One checkout's stack. `say` gets a line per step."""

    def __init__(self, layout: Layout, say: Callable[[str], None] = print) -> None:
        self.layout = layout
        self._say = say
        self._started = time.monotonic()
        # Paths of sockets are short, those of checkouts may be long.
        name = hashlib.blake2b(str(layout.state).encode(), digest_size=8).hexdigest()
        self._socket = Path(tempfile.gettempdir()) / f"leadsync-{name}.sock"

    # Up and down ----------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Starts everything and waits until it is healthy; what is there already goes on."""
        end(left_behind(self.layout.state), patience=10)
        self.check_ports()
        self.layout.save()
        folder = postgres.home(self.layout.state / "postgres")
        postgres.initialise(folder, postgres.install(folder), self.layout.secret("postgres-postgres"))
        self._supervise()
        self._step("PostgreSQL", "postgres", self._postgres_ready)
        self._step("Valkey", "valkey", self._valkey_ready)
        self._databases()
        lead_store.create(self.layout.dsn("hive_owner", "hive"))
        schema.migrate(self.layout.dsn("leadsync", "leadsync"))
        self._done("lead store and Leadsync's tables")
        for name in DEMO:
            self._call("startProcess", name, False)
        self._migrate_airflow()
        for name in AIRFLOW:
            self._call("startProcess", name, False)
        for title, name, path in (
            ("HubSpot (simulated)", "hubspot", "/_demo/health"),
            ("Salesforce (simulated)", "salesforce", "/_demo/health"),
            ("landing page", "landing", "/health"),
        ):
            self._step(title, name, partial(self._answers, self.layout.url(name) + path))
        self._step("Airflow", "api-server", self._airflow_ready)
        self._step("DAG leads_sync", "dag-processor", self._dag_ready)

    def run_now(self) -> None:
        """Triggers a run, so that the first leads arrive at once and not at the next full minute."""
        self.api("POST", "/dags/leads_sync/dagRuns", json={"logical_date": None})

    def down(self) -> bool:
        """Stops everything; False when nothing was running."""
        running = self.running()
        if running:
            for group in (AIRFLOW, DEMO, BASE):
                for name in group:
                    if self._call("getProcessInfo", name)["statename"] in ("RUNNING", "STARTING", "BACKOFF"):
                        self._call("stopProcess", name)
            self._call("shutdown")
        rest = left_behind(self.layout.state)
        psutil.wait_procs(rest, timeout=5)
        end(left_behind(self.layout.state), patience=10)
        return running or bool(rest)

    def clean(self) -> None:
        """Stops everything and forgets all data."""
        self.down()
        folder = self.layout.state / "postgres"
        if folder.is_symlink():
            shutil.rmtree(folder.resolve(), ignore_errors=True)
        shutil.rmtree(self.layout.state, ignore_errors=True)

    # Looking --------------------------------------------------------------------------------------------------

    def running(self) -> bool:
        """Whether the process manager runs."""
        try:
            self._call("getState")
        except (OSError, xmlrpc.client.Error):
            return False
        return True

    def processes(self) -> dict[str, dict[str, Any]]:
        """Supervisor's view of each program: statename, pid, start and so on."""
        return {info["name"]: info for info in self._call("getAllProcessInfo")}

    def api(self, method: str, path: str, **more: Any) -> requests.Response:
        """A call of Airflow's REST API as the administrator."""
        ui = self.layout.url("api-server")
        login = {"username": "admin", "password": self.layout.logins["admin"]}
        token = requests.post(f"{ui}/auth/token", json=login, timeout=10).json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        return requests.request(method, f"{ui}/api/v2{path}", headers=headers, timeout=30, **more)

    # Steps ----------------------------------------------------------------------------------------------------

    def check_ports(self) -> None:
        """Raises StackError that names the first port that is taken."""
        for name in OFFSETS:
            port = self.layout.port_of(name)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    raise StackError(
                        f"port {port} (for {name}) is taken{_holder(port)}; choose another base: "
                        "LEADSYNC_PORT=18080 make up"
                    ) from None

    def _supervise(self) -> None:
        state = self.layout.state
        logs = state / "logs"
        logs.mkdir(exist_ok=True)
        self._socket.unlink(missing_ok=True)
        lines = [
            "[unix_http_server]", f"file={self._socket}", "chmod=0700",
            "[supervisord]", f"logfile={logs / 'supervisord.log'}", f"pidfile={state / 'supervisord.pid'}",
            f"directory={state}", "minfds=1024",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]  # fmt: skip
        for name in PROGRAMS:
            lines += [
                f"[program:{name}]", f"command={sys.executable} -m demo.stack.program {state} {name}",
                f"autostart={'true' if name in BASE else 'false'}", "autorestart=true", "startretries=1000",
                "startsecs=2", "stopasgroup=true", "killasgroup=true", "stopwaitsecs=20",
                f"stopsignal={'INT' if name == 'postgres' else 'TERM'}",
                f"stdout_logfile={logs / name}.log", "redirect_stderr=true", "stdout_logfile_maxbytes=10MB",
            ]  # fmt: skip
        path = state / "supervisord.conf"
        path.write_text("\n".join(line.replace("%", "%%") for line in lines) + "\n")
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")},
            MARKER: str(state),
            "PYTHONPATH": str(self.layout.root / "include"),
        }
        subprocess.run([sys.executable, "-m", "supervisor.supervisord", "-c", str(path)], check=True, env=environment)  # noqa: S603
        self._step("process manager", "supervisord", self.running)

    def _databases(self) -> None:
        with psycopg.connect(self.layout.dsn("postgres", "postgres"), autocommit=True) as connection:
            for role in ROLES:
                if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
                    password = sql.Literal(self.layout.secret(f"postgres-{role}"))
                    connection.execute(
                        sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), password)
                    )
            connection.execute("GRANT pg_read_all_stats TO leadsync_reader")
            for database, owner in DATABASES.items():
                if not connection.execute("SELECT FROM pg_database WHERE datname = %s", (database,)).fetchone():
                    names = sql.Identifier(database), sql.Identifier(owner)
                    connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*names))

    def _migrate_airflow(self) -> None:
        log = self.layout.state / "logs" / "migrate.log"
        with log.open("wb") as file:
            command = [sys.executable, "-m", "airflow", "db", "migrate"]
            environment = self.layout.environment("scheduler")
            done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)  # noqa: S603
        if done.returncode:
            raise StackError(f"Airflow's database could not be migrated:\n{_tail(log)}")
        self._done("Airflow's tables")

    def _postgres_ready(self) -> bool:
        try:
            psycopg.connect(self.layout.dsn("postgres", "postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _valkey_ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.layout.redis_url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def _answers(self, url: str) -> bool:
        try:
            return requests.get(url, timeout=2).ok
        except requests.RequestException:
            return False

    def _airflow_ready(self) -> bool:
        try:
            health = requests.get(f"{self.layout.url('api-server')}/api/v2/monitor/health", timeout=2).json()
        except (requests.RequestException, json.JSONDecodeError):
            return False
        return all(part["status"] == "healthy" for part in health.values())

    def _dag_ready(self) -> bool:
        return self.api("GET", "/dags/leads_sync").ok

    def _step(self, title: str, name: str, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not ready():
            if time.monotonic() > until:
                log = self.layout.state / "logs" / f"{name}.log"
                raise StackError(f"{title} does not come up; the end of {log}:\n{_tail(log)}")
            time.sleep(0.1)
        self._done(title)

    def _done(self, title: str) -> None:
        self._say(f"  {title} ready ({time.monotonic() - self._started:.0f} s)")

    def _call(self, method: str, *arguments: Any) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == "LISTEN" and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return ""


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-15:]) if path.exists() else "(no log)"
