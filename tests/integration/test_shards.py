"""A large window is loaded by several tasks at once, each with its share of the snapshot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from tests.support.simulators import Simulator
from tests.support.world import SETTINGS, World

from demo import lead_store
from leadsync import operation_log, operations, snapshot
from leadsync.clients import Clients
from leadsync.errors import LeadsyncError, Superseded, Unavailable
from leadsync.operations import Operation
from leadsync.state import watermark

SHARDS = 3


@pytest.fixture
def world(
    database: str,
    state: psycopg.Connection[Any],
    valkey: redis.Redis,
    hubspot: Simulator,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 500)
    world = World(database, state, valkey, {"hubspot": hubspot})
    (target,) = world.pipeline.destinations
    patient = target.model_copy(update={"settings": {**SETTINGS, "read_timeout": 10}})
    sizes = {"destinations": (patient,), "shard_rows": 20, "max_shards": SHARDS}
    world.pipeline = world.pipeline.model_copy(update=sizes)
    yield world
    world.hive.close()


def fill(world: World, first: int, last: int) -> None:
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name) SELECT 'A', n, 'Lead ' || n FROM generate_series(%s::int, %s::int) n",
        (first, last),
    )


def snapped(world: World) -> Operation:
    operation = world.extract()
    assert world.snapshot(operation) == {"hubspot": SHARDS}
    return operation


def test_the_shards_together_are_the_window(world: World) -> None:
    fill(world, 1, 100)
    operation = snapped(world)
    counts = [world.load(operation, "hubspot", shard) for shard in range(SHARDS)]
    assert sum(each["delivered"] for each in counts) == 100
    assert all(each["delivered"] == each["read"] > 10 for each in counts)
    world.commit(operation)
    assert world.watermark("hubspot") == world.end(operation)
    world.assert_in_step("hubspot")


def test_a_small_window_is_one(world: World) -> None:
    fill(world, 1, 20)
    assert world.snapshot(world.extract()) == {"hubspot": 1}


def test_an_empty_window_is_one(world: World) -> None:
    assert world.snapshot(world.extract()) == {"hubspot": 1}


def test_nothing_is_committed_before_every_shard_has_ended_well(world: World) -> None:
    fill(world, 1, 100)
    operation = snapped(world)
    for shard in (2, 0):
        world.load(operation, "hubspot", shard)
        with pytest.raises(LeadsyncError, match="load of hubspot has not succeeded"):
            world.commit(operation)
    world.load(operation, "hubspot", 1)
    world.commit(operation)


def test_a_shard_that_failed_goes_on_and_the_others_are_done(world: World) -> None:
    fill(world, 1, 100)
    operation = snapped(world)
    simulator = world.simulators["hubspot"]
    simulator.faults(server_error={"rate": 1})
    with pytest.raises(Unavailable):
        world.load(operation, "hubspot", 1)
    simulator.faults()
    others = [world.load(operation, "hubspot", shard) for shard in (0, 2)]
    lead_store.update(world.hive, "A", 50, "Newer", "1", None)
    again = world.load(operation, "hubspot", 1)
    assert sum(each["delivered"] for each in (*others, again)) == 100
    world.commit(operation)
    world.run()
    world.assert_in_step("hubspot")


def test_the_failures_of_one_shard_are_no_business_of_another(world: World) -> None:
    fill(world, 1, 100)
    operation = snapped(world)
    simulator = world.simulators["hubspot"]
    simulator.faults(lose_reply={"next": 1})
    with pytest.raises(LeadsyncError):
        world.load(operation, "hubspot", 0)
    assert world.state.execute("SELECT count(*) > 10 FROM leadsync.retry_queue").fetchone() == (True,)
    assert world.load(operation, "hubspot", 1)["delivered"] > 10
    assert world.load(operation, "hubspot", 0)["dead"] == 0
    world.load(operation, "hubspot", 2)
    world.commit(operation)
    world.assert_in_step("hubspot")


def test_shards_of_one_load_run_at_once(world: World) -> None:
    """The one that is under way in a process of its own is not waited for."""
    fill(world, 1, 100)
    operation = snapped(world)
    simulator = world.simulators["hubspot"]
    simulator.faults(latency=9)

    def load(clients: Clients) -> None:
        operations.load(clients, world.pipeline, operation.sync_id, "hubspot", 0)

    with world.process(load):
        while not simulator.get("stats")["requests"]:
            time.sleep(0.05)
        simulator.faults()
        assert world.load(operation, "hubspot", 1)["delivered"] > 10
        (result,) = world.state.execute("SELECT result FROM leadsync.operation_log WHERE shard = 0").fetchall()
        assert result == (None,)


def test_a_later_snapshot_of_the_run_takes_no_fewer(world: World) -> None:
    fill(world, 1, 100)
    operation = world.extract("one")
    assert world.snapshot(operation) == {"hubspot": SHARDS}
    world.hive.execute("DELETE FROM customer WHERE uid > 5")
    again = world.extract("one")
    assert world.snapshot(again) == {"hubspot": SHARDS}
    assert sum(world.load(again, "hubspot", shard)["delivered"] for shard in range(SHARDS)) == 5
    world.commit(again)
    assert world.snapshot(world.extract("two")) == {"hubspot": 1}


def test_a_shard_that_is_not_there_is_refused(world: World) -> None:
    fill(world, 1, 3)
    operation = world.extract()
    world.snapshot(operation)
    with pytest.raises(Superseded, match="clear `snapshot`"):
        world.load(operation, "hubspot", 1)


def test_shards_are_one_entry_of_the_operation_log_and_one_load_to_parking(world: World) -> None:
    fill(world, 1, 100)
    operation = snapped(world)
    world.load(operation, "hubspot", 0)
    world.simulators["hubspot"].faults(server_error={"rate": 1})
    with pytest.raises(Unavailable):
        world.load(operation, "hubspot", 1)
    world.simulators["hubspot"].faults()
    (entry,) = operation_log.read(world.state, world.sealer, operation.sync_id)
    assert entry["result"] == 0
    number = watermark.read(world.state, "leads", ["hubspot"])["hubspot"].destination_id
    (load,) = watermark.last_loads(world.state, number, 3)
    assert (load.result, load.failure) == (0, "Unavailable")
    for shard in (1, 2):
        world.load(operation, "hubspot", shard)
    (entry,) = operation_log.read(world.state, world.sealer, operation.sync_id)
    assert (entry["result"], len(entry["data"])) == (1, 100)
    assert [load.result for load in watermark.last_loads(world.state, number, 3)] == [1]
