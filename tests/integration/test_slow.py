"""A CRM that is slow holds up no other: it is left behind, catches up beside them, and gets everything in the end."""

from __future__ import annotations

import pytest
from tests.support.world import World

from leadsync import operations, patience, snapshot
from leadsync.errors import LeadsyncError, LeftBehind
from leadsync.watching import Watch

LEADS = 1000  # five batches of Salesforce's


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.1)
    slow = {"in_flight": 1, "settings": {"read_timeout": 20, "requests_per_second": 1000}}
    targets = tuple(each.model_copy(update=slow) for each in world.pipeline.destinations)
    world.pipeline = world.pipeline.model_copy(update={"destinations": targets, "patience": 0.1})
    return world


def slow_run(world: World) -> operations.Operation:
    """A run whose load of HubSpot is done, while Salesforce takes a second for each batch."""
    world.fill("FIRST", LEADS)
    operation = world.extract()
    world.snapshot(operation)
    world.load(operation, "hubspot")
    world.simulators["salesforce"].faults(latency=1)
    return operation


def test_it_is_left_behind_once_changes_wait_for_the_others(world: World) -> None:
    operation = slow_run(world)
    before = world.watermark("salesforce")
    world.fill("NEXT", 1)
    world.settle()
    with pytest.raises(LeftBehind, match=f"of {LEADS} leads are done; it goes on in the next runs"):
        world.load(operation, "salesforce")
    got = len(world.simulators["salesforce"].records())
    assert 0 < got < LEADS  # what was under way is finished, and counts
    world.commit(operation)
    assert world.watermark("hubspot") == world.end(operation)
    assert world.watermark("salesforce") == before
    assert world.recovery_log() == []
    # It goes on where it was, in a window of its own, and sends nothing twice.
    world.simulators["salesforce"].faults()
    counts = world.run()
    assert counts["hubspot"]["read"] == 1
    assert counts["salesforce"] | {"delivered": 0} == {
        "read": LEADS + 1, "delivered": 0, "unchanged": got, "overtaken": 0, "not_routed": 0, "dead": 0,
    }  # fmt: skip
    assert world.watermark("salesforce") == world.watermark("hubspot")
    for name in world.simulators:
        world.assert_in_step(name)


@pytest.mark.parametrize("case", ["nothing waits", "it is the last one's own doing", "null", "a backfill"])
def test_it_is_waited_for_while_nobody_is_kept_waiting(world: World, case: str) -> None:
    operation = slow_run(world)
    world.simulators["salesforce"].faults(latency=0.1)
    if case != "nothing waits":
        world.fill("NEXT", 1)
        world.settle()
    if case == "it is the last one's own doing":  # the other has not ended well either
        world.state.execute("UPDATE leadsync.operation_log SET result = 0, failure = 'Unavailable'")
    elif case == "null":
        world.pipeline = world.pipeline.model_copy(update={"patience": None})
    elif case == "a backfill":
        world.state.execute("UPDATE leadsync.sync_operation SET kind = 'backfill'")
    assert world.load(operation, "salesforce")["delivered"] == LEADS


def test_all_its_shards_are_left_behind_together_or_nothing_is_committed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 20_000)  # of one chunk there is one shard
    world.pipeline = world.pipeline.model_copy(update={"shard_rows": LEADS // 2, "max_shards": 2})
    world.fill("FIRST", LEADS)
    operation = world.extract()
    assert world.snapshot(operation) == {"hubspot": 2, "salesforce": 2}
    operation = operations.current(world.clients, operation.sync_id)
    for shard in range(2):
        world.load(operation, "hubspot", shard)
    world.simulators["salesforce"].faults(latency=1)
    world.fill("NEXT", 1)
    world.settle()
    with pytest.raises(LeftBehind):
        world.load(operation, "salesforce", 0)
    with pytest.raises(LeadsyncError, match="the load of salesforce has not succeeded"):
        world.commit(operation)
    with pytest.raises(LeftBehind):
        world.load(operation, "salesforce", 1)
    world.commit(operation)
    assert world.watermark("hubspot") == world.end(operation)
    assert world.watermark("salesforce") is None


def test_a_load_that_is_cleared_goes_on_and_ends_well(world: World) -> None:
    operation = slow_run(world)
    world.fill("NEXT", 1)
    world.settle()
    with pytest.raises(LeftBehind):
        world.load(operation, "salesforce")
    world.simulators["salesforce"].faults()
    world.pipeline = world.pipeline.model_copy(update={"patience": None})
    assert world.load(operation, "salesforce")["read"] == LEADS
    world.commit(operation)
    assert world.watermark("salesforce") == world.end(operation)


def test_the_watch_calls_for_a_run_until_it_has_caught_up(world: World) -> None:
    world.pipeline = world.pipeline.model_copy(update={"catch_up_rows": 400})
    operation = slow_run(world)
    world.fill("NEXT", 1)
    world.settle()
    with pytest.raises(LeftBehind):
        world.load(operation, "salesforce")
    world.commit(operation)
    world.simulators["salesforce"].faults()
    with world.store() as store:
        watch = Watch(world.state, store, world.pipeline.name)
        runs = 0
        while watch.look():
            assert not watch.look()
            world.run()
            runs += 1
        assert runs == 3  # of 400 rows each
    world.assert_in_step("salesforce")
