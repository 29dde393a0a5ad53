"""The DAG files, as Airflow's DAG processor reads them: in a process of their own, with nothing to connect to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

ROOT = Path(__file__).parents[2]
READ = """
import sys

import orjson
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(dag_folder=sys.argv[1])
dags = {
    dag.dag_id: {
        "schedule": str(dag.schedule),
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "run_types": dag.allowed_run_types and sorted(dag.allowed_run_types),
        "params": {name: param.schema for name, param in dag.params.items()},
        "after": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
        "retries": sorted({task.retries for task in dag.tasks}),
        "tags": sorted(dag.tags),
    }
    for dag in bag.dags.values()
}
errors = {path: str(error) for path, error in bag.import_errors.items()}
sys.stdout.buffer.write(b"RESULT" + orjson.dumps({"dags": dags, "errors": errors}))
"""


def read(tmp_path: Path) -> dict[str, Any]:
    """The DAGs of the checkout over the pipeline files of a folder."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "LEADSYNC_PIPELINES": str(tmp_path / "pipelines"),
        "PYTHONPATH": str(ROOT / "include"),
    }
    command = [sys.executable, "-c", READ, str(ROOT / "dags")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = orjson.loads(done.stdout.rpartition(b"RESULT")[2])
    return found


@pytest.fixture
def pipelines(tmp_path: Path) -> Path:
    """A folder of pipeline files, with those that are shipped."""
    return Path(shutil.copytree(ROOT / "include" / "pipelines", tmp_path / "pipelines"))


def test_every_dag_file_is_read_and_short(tmp_path: Path, pipelines: Path) -> None:
    found = read(tmp_path)
    assert found["errors"] == {}
    assert {"leads_sync", "leadsync_maintenance"} <= set(found["dags"])
    for dag in found["dags"].values():
        assert "leadsync" in dag["tags"]
        assert not dag["catchup"]
        assert dag["retries"] == [3]
    for path in (ROOT / "dags").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 100, path.name


def test_maintenance_runs_daily_and_by_hand(tmp_path: Path, pipelines: Path) -> None:
    dag = read(tmp_path)["dags"]["leadsync_maintenance"]
    assert dag["schedule"] == "30 3 * * *"
    assert dag["max_active_runs"] == 1
    assert dag["run_types"] == ["manual", "scheduled"]
    assert dag["after"] == {"erase": [], "retention": [], "snapshots": [], "vacuum": ["retention"]}
    assert dag["params"]["pipeline"]["enum"] == [None, "leads"]
    assert dag["params"]["erase"] == {"type": ["null", "array"], "items": {"type": "string"}}


def test_a_wrong_pipeline_file_does_not_stop_maintenance(tmp_path: Path, pipelines: Path) -> None:
    (pipelines / "broken.yaml").write_text("source: {}\n", encoding="utf-8")
    found = read(tmp_path)
    assert [Path(path).name for path in found["errors"]] == ["pipelines.py"]
    assert found["dags"]["leadsync_maintenance"]["params"]["pipeline"]["enum"] == [None, "broken", "leads"]
