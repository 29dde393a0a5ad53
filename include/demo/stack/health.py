"""Whether the parts of a stack answer as they should. Every check gives None when all is well, else what is missing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

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
    return _page(f"{layout.url(name)}/health") if name == "landing" else None


def knows_dag(layout: Layout, dag: str) -> bool:
    """Whether Airflow has parsed a DAG."""
    return call(layout, "GET", f"/dags/{dag}").ok


def import_errors(layout: Layout) -> list[str]:
    """What keeps DAG files from being parsed, one text per file."""
    errors = call(layout, "GET", "/importErrors").json()["import_errors"]
    return [f"{error['filename']}: {error['stack_trace']}" for error in errors]


def call(layout: Layout, method: str, path: str, **more: Any) -> requests.Response:
    """One call of Airflow's REST API as `admin`; `path` is what follows /api/v2."""
    with _session() as session:
        login = {"username": "admin", "password": layout.ui_password}
        answer = session.post(f"{layout.ui_url}/auth/token", json=login, timeout=60)
        answer.raise_for_status()
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        return session.request(method, f"{layout.ui_url}/api/v2{path}", headers=headers, timeout=60, **more)


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
    with _session() as session:
        return session.get(url, timeout=10)


def _session() -> requests.Session:
    session = requests.Session()
    # A proxy of the user's is not for 127.0.0.1.
    session.trust_env = False
    return session
