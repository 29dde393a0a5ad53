"""Makes the DAG `<pipeline>_sync` of every file in include/pipelines, or in LEADSYNC_PIPELINES."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, TriggerRule, dag, get_current_context, get_parsing_context, task

from leadsync import runtime, watcher
from leadsync.config import Pipeline, load_pipeline, load_pipelines
from leadsync.crm import registry

DOCUMENTATION = """
Keeps **{destinations}** in step with the table `{table}`.

1. `extract` opens the window: from the oldest watermark up to where the lead store can be read safely.
2. `snapshot` keeps the window's rows, encrypted, in Redis, up to where it is safe by then.
3. `load` delivers them, one index per CRM. Clear a failed one: it goes on where it stopped.
4. `commit_watermark` moves the watermarks, once every load has succeeded.

**Backfill:** trigger the DAG with `since` (and `until`). Look first with `dry_run`.
"""


def sync_dag(pipeline: Pipeline) -> DAG:
    """The DAG of one pipeline."""
    names = ", ".join(target.name for target in pipeline.destinations)

    @dag(
        dag_id=f"{pipeline.name}_sync",
        schedule=watcher.schedule(pipeline),
        start_date=pipeline.schedule.start,
        catchup=False,
        max_active_runs=1,
        params=runtime.parameters(pipeline),
        default_args=runtime.TASKS,
        tags=["leadsync"],
        description=f"{pipeline.source.table} → {names}",
        doc_md=DOCUMENTATION.format(destinations=names, table=pipeline.source.table),
    )
    def sync() -> None:
        @task
        def extract() -> dict[str, Any]:
            return runtime.extract(pipeline, get_current_context())

        @task
        def snapshot(opened: dict[str, Any]) -> list[dict[str, Any]]:
            return runtime.snapshot(pipeline, opened)

        # The name while it runs; the work may add to it when it ends.
        @task(map_index_template="{{ label | default(task.op_kwargs['work']['label']) }}")
        def load(opened: dict[str, Any], work: dict[str, Any]) -> dict[str, Any]:
            return runtime.load(pipeline, opened, work, get_current_context())

        # A destination that is parked is skipped.
        @task(trigger_rule=TriggerRule.NONE_FAILED)
        def commit_watermark(opened: dict[str, Any]) -> dict[str, Any]:
            return runtime.commit_watermark(pipeline, opened)

        opened = extract()
        loads = load.partial(opened=opened).expand(work=snapshot(opened))
        loads >> commit_watermark(opened)

    return sync()


def wanted() -> list[Pipeline]:
    """All pipelines; in the process of a task only its own, so that another one's wrong file does not fail it."""
    dag_id = get_parsing_context().dag_id
    if dag_id is None:
        return load_pipelines(runtime.PIPELINES)
    return [load_pipeline(runtime.PIPELINES / f"{dag_id.removesuffix('_sync')}.yaml")]


for pipeline in wanted():
    registry.check_pipeline(pipeline)
    globals()[f"{pipeline.name}_sync"] = sync_dag(pipeline)
