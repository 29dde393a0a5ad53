"""Dead letters are replayed on the real servers: what was mended arrives, what was not stays one open dead letter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
import redis
from tests.support.world import World

from demo import lead_store
from leadsync import replay
from leadsync.clients import Clients
from leadsync.config import FieldMapping
from leadsync.errors import ConfigError, RefusedAgain, Unavailable

GROUP = "rejected INVALID_VALUE leadsync_external_id"


@pytest.fixture
def world(world: World) -> World:
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, email) "
        "SELECT 'ASDAD', n, 'Lead ' || n, 'lead' || n || '@example.com' FROM generate_series(1, 60) n"
    )
    return world


def refuse(world: World, *numbers: int) -> None:
    """HubSpot refuses these leads from now on."""
    world.simulators["hubspot"].faults(reject={"external_ids": [f"ASDAD:{number}" for number in numbers]})


def bury(world: World, *numbers: int) -> None:
    """A run after which these leads are HubSpot's dead letters; HubSpot is well again after it."""
    refuse(world, *numbers)
    world.run()
    refuse(world)
    assert set(world.dead("hubspot")) == {f"ASDAD:{number}" for number in numbers}


def choose(world: World, **parameters: Any) -> list[dict[str, Any]]:
    return replay.choose(world.state, world.pipeline, parameters, "li")


def replayed(world: World, run_id: str | None = None, **parameters: Any) -> dict[str, int]:
    """What a replay of HubSpot's dead letters returns."""
    (item,) = choose(world, **parameters)
    assert item["destination"] == "hubspot"
    return replay.run(world.clients, world.pipeline, run_id or str(uuid4()), item, "li")


def letters(world: World) -> list[tuple[Any, ...]]:
    query = "SELECT external_id, resolution, attempts FROM leadsync.dead_letter ORDER BY external_id, id"
    return world.state.execute(query).fetchall()


def slices(world: World) -> int:
    row = world.state.execute("SELECT count(*) FROM leadsync.sync_operation WHERE kind = 'replay'").fetchone()
    return int(row[0]) if row else 0


def group_in_the_recovery_log(world: World) -> str:
    query = "SELECT message FROM leadsync.recovery_log WHERE kind = 'dead_letter' ORDER BY id DESC LIMIT 1"
    row = world.state.execute(query).fetchone()
    assert row is not None
    return str(row[0].partition(": ")[2])


# What arrives --------------------------------------------------------------------------------------------------------


def test_a_group_copied_from_the_recovery_log_is_delivered_once_the_crm_is_mended(world: World) -> None:
    bury(world, 3, 4, 5)
    before = {name: world.watermark(name) for name in world.simulators}
    counts = replayed(world, group=f" {group_in_the_recovery_log(world)} ")
    assert (counts["read"], counts["delivered"], counts["dead"]) == (3, 3, 0)
    assert world.dead("hubspot") == {}
    assert {each[1] for each in letters(world)} == {"delivered by a later operation (replay)"}
    assert {name: world.watermark(name) for name in world.simulators} == before
    query = "SELECT message, details ->> 'by', details -> 'delivered' FROM leadsync.recovery_log WHERE kind = 'replay'"
    assert world.state.execute(query).fetchall() == [("replayed by li: read 3, delivered 3", "li", 3)]
    for name in world.simulators:
        world.assert_in_step(name)


def test_a_mapping_that_was_mended_delivers_without_a_change_in_the_lead_store(world: World) -> None:
    world.hive.execute("UPDATE customer SET phone = CASE uid WHEN 4 THEN 'none' ELSE uid::text END")
    target = world.target("hubspot")
    right = target.fields["leadsync_uid"]
    object.__setattr__(
        target, "fields", {**target.fields, "leadsync_uid": FieldMapping(column="phone", transform=("integer",))}
    )
    world.run(destinations=["hubspot"])
    assert world.dead("hubspot") == {"ASDAD:4": "mapping"}
    object.__setattr__(target, "fields", {**target.fields, "leadsync_uid": right})
    assert replayed(world, group="mapping leadsync_uid")["delivered"] == 1
    assert world.dead("hubspot") == {}


def test_only_what_was_chosen_and_only_so_much_of_it(world: World) -> None:
    bury(world, 3, 4, 5, 6)
    assert replayed(world, external_ids=["ASDAD:5"])["delivered"] == 1
    assert set(world.dead("hubspot")) == {"ASDAD:3", "ASDAD:4", "ASDAD:6"}
    assert replayed(world, all=True, limit=2)["delivered"] == 2
    assert len(world.dead("hubspot")) == 1
    assert choose(world, all=True, destinations=["salesforce"]) == []


def test_many_letters_go_in_slices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SLICE", 10)
    bury(world, *range(1, 26))
    assert replayed(world, all=True, limit=23)["delivered"] == 23
    assert slices(world) == 3
    assert len(world.dead("hubspot")) == 2
    world.assert_in_step("hubspot")


# What has nothing to deliver -----------------------------------------------------------------------------------------


def test_a_lead_that_is_in_the_crm_already_is_resolved(world: World) -> None:
    world.run()
    target = world.target("hubspot")
    object.__setattr__(target, "fields", {**target.fields, "city": FieldMapping(column="city", required=True)})
    world.hive.execute("UPDATE customer SET city = 'Shanghai' WHERE uid <> 7")
    world.hive.execute("UPDATE customer SET name = 'Lead 7' WHERE uid = 7")
    world.run()
    assert world.dead("hubspot") == {"ASDAD:7": "mapping"}
    object.__setattr__(target, "fields", {**target.fields, "city": FieldMapping(column="city")})
    world.hive.execute("ALTER TABLE customer DISABLE TRIGGER stamp_update_time")
    # The state that HubSpot has, and no run sees it.
    world.hive.execute(
        "UPDATE customer SET update_time = %s WHERE uid = 7",
        (world.simulators["hubspot"].records()["ASDAD:7"]["leadsync_updated_at"],),
    )
    counts = replayed(world, all=True)
    assert (counts["delivered"], counts["unchanged"]) == (0, 1)
    assert world.dead("hubspot") == {}
    world.assert_in_step("hubspot")


def test_leads_that_are_gone_or_belong_elsewhere_are_closed_with_that_reason(world: World) -> None:
    bury(world, 3, 4, 5)
    world.hive.execute("DELETE FROM customer WHERE uid = 3")
    object.__setattr__(world.target("hubspot"), "route", {"name": ("Lead 5",)})
    counts = replayed(world, all=True)
    assert (counts["gone"], counts["elsewhere"], counts["delivered"]) == (1, 1, 1)
    assert {each[0]: each[1] for each in letters(world)} == {
        "ASDAD:3": "gone from the lead store",
        "ASDAD:4": "not routed to hubspot any more",
        "ASDAD:5": "delivered by a later operation (replay)",
    }
    query = "SELECT message, details -> 'external_ids' ->> 0 FROM leadsync.recovery_log WHERE kind = 'resolved'"
    assert set(world.state.execute(query).fetchall()) == {
        ("1 dead letters were closed: gone from the lead store", "ASDAD:3"),
        ("1 dead letters were closed: not routed to hubspot any more", "ASDAD:4"),
        ("1 dead letters were delivered", "ASDAD:5"),
    }


def test_a_row_without_a_key_can_not_be_replayed_and_stays_open(world: World) -> None:
    world.hive.execute("ALTER TABLE customer DROP CONSTRAINT customer_pkey, ALTER uid DROP IDENTITY")
    world.hive.execute("ALTER TABLE customer ALTER uid DROP NOT NULL, ADD UNIQUE (appkey, uid)")
    world.hive.execute("UPDATE customer SET uid = NULL WHERE uid = 5")
    assert world.run()["hubspot"]["dead"] == 1
    (nameless,) = world.dead("hubspot")
    assert choose(world, all=True) == []
    with pytest.raises(ConfigError, match="can't be found by its key: mend the row"):
        choose(world, external_ids=[nameless])
    assert set(world.dead("hubspot")) == {nameless}


# What is refused again -----------------------------------------------------------------------------------------------


def test_some_that_are_refused_again_stay_one_open_dead_letter_each(world: World) -> None:
    bury(world, 3, 4, 5)
    refuse(world, 3)
    counts = replayed(world, all=True)
    assert (counts["delivered"], counts["dead"]) == (2, 1)
    assert world.dead("hubspot") == {"ASDAD:3": "rejected"}
    assert ("ASDAD:3", None, 2) in letters(world)
    assert len(letters(world)) == 3


def test_a_replay_of_which_nothing_comes_fails_and_says_why(world: World) -> None:
    bury(world, *range(1, 21))
    before = world.watermark("hubspot")
    refuse(world, *range(1, 21))
    with pytest.raises(RefusedAgain, match=r"^hubspot: all 20 leads were refused again \(20 × rejected INVALID"):
        replayed(world, all=True)
    assert len(world.dead("hubspot")) == len(letters(world)) == 20
    assert {each[2] for each in letters(world)} == {2}
    assert world.watermark("hubspot") == before
    refuse(world)
    assert replayed(world, all=True)["delivered"] == 20
    world.assert_in_step("hubspot")


def test_a_replay_ends_early_when_nothing_but_refusals_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SLICE", 10)
    bury(world, *range(1, 26))
    refuse(world, *range(1, 16))
    (item,) = choose(world, all=True)
    with pytest.raises(RefusedAgain, match="all 10 leads .* 15 more were not tried: clear this task"):
        replay.run(world.clients, world.pipeline, "replay-1", item, "li")
    counts = replay.run(world.clients, world.pipeline, "replay-1", item, "li")
    assert (counts["read"], counts["delivered"], counts["dead"]) == (25, 10, 15)
    assert len(world.dead("hubspot")) == 15
    # Each was tried once.
    assert {each[2] for each in letters(world) if each[1] is None} == {2}


# What is wrong -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({}, r"choose `group`, `external_ids` or `all`; the groups of open dead letters: hubspot: 2 × rejected INVAL"),
        ({"group": "rejected NOTHING"}, "no open dead letter is of the group 'rejected NOTHING'; the groups of open"),
        ({"external_ids": ["ASDAD:3", "ASDAD:99"]}, "there is no dead letter of 'ASDAD:99' in hubspot, salesforce"),
        ({"external_ids": ["ASDAD:3", "ASDAD:5"]}, r"dead letter of 'ASDAD:5' was resolved at 20.* UTC: delivered by"),
        ({"external_ids": ["ASDAD:3"], "destinations": ["salesforce"]}, "no dead letter of 'ASDAD:3' in salesforce"),
        ({"all": True, "group": GROUP}, "choose one of"),
        ({"all": True, "limit": 0}, "`limit` is a number"),
        ({"all": True, "mended": True}, "it needs `group`"),
        ({"all": True, "destinations": ["nobody"]}, "there is no 'nobody'; allowed: hubspot, salesforce"),
        ({"every": True}, "unknown parameter 'every'"),
    ],
)
def test_a_wrong_choice_is_explained_and_changes_nothing(
    world: World, parameters: dict[str, Any], complaint: str
) -> None:
    bury(world, 3, 4, 5)
    replayed(world, external_ids=["ASDAD:5"])
    before, tried = letters(world), slices(world)
    with pytest.raises(ConfigError, match=complaint):
        choose(world, **parameters)
    assert (letters(world), slices(world)) == (before, tried)


def test_without_any_dead_letter_there_is_nothing_to_choose(world: World) -> None:
    world.run()
    assert choose(world, all=True) == []
    with pytest.raises(ConfigError, match="there are no open dead letters"):
        choose(world)


# At once, and killed -------------------------------------------------------------------------------------------------


def at_once(world: World, *works: Callable[[Clients], Any]) -> list[Any]:
    """Does all of them at the same time, each with connections of its own."""
    barrier = threading.Barrier(len(works))

    def work(what: Callable[[Clients], Any]) -> Any:
        with world.others() as clients:
            barrier.wait()
            return what(clients)

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(work, works))


def test_two_replays_at_once_deliver_each_lead_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SLICE", 5)
    bury(world, *range(1, 26))
    (item,) = choose(world, all=True)
    after = world.simulators["hubspot"].journal()[-1]["seq"]
    both = at_once(
        world,
        lambda clients: replay.run(clients, world.pipeline, "replay-1", item, None),
        lambda clients: replay.run(clients, world.pipeline, "replay-2", item, None),
    )
    assert sum(counts["delivered"] for counts in both) == 25
    assert sorted(entry["external_id"] for entry in world.simulators["hubspot"].journal(after)) == sorted(
        f"ASDAD:{number}" for number in range(1, 26)
    )
    assert world.dead("hubspot") == {}
    world.assert_in_step("hubspot")


def test_a_replay_and_a_run_at_once(world: World) -> None:
    bury(world, *range(1, 26))
    (item,) = choose(world, all=True)
    world.simulators["hubspot"].faults(latency=0.05)
    for number in range(1, 40):
        lead_store.update(world.hive, "ASDAD", number, f"Newer {number}", None, None)
    at_once(
        world,
        lambda clients: replay.run(clients, world.pipeline, "replay-1", item, None),
        lambda clients: world.run(),
    )
    world.run()
    assert world.dead("hubspot") == {}
    for name in world.simulators:
        world.assert_in_step(name)


def test_a_replay_that_is_killed_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "SLICE", 10)
    bury(world, *range(1, 26))
    world.hive.execute("DELETE FROM customer WHERE uid = 25")
    (item,) = choose(world, all=True)
    hubspot = world.simulators["hubspot"]
    hubspot.faults(latency=0.7)
    with world.process(lambda clients: replay.run(clients, world.pipeline, "replay-1", item, None)):
        until = time.monotonic() + 60
        while "ASDAD:11" not in hubspot.records():
            assert time.monotonic() < until, "the replay delivers nothing"
            time.sleep(0.02)
    hubspot.faults()
    assert world.dead("hubspot") != {}
    counts = replay.run(world.clients, world.pipeline, "replay-1", item, None)
    assert (counts["read"], counts["delivered"]) == (24, 24)
    assert slices(world) == 3
    assert world.dead("hubspot") == {}
    world.assert_in_step("hubspot")


def test_an_outage_is_waited_out_within_the_same_operation(world: World) -> None:
    bury(world, 3, 4, 5)
    (item,) = choose(world, all=True)
    world.simulators["hubspot"].faults(server_error={"rate": 1})
    for _ in range(2):
        with pytest.raises(Unavailable):
            replay.run(world.clients, world.pipeline, "replay-1", item, None)
    refuse(world)
    assert replay.run(world.clients, world.pipeline, "replay-1", item, None)["delivered"] == 3
    assert slices(world) == 1
    assert world.dead("hubspot") == {}


def test_a_snapshot_that_is_lost_between_two_tries_is_read_anew(world: World, valkey: redis.Redis) -> None:
    bury(world, 3, 4, 5)
    (item,) = choose(world, all=True)
    world.simulators["hubspot"].faults(server_error={"rate": 1})
    with pytest.raises(Unavailable):
        replay.run(world.clients, world.pipeline, "replay-1", item, None)
    valkey.flushall()
    refuse(world)
    assert replay.run(world.clients, world.pipeline, "replay-1", item, None)["delivered"] == 3
    assert world.dead("hubspot") == {}


def test_a_sync_run_of_the_same_id_does_not_end_a_replay(world: World) -> None:
    """Scheduled runs of two DAGs at the same minute have the same id."""
    bury(world, 3, 4, 5)
    (item,) = choose(world, all=True)
    world.simulators["hubspot"].faults(server_error={"rate": 1})
    with pytest.raises(Unavailable):
        replay.run(world.clients, world.pipeline, "scheduled__1", item, None)
    refuse(world)
    world.open("scheduled__1")
    world.open("scheduled__1")
    assert replay.run(world.clients, world.pipeline, "scheduled__1", item, None)["delivered"] == 3
    assert slices(world) == 1


# Marked as mended ----------------------------------------------------------------------------------------------------


def marked(world: World) -> list[dict[str, Any]]:
    return replay.marked(world.state, [world.pipeline])


def test_a_group_that_is_marked_is_replayed_by_the_schedule_and_unmarked(world: World) -> None:
    assert marked(world) == []
    bury(world, 3, 4, 5)
    group = group_in_the_recovery_log(world)
    assert choose(world, group=group, mended=True) == []
    assert len(world.dead("hubspot")) == 3
    # What comes later is not meant.
    lead_store.update(world.hive, "ASDAD", 6, "Newer", None, None)
    lead_store.update(world.hive, "ASDAD", 7, "Newer", None, None)
    refuse(world, 6)
    world.run()
    refuse(world)
    (item,) = marked(world)
    assert replay.run(world.clients, world.pipeline, "scheduled-1", item, None)["delivered"] == 3
    assert set(world.dead("hubspot")) == {"ASDAD:6"}
    assert marked(world) == []
    assert {"mended", "replay"} <= set(world.recovery_log())


def test_a_group_that_is_not_mended_after_all_is_unmarked_and_told(world: World) -> None:
    bury(world, 3, 4, 5)
    choose(world, group=group_in_the_recovery_log(world), mended=True)
    refuse(world, 3, 4, 5)
    (item,) = marked(world)
    with pytest.raises(RefusedAgain):
        replay.run(world.clients, world.pipeline, "scheduled-1", item, None)
    assert marked(world) == []
    assert len(world.dead("hubspot")) == 3


def test_an_outage_keeps_the_mark(world: World) -> None:
    bury(world, 3, 4, 5)
    choose(world, group=group_in_the_recovery_log(world), mended=True)
    world.simulators["hubspot"].faults(server_error={"rate": 1})
    (item,) = marked(world)
    with pytest.raises(Unavailable):
        replay.run(world.clients, world.pipeline, "scheduled-1", item, None)
    assert marked(world) == [item]


# Dead letters and order ----------------------------------------------------------------------------------------------


def test_an_older_state_that_is_delivered_late_does_not_resolve_the_dead_letter_of_a_newer_one(world: World) -> None:
    old = world.extract()
    world.snapshot(old)
    target = world.target("hubspot")
    fields = {**target.fields, "leadsync_uid": FieldMapping(column="phone", transform=("integer",))}
    world.hive.execute("UPDATE customer SET phone = CASE uid WHEN 4 THEN 'none' ELSE uid::text END, name = 'Newer'")
    object.__setattr__(target, "fields", fields)
    world.run(destinations=["hubspot"])
    object.__setattr__(target, "fields", {**fields, "leadsync_uid": FieldMapping(column="uid")})
    world.load(old, "hubspot")
    assert world.simulators["hubspot"].records()["ASDAD:4"]["firstname"] == "Lead 4"
    assert world.dead("hubspot") == {"ASDAD:4": "mapping"}
    assert replayed(world, all=True)["delivered"] == 1
    assert world.dead("hubspot") == {}
    assert world.simulators["hubspot"].records()["ASDAD:4"]["firstname"] == "Newer"
