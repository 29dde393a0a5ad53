"""The DAG files as Airflow reads them, and the schedule's way of asking what there is to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import psycopg
from tests.support.world import KEY

from leadsync import recover, replay

ROOT = Path(__file__).parents[2]

READ = """
import sys, orjson
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
dags = {
    dag.dag_id: {
        "tasks": [task.task_id for task in dag.tasks],
        "params": {name: [dag.params[name], dag.params.get_param(name).schema] for name in dag.params},
    }
    for dag in bag.dags.values()
}
print("=" + orjson.dumps({"dags": dags, "errors": bag.import_errors}).decode())
"""

# What the task does that asks what to replay, in a run of the schedule.
SCHEDULED = """
import orjson
from types import SimpleNamespace
from airflow.sdk.exceptions import AirflowSkipException
from leadsync import recovery
try:
    found = recovery.choose_letters({"dag_run": SimpleNamespace(run_type="scheduled")})
except AirflowSkipException as skip:
    found = {"skipped": str(skip)}
print("=" + orjson.dumps(found).decode())
"""


def airflow(program: str, home: Path, *arguments: str, **environment: str) -> Any:
    """Runs a program that imports Airflow in a process of its own; what it prints after `=`."""
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(ROOT / "include"),
        **environment,
    }
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("="))
    return orjson.loads(line[1:])


def read(home: Path, **environment: str) -> Any:
    return airflow(READ, home, str(ROOT / "dags"), **environment)


def test_every_dag_file_is_read_and_offers_its_parameters(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found["errors"] == {}
    dags = found["dags"]
    assert {"leads_sync", "leadsync_replay", "leadsync_recover"} <= set(dags)
    assert dags["leadsync_replay"]["tasks"] == ["choose", "replay"]
    assert dags["leadsync_recover"]["tasks"] == ["choose", "recover"]
    for name in ("leadsync_replay", "leadsync_recover"):
        params = dags[name]["params"]
        assert params["pipeline"] == ["leads", {"type": ["null", "string"], "enum": ["leads"]}]
        assert params["destinations"][1]["items"]["enum"] == ["hubspot", "salesforce"]
    assert set(dags["leadsync_replay"]["params"]) == set(replay.PARAMETERS)
    assert set(dags["leadsync_recover"]["params"]) == set(recover.PARAMETERS)


def test_with_several_pipelines_one_has_to_be_chosen_and_a_wrong_file_harms_no_other(tmp_path: Path) -> None:
    shipped = ROOT / "include" / "pipelines" / "leads.yaml"
    for name in ("leads", "others"):
        shutil.copy(shipped, tmp_path / f"{name}.yaml")
    (tmp_path / "wrong.yaml").write_text("source: {}")
    found = read(tmp_path, LEADSYNC_PIPELINES=str(tmp_path))
    assert [Path(file).name for file in found["errors"]] == ["pipelines.py"]
    for name in ("leadsync_replay", "leadsync_recover"):
        pipeline = found["dags"][name]["params"]["pipeline"]
        assert pipeline == [None, {"type": ["null", "string"], "enum": [None, "leads", "others"]}]


def test_the_schedule_is_skipped_unless_a_group_is_marked(tmp_path: Path, state: psycopg.Connection[Any]) -> None:
    connection = {
        "conn_type": "postgres", "host": state.info.host, "port": state.info.port, "login": state.info.user,
        "schema": state.info.dbname,
    }  # fmt: skip
    environment = {"AIRFLOW_CONN_LEADSYNC_DB": orjson.dumps(connection).decode(), "LEADSYNC_ENCRYPTION_KEY": KEY}
    assert "nothing to do" in airflow(SCHEDULED, tmp_path, **environment)["skipped"]
    for pipeline in ("leads", "removed"):
        state.execute("INSERT INTO leadsync.watermark (pipeline, destination) VALUES (%s, 'hubspot')", (pipeline,))
    state.execute(
        "INSERT INTO leadsync.mended_group (destination_id, error_group, sequence) "
        "SELECT destination_id, error_group, 7 FROM leadsync.watermark, unnest(ARRAY['failed 503', 'mapping city']) "
        "AS error_group"
    )
    (item,) = airflow(SCHEDULED, tmp_path, **environment)
    assert (item["pipeline"], item["destination"]) == ("leads", "hubspot")
    assert [(each["group"], each["sequence"]) for each in item["selections"]] == [
        ("failed 503", 7), ("mapping city", 7),
    ]  # fmt: skip
