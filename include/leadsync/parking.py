"""Parking: a destination that keeps failing takes no part in runs until a probe finds it well.

Its watermark stays where it is and those of the others move on, so their windows stay small. No lead is tried while it
is parked, so none becomes a dead letter through it. Once well it catches up from its own watermark: windows.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import structlog

from leadsync.config import Destination, Pipeline
from leadsync.crm.base import CRMAdapter
from leadsync.errors import LeadsyncError
from leadsync.state import recovery_log, watermark
from leadsync.state.watermark import LastLoad, Watermark

log = structlog.get_logger(__name__)

# Failures that `check` of the adapter sees: the destination takes part again as soon as it passes.
PROBED = frozenset({"Unavailable", "AccessError", "ConfigError"})
# Those that it does not see: it is tried again after a while.
UNSEEN = frozenset({"BrokenMapping", "TransientFailure", "QuotaExceeded"})
WAIT = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a destination is to be parked, and when it may be tried again at the earliest (None: when a probe passes)."""

    because: str
    probe_after: datetime | None


def judge(target: Destination, loads: list[LastLoad], now: datetime) -> Verdict | None:
    """Whether the destination is to be parked, by its last loads in runs (`park_after` of them), newest first."""
    newest = loads[0] if loads else None
    if newest is None or newest.result != 0 or newest.failure is None or not newest.since_unparked:
        return None
    if newest.failure == "QuotaExceeded":
        # Until it is filled again nothing but failures can come.
        return Verdict(newest.failure, newest.resets_at or now + WAIT)
    if len(loads) < target.park_after or any(
        load.result != 0 or load.failure not in PROBED | UNSEEN for load in loads[: target.park_after]
    ):
        return None
    return Verdict(newest.failure, now + WAIT if newest.failure in UNSEEN else None)


def park(state: psycopg.Connection[Any], pipeline: Pipeline, marks: Mapping[str, Watermark]) -> dict[str, Watermark]:
    """Parks the destinations that keep failing while another is well; returns all that are parked.

    When all of them fail the cause is likely ours, and there is nobody whom parking would protect.
    """
    parked = {name: mark for name, mark in marks.items() if mark.parked_at is not None}
    loads = {
        target.name: watermark.last_loads(state, marks[target.name].destination_id, max(1, target.park_after))
        for target in pipeline.destinations
        if target.name in marks and target.name not in parked
    }
    if not any(found and found[0].result == 1 for found in loads.values()):
        return parked
    for target in pipeline.destinations:
        verdict = judge(target, loads.get(target.name, []), datetime.now(UTC))
        if verdict and watermark.park(state, marks[target.name].destination_id, verdict.because, verdict.probe_after):
            _tell(state, pipeline, target.name, "parked", f"{target.name} keeps failing ({verdict.because}): parked")
    return {n: m for n, m in watermark.read(state, pipeline.name, list(marks)).items() if m.parked_at is not None}


def probe(state: psycopg.Connection[Any], pipeline: Pipeline, mark: Watermark, adapter: CRMAdapter) -> str | None:
    """Looks whether a parked destination is well, and lets it take part again; else what still keeps it out."""
    if mark.probe_after is not None and datetime.now(UTC) < mark.probe_after:
        return f"{mark.parked_because}, tried again after {mark.probe_after:%Y-%m-%d %H:%M} UTC"
    try:
        adapter.check()
    except LeadsyncError as error:
        log.info("still parked", destination=mark.destination, reason=str(error))
        return error.kind
    release(state, pipeline, mark)
    return None


def release(state: psycopg.Connection[Any], pipeline: Pipeline, mark: Watermark) -> None:
    """Lets a destination take part again, if it is parked."""
    if watermark.unpark(state, mark.destination_id):
        message = f"{mark.destination} takes part again and catches up from its own watermark"
        _tell(state, pipeline, mark.destination, "unparked", message)


def _tell(state: psycopg.Connection[Any], pipeline: Pipeline, name: str, kind: str, message: str) -> None:
    log.warning(kind, destination=name, reason=message)
    recovery_log.append(state, pipeline.name, kind, message, destination=name)
