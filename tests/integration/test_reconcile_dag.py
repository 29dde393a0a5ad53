"""The DAG `leadsync_reconcile` as Airflow's DAG processor reads it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "include" / "pipelines" / "leads.yaml"
READ = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
dag = bag.dags.get("leadsync_reconcile")
found = None if dag is None else {
    "tasks": {task.task_id: [sorted(task.downstream_task_ids), task.is_mapped] for task in dag.tasks},
    "params": {name: param.schema for name, param in dag.params.items()},
    "crons": [each.expression for each in getattr(dag.timetable, "timetables", [])],
    "catchup": dag.catchup, "tags": sorted(dag.tags), "documented": bool(dag.doc_md),
}
print("READ" + json.dumps({"errors": bag.import_errors, "dag": found}))
"""


def read(tmp_path: Path, **files: dict[str, Any]) -> dict[str, Any]:
    """The DAG made with these pipeline files."""
    pipelines = tmp_path / "pipelines"
    pipelines.mkdir()
    for name, content in files.items():
        (pipelines / f"{name}.yaml").write_text(yaml.safe_dump(content))
    environment = {
        "PATH": os.defpath, "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}/include",
        "LEADSYNC_PIPELINES": str(pipelines), "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", READ, str(ROOT / "dags" / "leadsync_reconcile.py")],
        env=environment, capture_output=True, text=True, timeout=200, cwd=tmp_path,
    )  # fmt: skip
    lines = [line for line in result.stdout.splitlines() if line.startswith("READ")]
    assert lines, result.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("READ"))
    return found


def shipped(**changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load(SHIPPED.read_text()), **changes}


def test_the_dag_is_whole(tmp_path: Path) -> None:
    found = read(tmp_path, leads=shipped(), other=shipped(reconcile={"cron": "5 4 * * 0"}), broken={"source": {}})
    assert found["errors"] == {}
    dag = found["dag"]
    assert dag["tasks"] == {"choose": [["reconcile"], False], "reconcile": [[], True]}
    assert set(dag["params"]) == {"pipeline", "destinations", "since", "until", "sample", "repair"}
    assert dag["params"]["pipeline"]["enum"] == [None, "leads", "other"]
    assert (dag["crons"], dag["catchup"], dag["tags"]) == (["17 3 * * *", "5 4 * * 0"], False, ["leadsync"])
    assert dag["documented"]


def test_without_a_time_it_runs_by_hand_only(tmp_path: Path) -> None:
    found = read(tmp_path, leads=shipped(reconcile={"cron": None}))
    assert found["errors"] == {}
    assert found["dag"]["crons"] == []


def test_the_file_is_thin() -> None:
    assert len((ROOT / "dags" / "leadsync_reconcile.py").read_text().splitlines()) <= 100
