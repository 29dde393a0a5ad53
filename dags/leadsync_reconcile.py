"""Makes the DAG `leadsync_reconcile`, which compares the CRMs of all pipelines with their lead stores."""

from __future__ import annotations

from typing import Any

from airflow.sdk import MultipleCronTriggerTimetable, Param, dag, get_current_context, task

from leadsync import reconciling, runtime

DOCUMENTATION = """
Compares lead store, delivery ledger and CRM, lead by lead. The label of each CRM says what differs, such as
`hubspot: 3 missing, 1 stale`, or that it is `in step`. A task fails only when it could not compare: clear it, and it
goes on where it stopped.

| found | is |
| --- | --- |
| missing | should be in the CRM, was never delivered |
| wrongly deleted | was delivered, and somebody deleted the record in the CRM |
| stale | the record holds another state of the lead, for example from before the field mapping was changed |
| changed by hand | exactly this was delivered, the record holds something else (`crm_owned` allows it) |
| wrongly alive | deleted in the lead store, alive in the CRM |
| hard deleted | the row is gone from the lead store, the record is still in the CRM |
| doubled | more than one record of one lead: a person has to merge them in the CRM |

What is still on its way and dead letters are no findings. `repair` delivers the leads anew and deletes what is to be
gone; doubled records it leaves alone.

**By the schedule** it looks at what changed of late and at a part of all other leads that moves on from night to night
(`reconcile` in the pipeline file), and searches the whole ledger for leads that are gone from the lead store. **By
hand** without `since`, `until` and `sample` it does the same. `since` and `until` say nothing of leads that are gone.
"""

CRONS = reconciling.crons()

PARAMETERS = {
    **runtime.target_parameters(),
    "since": Param(
        None,
        type=["null", "string"],
        format="date-time",
        description="Only leads that changed at this time (RFC 3339 with offset) or later.",
    ),
    "until": Param(
        None, type=["null", "string"], format="date-time", description="Only leads that changed before this time."
    ),
    "sample": Param(
        None,
        type=["null", "number"],
        exclusiveMinimum=0,
        description="A share of them (0.1), always the same ones; 1: all; above 1: about so many leads.",
    ),
    "repair": Param(None, type=["null", "boolean"], description="Mend what differs; empty: as the pipeline file says."),
}


@dag(
    dag_id="leadsync_reconcile",
    schedule=MultipleCronTriggerTimetable(*CRONS, timezone="UTC") if CRONS else None,
    catchup=False,
    params=PARAMETERS,
    default_args=runtime.TASKS,
    tags=["leadsync"],
    description="Compares the CRMs with the lead store",
    doc_md=DOCUMENTATION,
)
def leadsync_reconcile() -> None:
    @task
    def choose() -> list[dict[str, str]]:
        return reconciling.choose_destinations(get_current_context())

    @task(map_index_template="{{ label | default(task.op_kwargs['item']['name']) }}")
    def reconcile(item: dict[str, str]) -> dict[str, Any]:
        return reconciling.reconcile_destination(item, get_current_context())

    reconcile.expand(item=choose())


leadsync_reconcile()
