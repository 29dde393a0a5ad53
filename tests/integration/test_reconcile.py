"""Lead store, ledger and CRM are compared on real servers; every difference is made by tampering with one of them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.support.reconciling import (
    NAME,
    REPAIR,
    check,
    delete_in,
    fill,
    findings,
    last,
    silently,
    tamper,
    write_in,
)
from tests.support.world import World

from demo import lead_store
from leadsync import reconcile
from leadsync.config import FieldMapping
from leadsync.errors import LeadsyncError
from leadsync.reconcile_request import Request
from leadsync.state import reconciliation


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(reconcile, "PAGE", 10)
    return world


@pytest.fixture(params=["hubspot", "salesforce"])
def crm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# What is found -------------------------------------------------------------------------------------------------------


def test_nothing_is_found_where_all_is_in_step(world: World, crm: str) -> None:
    assert reconcile.describe(check(world, crm)) == "nothing to compare"
    fill(world, 35)
    world.run()
    lead_store.delete(world.hive, "A:B", 4)
    world.run()
    counts = check(world, crm)
    assert counts == {"read": 35, "in_step": 35}
    assert reconcile.describe(counts) == "in step"
    assert findings(world) == {}
    row = last(world)
    assert (row["state"], row["phase"], row["error"]) == ("done", "ledger", None)
    assert row["ended_at"] >= row["started_at"]


def test_every_kind_is_found_by_its_name_and_mended(world: World, crm: str) -> None:
    fill(world, 35)
    expected = tamper(world, crm)
    counts = check(world, crm)
    kinds = dict.fromkeys(expected.values(), 1)
    assert counts == {"read": 35, "in_step": 30, "vanished": 1, **kinds}
    found = findings(world)
    assert {external_id: kind for external_id, (kind, _, _) in found.items()} == expected
    fields = {kind: names for kind, names, _ in found.values() if names}
    assert fields == {"changed_by_hand": [NAME[crm]], "stale": [NAME[crm]]}
    assert reconcile.describe(counts) == (
        "1 missing, 1 stale, 1 wrongly alive, 1 wrongly deleted, 1 changed by hand, 1 hard deleted"
    )
    assert "reconcile" in world.recovery_log()
    assert len(check(world, crm)) == 9  # it only looks
    repaired = check(world, crm, REPAIR)
    assert repaired == {**counts, "repaired": 6}
    assert all(mended for _, _, mended in findings(world).values())
    world.assert_in_step(crm)
    again = check(world, crm)
    assert again == {"read": 35, "in_step": 35}
    assert reconcile.describe(again) == "in step"


def test_no_value_is_kept(world: World, crm: str) -> None:
    fill(world, 5)
    world.run()
    write_in(world, crm, "A\\:B:2", "Xyzzy Plugh")
    assert check(world, crm)["changed_by_hand"] == 1
    for table in ("reconciliation", "reconciliation_finding", "recovery_log"):
        query = f"SELECT count(*) FROM leadsync.{table} t WHERE t::text ~ 'Xyzzy|Lead 2'"  # noqa: S608
        assert world.state.execute(query).fetchone() == (0,)  # type: ignore[arg-type]


def test_doubles_are_told_with_their_ids_and_left_to_a_person(world: World) -> None:
    fill(world, 5)
    world.run()
    world.simulators["salesforce"].faults(double={"next": 1})
    write_in(world, "salesforce", "A\\:B:2", "Second")
    world.simulators["salesforce"].faults()
    assert check(world, "salesforce", REPAIR) == {"read": 5, "in_step": 4, "doubled": 1}
    assert findings(world) == {"A\\:B:2": ("doubled", [], False)}
    row = world.state.execute("SELECT cardinality(crm_ids) FROM leadsync.reconciliation_finding").fetchone()
    assert row == (2,)
    told = world.state.execute("SELECT message FROM leadsync.recovery_log WHERE kind = 'reconcile'").fetchone()
    assert told is not None
    assert "1 doubled; a load can't mend doubled records: merge them in the CRM" in told[0]


def test_fields_that_the_crm_owns_are_left_alone(world: World, crm: str) -> None:
    fill(world, 5)
    world.run()
    write_in(world, crm, "A\\:B:2", "By hand")
    object.__setattr__(world.target(crm), "crm_owned", (NAME[crm],))
    assert check(world, crm) == {"read": 5, "in_step": 5}
    object.__setattr__(world.target(crm), "crm_owned", ())
    assert check(world, crm)["changed_by_hand"] == 1


def test_examples_are_few_and_counts_are_exact(world: World, crm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reconciliation, reconcile):
        monkeypatch.setattr(module, "EXAMPLES", 3)
    fill(world, 25)
    world.run()
    silently(world, "UPDATE customer SET name = 'Unseen'")
    assert check(world, crm)["stale"] == 25
    assert len(findings(world)) == 3
    assert check(world, crm, REPAIR)["repaired"] == 25  # also those that are no examples
    assert len(findings(world)) == 3
    world.assert_in_step(crm)


# What is no finding --------------------------------------------------------------------------------------------------


def test_what_is_on_its_way_is_no_finding(world: World, crm: str) -> None:
    fill(world, 5)
    world.run()
    lead_store.update(world.hive, "A:B", 1, "Newer", None, None)
    lead_store.delete(world.hive, "A:B", 2)
    lead_store.insert(world.hive, "NEW", "Li")
    assert check(world, crm) == {"read": 3, "in_step": 3}
    world.run()
    assert check(world, crm) == {"read": 6, "in_step": 6}


def test_dead_letters_are_counted_apart(world: World, crm: str) -> None:
    fill(world, 10)
    world.simulators[crm].faults(reject={"external_ids": ["A\\:B:3"]})
    world.run()
    assert check(world, crm) == {"read": 10, "in_step": 9, "dead_letters": 1}


def test_leads_that_are_not_routed_or_can_not_be_mapped_are_counted_apart(world: World) -> None:
    fill(world, 3)
    fill(world, 4, "other")
    object.__setattr__(world.target("hubspot"), "route", {"appkey": ("A:B",)})
    world.run()
    assert check(world, "hubspot") == {"read": 7, "in_step": 3, "not_routed": 4}
    fields = {**world.target("hubspot").fields, "city": FieldMapping(column="city", required=True)}
    object.__setattr__(world.target("hubspot"), "fields", fields)
    assert check(world, "hubspot") == {"read": 7, "unmappable": 3, "not_routed": 4}


def test_what_is_older_than_the_start_is_missing_only_once_it_was_delivered(world: World, crm: str) -> None:
    fill(world, 12, "OLD")
    object.__setattr__(world.target(crm), "start", "now")
    world.run()
    lead_store.insert(world.hive, "NEW", "Li")
    world.run()
    assert check(world, crm) == {"read": 13, "in_step": 1, "before_start": 12}
    world.hive.execute("UPDATE customer SET city = 'Wien' WHERE uid = 7")
    world.run()
    delete_in(world, crm, "OLD:7")
    assert check(world, crm) == {"read": 13, "in_step": 1, "before_start": 11, "wrongly_deleted": 1}
    world.run(since="2020-01-01T00:00:00Z")
    assert check(world, crm)["in_step"] == 12
    # Another destination has them all from the beginning on.
    other = "hubspot" if crm == "salesforce" else "salesforce"
    assert check(world, other) == {"read": 13, "in_step": 13}


def test_a_lead_in_doubt_waits_for_the_load_that_has_it(world: World, crm: str) -> None:
    fill(world, 5)
    world.run()
    delete_in(world, crm, "A\\:B:2")
    world.simulators[crm].faults(reject={"external_ids": ["A\\:B:2"]}, server_error={"rate": 1})
    with pytest.raises(LeadsyncError):
        world.run(since="2020-01-01T00:00:00Z", resend=True, destinations=[crm])
    world.simulators[crm].faults()
    assert check(world, crm) == {"read": 5, "in_step": 4, "pending": 1}
    # Nobody came for an hour: it is nobody's any more.
    world.state.execute("UPDATE leadsync.operation_log SET end_at = end_at - interval '61 minutes'")
    assert check(world, crm, REPAIR) == {"read": 5, "in_step": 4, "missing": 1, "repaired": 1}
    world.assert_in_step(crm)


def test_a_lookback_keeps_its_leads_pending(world: World) -> None:
    fill(world, 5)
    world.run()
    source = world.pipeline.source.model_copy(update={"bound": "lag", "lag": 1.0, "lookback": 600.0})
    object.__setattr__(world.pipeline, "source", source)
    assert check(world, "hubspot") == {}


# Which leads ---------------------------------------------------------------------------------------------------------


def test_a_range_and_a_sample_of_it(world: World) -> None:
    fill(world, 60)
    world.run()
    cut = datetime.now(UTC)
    fill(world, 40, "NEW")
    world.run()
    assert check(world, "hubspot", Request(since=cut)) == {"read": 40, "in_step": 40}
    assert check(world, "hubspot", Request(until=cut)) == {"read": 60, "in_step": 60}
    half = check(world, "hubspot", Request(sample=0.5))["read"]
    assert 25 < half < 75
    assert check(world, "hubspot", Request(sample=0.5))["read"] == half  # the same ones again
    some = check(world, "hubspot", Request(until=cut, sample=15))["read"]
    assert 2 < some < 35
    assert check(world, "hubspot", Request(sample=500))["read"] == 100


def test_the_nightly_sample_moves_on_until_all_were_looked_at(world: World) -> None:
    fill(world, 60)
    silently(world, "UPDATE customer SET update_time = now() - interval '9 days'")
    fill(world, 5, "NEW")
    world.run()
    nightly = world.pipeline.reconcile.model_copy(update={"sample": 0.25})
    object.__setattr__(world.pipeline, "reconcile", nightly)
    world.hive.execute("DELETE FROM customer WHERE uid = 3 AND appkey = 'NEW'")
    read, starts = [], []
    for _ in range(5):
        counts = check(world, "hubspot", Request())
        assert counts["hard_deleted"] == 1  # searched in full every night
        read.append(counts["read"] - 4)
        starts.append(last(world)["sample_start"])
    assert sum(read[:4]) == 60
    assert len(set(starts)) == 4
    assert (read[4], starts[4]) == (read[0], starts[0])
    assert all(0 < count < 35 for count in read)
