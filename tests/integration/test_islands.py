"""CRMs are islands: one that is new, lags, fails or is parked holds up no other, and gets everything in the end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.support.world import World

from demo import lead_store
from leadsync import operations
from leadsync.errors import LeadsyncError, Unavailable
from leadsync.parking import WAIT, judge
from leadsync.state.watermark import LastLoad


def failing_run(world: World) -> operations.Opened:
    """A run whose load of Salesforce fails, so that nothing is committed."""
    opened = world.open()
    for operation in opened.operations:
        world.snapshot(operation)
        for name in operation.destinations:
            try:
                world.load(operation, name)
            except LeadsyncError:
                assert name == "salesforce"
    with pytest.raises(LeadsyncError, match="salesforce has not succeeded"):
        world.commit(*opened.operations)
    return opened


def parked(world: World) -> operations.Opened:
    """Fails until Salesforce is parked; the run that does not wait for it any more."""
    for _ in range(3):
        assert failing_run(world).parked == {}
    return world.open()


# Slices ------------------------------------------------------------------------------------------------------------


def test_a_new_destination_fills_itself_in_slices_beside_the_others(world: World) -> None:
    object.__setattr__(world.pipeline, "catch_up_rows", 10)
    world.fill("OLD", 25)
    world.run(destinations=["hubspot"])
    lead_store.insert(world.hive, "NEW", "Li")
    delivered = []
    for _ in range(3):
        counts = world.run()
        delivered.append(counts["salesforce"]["read"])
    assert delivered == [10, 10, 6]
    assert world.watermark("salesforce") == world.watermark("hubspot")
    assert len(world.open().operations) == 1  # in step again
    for name in world.simulators:
        world.assert_in_step(name)


def test_rows_with_one_watermark_are_never_parted(world: World) -> None:
    object.__setattr__(world.pipeline, "catch_up_rows", 10)
    world.hive.execute("ALTER TABLE customer DISABLE TRIGGER stamp_update_time")
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, update_time) SELECT 'A', n, 'x', now() FROM generate_series(1, 25) n"
    )
    world.hive.execute("ALTER TABLE customer ENABLE TRIGGER stamp_update_time")
    world.run(destinations=["hubspot"])
    assert world.run()["salesforce"]["delivered"] == 25
    world.assert_in_step("salesforce")


def test_a_destination_that_starts_now_gets_nothing_older(world: World) -> None:
    world.fill("OLD", 5)
    object.__setattr__(world.target("salesforce"), "start", "now")
    counts = world.run()
    assert counts["hubspot"]["delivered"] == 5
    assert counts["salesforce"]["read"] == 0
    lead_store.update(world.hive, "OLD", 2, "Newer", None, None)
    assert world.run()["salesforce"]["delivered"] == 1
    assert set(world.simulators["salesforce"].records()) == {"OLD:2"}
    world.assert_in_step("hubspot")


def test_a_destination_that_starts_in_the_future_waits(world: World) -> None:
    world.fill("OLD", 5)
    object.__setattr__(world.target("salesforce"), "start", datetime.now(UTC) + timedelta(days=1))
    for _ in range(2):
        counts = world.run()
        assert counts["salesforce"]["read"] == 0
    assert len(world.simulators["hubspot"].records()) == 5


# Parking -----------------------------------------------------------------------------------------------------------


def test_a_destination_that_keeps_failing_is_parked_and_the_others_move_on(world: World) -> None:
    world.fill("ASDAD", 30)
    world.simulators["salesforce"].stop()
    try:
        opened = parked(world)
        assert opened.parked == {"salesforce": 30}
        assert [operation.destinations for operation in opened.operations] == [["hubspot"]]
        world.snapshot(opened.operations[0])
        world.load(opened.operations[0], "hubspot")
        world.commit(*opened.operations)
        assert world.watermark("hubspot") == world.end(opened.operations[0])
        assert world.watermark("salesforce") is None
        lead_store.insert(world.hive, "MORE", "Li")
        assert world.run()["hubspot"]["read"] == 1  # the window is small again
        assert operations.probe(world.clients, world.pipeline, "salesforce") == "Unavailable"
        assert world.open().parked == {"salesforce": 31}
    finally:
        world.simulators["salesforce"].start()
    assert operations.probe(world.clients, world.pipeline, "salesforce") is None
    assert world.run()["salesforce"]["delivered"] == 31
    assert world.dead("salesforce") == {}
    assert {"parked", "unparked"} <= set(world.recovery_log())
    for name in world.simulators:
        world.assert_in_step(name)


def test_one_more_failure_parks_it_again(world: World) -> None:
    world.fill("ASDAD", 3)
    world.simulators["salesforce"].faults(server_error={"rate": 1})
    assert parked(world).parked
    world.simulators["salesforce"].faults()
    assert operations.probe(world.clients, world.pipeline, "salesforce") is None
    world.simulators["salesforce"].faults(server_error={"rate": 1})
    assert failing_run(world).parked == {}
    assert world.open().parked == {"salesforce": 3}


def test_a_spent_quota_parks_at_once_until_it_is_filled_again(world: World) -> None:
    world.fill("ASDAD", 3)
    world.simulators["salesforce"].faults(quota_spent=True)
    failing_run(world)
    assert world.open().parked == {"salesforce": 3}
    world.simulators["salesforce"].faults()
    still = operations.probe(world.clients, world.pipeline, "salesforce")
    assert still is not None
    assert still.startswith("QuotaExceeded, tried again after 20")
    # A person who knows better names it.
    assert world.run(destinations=["salesforce"])["salesforce"]["delivered"] == 3
    assert world.open().parked == {}
    world.assert_in_step("salesforce")


def test_an_older_run_that_is_cleared_lets_it_take_part_again(world: World) -> None:
    world.fill("ASDAD", 3)
    world.simulators["salesforce"].faults(server_error={"rate": 1})
    for _ in range(3):
        old = failing_run(world)
    assert world.open().parked
    world.simulators["salesforce"].faults()
    lead_store.update(world.hive, "ASDAD", 1, "Newer", None, None)
    world.load(old.operations[0], "salesforce")
    world.commit(*old.operations)
    assert world.open().parked == {}
    world.run()
    world.assert_in_step("salesforce")


def test_when_all_fail_none_is_parked(world: World) -> None:
    world.fill("ASDAD", 3)
    for simulator in world.simulators.values():
        simulator.faults(server_error={"rate": 1})
    for _ in range(5):
        opened = world.open()
        assert opened.parked == {}
        world.snapshot(opened.operations[0])
        for name in world.simulators:
            with pytest.raises(Unavailable):
                world.load(opened.operations[0], name)


def test_a_connection_that_is_missing_parks_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill("ASDAD", 3)
    monkeypatch.setattr(world.simulators["salesforce"], "url", "nowhere")
    assert parked(world).parked == {"salesforce": 3}
    still = operations.probe(world.clients, world.pipeline, "salesforce")
    assert still is not None
    assert "address must look like" in still
    monkeypatch.undo()
    assert operations.probe(world.clients, world.pipeline, "salesforce") is None


def test_what_a_probe_can_not_see_is_tried_again_after_a_while(world: World) -> None:
    now, target = datetime.now(UTC), world.target("hubspot")
    failed = LastLoad(0, "BrokenMapping", None, True)
    assert judge(target, [failed] * 2, now) is None
    verdict = judge(target, [failed] * 3, now)
    assert verdict is not None
    assert verdict.probe_after == now + WAIT
    well, killed = LastLoad(1, None, None, True), LastLoad(None, None, None, True)
    ours = LastLoad(0, "SnapshotError", None, True)
    for other in (well, killed, ours):
        assert judge(target, [failed, failed, other], now) is None
    assert judge(target, [LastLoad(0, "AccessError", None, False)] * 3, now) is None
    quota = judge(target, [LastLoad(0, "QuotaExceeded", now + timedelta(hours=3), True)], now)
    assert quota is not None
    assert quota.probe_after == now + timedelta(hours=3)


def test_a_backfill_asks_a_parked_destination_too(world: World) -> None:
    world.fill("ASDAD", 3)
    world.simulators["salesforce"].faults(server_error={"rate": 1})
    assert parked(world).parked
    world.simulators["salesforce"].faults()
    (operation,) = world.open(since="2020-01-01T00:00:00Z").operations
    world.snapshot(operation)
    assert world.load(operation, "salesforce")["delivered"] == 3
