"""The tasks of the DAG `leadsync_maintenance`. It does not read the pipeline files until a task needs one.

So a file that is wrong keeps the other pipelines from nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leadsync import erase as erasing
from leadsync import maintenance, runtime
from leadsync.clients import Clients
from leadsync.config import Pipeline, load_pipeline
from leadsync.errors import ConfigError


def pipeline_names() -> list[str]:
    """The pipelines that have a file."""
    return sorted(path.stem for path in runtime.PIPELINES.glob("*.yaml"))


def retention(name: str) -> dict[str, int]:
    """Removes what the pipeline does not keep any longer; the number of rows by table."""
    return _work(name, maintenance.remove_expired)


def snapshots(name: str) -> dict[str, int]:
    """Drops the pipeline's snapshots that nothing needs; how many, and the bytes."""
    return _work(name, maintenance.drop_snapshots)


def vacuum() -> dict[str, str]:
    """VACUUM where it is needed; what became of it by table."""
    with runtime.state_database() as state:
        return maintenance.vacuum_tables(state)


def erase(context: runtime.Context) -> dict[str, Any]:
    """Erases the leads that the run names; what was removed, nothing where it names none."""
    run = context["dag_run"]
    conf = dict(run.conf or {})
    unknown = sorted(set(conf) - {"erase", "pipeline"})
    if unknown:
        raise ConfigError(f"unknown parameter {unknown[0]!r}; allowed: erase, pipeline")
    if not conf.get("erase"):
        return {}
    return erase_leads(conf.get("pipeline"), conf["erase"], run.triggering_user_name)


def erase_leads(name: Any, external_ids: list[str], asked_by: str | None) -> dict[str, Any]:
    """Erases leads of one pipeline; see erase.py."""
    return _work(name, lambda using, pipeline: erasing.erase(using, pipeline, external_ids, asked_by))


def _work(name: Any, verb: Callable[[Clients, Pipeline], dict[str, Any]]) -> dict[str, Any]:
    if name not in pipeline_names():
        raise ConfigError(f"`pipeline`: there is no {name!r}; allowed: {', '.join(pipeline_names())}")
    pipeline = load_pipeline(runtime.PIPELINES / f"{name}.yaml")
    with runtime.clients(pipeline) as using:
        return verb(using, pipeline)
