"""Which windows a run goes over: from the watermarks of those that take part up to the safe bound.

Destinations at the same watermark go over one window together. One that lags behind (it is new, was parked, or ran
apart) has a window of its own, at most `catch_up_rows` long, so that it holds up none that is in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import structlog

from leadsync.config import Destination, Pipeline
from leadsync.request import Request
from leadsync.source import Bound, LeadStore, Window
from leadsync.state import recovery_log, watermark

log = structlog.get_logger(__name__)

# Before any row: a window of a source that must not advance yet is empty.
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# A bound that is held back for so many seconds is worth a line in the recovery log.
HELD_BACK_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A window and the destinations that go over it: one sync operation to be.

    An `open_ended` one ends where it is safe to read when its snapshot is taken, some moments after it was planned.
    """

    window: Window
    destinations: tuple[str, ...]
    open_ended: bool = False


def register(
    state: psycopg.Connection[Any], pipeline: Pipeline, names: Sequence[str], bound: Bound, *, dry_run: bool = False
) -> dict[str, watermark.Watermark]:
    """The watermarks of destinations; a new one gets to be known where the pipeline file lets it start.

    A dry run makes nothing known: to it a new destination has the number 0, which is nobody's.
    """
    marks = watermark.read(state, pipeline.name, names)
    for target in pipeline.destinations:
        if target.name in names and target.name not in marks:
            start = _start(target, bound.upper)
            marks[target.name] = watermark.Watermark(target.name, 0, start)
            if not dry_run:
                watermark.register(state, pipeline.name, target.name, start)
                marks |= watermark.read(state, pipeline.name, [target.name])
    return marks


def plan(
    store: LeadStore, pipeline: Pipeline, request: Request, marks: Sequence[watermark.Watermark], bound: Bound
) -> list[Plan]:
    """The windows of a run for the destinations with these watermarks."""
    upper = bound.upper if request.until is None else min(request.until, bound.upper)
    if request.since is not None:
        return [Plan(_window(request.since, upper, bound), request.destinations)]
    groups: dict[datetime | None, list[str]] = {}
    for mark in marks:
        groups.setdefault(mark.at, []).append(mark.destination)
    in_step = max((at for at in groups if at is not None and at < upper), default=None)
    plans = []
    for at, names in groups.items():
        end = upper if at == in_step else store.slice_end(at, upper, pipeline.catch_up_rows)
        plans.append(Plan(_window(at, end, bound), tuple(names), open_ended=end == upper))
    return plans


def report(state: psycopg.Connection[Any], pipeline: Pipeline, bound: Bound) -> None:
    """Names what holds the bound back, when it does so for long."""
    if bound.prepared:
        message = f"{bound.prepared} prepared transactions are open in the lead store: the watermark can't advance"
    elif bound.held_back > HELD_BACK_SECONDS:
        message = (
            f"a transaction of role {bound.role} (pid {bound.pid}) has been open for {bound.held_back:.0f} s and holds "
            "the watermark back; end it, or list the role in `ignore_roles` if it surely never writes"
        )
    else:
        return
    log.warning("held back", reason=message)
    recovery_log.append(state, pipeline.name, "held_back", message, pid=bound.pid, role=bound.role)


def _window(lower: datetime | None, upper: datetime, bound: Bound) -> Window:
    if bound.prepared or (lower is not None and upper < lower):
        upper = lower or BEGINNING
    return Window(lower, upper)


def _start(target: Destination, now: datetime) -> datetime | None:
    """Where a new destination begins: at a time, now, or (None) before all rows."""
    if isinstance(target.start, datetime):
        return target.start
    return now if target.start == "now" else None
