"""What the processes of a stack find in their environment. Nothing of it appears on a command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from demo.stack.ports import HOST, OFFSETS
from demo.stack.postgres import READER, Postgres
from demo.stack.secrets import Secrets

# Everything else stays outside: a PYTHONPATH, an AIRFLOW_HOME or a setting AIRFLOW__… of the user would disturb.
INHERITED = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LEADSYNC_DEMO_RATE", "LOGNAME", "TMPDIR", "TZ", "USER")


def basic(root: Path) -> dict[str, str]:
    """For every process."""
    return {
        **{name: os.environ[name] for name in INHERITED if name in os.environ},
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(root / "include"),
        "PYTHONUNBUFFERED": "1",
        # Airflow's processes change their title; their environment is how a stack knows them: processes.py.
        "SPT_NOENV": "1",
    }


def connections_of_the_user() -> dict[str, str]:
    """AIRFLOW_CONN_…: of destinations that the user has added."""
    return {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW_CONN_")}


def simulator(secrets: Secrets, crm: str) -> dict[str, str]:
    if crm == "hubspot":
        return {"DEMO_CRM_TOKEN": secrets["crm_hubspot_token"]}
    return {
        "DEMO_CRM_CLIENT_ID": secrets["crm_salesforce_client_id"],
        "DEMO_CRM_CLIENT_SECRET": secrets["crm_salesforce_client_secret"],
    }


def connections(base: int, postgres: Postgres, secrets: Secrets) -> dict[str, str]:
    """Leadsync's connections, as Airflow reads them from the environment."""

    def url(program: str) -> str:
        return f"http://{HOST}:{base + OFFSETS[program]}"

    def database(role: str, name: str) -> dict[str, object]:
        password = secrets[f"postgres_{role}_password"]
        return {"conn_type": "postgres", "host": HOST, "port": postgres.port, "schema": name, "login": role,
                "password": password}  # fmt: skip

    found: dict[str, dict[str, object]] = {
        "LEAD_STORE": database(READER, "hive"),
        "LEADSYNC_DB": database("leadsync", "leadsync"),
        "LEADSYNC_REDIS": {
            "conn_type": "redis", "host": HOST, "port": base + OFFSETS["valkey"], "password": secrets["redis_password"],
        },
        "CRM_HUBSPOT": {
            "conn_type": "http", "host": url("crm-hubspot"), "password": secrets["crm_hubspot_token"],
        },
        "CRM_SALESFORCE": {
            "conn_type": "http", "host": url("crm-salesforce"), "login": secrets["crm_salesforce_client_id"],
            "password": secrets["crm_salesforce_client_secret"],
        },
    }  # fmt: skip
    return {f"AIRFLOW_CONN_{name}": json.dumps(connection) for name, connection in found.items()}


def airflow(root: Path, state_dir: Path, dags: Path, base: int, postgres: Postgres, secrets: Secrets) -> dict[str, str]:
    """For Airflow's processes, on top of `basic`."""
    dsn = postgres.dsn("airflow").replace("postgresql://", "postgresql+psycopg2://")
    settings = {
        "CORE__DAGS_FOLDER": str(dags),
        "CORE__PLUGINS_FOLDER": str(root / "plugins"),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__EXECUTOR": "LocalExecutor",
        # By default 32 processes.
        "CORE__PARALLELISM": "8",
        "CORE__FERNET_KEY": secrets["airflow_fernet_key"],
        "CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(secrets.folder / "ui_passwords.json"),
        "CORE__EXECUTION_API_SERVER_URL": f"http://{HOST}:{base}/execution/",
        "DATABASE__SQL_ALCHEMY_CONN": dsn,
        "API__HOST": HOST,
        "API__PORT": str(base),
        "API__BASE_URL": f"http://{HOST}:{base}",
        "API__WORKERS": "1",
        "API__SECRET_KEY": secrets["airflow_api_secret_key"],
        "API_AUTH__JWT_SECRET": secrets["airflow_jwt_secret"],
        # By default a second: each of a run's four steps waits for it.
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.1",
        # What a killed scheduler was running is noticed and retried within a minute, not within five.
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        # A changed pipeline file shows within seconds; a new DAG file too.
        "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
        "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "LOGGING__BASE_LOG_FOLDER": str(state_dir / "airflow" / "logs"),
        "USAGE_DATA_COLLECTION__ENABLED": "False",
    }
    return {
        **{f"AIRFLOW__{name}": value for name, value in settings.items()},
        "AIRFLOW_HOME": str(state_dir / "airflow"),
        **connections_of_the_user(),
        **connections(base, postgres, secrets),
        "LEADSYNC_ENCRYPTION_KEY": secrets["encryption_key"],
        "LEADSYNC_METRICS_TOKEN": secrets["metrics_token"],
        "LEADSYNC_DB_DSN": postgres.dsn("leadsync"),
    }
