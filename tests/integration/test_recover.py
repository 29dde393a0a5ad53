"""Recovery from the snapshots on the real servers, while the lead store is out of reach."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import redis
from tests.support.servers import free_port
from tests.support.world import World

from demo import lead_store
from leadsync import recover, snapshot
from leadsync.clients import Clients
from leadsync.config import FieldMapping
from leadsync.errors import ConfigError, RedisAway, SnapshotError, TransientFailure, Unavailable
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore
from leadsync.source import LeadStore

SINCE = "2020-01-01T00:00:00Z"


@pytest.fixture
def world(world: World) -> World:
    world.fill("ASDAD", 40)
    return world


def unreachable() -> AbstractContextManager[LeadStore]:
    raise AssertionError("a recovery opened the lead store")


def without_store(clients: Clients) -> Clients:
    return replace(clients, open_store=unreachable)


def choose(world: World, **parameters: Any) -> list[dict[str, Any]]:
    return recover.choose(without_store(world.clients), world.pipeline, parameters)


def run(
    world: World, item: dict[str, Any], run_id: str = "recover-1", clients: Clients | None = None
) -> dict[str, int]:
    return recover.run(without_store(clients or world.clients), world.pipeline, run_id, item, "li")


def recovered(world: World, **parameters: Any) -> dict[str, int]:
    """What a recovery of HubSpot returns."""
    (item,) = choose(world, **{"destinations": ["hubspot"], **parameters})
    return run(world, item)


def newest(world: World) -> str:
    """The sync operation whose snapshot is the newest."""
    query = (
        "SELECT sync_id::text FROM leadsync.sync_operation WHERE kind <> 'recover' ORDER BY sequence DESC NULLS LAST"
    )
    row = world.state.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return str(row[0])


def test_a_snapshot_that_was_loaded_in_shards_is_recovered_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 500)
    world.pipeline = world.pipeline.model_copy(update={"shard_rows": 10, "max_shards": 3})
    operation = world.extract()
    for name, shards in world.snapshot(operation).items():
        assert shards == 3
        for shard in range(shards):
            world.load(operation, name, shard)
    world.commit(operation)
    world.simulators["hubspot"].reset()
    assert recovered(world, since=SINCE, resend=True)["delivered"] == 40
    world.assert_in_step("hubspot")


def history(world: World) -> None:
    """Three runs: everything, some changes and a delete, one change more."""
    world.run()
    for number in range(1, 11):
        lead_store.update(world.hive, "ASDAD", number, f"Second {number}", None, None)
    lead_store.delete(world.hive, "ASDAD", 40)
    world.run()
    lead_store.update(world.hive, "ASDAD", 1, "Third 1", None, None)
    world.run()


def empty(world: World) -> None:
    """HubSpot loses all its data."""
    world.simulators["hubspot"].reset()
    assert world.simulators["hubspot"].records() == {}


def sent(world: World) -> list[str]:
    """What HubSpot accepted, in order."""
    return [entry["external_id"] for entry in world.simulators["hubspot"].journal() if entry["action"] != "delete"]


# What arrives --------------------------------------------------------------------------------------------------------


def test_a_crm_that_was_emptied_gets_the_newest_state_of_everything(world: World) -> None:
    history(world)
    before = {name: world.watermark(name) for name in world.simulators}
    empty(world)
    counts = recovered(world, since=SINCE, resend=True)
    assert counts == {
        "snapshots": 3, "read": 52, "delivered": 40, "unchanged": 0, "overtaken": 12, "not_routed": 0, "dead": 0,
        "passed_over": 0,
    }  # fmt: skip
    assert sorted(sent(world)) == sorted(f"ASDAD:{number}" for number in range(1, 40))
    world.assert_in_step("hubspot")
    assert {name: world.watermark(name) for name in world.simulators} == before
    query = "SELECT message, details ->> 'by' FROM leadsync.recovery_log WHERE kind = 'recover'"
    assert world.state.execute(query).fetchall() == [
        ("recovered by li: snapshots 3, read 52, delivered 40, overtaken 12", "li")
    ]


def test_without_resend_only_what_was_not_delivered_goes_out(world: World) -> None:
    world.simulators["hubspot"].faults(server_error={"rate": 1})
    operation = world.extract()
    world.snapshot(operation)
    with pytest.raises(Unavailable):
        world.load(operation, "hubspot")
    world.simulators["hubspot"].faults()
    counts = recovered(world, operations=[operation.sync_id])
    assert counts["delivered"] == 40
    assert recovered(world, operations=[operation.sync_id]) == counts  # the same run: nothing is left to do
    (item,) = choose(world, operations=[operation.sync_id], destinations=["hubspot"])
    assert run(world, item, "recover-2")["unchanged"] == 40
    world.assert_in_step("hubspot")
    # The run that was in trouble goes on as if nothing had been.
    assert world.load(operation, "hubspot")["unchanged"] == 40


def test_only_the_snapshots_of_the_time_that_was_chosen(world: World) -> None:
    history(world)
    query = "SELECT snapshot_at FROM leadsync.sync_operation ORDER BY sequence"
    first, second, third = (row[0] for row in world.state.execute(query))
    assert recovered(world, since=second.isoformat(), until=third.isoformat(), resend=True)["read"] == 11
    with pytest.raises(ConfigError, match="no snapshot with leads among those chosen"):
        choose(world, since=SINCE, until=first.isoformat())


def test_a_destination_that_took_no_part_gets_the_rows_only_when_it_is_named(world: World) -> None:
    object.__setattr__(world.target("salesforce"), "start", "now")
    world.run(destinations=["hubspot"])
    world.run(destinations=["salesforce"])
    world.fill("NEW", 3)
    world.run(destinations=["hubspot"])
    assert [item["destination"] for item in choose(world, since=SINCE)] == ["hubspot"]
    (item,) = choose(world, since=SINCE, destinations=["salesforce"])
    assert run(world, item)["delivered"] == 43
    world.assert_in_step("salesforce")


def test_rows_of_other_columns_are_mapped_by_name(world: World) -> None:
    history(world)
    source = world.pipeline.source
    columns = (*reversed(source.columns), "created_by")
    later = world.pipeline.model_copy(update={"source": source.model_copy(update={"columns": columns})})
    empty(world)
    (item,) = recover.choose(world.clients, later, {"since": SINCE, "resend": True, "destinations": ["hubspot"]})
    assert recover.run(without_store(world.clients), later, "recover-1", item, None)["delivered"] == 40
    world.assert_in_step("hubspot")


def test_a_column_that_a_snapshot_has_not_is_named(world: World) -> None:
    world.run()
    target = world.target("hubspot")
    object.__setattr__(target, "fields", {**target.fields, "jobtitle": FieldMapping(column="job")})
    with pytest.raises(SnapshotError, match="it has no column 'job', which the pipeline file wants for hubspot"):
        choose(world, operations=[newest(world)], destinations=["hubspot"])
    assert choose(world, operations=[newest(world)], destinations=["salesforce"]) != []
    with pytest.raises(SnapshotError, match="1 of 1 snapshots can't be delivered.* it has no column 'job'"):
        recovered(world, since=SINCE)


# No lead goes back ---------------------------------------------------------------------------------------------------


def test_what_a_newer_run_delivered_is_left_alone(world: World) -> None:
    world.run()
    old = newest(world)
    lead_store.update(world.hive, "ASDAD", 1, "Newer", None, None)
    world.run()
    counts = recovered(world, operations=[old], resend=True)
    assert (counts["delivered"], counts["overtaken"], counts["passed_over"]) == (39, 1, 1)
    assert passed_over(world) == ["ASDAD:1"]
    world.assert_in_step("hubspot")


def passed_over(world: World) -> list[str]:
    query = "SELECT details -> 'external_ids' FROM leadsync.recovery_log WHERE kind = 'passed_over'"
    return [external_id for (ids,) in world.state.execute(query) for external_id in ids]


def test_what_no_snapshot_holds_is_named(world: World) -> None:
    """A lead in doubt was read again from the lead store, and what was sent then is in no snapshot."""
    old = world.extract()
    world.snapshot(old)
    lead_store.update(world.hive, "ASDAD", 1, "Newer", None, None)
    new = world.extract()
    world.snapshot(new)
    world.simulators["hubspot"].faults(lose_reply={"next": 1})
    with pytest.raises((Unavailable, TransientFailure)):
        world.load(new, "hubspot")
    assert world.load(old, "hubspot")["delivered"] == 40
    empty(world)
    counts = recovered(world, since=SINCE, resend=True)
    assert (counts["delivered"], counts["overtaken"], counts["passed_over"]) == (0, 80, 80)
    assert set(passed_over(world)) == {f"ASDAD:{number}" for number in range(1, 41)}
    assert world.run(since=SINCE, resend=True)["hubspot"]["delivered"] == 40  # what the documents say to do then
    world.assert_in_step("hubspot")


def test_an_old_state_that_can_not_be_mapped_is_no_dead_letter_of_a_lead_that_was_mended(world: World) -> None:
    target = world.target("hubspot")
    mapping = {**target.fields, "leadsync_uid": FieldMapping(column="phone", transform=("integer",))}
    object.__setattr__(target, "fields", mapping)
    world.hive.execute("UPDATE customer SET phone = CASE uid WHEN 4 THEN 'none' ELSE uid::text END")
    old = world.extract(destinations=["hubspot"])
    world.snapshot(old)
    world.hive.execute("UPDATE customer SET phone = '4' WHERE uid = 4")
    world.run(destinations=["hubspot"])
    assert world.load(old, "hubspot")["overtaken"] == 40  # cleared late
    empty(world)
    counts = recovered(world, since=SINCE, resend=True)
    assert (counts["delivered"], counts["overtaken"], counts["dead"], counts["passed_over"]) == (40, 40, 0, 0)
    assert world.dead("hubspot") == {}


def test_what_a_newer_run_has_in_doubt_is_left_to_it(world: World) -> None:
    """Its state is not known to be in the CRM, and the lead store is not to be asked."""
    world.run()
    old = newest(world)
    lead_store.update(world.hive, "ASDAD", 1, "Newer", None, None)
    operation = world.extract()
    world.snapshot(operation)
    world.simulators["hubspot"].faults(lose_reply={"next": 1})
    with pytest.raises(Unavailable):
        world.load(operation, "hubspot")
    counts = recovered(world, operations=[old], resend=True)
    assert (counts["delivered"], counts["overtaken"]) == (39, 1)
    assert world.simulators["hubspot"].records()["ASDAD:1"]["firstname"] == "Newer"
    assert world.load(operation, "hubspot")["delivered"] == 1
    world.assert_in_step("hubspot")


def test_a_snapshot_of_one_bad_lead_does_not_end_a_recovery(world: World) -> None:
    world.run()
    lead_store.insert(world.hive, "BAD", "Li", email="no address")
    world.fill("GOOD", 5)
    world.run()
    (bad,) = world.dead("hubspot")
    world.hive.execute("UPDATE customer SET name = 'Wang' WHERE appkey = 'BAD'")
    operation = world.extract()
    world.snapshot(operation)
    empty(world)
    counts = recovered(world, since=SINCE, resend=True)
    assert (counts["snapshots"], counts["delivered"], counts["dead"], counts["overtaken"]) == (3, 45, 1, 1)
    assert set(world.dead("hubspot")) == {bad}
    assert len(world.state.execute("SELECT FROM leadsync.dead_letter WHERE external_id = %s", (bad,)).fetchall()) == 2


# What is lost --------------------------------------------------------------------------------------------------------


def expire(world: World, valkey: redis.Redis, sync_id: str) -> None:
    for key in valkey.keys(f"leadsync:leads:snapshot:{sync_id}:*"):
        valkey.pexpire(key, 0)


def damage(world: World, valkey: redis.Redis, sync_id: str) -> None:
    key = f"leadsync:leads:snapshot:{sync_id}:0"
    blob = valkey.get(key)
    assert isinstance(blob, bytes)
    valkey.set(key, blob[:-1] + bytes([blob[-1] ^ 1]))


def other_key(world: World, valkey: redis.Redis, sync_id: str) -> None:
    world.sealer = Sealer(base64.b64encode(b"x" * 32).decode())
    world.snapshots = SnapshotStore(valkey, world.sealer, "leads", 3600)


@pytest.mark.parametrize(
    ("lose", "complaint"),
    [
        (expire, "is gone from Redis"),
        (damage, "does not pass its checksum"),
        (other_key, "sealed with a key that LEADSYNC_ENCRYPTION_KEY does not list"),
    ],
)
def test_a_named_snapshot_that_is_lost_fails_before_anything_is_sent(
    world: World, valkey: redis.Redis, lose: Callable[[World, redis.Redis, str], None], complaint: str
) -> None:
    history(world)
    query = "SELECT sync_id::text FROM leadsync.sync_operation ORDER BY sequence"
    first, second, _ = (row[0] for row in world.state.execute(query))
    lose(world, valkey, second)
    before = len(world.simulators["hubspot"].journal())
    with pytest.raises(SnapshotError, match=f"operation {second}: .*{complaint}"):
        choose(world, operations=[first, second], resend=True)
    assert len(world.simulators["hubspot"].journal()) == before


@pytest.mark.parametrize("lose", [expire, damage])
def test_of_a_time_the_others_are_delivered_and_the_lost_ones_listed(
    world: World, valkey: redis.Redis, lose: Callable[[World, redis.Redis, str], None]
) -> None:
    history(world)
    query = "SELECT sync_id::text FROM leadsync.sync_operation ORDER BY sequence"
    _, second, _ = (row[0] for row in world.state.execute(query))
    lose(world, valkey, second)
    empty(world)
    with pytest.raises(SnapshotError, match=rf"^hubspot: 1 of 3 snapshots can't be delivered; .*operation {second}: "):
        recovered(world, since=SINCE, resend=True)
    assert len(world.simulators["hubspot"].records()) == 30
    query = "SELECT details -> 'lost', details -> 'delivered' FROM leadsync.recovery_log WHERE kind = 'recover'"
    assert world.state.execute(query).fetchall() == [([second], 30)]
    # Cleared, it still says so and sends nothing again.
    with pytest.raises(SnapshotError, match="1 of 3 snapshots"):
        recovered(world, since=SINCE, resend=True)
    assert len(world.simulators["hubspot"].journal()) == 30


def test_redis_that_is_away_is_no_lost_snapshot(world: World) -> None:
    history(world)
    (item,) = choose(world, since=SINCE, destinations=["hubspot"])
    there = world.snapshots
    with redis.Redis(port=free_port()) as nobody:
        world.snapshots = SnapshotStore(nobody, world.sealer, "leads", 60, recover.AGAIN)
        with pytest.raises(RedisAway, match="can't be read"):
            run(world, item)
        with pytest.raises(RedisAway):
            choose(world, operations=[newest(world)])
    world.snapshots = there
    assert "recover" not in world.recovery_log()
    assert run(world, item)["snapshots"] == 3


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({}, "choose either `operations`, or `since`"),
        ({"operations": ["00000000-0000-0000-0000-000000000001"], "since": SINCE}, "choose either"),
        ({"until": SINCE}, "choose either"),
        ({"since": SINCE, "until": "2019-01-01T00:00:00Z"}, "must be before"),
        ({"since": "2020-01-01"}, "has no offset"),
        ({"operations": ["latest"]}, "'latest' is not the id of a sync operation"),
        ({"operations": ["00000000-0000-0000-0000-000000000001"]}, "0001: there is none of this id in leads"),
        ({"since": SINCE, "destinations": ["nobody"]}, "there is no 'nobody'"),
        ({"since": SINCE, "destinations": ["salesforce"]}, "salesforce: never took part in a run of leads_sync"),
        ({"sinse": SINCE}, "unknown parameter 'sinse'"),
    ],
)
def test_a_wrong_choice_is_explained(world: World, parameters: dict[str, Any], complaint: str) -> None:
    world.run(destinations=["hubspot"])
    with pytest.raises((ConfigError, SnapshotError), match=complaint):
        choose(world, **parameters)


def test_what_has_no_snapshot_of_its_own_is_named(world: World) -> None:
    world.run()
    taken = newest(world)
    unfinished = world.extract()
    with pytest.raises(SnapshotError, match=f"{unfinished.sync_id}: its snapshot was never finished; what it held is"):
        choose(world, operations=[taken, unfinished.sync_id])
    recovered(world, operations=[taken])
    row = world.state.execute("SELECT sync_id::text FROM leadsync.sync_operation WHERE kind = 'recover'").fetchone()
    assert row is not None
    with pytest.raises(SnapshotError, match="it is a recovery itself"):
        choose(world, operations=[row[0]])


# Tries, and others at once -------------------------------------------------------------------------------------------


def test_a_cleared_recovery_does_nothing_again(world: World) -> None:
    history(world)
    empty(world)
    (item,) = choose(world, since=SINCE, resend=True, destinations=["hubspot"])
    counts = run(world, item)
    requests = world.simulators["hubspot"].stats()["requests"]
    query = "SELECT max(end_at) FROM leadsync.operation_log"
    ended = world.state.execute(query).fetchone()
    assert run(world, item) == counts
    assert world.simulators["hubspot"].stats()["requests"] == requests
    assert world.state.execute(query).fetchone() == ended


def test_a_recovery_that_is_killed_goes_on(world: World) -> None:
    world.fill("MORE", 500)
    history(world)
    empty(world)
    hubspot = world.simulators["hubspot"]
    object.__setattr__(world.target("hubspot"), "in_flight", 1)
    hubspot.faults(latency=0.3)
    (item,) = choose(world, since=SINCE, resend=True, destinations=["hubspot"])
    with world.process(lambda clients: run(world, item, clients=clients)):
        until = time.monotonic() + 60
        while len(hubspot.records()) < 100:
            assert time.monotonic() < until, "the recovery delivers nothing"
            time.sleep(0.02)
    hubspot.faults()
    assert len(hubspot.records()) < 539
    first = sent(world)[:10]
    counts = run(world, item)
    assert (counts["snapshots"], counts["read"], counts["delivered"]) == (3, 552, 540)
    # The two newest snapshots were done.
    assert [sent(world).count(external_id) for external_id in first] == [1] * 10
    world.assert_in_step("hubspot")


def at_once(world: World, *works: Callable[[Clients], Any]) -> list[Any]:
    """Does all of them at the same time, each with connections of its own."""
    barrier = threading.Barrier(len(works))

    def work(what: Callable[[Clients], Any]) -> Any:
        with world.others() as clients:
            barrier.wait()
            return what(clients)

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(work, works))


def test_two_recoveries_at_once(world: World) -> None:
    history(world)
    empty(world)
    (item,) = choose(world, since=SINCE, destinations=["hubspot"], resend=True)
    at_once(
        world,
        lambda clients: run(world, item, "recover-1", clients),
        lambda clients: run(world, item, "recover-2", clients),
    )
    world.assert_in_step("hubspot")


def test_a_recovery_and_a_run_at_once(world: World) -> None:
    history(world)
    empty(world)
    (item,) = choose(world, since=SINCE, destinations=["hubspot"], resend=True)
    world.simulators["hubspot"].faults(latency=0.05)
    for number in range(5, 20):
        lead_store.update(world.hive, "ASDAD", number, f"Newer {number}", None, None)
    at_once(world, lambda clients: run(world, item, clients=clients), lambda clients: world.run())
    world.assert_in_step("hubspot")
    stamps: dict[str, str] = {}
    for entry in world.simulators["hubspot"].journal():
        stamp = entry["fields"].get("leadsync_updated_at", "9")
        assert stamps.get(entry["external_id"], "") <= stamp
        stamps[entry["external_id"]] = stamp
