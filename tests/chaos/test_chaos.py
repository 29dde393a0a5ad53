"""A fixed set of sequences, and proof that the suite finds what it is for. `make chaos` plays many more."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.chaos.checker import Checker, Finding, Seen
from tests.chaos.events import (
    Begin,
    Clear,
    Doom,
    End,
    Event,
    Faults,
    Lose,
    Network,
    Reconcile,
    Recover,
    Replay,
    Rest,
    Run,
    dump,
    parse,
)
from tests.chaos.generator import Generator
from tests.chaos.sequence import play
from tests.chaos.world import CRMS, World, running_world

SEEDS = (1, 2, 3)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with running_world() as world:
        yield world


@pytest.mark.parametrize("seed", SEEDS)
def test_a_storm_loses_doubles_and_outdates_nothing(world: World, seed: int) -> None:
    verdict = play(world, seed, list(Generator(seed).events()))
    assert verdict.failures == []
    assert verdict.figures["changes in CRMs"] > 0


def test_a_sequence_is_the_same_again_and_can_be_written_down() -> None:
    events = list(Generator(42).events())
    assert list(Generator(42).events()) == events
    assert list(Generator(43).events()) != events
    assert dump(parse(dump(events))) == dump(events)


# The checker -----------------------------------------------------------------------------------------------------


def commit(transaction: int, *changes: tuple[str, int, int]) -> list[Event]:
    return [Begin(transaction=transaction, changes=list(changes), wait=0.0), End(transaction=transaction, wait=0.1)]


def run(*crms: str) -> list[Event]:
    return [Run(destinations=list(crms), wait=0.0), Rest(wait=0.0)]


# Lead 1 changes twice, lead 2 is deleted, lead 3 stays.
PLAIN = [
    *commit(1, *(("insert", lead, lead) for lead in (1, 2, 3))),
    *run(),
    *commit(2, ("update", 1, 3), ("delete", 2, 0)),
]
INTO_JOURNAL = "INSERT INTO journal (at, action, number, external_id, fields)"
LEADS = {1: "新品:1", 2: "A\\:B:2", 3: "back\\\\slash:3"}


def findings(world: World, crm: str) -> list[Finding]:
    simulator = world.crms[crm]
    seen = Seen(simulator.records(), simulator.journal(), simulator.stats()["records"])
    return Checker(world.hive, world.state).check(crm, seen)


def tamper(world: World, crm: str, *statements: str) -> set[tuple[str, str]]:
    """Changes a CRM behind everybody's back, after a quiet sequence; what the checker then finds: (kind, lead)."""
    verdict = play(world, 0, PLAIN)
    assert verdict.failures == []
    with closing(sqlite3.connect(world.folder / crm / "crm.sqlite", isolation_level=None)) as database:
        for statement in statements:
            assert database.execute(statement, {f"lead{n}": lead for n, lead in LEADS.items()}).rowcount == 1
    return {(finding.kind, finding.lead) for finding in findings(world, crm)}


@pytest.mark.parametrize("crm", CRMS)
def test_the_checker_finds_a_lost_lead(world: World, crm: str) -> None:
    assert tamper(world, crm, "UPDATE record SET deleted = 1 WHERE external_id = :lead3") == {("lost", LEADS[3])}


@pytest.mark.parametrize("crm", CRMS)
def test_the_checker_finds_a_lead_that_should_be_gone(world: World, crm: str) -> None:
    assert tamper(world, crm, "UPDATE record SET deleted = 0 WHERE external_id = :lead2") == {("alive", LEADS[2])}


@pytest.mark.parametrize("crm", CRMS)
def test_the_checker_finds_an_outdated_field(world: World, crm: str) -> None:
    older = "UPDATE record SET fields = replace(fields, '\"+86 13800000003\"', '\"1\"') WHERE external_id = :lead1"
    assert tamper(world, crm, older) == {("stale", LEADS[1])}


@pytest.mark.parametrize("crm", CRMS)
def test_the_checker_finds_a_double(world: World, crm: str) -> None:
    copy = "INSERT INTO record (external_id, fields, created_at, updated_at) SELECT {}, fields, '', '' FROM record"
    same, other = copy.format("external_id"), copy.format("'other'")
    where = " WHERE external_id = :lead3"
    assert tamper(world, crm, same + where) == {("doubled", "?")}
    found = tamper(world, crm, other + where)
    assert ("alive", "other") in found
    assert {kind for kind, _ in found} == {"alive", "doubled"}


@pytest.mark.parametrize("crm", CRMS)
def test_the_checker_finds_an_older_state_after_a_newer_one(world: World, crm: str) -> None:
    again = f"{INTO_JOURNAL} SELECT '', action, number, external_id, fields"
    first = " FROM journal WHERE external_id = :lead{} AND action = 'create'"
    assert tamper(world, crm, again + first.format(1)) == {("back", LEADS[1])}
    assert tamper(world, crm, again + first.format(2)) == {("back", LEADS[2])}
    # A delete that no deleted state stands behind, and a state that nobody committed.
    gone = f"{INTO_JOURNAL} SELECT '', 'delete', number, external_id, '{{}}'"
    assert tamper(world, crm, gone + first.format(3)) == {("invented", LEADS[3])}
    assert tamper(world, crm, "UPDATE journal SET fields = '{}' WHERE external_id = :lead3") == {("invented", LEADS[3])}


def test_what_a_crm_lost_and_what_is_gone_from_the_lead_store_is_mended_by_people(world: World) -> None:
    refuse = Faults(crm="salesforce", faults={"reject": {"external_ids": [LEADS[1]]}}, wait=0.0)
    mended = [
        Faults(crm="salesforce", faults={}, wait=0.0),
        Lose(crm="hubspot", leads=[1, 3], wait=0.0),
        *commit(3, ("remove", 3, 0)),
        Replay(crm="salesforce", wait=0.0),
        Recover(crm="hubspot", since=0.0, resend=True, wait=0.0),
        Reconcile(crm="salesforce"),
        Rest(wait=0.0),
    ]
    verdict = play(world, 0, [refuse, *PLAIN, *run(), *mended])
    assert verdict.failures == []
    assert verdict.figures["dead letters"] == 0
    assert verdict.events["Lose"] == 1
    assert verdict.tasks["success"] > 10


def test_a_lead_that_is_refused_is_explained_by_its_dead_letter_only(world: World) -> None:
    refuse = Faults(crm="hubspot", faults={"reject": {"external_ids": [LEADS[3]]}}, wait=0.0)
    verdict = play(world, 0, [refuse, *PLAIN])
    assert verdict.failures == []
    assert verdict.figures["dead letters"] == 1
    assert verdict.figures["explained by a dead letter"] == 1


# Rules broken on purpose -----------------------------------------------------------------------------------------

FULL, WELL, LOSES = (
    Faults(crm="hubspot", faults=faults, wait=0.0)
    for faults in ({"quota_spent": True}, {}, {"lose_reply": {"next": 1}})
)
SPARED, DIES_EARLY = (Doom(task="load", point=point, wait=0.0) for point in (9999, 1))
HUBSPOT = run("hubspot")
# The load of the run before the last is cleared.
AGAIN = [Clear(back=1, task="hubspot", wait=0.0), Rest(wait=0.0)]

# What shows that a rule is broken, and plays well when none is: by rule, events and what is found.
SCRIPTS: dict[str, tuple[list[Event], str]] = {
    # A transaction that stamped its row before the window's end and commits after it.
    "bound_is_now": (
        [*commit(1, ("insert", 1, 1)), Begin(transaction=2, changes=[("update", 1, 2)], wait=0.1), *run(),
         End(transaction=2)],
        "stale",
    ),
    # An undelete whose reply is lost, and then the delete again.
    "hash_is_kept": (
        [*commit(1, ("insert", 1, 1)), *HUBSPOT, *commit(2, ("delete", 1, 0)), *HUBSPOT, *commit(3, ("undelete", 1, 0)),
         LOSES, SPARED, DIES_EARLY, DIES_EARLY, DIES_EARLY, *HUBSPOT, *commit(4, ("delete", 1, 0))],
        "alive",
    ),
    # A request that the network holds up until its sender has given up and a newer state was sent.
    "nothing_is_waited_out": (
        [*commit(1, ("insert", 1, 1)), *HUBSPOT, *commit(2, ("update", 1, 2)),
         Network(service="hubspot", faults={"hold": 1.6}), Run(destinations=["hubspot"], wait=0.5),
         Network(service="hubspot", faults={}, wait=0.0), *commit(3, ("update", 1, 3)), *HUBSPOT],
        "back",
    ),
    # The load of an old run, cleared after a newer run.
    "sequence_is_ignored": (
        [*commit(1, ("insert", 1, 1)), FULL, *HUBSPOT, WELL, *commit(2, ("update", 1, 2)), *HUBSPOT, *AGAIN],
        "back",
    ),
    # The load of an old run that never claimed anything, cleared after the lead was found as it had been before.
    "unchanged_keeps_its_sequence": (
        [*commit(1, ("insert", 1, 1)), *HUBSPOT, *commit(2, ("delete", 1, 0)), *HUBSPOT, *commit(3, ("undelete", 1, 0)),
         DIES_EARLY, DIES_EARLY, DIES_EARLY, DIES_EARLY, *HUBSPOT, *commit(4, ("delete", 1, 0)), *HUBSPOT, *AGAIN],
        "alive",
    ),
    # Two runs that did not get through; the older one is cleared.
    "overtaken_by_doubt": (
        [*commit(1, ("insert", 1, 1)), FULL, *HUBSPOT, *HUBSPOT, WELL, *AGAIN],
        "lost",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", SCRIPTS)
def test_the_suite_finds_a_broken_rule(world: World, rule: str) -> None:
    events, kind = SCRIPTS[rule]
    assert play(world, 0, events).failures == []
    # Where it depends on what overtakes what it may take several tries.
    assert any(play(world, seed, events, broken=rule).kinds[kind] for seed in range(8))
