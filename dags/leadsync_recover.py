"""Makes the DAG `leadsync_recover`, for the snapshots of all pipelines."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from leadsync import runtime

DOCUMENTATION = """
Delivers again from the snapshots in Redis. Does not touch the lead store, and moves no watermark.

For a CRM that **lost data** choose `resend`: it also gets what the ledger shows as delivered. Without it, a CRM gets
what it has not taken yet, such as while the lead store is down.

Choose `operations` (the `sync_id` in the return value of `extract`), or `since` and `until`: when the snapshots were
taken. Of each lead the newest state goes out, and never one that is older than what was delivered or is on its way. The
task fails, after the rest was delivered, when snapshots are gone: the recovery log names them, and a backfill of the
pipeline's own DAG delivers what they held.
"""

PARAMETERS = {
    **runtime.target_parameters(),
    "operations": Param(
        None,
        type=["null", "array"],
        items={"type": "string"},
        description="The snapshots of these sync ids, one a line.",
    ),
    "since": Param(
        None,
        type=["null", "string"],
        format="date-time",
        description="The snapshots that were taken from then on (RFC 3339 with offset).",
    ),
    "until": Param(None, type=["null", "string"], format="date-time", description="And before then; empty: all."),
    "resend": Param(False, type="boolean", description="Send also what the ledger shows as delivered."),
}


@dag(
    dag_id="leadsync_recover",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params=PARAMETERS,
    default_args=runtime.TASKS,
    tags=["leadsync"],
    description="Delivers again from the snapshots",
    doc_md=DOCUMENTATION,
)
def leadsync_recover() -> None:
    @task
    def choose() -> list[dict[str, Any]]:
        return runtime.choose_snapshots(get_current_context())

    @task(map_index_template="{{ label | default(task.op_kwargs['item']['destination']) }}")
    def recover(item: dict[str, Any]) -> dict[str, int]:
        return runtime.recover_snapshots(item, get_current_context())

    recover.expand(item=choose())


leadsync_recover()
