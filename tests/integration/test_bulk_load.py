"""Loads that Salesforce gets as bulk jobs, which go on working whatever becomes of the load."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis
from tests.contract.calls import DATA, Client
from tests.support.simulators import Simulator
from tests.support.world import World

from demo import lead_store
from leadsync import operations
from leadsync.clients import Clients
from leadsync.crm import salesforce_bulk
from leadsync.errors import TransientFailure, Unavailable
from leadsync.state.operations import Operation

COUNT = 300  # few, and still a bulk job: time-outs are short here


@pytest.fixture
def world(
    database: str, state: psycopg.Connection[Any], valkey: redis.Redis, salesforce: Simulator,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:  # fmt: skip
    monkeypatch.setattr(salesforce_bulk, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(salesforce_bulk, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(salesforce_bulk, "READ_WAITS", (0.05,))
    world = World(database, state, valkey, {"salesforce": salesforce})
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, phone, answers) SELECT 'ASDAD', n, 'Lead ' || n, '+86 ' || n, "
        '\'{"q": "a"}\' FROM generate_series(1, %s) n',
        (COUNT,),
    )
    settings(world, bulk_above=200)
    yield world
    world.hive.close()


def settings(world: World, **changes: Any) -> None:
    target = world.target("salesforce")
    object.__setattr__(target, "settings", {**target.settings, **changes})


def load(clients: Clients, world: World, operation: Operation) -> None:
    operations.load(clients, world.pipeline, operation.sync_id, "salesforce")


def states(crm: Simulator) -> list[str]:
    """Of all bulk jobs."""
    return [job["state"] for job in Client(crm).call("GET", f"{DATA}/jobs/ingest").json()["records"]]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def busy(world: World) -> bool:
    row = world.state.execute(
        "SELECT coalesce(bool_or(busy_until = 'infinity'), false) FROM leadsync.sender"
    ).fetchone()
    return bool(row and row[0])


def assert_nothing_went_back(crm: Simulator) -> None:
    """No change of a lead follows one of a later state."""
    latest: dict[str, str] = {}
    for change in crm.journal():
        at = change["fields"]["Updated_At__c"]
        assert at >= latest.get(change["external_id"], ""), f"{change['external_id']} went back"
        latest[change["external_id"]] = at


def test_a_large_load_is_one_job(world: World, salesforce: Simulator) -> None:
    assert world.run()["salesforce"]["delivered"] == COUNT
    world.assert_in_step("salesforce")
    assert states(salesforce) == ["JobComplete"]
    assert salesforce.stats()["by_status"]["200"] < 20
    lead_store.update(world.hive, "ASDAD", 7, "New Name", "1", None)
    lead_store.delete(world.hive, "ASDAD", 8)
    assert world.run()["salesforce"]["delivered"] == 2
    world.assert_in_step("salesforce")
    assert len(states(salesforce)) == 1


def test_a_bad_lead_of_a_job_is_a_dead_letter(world: World) -> None:
    world.hive.execute("UPDATE customer SET email = 'no address' WHERE uid = 5")
    counts = world.run()["salesforce"]
    assert (counts["delivered"], counts["dead"]) == (COUNT - 1, 1)
    assert world.dead("salesforce") == {"ASDAD:5": "rejected"}


def test_what_a_job_did_not_reach_is_tried_again(world: World, salesforce: Simulator) -> None:
    salesforce.faults(fail_job={"next": 1})
    operation = world.extract()
    world.snapshot(operation)
    with pytest.raises(TransientFailure, match=f"{COUNT // 2} leads"):
        world.load(operation, "salesforce")
    assert world.load(operation, "salesforce")["delivered"] == COUNT
    world.assert_in_step("salesforce")


@pytest.mark.parametrize("slow", [1.5, 3.0, 8.0], ids=["ends", "is half done", "is queued"])
def test_the_job_of_a_load_that_was_killed_overwrites_nothing(world: World, salesforce: Simulator, slow: float) -> None:
    """Whoever comes next takes over after about 3.3 seconds: the job has ended by then, is half done, or waits."""
    operation = world.extract()
    world.snapshot(operation)
    salesforce.faults(slow_job=slow)
    with world.process(lambda clients: load(clients, world, operation)) as child:
        until(lambda: "UploadComplete" in states(salesforce))
        closed = time.monotonic()
        os.kill(child, signal.SIGKILL)
        salesforce.faults()
        lead_store.update(world.hive, "ASDAD", 7, "Newer", "1", None)
        lead_store.update(world.hive, "ASDAD", COUNT - 7, "Newer", "1", None)
        assert world.run()["salesforce"]["delivered"] == COUNT
    world.assert_in_step("salesforce")
    time.sleep(max(0.0, closed + 2 * slow + 0.5 - time.monotonic()))
    world.assert_in_step("salesforce")
    assert_nothing_went_back(salesforce)
    assert not busy(world)
    assert world.load(operation, "salesforce")["overtaken"] == COUNT


def test_a_load_that_gives_up_ends_its_job(world: World, salesforce: Simulator) -> None:
    settings(world, bulk_timeout=0.5)
    salesforce.faults(slow_job=2)
    operation = world.extract()
    world.snapshot(operation)
    with pytest.raises(Unavailable):
        world.load(operation, "salesforce")
    assert states(salesforce) == ["Aborted"]
    assert not busy(world)
    salesforce.faults()
    assert world.load(operation, "salesforce")["delivered"] == COUNT
    world.assert_in_step("salesforce")


def test_a_load_that_can_not_end_its_job_leaves_that_to_the_next(world: World, salesforce: Simulator) -> None:
    salesforce.faults(slow_job=5)
    operation = world.extract()
    world.snapshot(operation)
    with world.process(lambda clients: load(clients, world, operation)) as child:
        until(lambda: "UploadComplete" in states(salesforce))
        closed = time.monotonic()
        salesforce.faults(slow_job=5, down=True)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert busy(world), "the load ended in order, but its job goes on"
    claimed = world.state.execute("SELECT max(sequence) FROM leadsync.delivery").fetchone()
    lead_store.update(world.hive, "ASDAD", 7, "Newer", "1", None)
    newer = world.extract()
    world.snapshot(newer)
    with pytest.raises(Unavailable):
        world.load(newer, "salesforce")
    assert busy(world)
    assert world.state.execute("SELECT max(sequence) FROM leadsync.delivery").fetchone() == claimed
    salesforce.faults()
    assert world.load(newer, "salesforce")["delivered"] == COUNT
    world.assert_in_step("salesforce")
    time.sleep(max(0.0, closed + 10.5 - time.monotonic()))
    world.assert_in_step("salesforce")
    assert_nothing_went_back(salesforce)


def test_a_lost_fence_leaves_the_job_to_the_next(world: World, salesforce: Simulator) -> None:
    """A worker that is believed dead and goes on: its connection is gone, and with it the lock."""
    salesforce.faults(slow_job=6)
    operation = world.extract()
    world.snapshot(operation)
    with world.process(lambda clients: load(clients, world, operation)) as child:
        until(lambda: "UploadComplete" in states(salesforce))
        world.state.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = "
            "current_database()"
        )
        salesforce.faults()
        lead_store.update(world.hive, "ASDAD", 7, "Newer", "1", None)
        assert world.run()["salesforce"]["delivered"] == COUNT
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert states(salesforce) == ["Aborted", "JobComplete"]
    world.assert_in_step("salesforce")
    assert_nothing_went_back(salesforce)
