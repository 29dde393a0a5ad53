"""Makes the DAG `leadsync_maintenance`: the daily upkeep of Leadsync's own stores, and erasures on request."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Param, TriggerRule, dag, get_current_context, task

from leadsync import runtime, upkeep

DOCUMENTATION = """
Daily: `retention` removes what the pipeline files do not keep any longer, `snapshots` drops those that nothing needs
any more, `vacuum` gives the space back.

**Erase a lead:** delete it in the lead store, let a run deliver the delete, then trigger this DAG with `pipeline` and
`erase`. The external ids stay in the configuration of the run that you trigger, and nowhere else. The certificate is in
the recovery log.
"""


@dag(
    dag_id="leadsync_maintenance",
    schedule="30 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    allowed_run_types=["scheduled", "manual"],
    default_args=runtime.TASKS,
    params={
        "pipeline": Param(
            None,
            type=["null", "string"],
            enum=[None, *upkeep.pipeline_names()],
            description="Whose leads are to be erased.",
        ),
        "erase": Param(
            None,
            type=["null", "array"],
            items={"type": "string"},
            description="External ids, such as ASDAD:12345, of leads to erase from every store of Leadsync.",
        ),
    },
    tags=["leadsync"],
    description="Retention, needless snapshots, vacuum; erasure of leads",
    doc_md=DOCUMENTATION,
)
def leadsync_maintenance() -> None:
    @task
    def erase() -> dict[str, Any]:
        return upkeep.erase(get_current_context())

    @task(map_index_template="{{ task.op_kwargs['pipeline'] }}")
    def retention(pipeline: str) -> dict[str, int]:
        return upkeep.retention(pipeline)

    @task(map_index_template="{{ task.op_kwargs['pipeline'] }}")
    def snapshots(pipeline: str) -> dict[str, int]:
        return upkeep.snapshots(pipeline)

    @task(trigger_rule=TriggerRule.ALL_DONE)
    def vacuum() -> dict[str, str]:
        return upkeep.vacuum()

    names = upkeep.pipeline_names()
    erase()
    snapshots.expand(pipeline=names)
    retention.expand(pipeline=names) >> vacuum()


leadsync_maintenance()
