"""Airflow's event of a pipeline: in the triggerer, it starts a run as soon as the lead store has changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import psycopg
import structlog
from airflow.sdk import Asset, AssetOrTimeSchedule, AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from leadsync import runtime
from leadsync.config import Pipeline, Source
from leadsync.errors import LeadsyncError
from leadsync.watching import Watch

log = structlog.get_logger(__name__)

# After a look that failed: a database may be away.
PAUSE_SECONDS = 10.0


def schedule(pipeline: Pipeline) -> Any:
    """When the DAG of a pipeline runs: at its fixed times, and whenever there are changes, if somebody looks."""
    fixed, seconds = runtime.timetable(pipeline), pipeline.schedule.watch
    if seconds is None:
        return fixed
    name = f"{pipeline.name}_changes"
    trigger = LeadStoreChanged(pipeline.name, pipeline.source.model_dump(mode="json"), seconds)
    changes = Asset(name, f"leadsync://{pipeline.name}/changes", watchers=[AssetWatcher(name, trigger)])
    return [changes] if fixed is None else AssetOrTimeSchedule(assets=[changes], timetable=fixed)


class LeadStoreChanged(BaseEventTrigger):
    """Fires when the lead store of a pipeline holds changes that no run goes over yet."""

    def __init__(self, pipeline: str, source: dict[str, Any], seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pipeline = pipeline
        self.source = source
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {"pipeline": self.pipeline, "source": self.source, "seconds": self.seconds}
        return f"{__name__}.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while True:
            try:
                async with _watch(self.pipeline, Source.model_validate(self.source)) as watch:
                    while True:
                        if await _in_thread(_look)(watch):
                            yield TriggerEvent({"pipeline": self.pipeline})  # type: ignore[no-untyped-call]
                        await asyncio.sleep(self.seconds)
            except LeadsyncError as error:
                log.warning("the lead store is not watched", pipeline=self.pipeline, reason=str(error))
            await asyncio.sleep(PAUSE_SECONDS)


@asynccontextmanager
async def _watch(pipeline: str, source: Source) -> AsyncIterator[Watch]:
    stack = ExitStack()
    try:
        yield await _in_thread(_open)(stack, pipeline, source)
    finally:
        await _in_thread(_close)(stack)


def _open(stack: ExitStack, pipeline: str, source: Source) -> Watch:
    with runtime.clear_errors():
        state = stack.enter_context(runtime.state_database())
        return Watch(state, stack.enter_context(runtime.lead_store(source)), pipeline)


def _look(watch: Watch) -> bool:
    with runtime.clear_errors():
        return watch.look()


def _close(stack: ExitStack) -> None:
    with suppress(psycopg.Error):
        stack.close()


# Not `asyncio.to_thread`: from such a thread Airflow's connections can't be read.
def _in_thread(work: Any) -> Any:
    return sync_to_async(work, thread_sensitive=False)
