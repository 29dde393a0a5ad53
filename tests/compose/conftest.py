"""One project of docker-compose.yaml for all tests of this folder; each leaves it running and in step.

LEADSYNC_COMPOSE is the compose command to use, `docker compose` by default.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compose.stack import Compose
from tests.e2e.conftest import Airflow


@pytest.fixture(scope="session")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    compose = Compose(tmp_path_factory.mktemp("compose"))
    try:
        compose("build", "init")
        yield compose
    finally:
        compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")


@pytest.fixture(scope="session")
def running(compose: Compose) -> Iterator[Airflow]:
    compose.up()
    airflow = Airflow(compose, compose.pipelines)  # type: ignore[arg-type]
    airflow.until(lambda: compose.api("GET", "/dags/leads_sync").ok, "the DAG is not known")
    yield airflow
    airflow.hive.close()


@pytest.fixture
def airflow(running: Airflow) -> Airflow:
    """In step, with faults switched off."""
    for simulator in running.simulators.values():
        simulator.faults()
    return running
