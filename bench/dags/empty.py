"""The DAG `empty`: tasks of the shape of a sync run for two CRMs that do nothing. What it costs is Airflow's."""

from __future__ import annotations

from typing import Any

from airflow.sdk import TriggerRule, dag, task

from leadsync import runtime


@dag(dag_id="empty", schedule=None, max_active_runs=1, default_args=runtime.TASKS, is_paused_upon_creation=False)
def empty() -> None:
    @task
    def extract() -> dict[str, Any]:
        return {}

    @task
    def snapshot(opened: dict[str, Any]) -> list[str]:
        return ["hubspot", "salesforce"]

    @task(map_index_template="{{ task.op_kwargs['work'] }}")
    def load(opened: dict[str, Any], work: str) -> dict[str, Any]:
        return {}

    @task(trigger_rule=TriggerRule.NONE_FAILED)
    def commit_watermark(opened: dict[str, Any]) -> dict[str, Any]:
        return {}

    opened = extract()
    load.partial(opened=opened).expand(work=snapshot(opened)) >> commit_watermark(opened)


empty()
