"""Somebody looks for changes in the lead store and calls for a run, once for each time there are some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from tests.support.simulators import Simulator
from tests.support.world import World

from demo import lead_store
from leadsync.source import LeadStore
from leadsync.watching import CALL_AGAIN_SECONDS, Watch


@pytest.fixture
def world(database: str, state: psycopg.Connection[Any], valkey: redis.Redis, hubspot: Simulator) -> Iterator[World]:
    world = World(database, state, valkey, {"hubspot": hubspot})
    yield world
    world.hive.close()


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def watch(world: World, clock: list[float]) -> Iterator[Watch]:
    with world.store() as store:
        yield Watch(world.state, store, world.pipeline.name, lambda: clock[0])


def change(world: World, uid: int = 1) -> None:
    world.hive.execute(
        "INSERT INTO customer (appkey, uid) VALUES ('A', %s) ON CONFLICT (appkey, uid) DO UPDATE SET name = 'newer'",
        (uid,),
    )
    world.settle()


def test_an_empty_lead_store_calls_for_nothing(watch: Watch) -> None:
    assert not watch.look()


def test_it_calls_once_for_what_no_run_goes_over(world: World, watch: Watch) -> None:
    change(world)
    assert [watch.look() for _ in range(3)] == [True, False, False]
    world.run()
    assert not watch.look()
    change(world, 2)
    assert [watch.look() for _ in range(3)] == [True, False, False]


def test_what_changes_while_a_run_is_under_way_is_called_for(world: World, watch: Watch) -> None:
    change(world)
    assert watch.look()
    operation = world.extract()
    assert not watch.look()
    change(world, 2)
    assert watch.look()
    world.snapshot(operation)
    world.load(operation, "hubspot")
    world.commit(operation)
    assert not watch.look()


def test_what_an_open_transaction_holds_back_calls_when_it_can_be_read(world: World, watch: Watch) -> None:
    world.run()
    with psycopg.connect(world.dsn) as slow:
        slow.execute("INSERT INTO customer (appkey, uid) VALUES ('A', 1)")
        world.hive.execute("INSERT INTO customer (appkey, uid) VALUES ('A', 2)")
        assert not watch.look()
    world.settle()
    assert watch.look()


def test_a_failed_delivery_is_left_to_the_retries(world: World, watch: Watch) -> None:
    change(world)
    world.extract()
    assert not watch.look()


def test_a_run_that_does_not_come_is_called_for_again(world: World, watch: Watch, clock: list[float]) -> None:
    change(world)
    assert watch.look()
    clock[0] += CALL_AGAIN_SECONDS - 1
    assert not watch.look()
    clock[0] += 1
    assert [watch.look(), watch.look()] == [True, False]


def test_another_pipelines_runs_are_no_concern(world: World, watch: Watch) -> None:
    change(world)
    with world.store() as store:
        assert Watch(world.state, store, "other").look()
    assert watch.look()
    world.run()
    with world.store() as store:
        assert Watch(world.state, store, "other").look()


def test_a_backfill_covers_nothing(world: World, watch: Watch) -> None:
    change(world)
    world.run()
    change(world, 2)
    world.run(since="2020-01-01T00:00:00Z")
    assert watch.look()


def test_deletes_are_changes(world: World, watch: Watch) -> None:
    change(world)
    world.run()
    lead_store.delete(world.hive, "A", 1)
    world.settle()
    assert watch.look()


def test_a_connection_of_its_own_needs_no_transaction(world: World, watch: Watch) -> None:
    """An open one would hold back vacuum, and with it every update of the ledger."""
    change(world)
    watch.look()
    assert watch.state.info.transaction_status.name == "IDLE"
    assert isinstance(watch.store, LeadStore)
