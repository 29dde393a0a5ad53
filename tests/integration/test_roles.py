"""The roles of `deploy/postgresql`: everything works with their rights, and nothing beyond them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from psycopg.conninfo import make_conninfo
from psycopg.errors import InsufficientPrivilege, ReadOnlySqlTransaction
from tests.support.reconciling import REPAIR, check, fill, findings, tamper
from tests.support.servers import psql
from tests.support.simulators import Simulator
from tests.support.world import World

from demo import lead_store
from leadsync import erase, maintenance, recover, replay
from leadsync.source import LeadStore
from leadsync.state import migration

ROLES = Path(__file__).parents[2] / "deploy" / "postgresql"


class LeastRights(World):
    """Reads the lead store as `leadsync_reader`; the application that writes it is another role."""

    @contextmanager
    def store(self) -> Iterator[LeadStore]:
        with psycopg.connect(make_conninfo(self.dsn, user="leadsync_reader"), autocommit=True) as connection:
            yield LeadStore(connection, self.pipeline.source)


@pytest.fixture(scope="module")
def databases(postgres: str) -> Iterator[tuple[str, str]]:
    """Databases of their own: what is taken from PUBLIC there is no other test's business."""
    names = ("least_hive", "least_leadsync")
    with psycopg.connect(postgres, autocommit=True) as connection:
        # The demo's reader may be there before, with rights in other tests' databases.
        before = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        for name in names:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        hive, leadsync = (make_conninfo(postgres, dbname=name) for name in names)
        yield hive, leadsync
        for name in names:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]
        for role in {"leadsync_reader", "leadsync_owner", "leadsync_user"} - before:
            connection.execute(f"DROP ROLE IF EXISTS {role}")  # type: ignore[arg-type]


@pytest.fixture
def owner(databases: tuple[str, str]) -> str:
    """The DSN of the schema's owner, with the tables made by it."""
    dsn = make_conninfo(databases[1], user="leadsync_owner")
    psql(databases[1], ROLES / "leadsync.sql")
    migration.migrate(dsn)
    return dsn


@pytest.fixture
def user(databases: tuple[str, str], owner: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(make_conninfo(owner, user="leadsync_user"), autocommit=True) as connection:
        yield connection
    migration.migrate(owner, "base")


@pytest.fixture
def world(
    databases: tuple[str, str],
    user: psycopg.Connection[Any],
    valkey: redis.Redis,
    hubspot: Simulator,
    salesforce: Simulator,
) -> Iterator[World]:
    world = LeastRights(databases[0], user, valkey, {"hubspot": hubspot, "salesforce": salesforce})
    psql(databases[0], ROLES / "lead-store.sql", schema="public", table="customer")
    yield world
    world.hive.execute("DROP TABLE customer")
    world.hive.close()


def test_a_lead_goes_all_its_ways(world: World) -> None:
    """Sync, dead letter and replay, recovery, reconciliation with repair, upkeep, erasure."""
    with world.store() as store:
        store.check()
    fill(world, 30)
    world.simulators["hubspot"].faults(reject={"external_ids": ["A\\:B:7"]})
    world.run()
    assert set(world.dead("hubspot")) == {"A\\:B:7"}

    world.simulators["hubspot"].faults(reject={"external_ids": []})
    (item,) = replay.choose(world.state, world.pipeline, {"all": True}, "li")
    replay.run(world.clients, world.pipeline, str(uuid4()), item, "li")
    assert world.dead("hubspot") == {}

    differences = tamper(world, "hubspot")
    check(world, "hubspot", REPAIR)
    assert {external_id: kind for external_id, (kind, _, _) in findings(world).items()} == differences

    for number, chosen in enumerate(recover.choose(world.clients, world.pipeline, {"since": "2020-01-01T00:00:00Z"})):
        recover.run(world.clients, world.pipeline, f"recovery-{number}", chosen, "li")

    lead_store.delete(world.hive, "A:B", 8)
    world.run()
    erase.erase(world.clients, world.pipeline, ["A\\:B:8"], "li")
    maintenance.remove_expired(world.clients, world.pipeline)
    maintenance.drop_snapshots(world.clients, world.pipeline)
    assert world.recovery_log()[-1] == "erased"
    world.assert_in_step("hubspot")
    # PostgreSQL 16 lets only the owner vacuum: the task says so, and does not fail.
    outcomes = set(maintenance.vacuum.vacuum(world.state, ["delivery"]).values())
    assert all("permission denied" in outcome for outcome in outcomes) or outcomes == {maintenance.vacuum.VACUUMED}


def test_a_transaction_of_another_role_holds_the_bound_back(world: World) -> None:
    with psycopg.connect(world.dsn) as writer:
        began = writer.execute("SELECT now(), pg_sleep(0.1)").fetchone()  # longer than the margin of every bound
        assert began is not None
        with world.store() as store:
            bound = store.bound()
    assert (bound.upper, bound.role) == (began[0], "postgres")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE customer SET name = 'x'",
        "DELETE FROM customer",
        "INSERT INTO customer (appkey, uid) VALUES ('a', 1)",
        "TRUNCATE customer",
        "ALTER TABLE customer ADD COLUMN more text",
        "DROP TABLE customer",
        "CREATE TABLE own (id integer)",
        "SELECT * FROM secret",
    ],
)
def test_the_reader_reads_one_table_and_writes_none(world: World, statement: str) -> None:
    world.hive.execute("CREATE TABLE IF NOT EXISTS secret (id integer)")
    with psycopg.connect(make_conninfo(world.dsn, user="leadsync_reader"), autocommit=True) as reader:
        if not statement.startswith("SELECT"):
            with pytest.raises(ReadOnlySqlTransaction):
                reader.execute(statement)  # type: ignore[arg-type]
        reader.execute("SET default_transaction_read_only = off")
        with pytest.raises(InsufficientPrivilege):
            reader.execute(statement)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE leadsync.delivery",
        "ALTER TABLE leadsync.delivery ADD COLUMN more text",
        "ALTER TABLE leadsync.delivery OWNER TO leadsync_user",
        "TRUNCATE leadsync.delivery",
        "CREATE TABLE leadsync.own (id integer)",
        "CREATE TABLE public.own (id integer)",
        "CREATE SCHEMA own",
        "DROP SCHEMA leadsync CASCADE",
        "ALTER SEQUENCE leadsync.snapshot_sequence RESTART",
        "SELECT setval('leadsync.snapshot_sequence', 1)",
        "SET ROLE leadsync_owner",
    ],
)
def test_the_user_changes_rows_and_no_tables(user: psycopg.Connection[Any], statement: str) -> None:
    with pytest.raises(InsufficientPrivilege):
        user.execute(statement)  # type: ignore[arg-type]


def test_the_owner_needs_no_right_to_make_schemas(owner: str) -> None:
    migration.migrate(owner, "base")
    migration.migrate(owner)
    with psycopg.connect(owner, autocommit=True) as connection, pytest.raises(InsufficientPrivilege):
        connection.execute("CREATE SCHEMA own")


def test_the_files_may_run_again(world: World, databases: tuple[str, str]) -> None:
    psql(databases[0], ROLES / "lead-store.sql", schema="public", table="customer")
    psql(databases[1], ROLES / "leadsync.sql")
    with world.store() as store:
        store.check()


def test_strangers_do_not_enter_leadsyncs_database(databases: tuple[str, str], user: psycopg.Connection[Any]) -> None:
    del user  # its database is set up
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(make_conninfo(databases[1], user="leadsync_reader"))
