"""Fixtures on real servers, started once per session."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def fresh_database(postgres: str, template: str) -> Iterator[str]:
    """The DSN of a database that is dropped afterwards: hundreds of them would keep autovacuum busy."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield f"{postgres.rpartition('/')[0]}/{name}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """The DSN of a fresh, empty database."""
    with fresh_database(postgres, "template0") as dsn:
        yield dsn


@pytest.fixture(scope="session")
def migrated(postgres: str) -> str:
    """The name of a database with Leadsync's tables, as a template."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
    schema.migrate(f"{postgres.rpartition('/')[0]}/migrated")
    return "migrated"


@pytest.fixture
def state(postgres: str, migrated: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a fresh database with Leadsync's tables."""
    with fresh_database(postgres, migrated) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
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
