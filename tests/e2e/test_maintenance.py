"""The DAG `leadsync_maintenance` on a real scheduler, triggered as a person does."""

from __future__ import annotations

import copy
from typing import Any

import psycopg

from demo import lead_store
from tests.e2e.conftest import Airflow


def returned(airflow: Airflow, run_id: str, task: str, index: int = -1) -> Any:
    path = f"/dags/{airflow.dag}/dagRuns/{run_id}/taskInstances/{task}/xcomEntries/return_value?map_index={index}"
    return airflow.stack.api("GET", path).json()["value"]


def certificates(airflow: Airflow) -> list[dict[str, Any]]:
    with psycopg.connect(airflow.stack.values()["LEADSYNC_DB_DSN"]) as state:
        rows = state.execute("SELECT details FROM leadsync.recovery_log WHERE kind = 'erased' ORDER BY id")
        return [row[0] for row in rows]


def test_the_daily_work_and_an_erasure(airflow: Airflow) -> None:
    maintenance = copy.copy(airflow)
    maintenance.dag = "leadsync_maintenance"
    uid = lead_store.insert(airflow.hive, "ERASED", "Zelda Quill")
    person = f"ERASED:{uid}"
    airflow.run()

    run_id = maintenance.trigger(pipeline="leads", erase=[person])
    assert maintenance.wait(run_id) == "failed"
    # Those of a pipeline whose file another test took away are `removed`.
    instances = [task for task in maintenance.task_instances(run_id) if task["state"] != "removed"]
    tasks = {task["task_id"]: task for task in instances}
    assert {name: task["state"] for name, task in tasks.items()} == {
        "erase": "failed", "retention": "success", "snapshots": "success", "vacuum": "success",
    }  # fmt: skip
    assert tasks["erase"]["try_number"] == 1
    assert tasks["retention"]["rendered_map_index"] == tasks["snapshots"]["rendered_map_index"] == "leads"
    assert f"{person} is alive in the lead store: delete it there" in maintenance.log(run_id, "erase")
    assert certificates(airflow) == []
    counts = returned(maintenance, run_id, "retention", 0)
    assert "reconciliation" in counts
    assert set(counts.values()) == {0}
    assert returned(maintenance, run_id, "snapshots", 0)["dropped"] == 0

    lead_store.delete(airflow.hive, "ERASED", uid)
    airflow.run()
    run_id = maintenance.run(pipeline="leads", erase=[person])
    result = returned(maintenance, run_id, "erase")
    assert result["leads"] == 1
    assert result["removed"]["operation_data"] == 4
    log = maintenance.log(run_id, "erase")
    assert "Zelda" not in log
    assert person not in log
    (certificate,) = certificates(airflow)
    assert certificate["asked_by"] == "admin"
    assert certificate["removed"] == result["removed"]
    airflow.run()
    airflow.assert_in_step()


def test_wrong_parameters_are_refused(airflow: Airflow) -> None:
    def answer(**conf: Any) -> int:
        body = {"logical_date": None, "conf": conf}
        return airflow.stack.api("POST", "/dags/leadsync_maintenance/dagRuns", json=body).status_code

    assert answer(pipeline="clients", erase=["A:1"]) == 400
    assert answer(pipeline="leads", erase="A:1") == 400
    maintenance = copy.copy(airflow)
    maintenance.dag = "leadsync_maintenance"
    for conf, because in (
        ({"erase": ["A:1"]}, "`pipeline`: there is no None; allowed: leads"),
        ({"ereas": ["A:1"], "pipeline": "leads"}, "unknown parameter 'ereas'; allowed: erase, pipeline"),
    ):
        run_id = maintenance.trigger(**conf)
        assert maintenance.wait(run_id) == "failed"
        assert because in maintenance.log(run_id, "erase")
