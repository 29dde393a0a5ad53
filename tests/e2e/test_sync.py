"""Leads flow on a real scheduler. The tests share one world and go over it in order; each ends in step."""

from __future__ import annotations

import os
import signal

import psycopg
import pytest

from demo import lead_store
from tests.e2e.conftest import Airflow

SINCE = "2020-01-01T00:00:00Z"


def fill(airflow: Airflow, appkey: str, count: int) -> None:
    airflow.hive.execute(
        "INSERT INTO customer (appkey, uid, name) SELECT %s, n, 'Lead ' || n FROM generate_series(1, %s) n",
        (appkey, count),
    )


def test_a_first_run_an_update_and_a_delete(airflow: Airflow) -> None:
    fill(airflow, "FIRST", 300)
    run_id = airflow.run()
    assert {"hubspot", "salesforce"} <= set(airflow.tasks(run_id))
    assert airflow.counts(run_id, 0)["delivered"] == 300
    airflow.assert_in_step()
    lead_store.update(airflow.hive, "FIRST", 1, "Newer 😀", "1", None)
    lead_store.delete(airflow.hive, "FIRST", 2)
    assert airflow.counts(airflow.run(), 1)["delivered"] == 2
    airflow.assert_in_step()


def test_a_rejected_lead_shows_in_the_label(airflow: Airflow) -> None:
    fill(airflow, "REJECT", 30)
    airflow.hive.execute("UPDATE customer SET email = 'no address' WHERE appkey = 'REJECT' AND uid = 5")
    run_id = airflow.run()
    assert {"hubspot: 1 dead letters", "salesforce: 1 dead letters"} <= set(airflow.tasks(run_id))
    airflow.hive.execute("UPDATE customer SET email = 'li@example.com' WHERE appkey = 'REJECT' AND uid = 5")
    assert {"hubspot", "salesforce"} <= set(airflow.tasks(airflow.run()))
    airflow.assert_in_step()


def test_a_spent_quota_fails_at_once_parks_the_crm_and_goes_on_when_cleared(airflow: Airflow) -> None:
    fill(airflow, "QUOTA", 10)
    airflow.simulators["salesforce"].faults(quota_spent=True)
    old = airflow.trigger()
    assert airflow.wait(old) == "failed"
    tasks = airflow.tasks(old)
    assert tasks["salesforce"]["try_number"] == 1
    assert tasks["hubspot"]["state"] == "success"
    assert tasks["commit_watermark"]["state"] == "upstream_failed"
    # The next run does not wait for it, and shows that.
    airflow.simulators["salesforce"].faults()
    lead_store.update(airflow.hive, "QUOTA", 3, "Newer", "1", None)
    tasks = airflow.tasks(airflow.run())
    (label,) = (name for name in tasks if name.startswith("salesforce: parked (QuotaExceeded"))
    assert label.endswith("10 leads wait")
    assert (tasks[label]["state"], tasks["hubspot"]["state"]) == ("skipped", "success")
    assert tasks["commit_watermark"]["state"] == "success"
    # A newer state goes out with a newer run; the older run, cleared after it, sends nothing old.
    airflow.run(destinations=["salesforce"])
    airflow.assert_in_step()
    airflow.clear(old, "load", 1)
    assert airflow.wait(old) == "success"
    assert airflow.counts(old, 1)["overtaken"] == 10
    airflow.assert_in_step()


def test_a_crm_that_is_away_comes_back_within_the_retries(airflow: Airflow) -> None:
    fill(airflow, "DOWN", 10)
    airflow.simulators["hubspot"].faults(server_error={"rate": 1})
    run_id = airflow.trigger()
    airflow.until(lambda: airflow.load(run_id, 0)["state"] == "up_for_retry", "the load was not retried")
    airflow.simulators["hubspot"].faults()
    assert airflow.wait(run_id) == "success"
    assert airflow.tasks(run_id)["hubspot"]["try_number"] > 1
    airflow.assert_in_step()


def test_a_crm_that_is_down_for_a_whole_run_gets_everything_from_the_next(airflow: Airflow) -> None:
    fill(airflow, "AWAY", 10)
    airflow.simulators["salesforce"].faults(down=True)
    lost = airflow.trigger()
    assert airflow.wait(lost) == "failed"
    tasks = airflow.tasks(lost)
    assert (tasks["hubspot"]["state"], tasks["salesforce"]["state"]) == ("success", "failed")
    assert tasks["salesforce"]["try_number"] == 4
    lead_store.update(airflow.hive, "AWAY", 1, "Newer", "1", None)
    airflow.simulators["salesforce"].faults()
    found = airflow.run()
    assert airflow.counts(found, 0)["delivered"] == 1
    assert airflow.counts(found, 1)["delivered"] == 10
    airflow.assert_in_step()


def test_backfill_and_dry_run(airflow: Airflow) -> None:
    before = [len(simulator.journal()) for simulator in airflow.simulators.values()]
    report = airflow.counts(airflow.run(since=SINCE, dry_run=True), 0)
    assert report["created"] == report["updated"] == 0
    assert report["unchanged"] > 0
    run_id = airflow.run(since=SINCE)
    assert airflow.counts(run_id, 0)["delivered"] == 0
    assert [len(simulator.journal()) for simulator in airflow.simulators.values()] == before
    run_id = airflow.run(since=SINCE, resend=True, destinations=["hubspot"])
    assert airflow.counts(run_id, 0)["delivered"] > 0
    airflow.assert_in_step()


@pytest.mark.parametrize(
    "conf",
    [
        {"since": "2020-01-01T00:00:00"},
        {"until": SINCE},
        {"since": SINCE, "until": "2019-01-01T00:00:00Z"},
        {"destinations": ["nobody"]},
        {"sinse": SINCE},
    ],
)
def test_wrong_parameters_are_refused(airflow: Airflow, conf: dict[str, object]) -> None:
    reply = airflow.stack.api("POST", "/dags/leads_sync/dagRuns", json={"logical_date": None, "conf": conf})
    if reply.ok:
        run_id = reply.json()["dag_run_id"]
        assert airflow.wait(run_id) == "failed"
        assert airflow.tasks(run_id)["extract"]["try_number"] == 1
    else:
        assert reply.status_code == 400
    airflow.assert_in_step()


def test_a_load_killed_in_the_middle_is_taken_up_again(airflow: Airflow) -> None:
    airflow.hive.execute(
        "INSERT INTO customer (appkey, uid, name) "
        "SELECT 'KILL', n, repeat('x', 100) || n FROM generate_series(1, 12000) n"
    )
    airflow.simulators["hubspot"].faults(latency=0.5)
    run_id = airflow.trigger()
    before = len(airflow.simulators["hubspot"].records())
    airflow.until(lambda: len(airflow.simulators["hubspot"].records()) > before, "nothing arrives")
    os.kill(airflow.load(run_id, 0)["pid"], signal.SIGKILL)
    lead_store.update(airflow.hive, "KILL", 1, "Newer", "1", None)
    airflow.simulators["hubspot"].faults()
    assert airflow.wait(run_id) == "success"
    tasks = airflow.tasks(run_id)
    assert {"hubspot 1/2", "hubspot 2/2", "salesforce 1/2", "salesforce 2/2"} <= set(tasks)  # it is large for one task
    assert tasks["hubspot 1/2"]["try_number"] > 1
    airflow.run()
    airflow.assert_in_step()


def test_no_lead_is_in_a_log_an_xcom_or_a_table_in_the_open(airflow: Airflow) -> None:
    marker = "Xyzzy Plugh"
    fill(airflow, "OPEN", 30)
    airflow.hive.execute("UPDATE customer SET name = %s WHERE appkey = 'OPEN'", (marker,))
    airflow.hive.execute("UPDATE customer SET email = %s WHERE appkey = 'OPEN' AND uid < 4", (marker,))
    airflow.simulators["salesforce"].faults(malformed={"next": 1})
    run_id = airflow.run()
    assert airflow.counts(run_id, 0)["dead"] == 3
    airflow.run(since=SINCE, dry_run=True)
    for path in airflow.stack.state_dir.rglob("*.log"):
        assert marker not in path.read_text(errors="replace"), path
    for dsn in (airflow.stack.postgres.dsn("airflow"), airflow.stack.values()["LEADSYNC_DB_DSN"]):
        with psycopg.connect(dsn) as connection:
            tables = connection.execute(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
                "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            ).fetchall()
            assert tables
            for (table,) in tables:
                query = f"SELECT count(*) FROM {table} t WHERE t::text LIKE %s"  # noqa: S608
                assert connection.execute(query, (f"%{marker}%",)).fetchone() == (0,), table  # type: ignore[arg-type]
    airflow.hive.execute("UPDATE customer SET email = NULL WHERE appkey = 'OPEN'")
    airflow.run()
    airflow.assert_in_step()
