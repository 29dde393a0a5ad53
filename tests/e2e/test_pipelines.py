"""Pipeline files on a real scheduler: wrong ones, a new destination, Airflow's own backfill, wrong connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import yaml

from tests.e2e.conftest import Airflow

DAY = "2026-02-{:02}"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content["source"].pop("table"), "source.table: Field required"),
        (lambda content: content["destinations"]["hubspot"].update(adapter="nobody"), "no adapter 'nobody'; allowed: "),
    ],
    ids=["field", "adapter"],
)
def test_a_wrong_file_is_an_import_error(
    airflow: Airflow, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    content = airflow.shipped()
    change(content)
    path = airflow.pipelines / "broken.yaml"
    under_way = airflow.trigger()
    path.write_text(yaml.safe_dump(content))

    def errors() -> str:
        return airflow.stack.api("GET", "/importErrors").text

    try:
        airflow.until(lambda: "broken" in errors(), "no import error")
        assert complaint in errors()
    finally:
        path.unlink()
    airflow.until(lambda: "broken" not in errors(), "the import error stays")
    airflow.until(lambda: not airflow.stack.api("GET", "/dags/leads_sync").json()["is_stale"], "the DAG stays away")
    assert airflow.wait(under_way) == "success"
    assert {task["try_number"] for task in airflow.task_instances(under_way)} == {1}
    airflow.run()
    airflow.assert_in_step()


def test_a_new_destination_appears_and_fills_itself(airflow: Airflow) -> None:
    fill = "INSERT INTO customer (appkey, uid, name) SELECT %s, n, 'Lead ' || n FROM generate_series(1, 30) n"
    for appkey in ("OLD", "OTHER"):
        airflow.hive.execute(fill, (appkey,))
    airflow.run()
    content = airflow.shipped()
    second = {**content["destinations"]["hubspot"], "connection": "crm_hubspot", "route": {"appkey": "OLD"}}
    airflow.add("leads", {**content, "destinations": {**content["destinations"], "second": second}})
    try:
        airflow.until(
            lambda: "second" in airflow.stack.api("GET", "/dags/leads_sync/details").json()["doc_md"], "not seen"
        )
        run_id = airflow.run()
        assert "second" in airflow.tasks(run_id)
        counts = airflow.counts(run_id, 2)
        assert counts["delivered"] == 30
        assert counts["not_routed"] == counts["read"] - 30 >= 30
        assert airflow.counts(run_id, 0)["delivered"] == 0
    finally:
        airflow.add("leads", content)
    airflow.assert_in_step()


def test_a_change_starts_a_run_by_itself(airflow: Airflow) -> None:
    content = airflow.shipped()
    content["schedule"] = {"cron": None, "watch": 0.5}
    content["destinations"] = {"hubspot": {**content["destinations"]["hubspot"], "start": "now"}}
    watched = airflow.add("watched", content)

    def runs(state: str) -> int:
        found = airflow.stack.api("GET", f"/dags/{watched.dag}/dagRuns?run_type=asset_triggered&state={state}")
        return int(found.json()["total_entries"])

    airflow.until(lambda: runs("success") >= 1, "the first run has not come")  # it makes the new destination known
    airflow.hive.execute("INSERT INTO customer (appkey, uid, name) VALUES ('WATCHED', 1, 'Li')")
    airflow.until(lambda: "WATCHED:1" in airflow.simulators["hubspot"].records(), "no run for a change")
    airflow.until(lambda: runs("success") >= 2 and not runs("running") + runs("queued"), "the run has not ended")
    ended = runs("success")
    (airflow.pipelines / "watched.yaml").unlink()
    assert ended == runs("success") == 2, "a run without a change"
    airflow.run()
    airflow.assert_in_step()


def test_each_run_of_airflows_own_backfill_takes_its_interval(airflow: Airflow) -> None:
    content = airflow.shipped()
    content["schedule"] = {"cron": "0 0 * * *"}
    for target in content["destinations"].values():
        target["start"] = "now"
    history = airflow.add("history", content)
    airflow.hive.execute("ALTER TABLE customer DISABLE TRIGGER stamp_update_time")
    for day in (10, 11, 12):
        airflow.hive.execute(
            "INSERT INTO customer (appkey, uid, name, update_time) "
            "SELECT %s, n, 'Lead ' || n, %s::timestamptz FROM generate_series(1, 10) n",
            (f"DAY{day}", f"{DAY.format(day)}T12:00:00Z"),
        )
    airflow.hive.execute("ALTER TABLE customer ENABLE TRIGGER stamp_update_time")
    body = {
        "dag_id": history.dag, "from_date": f"{DAY.format(10)}T00:00:00Z", "to_date": f"{DAY.format(12)}T00:00:00Z",
        "max_active_runs": 3, "run_backwards": False, "dag_run_conf": {}, "reprocess_behavior": "none",
    }  # fmt: skip
    reply = airflow.stack.api("POST", "/backfills", json=body)
    assert reply.ok, reply.text

    def runs() -> list[dict[str, Any]]:
        found = airflow.stack.api("GET", f"/dags/{history.dag}/dagRuns?run_type=backfill").json()["dag_runs"]
        return sorted(found, key=lambda run: str(run["data_interval_start"]))

    airflow.until(lambda: bool(runs()) and all(run["state"] in ("success", "failed") for run in runs()), "no end")
    assert [run["state"] for run in runs()] == ["success"] * 3
    starts = [run["data_interval_start"][:10] for run in runs()]
    delivered = [history.counts(run["dag_run_id"], 0)["delivered"] for run in runs()]
    days = (DAY.format(day) for day in (10, 11, 12))
    assert dict(zip(starts, delivered, strict=True)) == dict.fromkeys(days, 10)
    with psycopg.connect(airflow.stack.values()["LEADSYNC_DB_DSN"]) as state:
        query = (
            "SELECT count(*) FROM leadsync.watermark WHERE pipeline = 'history' AND watermark < now() - interval '1 h'"
        )
        assert state.execute(query).fetchone() == (0,)
    (airflow.pipelines / "history.yaml").unlink()
    airflow.run(since="2026-01-01T00:00:00Z")
    airflow.assert_in_step()


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "missing": ({"connection": "nobody"}, {}, "extract", "there is no connection nobody: define it"),
    "password": (
        {"connection": "wrong_password"}, {}, "extract", "connection wrong_password: login or password is wrong",
    ),
    "table": ({"table": "clients"}, {}, "extract", "connection lead_store: there is no table clients"),
    "rights": ({"table": "secrets"}, {}, "extract", "no right to read; run: GRANT SELECT ON secrets TO"),
    "crm": ({}, {"connection": "crm_nobody"}, "load", "there is no connection crm_nobody: define it"),
    "token": ({}, {"connection": "wrong_token"}, "load", "401"),
}  # fmt: skip


def test_wrong_connections_fail_at_once_and_name_the_remedy(airflow: Airflow) -> None:
    airflow.hive.execute("CREATE TABLE secrets (LIKE customer INCLUDING ALL)")
    handles, runs = {}, {}
    for name, (source, target, _, _) in WRONG.items():
        content = airflow.shipped()
        content["source"].update(source)
        content["destinations"] = {"hubspot": {**content["destinations"]["hubspot"], **target}}
        (airflow.pipelines / f"wrong_{name}.yaml").write_text(yaml.safe_dump(content))
    for name in WRONG:
        path = airflow.pipelines / f"wrong_{name}.yaml"
        handles[name] = airflow.add(path.stem, yaml.safe_load(path.read_text()))
        runs[name] = handles[name].trigger()
    for name, (_, _, task, remedy) in WRONG.items():
        wrong, run_id = handles[name], runs[name]
        assert wrong.wait(run_id) == "failed", name
        failed = [found for found in wrong.task_instances(run_id) if found["task_id"] == task]
        assert [found["try_number"] for found in failed] == [1], name
        log = wrong.log(run_id, task, failed[0]["map_index"])
        assert remedy in log, (name, log[-2000:])
        assert "guessed" not in log
        (airflow.pipelines / f"wrong_{name}.yaml").unlink()
    airflow.assert_in_step()
