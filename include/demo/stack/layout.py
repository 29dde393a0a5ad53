"""What a stack consists of: its settings, paths, addresses, secrets and programs. Starts nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from demo.stack import environment
from demo.stack.errors import StackError
from demo.stack.ports import HOST, OFFSETS
from demo.stack.postgres import Postgres
from demo.stack.programs import AIRFLOW, AIRFLOW_COMPONENTS, CRMS, DEMO, STORES, Program, python, valkey_binary
from demo.stack.secrets import Secrets, write_private

FILE = "stack.json"
VALKEY_SETTINGS = """\
bind {host}
port {port}
dir {folder}
requirepass {password}
appendonly yes
maxmemory 1gb
maxmemory-policy noeviction
save ""
set-proc-title no
"""


@dataclass(frozen=True)
class Settings:
    """How a stack was started, kept in its folder so that `down` and `status` need no variable."""

    root: str
    base_port: int
    dags_folder: str
    # The DAG that must be known before the stack counts as up; none: no DAG is waited for.
    dag: str | None = None
    generator: bool = True
    # More for Airflow's processes; wins over what the stack sets.
    environment: Mapping[str, str] = field(default_factory=dict)


class Layout:
    """Everything about a stack that follows from its folder and settings."""

    def __init__(self, state_dir: Path, settings: Settings) -> None:
        self.state_dir = state_dir.absolute()
        self.settings = settings

    @classmethod
    def load(cls, state_dir: Path) -> Layout:
        """The stack that was last started from this folder. Raises StackError when there was none."""
        return cls(state_dir, load_settings(state_dir))

    @property
    def root(self) -> Path:
        return Path(self.settings.root)

    @cached_property
    def secrets(self) -> Secrets:
        return Secrets(self.state_dir / "secrets")

    @cached_property
    def postgres(self) -> Postgres:
        return Postgres(self.state_dir, self.port("postgres"), self.secrets)

    def port(self, program: str) -> int:
        return self.settings.base_port + OFFSETS[program]

    def url(self, program: str) -> str:
        return f"http://{HOST}:{self.port(program)}"

    @property
    def ui_url(self) -> str:
        return self.url("airflow-api-server")

    @property
    def ui_password(self) -> str:
        """Of the user `admin`; `viewer` has one of its own."""
        return self.secrets["ui_admin_password"]

    @property
    def lead_store_dsn(self) -> str:
        return self.postgres.dsn("hive")

    @property
    def leadsync_dsn(self) -> str:
        return self.postgres.dsn("leadsync")

    @property
    def redis_url(self) -> str:
        return f"redis://:{self.secrets['redis_password']}@{HOST}:{self.port('valkey')}/0"

    def values(self) -> dict[str, str]:
        """What `make status` prints for scripts."""
        return {
            "UI_URL": self.ui_url,
            "UI_USER": "admin",
            "UI_PASSWORD": self.ui_password,
            "LEAD_STORE_DSN": self.lead_store_dsn,
            "LEADSYNC_DB_DSN": self.leadsync_dsn,
            "REDIS_URL": self.redis_url,
            "LANDING_URL": self.url("landing"),
            **{f"CRM_{crm.upper()}_URL": self.url(f"crm-{crm}") for crm in CRMS},
        }

    def environment(self) -> dict[str, str]:
        """The environment of Airflow's processes."""
        return {
            **environment.basic(self.root),
            **environment.airflow(
                self.root, self.state_dir, Path(self.settings.dags_folder), self.settings.base_port, self.postgres,
                self.secrets,
            ),
            **self.settings.environment,
        }  # fmt: skip

    def write_files(self) -> None:
        """Writes the configuration that holds secrets: of Valkey, and the logins of Airflow's page."""
        folder = self.state_dir / "valkey"
        folder.mkdir(mode=0o700, exist_ok=True)
        # In Valkey's files a path with blanks is quoted.
        text = VALKEY_SETTINGS.format(
            host=HOST, port=self.port("valkey"), folder=json.dumps(str(folder)), password=self.secrets["redis_password"]
        )
        write_private(self.secrets.folder / "valkey.conf", text)
        logins = {user: self.secrets[f"ui_{user}_password"] for user in ("admin", "viewer")}
        write_private(self.secrets.folder / "ui_passwords.json", json.dumps(logins))

    def program(self, name: str) -> Program:
        return next(program for program in self.programs() if program.name == name)

    def programs(self) -> list[Program]:
        """In the order in which they start."""
        basic = environment.basic(self.root)
        pages = {name: value for name, value in self.values().items() if name.startswith("CRM_")}
        demo = {**basic, **pages, "LEAD_STORE_DSN": self.lead_store_dsn}
        valkey = (str(valkey_binary()), str(self.secrets.folder / "valkey.conf"))
        found = [
            Program(
                "postgres", "PostgreSQL", STORES, self.postgres.command, basic,
                # INT: do not wait for clients.
                stop_signal="INT", stop_seconds=30, whole_group=False,
            ),
            Program("valkey", "Valkey", STORES, valkey, basic, stop_seconds=30),
        ]  # fmt: skip
        for crm, title in CRMS.items():
            name = f"crm-{crm}"
            data = str(self.state_dir / crm)
            command = python("demo.crm", crm, "--port", str(self.port(name)), "--data", data)
            found.append(Program(name, title, DEMO, command, {**basic, **environment.simulator(self.secrets, crm)}))
        landing = python("demo.landing", "--port", str(self.port("landing")))
        found.append(Program("landing", "landing page", DEMO, landing, demo))
        if self.settings.generator:
            found.append(Program("generator", "lead generator", DEMO, python("demo.generator"), demo))
        settings = self.environment()
        for name, (title, *arguments) in AIRFLOW_COMPONENTS.items():
            found.append(Program(name, f"Airflow {title}", AIRFLOW, python("airflow", *arguments), settings))
        return found


def load_settings(state_dir: Path) -> Settings:
    """Raises StackError when no stack was started from this folder."""
    try:
        return Settings(**json.loads((state_dir / FILE).read_text()))
    except FileNotFoundError:
        raise StackError(f"there is no stack in {state_dir}; make up starts one") from None


def save_settings(state_dir: Path, settings: Settings) -> None:
    write_private(state_dir / FILE, json.dumps(dataclasses.asdict(settings), indent=1))
