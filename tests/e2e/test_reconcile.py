"""A CRM that was tampered with, on a real scheduler: reconciled, mended, in step."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.contract.calls import CONTACTS, Client
from tests.e2e.conftest import Airflow


@pytest.fixture
def reconcile(airflow: Airflow) -> Airflow:
    """The handle on the DAG `leadsync_reconcile`."""
    other = copy.copy(airflow)
    other.dag = "leadsync_reconcile"
    return other


def fill(airflow: Airflow, appkey: str, count: int) -> None:
    airflow.hive.execute(
        "INSERT INTO customer (appkey, uid, name) SELECT %s, n, 'Lead ' || n FROM generate_series(1, %s) n",
        (appkey, count),
    )
    airflow.run()


def labels(reconcile: Airflow, run_id: str) -> set[str]:
    return {name for name in reconcile.tasks(run_id) if name != "choose"}


def counts(reconcile: Airflow, run_id: str, index: int) -> dict[str, int]:
    path = f"/dags/leadsync_reconcile/dagRuns/{run_id}/taskInstances/reconcile/xcomEntries/return_value"
    found: dict[str, int] = reconcile.stack.api("GET", f"{path}?map_index={index}").json()["value"]
    return found


def test_what_was_tampered_with_is_found_mended_and_in_step(airflow: Airflow, reconcile: Airflow) -> None:
    fill(airflow, "TAMPER", 60)
    simulator = airflow.simulators["hubspot"]
    simulator.token = airflow.stack.secrets["crm_hubspot_token"]
    client = Client(simulator)
    crm_id = simulator.get("records")["TAMPER:7"]["id"]
    assert client.call("POST", f"{CONTACTS}/batch/archive", {"inputs": [{"id": crm_id}]}).ok
    assert client.upsert("TAMPER:8", firstname="By hand").ok
    airflow.hive.execute("DELETE FROM customer WHERE appkey = 'TAMPER' AND uid = 9")
    run_id = reconcile.run(sample=1)
    found = {"hubspot: 1 wrongly deleted, 1 changed by hand, 1 hard deleted", "salesforce: 1 hard deleted"}
    assert labels(reconcile, run_id) == found
    assert counts(reconcile, run_id, 0)["changed_by_hand"] == 1
    run_id = reconcile.run(sample=1, repair=True)
    assert labels(reconcile, run_id) == {
        "hubspot: 1 wrongly deleted, 1 changed by hand, 1 hard deleted; 3 repaired",
        "salesforce: 1 hard deleted; 1 repaired",
    }
    assert labels(reconcile, reconcile.run(sample=1)) == {"hubspot: in step", "salesforce: in step"}
    airflow.assert_in_step()


def test_without_parameters_it_does_what_the_schedule_does(airflow: Airflow, reconcile: Airflow) -> None:
    fill(airflow, "NIGHTLY", 20)
    run_id = reconcile.run(destinations=["hubspot"])
    assert labels(reconcile, run_id) == {"hubspot: in step"}
    assert counts(reconcile, run_id, 0)["read"] >= 20  # all of them changed of late


def test_the_schedule_starts_it(airflow: Airflow, reconcile: Airflow) -> None:
    """A pipeline that is due every minute, beside one that is due at night."""
    content = airflow.shipped()
    soon = airflow.add("soon", {**content, "reconcile": {"cron": "* * * * *", "sample": 1}})
    path = f"/dags/{reconcile.dag}/dagRuns"

    def of_soon_alone(run_id: str) -> bool:
        """At 03:17 the shipped pipeline is due as well."""
        entry = f"{path}/{run_id}/taskInstances/choose/xcomEntries/return_value"
        return {item["pipeline"] for item in reconcile.stack.api("GET", entry).json()["value"]} == {"soon"}

    def runs() -> list[str]:
        found = reconcile.stack.api("GET", f"{path}?run_type=scheduled&state=success").json()["dag_runs"]
        return [run["dag_run_id"] for run in found if of_soon_alone(run["dag_run_id"])]

    try:
        airflow.until(lambda: bool(runs()), "no scheduled run")
        assert labels(reconcile, runs()[0]) == {"hubspot: nothing to compare", "salesforce: nothing to compare"}
    finally:
        (soon.pipelines / "soon.yaml").unlink()


def test_one_that_could_not_compare_fails_and_goes_on_when_it_is_cleared(airflow: Airflow, reconcile: Airflow) -> None:
    fill(airflow, "QUOTED", 20)
    airflow.simulators["salesforce"].faults(quota_spent=True)
    run_id = reconcile.trigger(sample=1)
    assert reconcile.wait(run_id) == "failed"
    tasks = reconcile.tasks(run_id)
    assert (tasks["hubspot: in step"]["state"], tasks["salesforce"]["state"]) == ("success", "failed")
    assert tasks["salesforce"]["try_number"] == 1
    airflow.simulators["salesforce"].faults()
    reconcile.clear(run_id, "reconcile", tasks["salesforce"]["map_index"])
    assert reconcile.wait(run_id) == "success"
    assert labels(reconcile, run_id) == {"hubspot: in step", "salesforce: in step"}


@pytest.mark.parametrize(
    "conf",
    [
        {"pipeline": "nobody"},
        {"destinations": ["nobody"]},
        {"since": "2026-02-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
        {"sample": 1.5},
        {"sample": -1},
        {"simple": 1},
    ],
)
def test_wrong_parameters_are_refused(reconcile: Airflow, conf: dict[str, Any]) -> None:
    reply = reconcile.stack.api("POST", f"/dags/{reconcile.dag}/dagRuns", json={"logical_date": None, "conf": conf})
    if reply.ok:
        run_id = reply.json()["dag_run_id"]
        assert reconcile.wait(run_id) == "failed"
        states = {task["task_id"]: (task["state"], task["try_number"]) for task in reconcile.task_instances(run_id)}
        assert states["choose"] == ("failed", 1)
        assert states["reconcile"][0] == "upstream_failed"
    else:
        assert reply.status_code == 400
