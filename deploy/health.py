"""The health checks of our image's containers; each asks the program itself. Ends with 0, or with 1 and the reason.

health.py page URL           the page answers with 200
health.py airflow COMPONENT  its heartbeat is recent, as Airflow's API server sees it
health.py worker             the Celery worker of this container answers a ping over the broker
health.py generator          the lead generator of this container is connected to the lead store
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

SECONDS = 8
HEALTH = "/api/v2/monitor/health"


def page(url: str) -> bytes:
    """The body of a page."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=SECONDS)
    try:
        connection.request("GET", address.path or "/")
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, HTTPException) as error:
        sys.exit(f"{url} does not answer: {type(error).__name__}")
    finally:
        connection.close()
    if reply.status != 200:
        sys.exit(f"{url} answers {reply.status}")
    return body


def airflow(component: str) -> None:
    """`airflow jobs check` would cost ten seconds of processor time each time."""
    report = json.loads(page(os.environ["LEADSYNC_API_SERVER"] + HEALTH))
    if (report.get(component) or {}).get("status") != "healthy":
        sys.exit(f"{component} is not healthy")


def worker() -> None:
    """Through a Celery application of its own: Airflow's takes seconds to import."""
    from celery import Celery

    name = f"celery@{socket.gethostname()}"
    with Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"]) as app:
        if not app.control.ping(destination=[name], timeout=SECONDS):
            sys.exit(f"{name} does not answer")


def generator() -> None:
    """With a rate of 0 it has nothing to do, and no connection."""
    import psycopg

    if float(os.environ.get("LEADSYNC_DEMO_RATE") or 2) <= 0:
        return
    with psycopg.connect(os.environ["LEAD_STORE_DSN"], connect_timeout=SECONDS) as store:
        row = store.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE client_addr = inet_client_addr() AND pid <> pg_backend_pid()"
        ).fetchone()
    if not row or not row[0]:
        sys.exit("the generator is not connected to the lead store")


def main(check: str, *arguments: str) -> None:
    checks: dict[str, Callable[..., object]] = {
        "page": page,
        "airflow": airflow,
        "worker": worker,
        "generator": generator,
    }
    checks[check](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
