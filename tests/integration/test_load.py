"""Whole runs, step by step, on the real servers and simulated CRMs. Each ends with every record compared."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.world import World

from demo import lead_store
from leadsync import snapshot
from leadsync.config import FieldMapping
from leadsync.crm.base import CRMAdapter
from leadsync.crm.hubspot import HubSpot
from leadsync.dry_run import dry_run
from leadsync.errors import BrokenMapping, Superseded, TransientFailure, Unavailable
from leadsync.mapping import lead_key
from leadsync.source import Window


def fill(world: World, count: int) -> None:
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, phone, answers) "
        "SELECT 'ASDAD', n, 'Lead ' || n, '+86 ' || n, '{\"q\": \"a\\\\nb\"}' FROM generate_series(1, %s) n",
        (count,),
    )


def test_first_run_update_and_delete(world: World) -> None:
    fill(world, 250)
    assert world.run()["hubspot"] == {
        "read": 250, "delivered": 250, "unchanged": 0, "overtaken": 0, "not_routed": 0, "dead": 0,
    }  # fmt: skip
    for name in world.simulators:
        world.assert_in_step(name)
    lead_store.update(world.hive, "ASDAD", 7, "New Name 😀", "1", None)
    lead_store.delete(world.hive, "ASDAD", 8)
    counts = world.run()
    assert counts["hubspot"]["delivered"] == counts["salesforce"]["delivered"] == 2
    assert world.run()["hubspot"]["read"] == 0
    for name, simulator in world.simulators.items():
        world.assert_in_step(name)
        assert len(simulator.records()) == 249


def test_the_watermark_only_moves_after_every_load(world: World) -> None:
    fill(world, 3)
    operation = world.extract()
    world.snapshot(operation)
    world.load(operation, "hubspot")
    with pytest.raises(Exception, match="load of salesforce has not succeeded"):
        world.commit(operation)
    assert world.watermark("hubspot") is None
    world.load(operation, "salesforce")
    world.commit(operation)
    assert world.watermark("hubspot") == world.watermark("salesforce") == world.end(operation)


def test_a_crm_that_is_down_for_some_runs(world: World) -> None:
    fill(world, 30)
    world.simulators["salesforce"].faults(down=True)
    operation = world.extract()
    world.snapshot(operation)
    world.load(operation, "hubspot")
    with pytest.raises(Unavailable):
        world.load(operation, "salesforce")
    lead_store.update(world.hive, "ASDAD", 7, "Newer", "1", None)
    world.simulators["salesforce"].faults()
    counts = world.run()
    assert counts["hubspot"]["delivered"] == 1
    assert counts["hubspot"]["unchanged"] == 29
    assert counts["salesforce"]["delivered"] == 30
    for name in world.simulators:
        world.assert_in_step(name)
    assert "Unavailable" in world.recovery_log()
    # The old run's failed load is cleared after the newer run: nothing goes back.
    assert world.load(operation, "salesforce")["overtaken"] == 30
    world.commit(operation)
    world.assert_in_step("salesforce")


def test_a_crm_that_cannot_be_reached_makes_no_dead_letters(world: World) -> None:
    fill(world, 30)
    operation = world.extract()
    world.snapshot(operation)
    simulator = world.simulators["salesforce"]
    simulator.stop()
    try:
        for _ in range(4):
            with pytest.raises(Unavailable):
                world.load(operation, "salesforce")
    finally:
        simulator.start()
    assert world.dead("salesforce") == {}
    assert world.load(operation, "salesforce")["delivered"] == 30
    world.assert_in_step("salesforce")


def test_a_rejected_lead_is_a_dead_letter_until_it_is_mended(world: World) -> None:
    fill(world, 30)
    world.hive.execute("UPDATE customer SET email = 'no address' WHERE uid = 5")
    counts = world.run()
    assert counts["hubspot"]["delivered"] == 29
    assert counts["hubspot"]["dead"] == 1
    assert world.dead("hubspot") == {"ASDAD:5": "rejected"}
    world.assert_in_step("hubspot")
    world.hive.execute("UPDATE customer SET email = 'li@example.com' WHERE uid = 5")
    world.run()
    assert world.dead("hubspot") == {}
    world.assert_in_step("hubspot")
    assert {"dead_letter", "resolved"} <= set(world.recovery_log())


def test_a_load_whose_leads_are_all_rejected_fails_and_goes_over_them_again(world: World) -> None:
    fill(world, 10)
    world.simulators["hubspot"].faults(reject={"rate": 1})
    operation = world.extract()
    world.snapshot(operation)
    with pytest.raises(BrokenMapping, match="10 of 10 leads"):
        world.load(operation, "hubspot")
    world.simulators["hubspot"].faults()
    assert world.load(operation, "hubspot")["delivered"] == 10
    assert world.dead("hubspot") == {}


def test_a_lost_reply_is_sent_again_without_a_double(world: World) -> None:
    fill(world, 250)
    operation = world.extract()
    world.snapshot(operation)
    world.simulators["hubspot"].faults(lose_reply={"next": 2})
    with pytest.raises(TransientFailure):
        world.load(operation, "hubspot")
    assert world.load(operation, "hubspot")["delivered"] == 250
    world.assert_in_step("hubspot")


def test_a_lead_that_makes_a_crm_fail_harms_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poisoned lead: any request that holds it is answered with nonsense."""
    fill(world, 50)
    operation = world.extract()
    world.snapshot(operation)
    deliver = CRMAdapter.deliver

    def poisoned(self: CRMAdapter, leads: Any, *, delete: bool = False) -> Any:
        if any(lead.external_id == "ASDAD:13" for lead in leads):
            world.simulators["hubspot"].faults(malformed={"next": 1})
        return deliver(self, leads, delete=delete)

    monkeypatch.setattr(CRMAdapter, "deliver", poisoned)
    object.__setattr__(world.pipeline.destinations[0], "in_flight", 1)
    for error in (Unavailable, TransientFailure):
        with pytest.raises(error):
            world.load(operation, "hubspot")
    counts = world.load(operation, "hubspot")
    assert counts["delivered"] == 49
    assert world.dead("hubspot") == {"ASDAD:13": "failed"}
    assert "nonsense" in world.recovery_log()


def test_three_failures_make_a_dead_letter(world: World) -> None:
    fill(world, 1)
    fill_more = "INSERT INTO customer (appkey, uid, name) VALUES ('B', 2, 'good')"
    world.hive.execute(fill_more)
    operation = world.extract()
    world.snapshot(operation)
    world.simulators["hubspot"].faults(server_error={"rate": 1})
    for _ in range(3):
        with pytest.raises(Unavailable):
            world.load(operation, "hubspot")
    assert set(world.dead("hubspot").values()) == {"failed"}
    world.simulators["hubspot"].faults()
    assert world.load(operation, "hubspot")["delivered"] == 2
    assert world.dead("hubspot") == {}


def test_a_backfill_moves_no_watermark_and_sends_no_older_state(world: World) -> None:
    fill(world, 10)
    world.run()
    before = world.watermark("hubspot")
    counts = world.run(since="2020-01-01T00:00:00Z")
    assert counts["hubspot"]["unchanged"] == 10
    assert world.run(since="2020-01-01T00:00:00Z", resend=True)["hubspot"]["delivered"] == 10
    old = [world.extract(since="2020-01-01T00:00:00Z", resend=resend) for resend in (False, True)]
    for operation in old:
        world.snapshot(operation)
    lead_store.update(world.hive, "ASDAD", 7, "Newer", "1", None)
    world.run(destinations=["hubspot"])
    assert world.load(old[0], "hubspot")["overtaken"] == 1
    assert world.load(old[1], "hubspot")["delivered"] == 10  # of one lead what it is by now
    world.assert_in_step("hubspot")
    assert world.watermark("salesforce") == before


def test_a_load_of_a_replaced_attempt_refuses(world: World) -> None:
    fill(world, 1)
    old = world.extract("run-1")
    world.snapshot(old)
    new = world.extract("run-1")
    assert new.sync_id != old.sync_id
    for step in (world.snapshot, lambda operation: world.load(operation, "hubspot"), world.commit):
        with pytest.raises(Superseded):
            step(old)


def test_a_lead_in_doubt_is_read_again(world: World) -> None:
    """A newer run claimed the lead and died; the older run, cleared, must not send its older state."""
    fill(world, 2)
    old = world.extract()
    world.snapshot(old)
    lead_store.update(world.hive, "ASDAD", 2, "Newer", "1", None)
    world.hive.execute("DELETE FROM customer WHERE uid = 1")
    new = world.extract()
    world.snapshot(new)
    sequence = world.state.execute("SELECT max(sequence) FROM leadsync.sync_operation").fetchone()
    assert sequence is not None
    world.load(new, "hubspot")
    world.state.execute("UPDATE leadsync.delivery SET digest = NULL")
    world.state.execute(
        "INSERT INTO leadsync.delivery (destination_id, lead_key, sequence) "
        "SELECT destination_id, %s, %s FROM leadsync.watermark WHERE destination = 'hubspot'",
        (lead_key("ASDAD:1"), sequence[0]),
    )
    counts = world.load(old, "hubspot")
    assert counts["delivered"] == 1
    assert world.dead("hubspot") == {"ASDAD:1": "failed"}
    assert world.simulators["hubspot"].records()["ASDAD:2"]["firstname"] == "Newer"


def test_leads_in_doubt_of_any_chunk_are_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were read again, failed in passing, and are looked for in the chunks that they came from."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 1000)
    fill(world, 250)
    old = world.extract()
    world.snapshot(old)
    new = world.extract()
    world.snapshot(new)
    world.load(new, "hubspot")
    world.state.execute("UPDATE leadsync.delivery SET digest = NULL")
    deliver = CRMAdapter.deliver

    def lost(self: CRMAdapter, leads: Any, *, delete: bool = False) -> Any:
        if any(lead.external_id == "ASDAD:250" for lead in leads):
            world.simulators["hubspot"].faults(lose_reply={"next": 1})
        return deliver(self, leads, delete=delete)

    object.__setattr__(world.target("hubspot"), "in_flight", 1)
    monkeypatch.setattr(CRMAdapter, "deliver", lost)
    with pytest.raises(TransientFailure):
        world.load(old, "hubspot")
    monkeypatch.undo()
    assert world.load(old, "hubspot")["delivered"] == 250
    world.assert_in_step("hubspot")


def test_leads_that_arrive_before_a_crm_goes_away_again_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the leads that wait to be tried again some arrive, then the CRM fails: those that arrived wait no longer."""
    fill(world, 250)
    operation = world.extract()
    world.snapshot(operation)
    object.__setattr__(world.target("hubspot"), "in_flight", 1)
    deliver, failing = CRMAdapter.deliver, iter([False, True, False, *[False, True, True, True]])

    def sometimes(self: CRMAdapter, leads: Any, *, delete: bool = False) -> Any:
        world.simulators["hubspot"].faults(**({"server_error": {"next": 1}} if next(failing) else {}))
        return deliver(self, leads, delete=delete)

    with monkeypatch.context() as patch:
        patch.setattr(CRMAdapter, "deliver", sometimes)
        for error in (TransientFailure, Unavailable):
            with pytest.raises(error):
                world.load(operation, "hubspot")
    world.simulators["hubspot"].faults()
    assert world.load(operation, "hubspot")["delivered"] == 250
    world.assert_in_step("hubspot")


def test_awkward_values_never_stop_a_load(world: World) -> None:
    fill(world, 30)
    rows = [
        ("A:B\\", 1, "tab\there\nnewline\\N \\. end", "x" * 1_000_000),
        ("emoji 😀", 2, "\ufffe \x01 \u202e", None),
        ("ASDAD", 10_003, None, ""),
    ]
    for appkey, uid, name, phone in rows:
        world.hive.execute(
            "INSERT INTO customer (appkey, uid, name, phone) VALUES (%s, %s, %s, %s)", (appkey, uid, name, phone)
        )
    world.run()
    for name in world.simulators:
        world.assert_in_step(name)


def test_a_row_that_cannot_be_mapped_is_a_dead_letter(world: World) -> None:
    fill(world, 30)
    target = world.target("hubspot")
    fields = {**target.fields, "leadsync_uid": FieldMapping(column="phone", transform=("integer",))}
    world.hive.execute("UPDATE customer SET phone = uid::text WHERE uid <> 4")
    object.__setattr__(target, "fields", fields)
    counts = world.run(destinations=["hubspot"])
    assert counts["hubspot"]["dead"] == 1
    assert world.dead("hubspot") == {"ASDAD:4": "mapping"}


def test_a_dead_letter_is_closed_when_its_lead_is_not_routed_any_more(world: World) -> None:
    fill(world, 3)
    world.simulators["hubspot"].faults(reject={"external_ids": ["ASDAD:2"]})
    world.run()
    old = world.extract(since="2020-01-01T00:00:00Z")
    world.snapshot(old)
    object.__setattr__(world.target("hubspot"), "route", {"name": ("Lead 1", "Lead 2")})
    lead_store.update(world.hive, "ASDAD", 2, "Not for HubSpot", None, None)
    assert world.load(old, "hubspot")["dead"] == 1  # the state that it has read is still for HubSpot
    assert world.run()["hubspot"]["not_routed"] == 1
    assert world.dead("hubspot") == {}


def test_the_letter_of_a_lead_that_was_read_again_is_as_new_as_what_was_read(world: World) -> None:
    """An older state that arrives later resolves nothing."""
    fill(world, 3)
    world.hive.execute("UPDATE customer SET phone = uid")
    target = world.target("hubspot")
    fields = {**target.fields, "leadsync_uid": FieldMapping(column="phone", transform=("integer",))}
    object.__setattr__(target, "fields", fields)
    old = world.extract()
    world.snapshot(old)
    run = world.extract()
    world.snapshot(run)
    world.simulators["hubspot"].faults(lose_reply={"next": 1})
    with pytest.raises((Unavailable, TransientFailure)):
        world.load(run, "hubspot")
    world.hive.execute("UPDATE customer SET phone = 'none' WHERE uid = 2")
    assert world.load(old, "hubspot")["dead"] == 1
    assert world.load(run, "hubspot")["dead"] == 0
    assert world.dead("hubspot") == {"ASDAD:2": "mapping"}


@pytest.mark.parametrize("needs", [True, False])
def test_an_adapter_that_needs_the_crms_ids_gets_those_that_are_known(
    world: World, monkeypatch: pytest.MonkeyPatch, needs: bool
) -> None:
    fill(world, 2)
    world.run(destinations=["hubspot"])
    known: list[str | None] = []
    upsert = HubSpot.upsert
    monkeypatch.setattr(HubSpot, "needs_crm_id", needs)
    monkeypatch.setattr(HubSpot, "upsert", lambda me, leads: known.extend(x.crm_id for x in leads) or upsert(me, leads))
    lead_store.insert(world.hive, "OTHER", "Lead 3")
    world.run(since="2020-01-01T00:00:00Z", resend=True, destinations=["hubspot"])
    ids = {record["id"] for record in world.simulators["hubspot"].get("records").values()}
    assert len(known) == 3
    assert len(ids & set(known)) == (2 if needs else 0)


def test_a_dry_run_sends_and_writes_nothing(world: World) -> None:
    fill(world, 4)
    world.run()
    lead_store.update(world.hive, "ASDAD", 1, "Newer", "1", None)
    lead_store.delete(world.hive, "ASDAD", 2)
    world.hive.execute("INSERT INTO customer (appkey, uid) VALUES ('N', 1)")
    tables = ("delivery", "sync_operation", "watermark", "operation_log", "dead_letter")
    before = [world.state.execute(f"SELECT * FROM leadsync.{table}").fetchall() for table in tables]  # type: ignore[arg-type]  # noqa: S608
    requests = world.simulators["hubspot"].get("stats")["by_status"]
    with world.store() as store:
        world.settle()
        bound = store.bound().upper
        report = dry_run(world.state, store, world.pipeline, "hubspot", Window(None, bound), resend=False)
    assert report == {
        "read": 5, "created": 1, "updated": 1, "deleted": 1, "unchanged": 2, "not_routed": 0, "rejected": 0,
        "rejected_fields": {},
    }  # fmt: skip
    after = [world.state.execute(f"SELECT * FROM leadsync.{table}").fetchall() for table in tables]  # type: ignore[arg-type]  # noqa: S608
    assert after == before
    assert world.simulators["hubspot"].get("stats")["by_status"] == requests
