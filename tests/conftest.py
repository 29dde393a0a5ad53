"""Fixtures on real servers, started once per session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
import redis
from psycopg.sql import SQL, Identifier

from leadsync.state import migration
from tests.support.servers import running_postgres, running_valkey
from tests.support.simulators import Simulator, Simulators

OTHERS: LiteralString = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
SCHEMAS: LiteralString = """
SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
"""


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with running_postgres() as dsn:
        yield dsn


def _database(postgres: str, name: str) -> str:
    """The DSN of an own database of the session."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres.rpartition('/')[0]}/{name}"


@pytest.fixture(scope="session")
def _hive(postgres: str) -> str:
    return _database(postgres, "hive")


@pytest.fixture(scope="session")
def _leadsync(postgres: str) -> str:
    return _database(postgres, "leadsync")


def _empty(dsn: str) -> None:
    """Ends whoever is still connected and drops all that is there: far quicker than a new database for each test."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(OTHERS)
        for (transaction,) in connection.execute(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        ):
            connection.execute(SQL("ROLLBACK PREPARED {}").format(transaction))
        for (schema_name,) in connection.execute(SCHEMAS).fetchall():
            connection.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(schema_name)))
        connection.execute("CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO public")


@pytest.fixture
def database(_hive: str) -> str:
    """The DSN of an empty database."""
    _empty(_hive)
    return _hive


@pytest.fixture
def state(_leadsync: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a database with Leadsync's tables, which are empty."""
    _empty(_leadsync)
    migration.migrate(_leadsync)
    with psycopg.connect(_leadsync, autocommit=True) as connection:
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
def simulators() -> Iterator[Simulators]:
    simulators = Simulators()
    yield simulators
    simulators.stop()


@pytest.fixture
def hubspot(simulators: Simulators) -> Simulator:
    simulators["hubspot"].reset()
    return simulators["hubspot"]


@pytest.fixture
def salesforce(simulators: Simulators) -> Simulator:
    simulators["salesforce"].reset()
    return simulators["salesforce"]
