"""Whether the parts of a stack answer as they should. Every check gives None when all is well, else what is missing."""

from __future__ import annotations

from datetime import datetime

import redis
import requests

from demo.stack.layout import Layout
from demo.stack.programs import AIRFLOW_COMPONENTS, CRMS

# Where a component's state is found in the answer of Airflow's health check.
AIRFLOW_HEALTH = {
    "airflow-api-server": "metadatabase",
    "airflow-scheduler": "scheduler",
    "airflow-dag-processor": "dag_processor",
    "airflow-triggerer": "triggerer",
}


def check(layout: Layout, name: str, started: float) -> str | None:
    """One program's health, by its name; `started` (epoch seconds) tells its heartbeat from that of an earlier life."""
    if name == "postgres":
        return None if layout.postgres.ready() else "takes no connections yet"
    if name == "valkey":
        return _valkey(layout)
    if name in AIRFLOW_COMPONENTS:
        return _airflow(layout, AIRFLOW_HEALTH[name], started)
    if name in (f"crm-{crm}" for crm in CRMS):
        return _page(f"{layout.url(name)}/_demo/health")
    return _page(f"{layout.url(name)}/") if name == "landing" else None


def dag(layout: Layout, dag_id: str) -> str | None:
    """Whether Airflow knows a DAG; if not, what keeps it."""
    with requests.Session() as session:
        session.trust_env = False
        login = {"username": "admin", "password": layout.ui_password}
        token = session.post(f"{layout.ui_url}/auth/token", json=login, timeout=10).json()["access_token"]
        session.headers["Authorization"] = f"Bearer {token}"
        if session.get(f"{layout.ui_url}/api/v2/dags/{dag_id}", timeout=10).ok:
            return None
        errors = session.get(f"{layout.ui_url}/api/v2/importErrors", timeout=10).json()["import_errors"]
        found = "\n".join(f"{error['filename']}:\n{error['stack_trace']}" for error in errors)
        return f"it cannot be imported:\n{found}" if found else "it is not known yet"


def _valkey(layout: Layout) -> str | None:
    try:
        with redis.Redis.from_url(layout.redis_url, socket_timeout=5) as client:
            client.ping()
    except redis.RedisError as error:
        return str(error)
    return None


def _page(url: str) -> str | None:
    try:
        status = _get(url).status_code
    except requests.RequestException:
        return f"{url} does not answer"
    return None if status == requests.codes.ok else f"{url} answers {status}"


def _airflow(layout: Layout, component: str, started: float) -> str | None:
    url = f"{layout.ui_url}/api/v2/monitor/health"
    try:
        report = _get(url).json()[component] or {}
    except (requests.RequestException, KeyError):
        return f"{url} does not answer"
    beat = report.get(f"latest_{component}_heartbeat")
    if beat and datetime.fromisoformat(beat).timestamp() < started:
        return f"{component} has not reported yet"
    return None if report.get("status") == "healthy" else f"{component} is not healthy"


def _get(url: str) -> requests.Response:
    with requests.Session() as session:
        # A proxy of the user's is not for 127.0.0.1.
        session.trust_env = False
        return session.get(url, timeout=10)
