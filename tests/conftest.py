"""Fixtures on real servers, started once per session."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis

from leadsync.state import schema
from tests.support.servers import running_postgres, running_valkey
from tests.support.simulators import Simulator, running_simulator

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with running_postgres() as dsn:
        yield dsn


@pytest.fixture
def database(postgres: str) -> str:
    """The DSN of a fresh, empty database."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres.rpartition('/')[0]}/{name}"


@pytest.fixture
def state(postgres: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a fresh database with Leadsync's tables."""
    name = f"state_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    dsn = f"{postgres.rpartition('/')[0]}/{name}"
    schema.migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[redis.Redis]:
    with running_valkey() as client:
        yield client


@pytest.fixture
def valkey(valkey_server: redis.Redis) -> redis.Redis:
    valkey_server.flushall()
    return valkey_server


@pytest.fixture(scope="session")
def simulators() -> Iterator[dict[str, Simulator]]:
    with running_simulator("hubspot") as hubspot, running_simulator("salesforce") as salesforce:
        yield {"hubspot": hubspot, "salesforce": salesforce}


@pytest.fixture
def hubspot(simulators: dict[str, Simulator]) -> Simulator:
    simulators["hubspot"].reset()
    return simulators["hubspot"]


@pytest.fixture
def salesforce(simulators: dict[str, Simulator]) -> Simulator:
    simulators["salesforce"].reset()
    return simulators["salesforce"]
