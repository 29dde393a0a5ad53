"""Repairing what a reconciliation found, also when that fails, and records of leads that are gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.support.reconciling import REPAIR, check, delete_in, fill, findings, last, silently, watched
from tests.support.world import World

from leadsync import operation_log, reconcile, removal, repair
from leadsync.config import Delete
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.errors import BrokenMapping, TransientFailure, TryAgain
from leadsync.models import Lead


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(reconcile, "PAGE", 10)
    return world


@pytest.fixture(params=["hubspot", "salesforce"])
def crm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_repair_that_failed_is_taken_up_again(world: World, crm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "BATCH", 4)
    fill(world, 35)
    world.run()
    silently(world, "UPDATE customer SET name = 'Unseen' WHERE uid <= 10")
    world.hive.execute("DELETE FROM customer WHERE uid > 30")

    def fail(external_ids: Sequence[str]) -> None:
        if "A\\:B:7" in external_ids:
            world.simulators[crm].faults(reject={"rate": 1})

    object.__setattr__(world.target(crm), "max_rejected_floor", 2)
    with pytest.raises(BrokenMapping):
        check(world, crm, REPAIR, "nightly-1", clients=watched(world, fail))
    row = last(world)
    assert row["state"] == "failed"
    assert row["counts"]["stale"] >= 4
    world.simulators[crm].faults()
    counts = check(world, crm, REPAIR, "nightly-1")
    assert counts == {"read": 30, "in_step": 20, "stale": 10, "vanished": 5, "hard_deleted": 5, "repaired": 15}
    world.assert_in_step(crm)
    assert check(world, crm) == {"read": 30, "in_step": 30}


def test_a_lead_that_is_refused_becomes_a_dead_letter_and_stops_nothing(world: World, crm: str) -> None:
    fill(world, 5)
    world.run()
    silently(world, "UPDATE customer SET name = 'Unseen' WHERE uid <= 2")
    world.simulators[crm].faults(reject={"external_ids": ["A\\:B:1", "A\\:B:2"]})
    assert check(world, crm, REPAIR) == {"read": 5, "in_step": 3, "stale": 2}
    assert set(world.dead(crm)) == {"A\\:B:1", "A\\:B:2"}
    assert not any(mended for _, _, mended in findings(world).values())
    assert check(world, crm) == {"read": 5, "in_step": 3, "dead_letters": 2}


def test_a_lead_that_came_back_is_not_deleted(world: World, crm: str) -> None:
    fill(world, 5)
    world.run()
    world.hive.execute("DELETE FROM customer WHERE uid <= 2")
    looks = 0

    def comes_back(external_ids: Sequence[str]) -> None:
        """Before the second look: the first lead is back by then. After it: the second."""
        nonlocal looks
        looks += "A\\:B:1" in external_ids
        if looks == 2:
            world.hive.execute("INSERT INTO customer (appkey, uid, name) VALUES ('A:B', 1, 'Back')")

    counts = check(world, crm, REPAIR, clients=watched(world, comes_back))
    assert counts == {"read": 3, "in_step": 3, "vanished": 2, "hard_deleted": 1, "repaired": 1}
    assert "A\\:B:1" in world.simulators[crm].records()
    world.hive.execute("INSERT INTO customer (appkey, uid, name) VALUES ('A:B', 2, 'Back too')")
    removal.remove(world.clients, world.pipeline, "manual-1", crm, ["A\\:B:1", "A\\:B:2"])
    assert "A\\:B:1" in world.simulators[crm].records()
    world.run()
    world.assert_in_step(crm)


def test_a_delete_of_a_vanished_lead_outlives_older_snapshots(world: World, crm: str) -> None:
    fill(world, 5)
    world.run()
    old = world.extract(since="2020-01-01T00:00:00Z", resend=True)
    world.snapshot(old)
    world.hive.execute("DELETE FROM customer WHERE uid = 2")
    assert check(world, crm, REPAIR)["repaired"] == 1
    assert world.load(old, crm)["overtaken"] == 1
    world.assert_in_step(crm)


def test_what_was_deleted_is_in_the_operation_log(world: World, crm: str) -> None:
    fill(world, 2)
    world.run()
    world.hive.execute("DELETE FROM customer WHERE uid = 2")
    check(world, crm, REPAIR)
    row = world.state.execute("SELECT repair_id FROM leadsync.reconciliation_finding").fetchone()
    assert row is not None
    (entry,) = operation_log.read(world.state, world.sealer, str(row[0]))
    assert (entry["destination"], entry["result"]) == (crm, 1)
    assert entry["data"] == ["delete from customer where appkey='A:B' and uid=2"]


def test_records_that_can_not_be_deleted_now_are_tried_again(world: World, crm: str) -> None:
    fill(world, 2)
    world.run()
    world.hive.execute("DELETE FROM customer WHERE uid = 2")
    world.simulators[crm].faults(lose_reply={"next": 1})
    with pytest.raises(TransientFailure, match="1 records could not be deleted now"):
        check(world, crm, REPAIR, "nightly-1")
    assert last(world)["counts"]["hard_deleted"] == 1
    counts = check(world, crm, REPAIR, "nightly-1")
    assert (counts["hard_deleted"], counts["repaired"]) == (1, 1)
    world.assert_in_step(crm)
    world.simulators[crm].faults(down=True)
    with pytest.raises(TryAgain):
        removal.remove(world.clients, world.pipeline, "manual-1", crm, ["A\\:B:2"])


def test_where_a_delete_is_a_mark_a_vanished_lead_is_marked(world: World, crm: str) -> None:
    field = {"hubspot": "leadsync_deleted", "salesforce": "Deleted__c"}[crm]
    object.__setattr__(world.target(crm), "on_delete", Delete(mode="field", field=field, value=True))
    fill(world, 3)
    world.run()
    world.hive.execute("DELETE FROM customer WHERE uid = 2")
    world.hive.execute("UPDATE customer SET is_delete = true WHERE uid = 3")
    world.run()
    assert check(world, crm, REPAIR) == {"read": 2, "in_step": 2, "vanished": 1, "hard_deleted": 1, "repaired": 1}
    assert world.simulators[crm].records()["A\\:B:2"][field] in (True, "true")
    assert check(world, crm) == {"read": 2, "in_step": 2, "vanished": 1}
    # A record that is not there is not made anew to be marked.
    delete_in(world, crm, "A\\:B:2")
    removal.remove(world.clients, world.pipeline, "manual-1", crm, ["A\\:B:2"])
    assert "A\\:B:2" not in world.simulators[crm].records()


def test_the_crms_own_ids_come_along(world: World, crm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a CRM that keeps some records from a look-up by external id: without them they would be called deleted."""
    fill(world, 3)
    world.run()
    ids = {external_id: record["id"] for external_id, record in world.simulators[crm].get("records").items()}
    world.hive.execute("DELETE FROM customer WHERE uid = 3")
    kind, looked_up, deleted = registry.adapter_class(crm), {}, {}
    fetch, delete = kind.fetch_known, kind.delete

    def fetching(adapter: CRMAdapter, crm_ids: Mapping[str, str | None]) -> Any:
        looked_up.update(crm_ids)
        return fetch(adapter, crm_ids)

    def deleting(adapter: CRMAdapter, leads: Sequence[Lead]) -> Any:
        deleted.update({lead.external_id: lead.crm_id for lead in leads})
        return delete(adapter, leads)

    monkeypatch.setattr(kind, "needs_crm_id", True)
    monkeypatch.setattr(kind, "fetch_known", fetching)
    monkeypatch.setattr(kind, "delete", deleting)
    assert check(world, crm, REPAIR)["hard_deleted"] == 1
    assert looked_up == ids
    assert deleted == {"A\\:B:3": ids["A\\:B:3"]}
