"""The tasks of the DAG `leadsync_reconcile`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leadsync import reconcile, reconcile_request, runtime
from leadsync.config import load_pipeline


def crons() -> list[str]:
    """When the pipelines are due."""
    return reconcile_request.crons(runtime.known_pipelines())


def choose_destinations(context: runtime.Context) -> list[dict[str, str]]:
    """What is to be reconciled, an item per destination: as asked for or, by the schedule, the pipelines due now."""
    run = context["dag_run"]
    if run.run_type == "scheduled":
        return reconcile_request.due(runtime.known_pipelines(), run.logical_date)
    return reconcile_request.chosen(*runtime.asked(run))


def reconcile_destination(item: Mapping[str, str], context: Any) -> dict[str, int]:
    """Reconciles one destination and returns the counts; what was found goes into the label."""
    run, pipeline = context["dag_run"], load_pipeline(runtime.PIPELINES / f"{item['pipeline']}.yaml")
    request = reconcile_request.read_request(pipeline, dict(run.conf or {}))
    with runtime.clients(pipeline, again=reconcile.AGAIN) as using:
        counts = reconcile.run(using, pipeline, item["destination"], run.run_id, request)
    context["label"] = f"{item['name']}: {reconcile.describe(counts)}"[: runtime.LONGEST_LABEL]
    return counts
