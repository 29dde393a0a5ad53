"""Reconciling while everything else goes on, fails or dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

import psycopg
import pytest
import redis
from tests.support.reconciling import REPAIR, check, delete_in, fill, findings, last, tamper, watched
from tests.support.world import World

from demo.generator import Generator
from leadsync import comparison, operations, reconcile
from leadsync.budget import Budget, Lane
from leadsync.clients import Clients
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.crm.hubspot import HubSpot
from leadsync.errors import AccessError, QuotaExceeded, Unavailable
from leadsync.models import Kind
from leadsync.state import fence


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(reconcile, "PAGE", 10)
    monkeypatch.setattr(comparison, "PAUSES", (0.01, 0.01))
    return world


@pytest.fixture(params=["hubspot", "salesforce"])
def crm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def requests(world: World, crm: str) -> int:
    """So many requests reached the CRM since its reset."""
    return int(world.simulators[crm].stats()["requests"])


@contextmanager
def another(world: World) -> Iterator[World]:
    """The same world with connections of its own, as another process has."""
    with psycopg.connect(world.state.info.dsn, autocommit=True) as state:
        other = World(world.dsn, state, world.redis, world.simulators)
        with other.hive:
            yield other


# Traffic -------------------------------------------------------------------------------------------------------------


def test_heavy_traffic_makes_no_finding(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator, with transactions that commit late, and runs one after the other. In each reconciliation leads of
    its first page are changed and delivered between the reading of the leads and of their records.
    """
    monkeypatch.setattr(reconcile, "PAGE", 60)
    fill(world, 100)
    world.run()
    generator = Generator(world.dsn, 60, seed=7)
    over = threading.Event()
    trouble: list[BaseException] = []

    def deliver() -> None:
        try:
            with another(world) as other:
                other.settle = lambda: None  # type: ignore[method-assign]  # it would wait for what commits late
                while not over.is_set():
                    other.run()
        except BaseException as error:
            trouble.append(error)

    def change_and_wait(external_ids: Sequence[str]) -> None:
        if "A\\:B:7" not in external_ids or len(external_ids) < 60:
            return
        world.hive.execute("UPDATE customer SET city = 'c' || random() WHERE appkey = 'A:B' AND uid <= 9")
        row = world.hive.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        while (world.watermark(crm) or row[0]) <= row[0] and not trouble:
            time.sleep(0.01)

    threads = [threading.Thread(target=generator.run), threading.Thread(target=deliver)]
    for thread in threads:
        thread.start()
    counted: list[dict[str, int]] = []
    try:
        for crm in [*world.simulators] * 2:
            counted.append(check(world, crm, clients=watched(world, change_and_wait)))
    finally:
        over.set()
        generator.stop.set()
        for thread in threads:
            thread.join()
    assert not trouble
    for counts in counted:
        assert counts["pending"] >= 9
        assert counts["read"] == counts["in_step"] + counts["pending"] + counts.get("dead_letters", 0), counts
    world.run()
    for crm in world.simulators:
        assert "pending" not in check(world, crm)
        world.assert_in_step(crm)


def test_a_lead_that_changes_between_the_two_readings_is_pending(world: World, crm: str) -> None:
    fill(world, 5)
    world.run()
    with another(world) as other:

        def change(external_ids: Sequence[str]) -> None:
            """Between reading the lead and reading its record."""
            if len(external_ids) == 5:
                other.hive.execute("UPDATE customer SET name = 'Newer' WHERE uid = 2")
                other.run()

        assert check(world, crm, clients=watched(world, change)) == {"read": 5, "in_step": 4, "pending": 1}


def test_no_crm_is_called_inside_a_transaction(world: World, crm: str) -> None:
    """It would hold the safe bound back for as long as a CRM answers."""
    fill(world, 15)
    tamper(world, crm)
    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()"
    seen: list[int] = []

    def look(external_ids: Sequence[str]) -> None:
        row = world.hive.execute(open_ones + " AND backend_type = 'client backend'").fetchone()
        seen.append(row[0] if row else -1)

    check(world, crm, clients=watched(world, look))
    assert len(seen) >= 4
    assert set(seen) == {0}


# Trouble -------------------------------------------------------------------------------------------------------------


def test_half_a_page_makes_no_lead_missing(world: World, crm: str) -> None:
    fill(world, 35)
    world.run()
    world.simulators[crm].faults(half_page={"next": 2})
    assert check(world, crm) == {"read": 35, "in_step": 35}  # the page was asked for again
    world.simulators[crm].faults(half_page={"rate": 1})
    with pytest.raises(Unavailable, match="left records out of its reply.*the place is kept"):
        check(world, crm, run_id="nightly-1")
    row = last(world)
    assert (row["state"], row["cursor"], row["counts"]) == ("failed", None, {})
    assert "left records out" in row["error"]
    assert findings(world) == {}
    world.simulators[crm].faults()
    assert check(world, crm, run_id="nightly-1") == {"read": 35, "in_step": 35}
    assert last(world)["id"] == row["id"]


def test_an_adapter_that_forgets_an_id_is_not_believed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(world, 5)
    world.run()
    fetch = HubSpot.fetch
    monkeypatch.setattr(HubSpot, "fetch", lambda self, ids: dict(list(fetch(self, ids).items())[1:]))
    with pytest.raises(Unavailable, match="left records out of its reply"):
        check(world, "hubspot")


def test_a_spent_quota_and_a_field_that_is_missing_fail_at_once_and_keep_the_place(world: World, crm: str) -> None:
    fill(world, 35)
    world.run()

    def spend(external_ids: Sequence[str]) -> None:
        if "A\\:B:15" in external_ids:
            world.simulators[crm].faults(quota_spent=True)

    with pytest.raises(QuotaExceeded):
        check(world, crm, run_id="nightly-1", clients=watched(world, spend))
    row = last(world)
    assert (row["state"], row["cursor"], row["counts"]["read"]) == ("failed", ["A:B", "10"], 10)
    assert "QuotaExceeded" in world.recovery_log()
    world.simulators[crm].faults()
    assert check(world, crm, run_id="nightly-1") == {"read": 35, "in_step": 35}
    # HubSpot leaves out what it does not know, and then every lead would seem to differ.
    target = world.target(crm)
    object.__setattr__(target, "fields", {**target.fields, "no_such_field": target.fields[next(iter(target.fields))]})
    with pytest.raises(AccessError, match="no_such_field"):
        check(world, crm)


def test_it_keeps_to_the_rate_with_as_few_requests_as_can_be(world: World) -> None:
    fill(world, 80)
    world.run()
    object.__setattr__(world.target("hubspot"), "settings", {"requests_per_second": 8})
    world.simulators["hubspot"].faults(rate_limit={"requests": 9, "seconds": 1})
    before = world.simulators["hubspot"].stats()["by_status"]
    assert check(world, "hubspot") == {"read": 80, "in_step": 80}
    after = world.simulators["hubspot"].stats()["by_status"]
    assert after.get("429", 0) == before.get("429", 0)
    assert after["200"] - before["200"] == 9  # a look at the fields, and a page of ten each


def test_of_a_limit_per_day_it_leaves_a_fifth_to_the_loads(world: World) -> None:
    fill(world, 80)
    world.run()
    settings = {"requests_per_day": 10, "requests_per_second": 1000, "reserve": 0}
    object.__setattr__(world.target("hubspot"), "settings", settings)

    def budgeted(lane: Lane) -> Clients:
        @contextmanager
        def open_adapter(name: str) -> Iterator[CRMAdapter]:
            with redis.Redis(port=world.redis.get_connection_kwargs()["port"]) as client:
                budget, endpoint = Budget(client, lane), world.simulators[name].endpoint
                with closing(registry.build(world.target(name), endpoint, budget=budget)) as adapter:
                    yield adapter

        return replace(world.clients, open_adapter=open_adapter)

    with pytest.raises(QuotaExceeded, match="spent until"):
        check(world, "hubspot", run_id="nightly-1", clients=budgeted(Lane.BULK))
    assert last(world)["counts"]["read"] == 70
    world.hive.execute("UPDATE customer SET name = 'Newer' WHERE uid = 1")
    operation = world.extract(destinations=["hubspot"])
    world.snapshot(operation)
    counts = operations.load(budgeted(Lane.NEW), world.pipeline, operation.sync_id, "hubspot")
    assert counts["delivered"] == 1


@pytest.mark.parametrize("phase", ["leads", "ledger"])
def test_a_killed_one_is_taken_up_where_it_was(world: World, phase: str) -> None:
    """kill -9, in the middle of the comparison with the lead store, or of that with the ledger."""
    fill(world, 60)
    tamper(world, "hubspot")
    world.hive.execute("DELETE FROM customer WHERE uid BETWEEN 30 AND 55")
    full = check(world, "hubspot")
    simulator = world.simulators["hubspot"]
    simulator.faults(latency=0.2)
    progress = """
        SELECT id FROM leadsync.reconciliation WHERE run_id = 'nightly-1' AND phase = %s AND cursor IS NOT NULL
    """

    def work(clients: Clients) -> None:
        check(world, "hubspot", REPAIR, "nightly-1", clients=clients)

    with world.process(work):  # killed at its end
        until = time.monotonic() + 120
        while (row := world.state.execute(progress, (phase,)).fetchone()) is None:
            assert time.monotonic() < until
            time.sleep(0.02)
    simulator.faults()
    found = last(world)
    assert (found["state"], found["ended_at"]) == ("running", None)
    assert found["counts"]["read"] < full["read"] or phase == "ledger"
    before = requests(world, "hubspot")
    counts = check(world, "hubspot", REPAIR, "nightly-1")
    assert {name: count for name, count in counts.items() if name != "repaired"} == full
    assert counts["repaired"] == sum(full.get(kind, 0) for kind in Kind)
    assert last(world)["id"] == row[0]
    assert requests(world, "hubspot") > before
    world.assert_in_step("hubspot")
    assert "hard_deleted" not in check(world, "hubspot")


def test_a_run_that_is_done_begins_anew_when_it_is_cleared(world: World, crm: str) -> None:
    fill(world, 5)
    world.run()
    check(world, crm, run_id="nightly-1")
    first = last(world)["id"]
    delete_in(world, crm, "A\\:B:2")
    assert check(world, crm, run_id="nightly-1")["wrongly_deleted"] == 1
    assert last(world)["id"] != first


def test_two_of_one_destination_do_not_overlap(world: World) -> None:
    fill(world, 5)
    world.run()
    row = world.state.execute("SELECT destination_id FROM leadsync.watermark WHERE destination = 'hubspot'").fetchone()
    assert row is not None
    with psycopg.connect(world.state.info.dsn, autocommit=True) as other, fence.reconcile_lock(other, row[0]):
        waiting = fence.reconcile_lock(world.state, row[0], patience=0.1)
        with pytest.raises(Unavailable, match="another reconciliation of this destination"):
            waiting.__enter__()
        assert check(world, "salesforce") == {"read": 5, "in_step": 5}
