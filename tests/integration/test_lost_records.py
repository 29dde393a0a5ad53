"""A CRM has lost what the ledger shows as delivered: nothing may take that lead for unchanged for ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from tests.support.reconciling import REPAIR, check, delete_in, fill
from tests.support.simulators import Simulator
from tests.support.world import World

from demo import lead_store
from leadsync import recover, redelivery
from leadsync.config import FieldMapping

SINCE = "2020-01-01T00:00:00Z"
LEAD = "A\\:B:1"


@pytest.fixture
def world(database: str, state: psycopg.Connection[Any], valkey: redis.Redis, hubspot: Simulator) -> Iterator[World]:
    world = World(database, state, valkey, {"hubspot": hubspot})
    fill(world, 3)
    world.run()
    yield world
    world.hive.close()


def write(world: World, name: str) -> None:
    lead_store.update(world.hive, "A:B", 1, name, None, None)


def only(world: World, name: str) -> None:
    """The CRM takes leads of this name alone."""
    object.__setattr__(world.target("hubspot"), "route", {"name": (name,)})


def everything(world: World) -> None:
    object.__setattr__(world.target("hubspot"), "route", {})


def test_a_repair_that_a_run_overtakes_without_sending_sends_all_the_same(world: World) -> None:
    delete_in(world, "hubspot", LEAD)
    found = redelivery.prepare(
        world.clients, world.pipeline, "repair-1", "repair", "hubspot", [LEAD], resend=True
    ).operation
    assert world.run(since=SINCE)["hubspot"]["unchanged"] == 3
    assert world.load(found, "hubspot")["delivered"] == 1
    world.assert_in_step("hubspot")


def test_a_backfill_that_resends_reads_what_has_changed_meanwhile(world: World) -> None:
    write(world, "Second")
    world.run()
    backfill = world.extract(since=SINCE, resend=True)
    world.snapshot(backfill)
    delete_in(world, "hubspot", LEAD)
    write(world, "Third")
    world.run()
    delete_in(world, "hubspot", LEAD)
    assert world.load(backfill, "hubspot")["delivered"] == 3
    world.assert_in_step("hubspot")


@pytest.mark.parametrize("reason", ["not routed", "unmappable"])
def test_a_resend_forgets_what_it_has_nothing_to_send_for(world: World, reason: str) -> None:
    """Else the lead would look unchanged when it comes back to the state that the CRM has lost."""
    target = world.target("hubspot")
    fields = target.fields
    if reason == "not routed":
        only(world, "nobody")
    else:
        unfit = {**fields, "city": FieldMapping(column="city", required=True)}
        object.__setattr__(target, "fields", unfit)
        object.__setattr__(target, "max_rejected", 1.0)
    delete_in(world, "hubspot", LEAD)
    backfill = world.extract(since=SINCE, resend=True)
    world.snapshot(backfill)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leadsync.load.Load._judge_mapping", lambda *_, **__: None)
        counts = world.load(backfill, "hubspot")
    assert counts["not_routed" if reason == "not routed" else "dead"] == 3
    everything(world)
    object.__setattr__(target, "fields", fields)
    assert world.run(since=SINCE)["hubspot"]["delivered"] == 3
    world.assert_in_step("hubspot")


def test_a_repair_forgets_what_the_ledger_shows_of_leads_that_are_not_routed(world: World) -> None:
    only(world, "nobody")
    delete_in(world, "hubspot", LEAD)
    assert check(world, "hubspot", REPAIR) == {"read": 3, "not_routed": 3}
    everything(world)
    assert world.run(since=SINCE)["hubspot"]["delivered"] == 3
    world.assert_in_step("hubspot")


def test_a_repair_forgets_a_state_that_the_crm_does_not_have(world: World) -> None:
    """A backup brought back the very state that the lead has by now; the ledger shows the one in between."""
    write(world, "Second")
    world.run()
    write(world, "Third")
    world.run()
    world.state.execute(
        "UPDATE leadsync.delivery SET digest = gen_random_uuid() WHERE external_id = %s AND digest IS NOT NULL", (LEAD,)
    )
    assert check(world, "hubspot") == {"read": 3, "in_step": 3}
    shown = "SELECT digest IS NOT NULL FROM leadsync.delivery WHERE external_id = %s"
    assert world.state.execute(shown, (LEAD,)).fetchone() == (True,)
    assert check(world, "hubspot", REPAIR) == {"read": 3, "in_step": 3}
    assert world.state.execute(shown, (LEAD,)).fetchone() == (False,)


def test_a_recovery_names_leads_that_are_not_routed_in_its_older_state(world: World) -> None:
    operation = world.state.execute("SELECT sync_id::text FROM leadsync.sync_operation").fetchone()
    assert operation is not None
    write(world, "Second")
    world.run()
    world.simulators["hubspot"].reset()
    only(world, "Second")
    parameters = {"destinations": ["hubspot"], "operations": [operation[0]], "resend": True}
    (item,) = recover.choose(world.clients, world.pipeline, parameters)
    counts = recover.run(world.clients, world.pipeline, "recover-1", item, "li")
    assert (counts["overtaken"], counts["not_routed"], counts["passed_over"]) == (1, 2, 1)
