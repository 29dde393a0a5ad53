"""Dead letters are replayed, and a CRM that lost its data is filled again, on a real scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg

from demo import lead_store
from tests.e2e.conftest import Airflow


def fill(airflow: Airflow, appkey: str, count: int) -> None:
    airflow.hive.execute(
        "INSERT INTO customer (appkey, uid, name) SELECT %s, n, 'Lead ' || n FROM generate_series(1, %s) n",
        (appkey, count),
    )


def test_dead_letters_are_replayed_without_a_change_in_the_lead_store(airflow: Airflow) -> None:
    replay, hubspot = airflow.at("leadsync_replay"), airflow.simulators["hubspot"]
    fill(airflow, "REPLAY", 30)
    hubspot.faults(reject={"external_ids": ["REPLAY:1", "REPLAY:2"]})
    assert airflow.counts(airflow.run(), 0)["dead"] == 2
    # Nothing chosen: the groups to copy from.
    asked = replay.trigger()
    assert replay.wait(asked) == "failed"
    group = "rejected INVALID_VALUE leadsync_external_id"
    assert group in replay.log(asked, "choose")
    # The CRM is not mended yet.
    early = replay.trigger(group=group)
    assert replay.wait(early) == "failed"
    (label,) = (name for name in replay.tasks(early) if name.startswith("hubspot: all 2 leads were refused again"))
    assert replay.tasks(early)[label]["try_number"] == 1
    hubspot.faults(reject={"external_ids": ["REPLAY:1"]})
    half = replay.run(group=group, pipeline="leads", destinations=["hubspot"])
    assert "hubspot: 1 of 2 refused again" in replay.tasks(half)
    hubspot.faults()
    last = replay.run(external_ids=["REPLAY:1"])
    assert replay.tasks(last)["hubspot"]["state"] == "success"
    assert replay.counts(last, 0, "replay")["delivered"] == 1
    nothing = replay.run(all=True, destinations=["hubspot"])
    assert {task["state"] for task in replay.task_instances(nothing)} == {"skipped"}
    airflow.assert_in_step()


@contextmanager
def without_lead_store(airflow: Airflow) -> Iterator[None]:
    """Nobody but its owner can log in to the lead store."""
    with psycopg.connect(airflow.stack.postgres.dsn("hive", "postgres"), autocommit=True) as owner:
        owner.execute("ALTER ROLE leadsync_reader NOLOGIN")
        try:
            yield
        finally:
            owner.execute("ALTER ROLE leadsync_reader LOGIN")


def test_a_crm_that_was_emptied_is_filled_again_while_the_lead_store_is_down(airflow: Airflow) -> None:
    recover, hubspot = airflow.at("leadsync_recover"), airflow.simulators["hubspot"]
    fill(airflow, "EMPTY", 300)
    since = datetime.now(UTC).isoformat()
    airflow.run(since="2020-01-01T00:00:00Z")
    lead_store.update(airflow.hive, "EMPTY", 1, "Newer", "1", None)
    lead_store.delete(airflow.hive, "EMPTY", 2)
    airflow.run()
    records = hubspot.records()
    with without_lead_store(airflow):
        hubspot.reset()
        waiting = airflow.trigger()
        airflow.until(
            lambda: airflow.tasks(waiting)["extract"]["state"] == "up_for_retry", "extract found a lead store"
        )
        run_id = recover.run(since=since, destinations=["hubspot"], resend=True)
        assert hubspot.records() == records
    counts = recover.counts(run_id, 0, "recover")
    assert counts["snapshots"] == 2
    assert counts["overtaken"] >= 2  # in the older snapshot: what the newer one holds too
    assert {"choose", "hubspot"} == set(recover.tasks(run_id))
    assert airflow.wait(waiting) == "success"
    airflow.assert_in_step()
