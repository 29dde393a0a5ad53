"""Makes the DAG `leadsync_replay`, for the dead letters of all pipelines."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from leadsync import recovery, runtime

DOCUMENTATION = """
Replays dead letters: reads each lead anew from the lead store and delivers it. Moves no watermark.

**By hand**, after the cause is mended: choose a `group` (as the recovery log names it, such as
`rejected VALIDATION_ERROR email`), some `external_ids`, or `all`. Triggered with nothing chosen it lists the groups.
Leads that the CRM refuses again stay dead letters, and the label tells how many. When all are refused again the task
fails: nothing came of the replay.

**By the schedule:** a `group` that was marked with `mended` is replayed within the hour, and the mark ends with that.
When none is marked the run is skipped.
"""

PARAMETERS = {
    **runtime.target_parameters(),
    "group": Param(
        None,
        type=["null", "string"],
        description="Dead letters of this group: reason, code and field, as the recovery log has them.",
    ),
    "external_ids": Param(
        None, type=["null", "array"], items={"type": "string"}, description="Dead letters of these leads, one a line."
    ),
    "all": Param(False, type="boolean", description="All open dead letters."),
    "limit": Param(
        None, type=["null", "integer"], minimum=1, description="At most so many for each CRM, the oldest first."
    ),
    "mended": Param(
        False, type="boolean", description="Replay nothing now, but mark the group: the schedule replays it."
    ),
}


@dag(
    dag_id="leadsync_replay",
    schedule="@hourly",
    catchup=False,
    max_active_runs=4,
    params=PARAMETERS,
    default_args=runtime.TASKS,
    tags=["leadsync"],
    description="Delivers dead letters again",
    doc_md=DOCUMENTATION,
)
def leadsync_replay() -> None:
    @task
    def choose() -> list[dict[str, Any]]:
        return recovery.choose_letters(get_current_context())

    @task(map_index_template="{{ label | default(task.op_kwargs['item']['destination']) }}")
    def replay(item: dict[str, Any]) -> dict[str, int]:
        return recovery.replay_letters(item, get_current_context())

    replay.expand(item=choose())


leadsync_replay()
