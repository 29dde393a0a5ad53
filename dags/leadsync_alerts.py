"""Makes the DAG `leadsync_alerts`, which tells people what has gone wrong, and when it is well again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from leadsync import alerting, runtime

DOCUMENTATION = """
Every five minutes: is a destination behind, parked, short of quota, are there many dead letters, is a watermark held
back, does the lead store answer, is Redis well? One message when it starts and one when it ends, to the addresses in
the password of the connection `leadsync_alerts` ([Apprise URLs](https://github.com/caronc/apprise), separated by white
space). `alerts` in the pipeline file says from where on.

**Try it:** trigger this DAG with `test`.

It fails when an address takes no message, after all the others got theirs; the next check tries it again.
"""


@dag(
    dag_id="leadsync_alerts",
    schedule="*/5 * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    allowed_run_types=["scheduled", "manual"],
    default_args=runtime.TASKS,
    params={"test": Param(False, type="boolean", description="Only send a test message.")},
    tags=["leadsync"],
    description="Tells people what starts to be wrong, and what is well again",
    doc_md=DOCUMENTATION,
)
def leadsync_alerts() -> None:
    @task(execution_timeout=timedelta(minutes=10))
    def check() -> dict[str, Any]:
        return alerting.check(get_current_context())

    check()


leadsync_alerts()
