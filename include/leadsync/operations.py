"""The verbs of a sync run, as the DAG's tasks call them: open, snapshot, load, commit; and the dry run.

A window belongs to the attempt that fixed it: `extract` gives the operation a new attempt, and the snapshot, the
loads and the commit of an older one refuse to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import structlog

from leadsync.config import Destination, Pipeline
from leadsync.crm.base import CRMAdapter
from leadsync.errors import ConfigError, LeadsyncError, SnapshotError, Superseded
from leadsync.load import Load
from leadsync.sealing import Sealer
from leadsync.sending import Sender
from leadsync.snapshot import SnapshotStore
from leadsync.source import Bound, LeadStore, Window
from leadsync.state import fence, operations, recovery_log, schema, watermark
from leadsync.state.operations import Operation

log = structlog.get_logger(__name__)

# Before any row: a window of a source that must not advance yet is empty.
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# A bound that is held back for so many seconds is worth a line in the recovery log.
HELD_BACK_SECONDS = 300.0

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What a run was asked to do; `since` makes it a backfill, which moves no watermark."""

    since: datetime | None = None
    until: datetime | None = None
    destinations: tuple[str, ...] = ()
    resend: bool = False
    dry_run: bool = False


def read_request(pipeline: Pipeline, parameters: Mapping[str, Any]) -> Request:
    """The parameters of a run, checked. Raises ConfigError that says which one is wrong and what is allowed."""
    since, until = moment("since", parameters), moment("until", parameters)
    if until is not None and since is None:
        raise ConfigError("`until` needs `since`: together they are the window of a backfill")
    if since is not None and until is not None and since >= until:
        raise ConfigError(f"`since` ({since.isoformat()}) must be before `until` ({until.isoformat()})")
    if since is not None and since > datetime.now(UTC):
        raise ConfigError(f"`since` ({since.isoformat()}) is in the future: there is nothing to deliver yet")
    names = [target.name for target in pipeline.destinations]
    wanted = tuple(parameters.get("destinations") or ())
    for name in wanted:
        if name not in names:
            raise ConfigError(f"`destinations`: there is no {name!r}; allowed: {', '.join(names)}")
    flags = {flag: bool(parameters.get(flag)) for flag in ("resend", "dry_run")}
    return Request(since, until, tuple(name for name in names if name in wanted or not wanted), **flags)


def moment(name: str, parameters: Mapping[str, Any]) -> datetime | None:
    """A time among parameters, None where there is none. Raises ConfigError without an offset."""
    value = parameters.get(name)
    if value is None or value == "":
        return None
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise ConfigError(f"`{name}` is not an RFC 3339 time such as 2026-01-31T09:30:00+08:00") from None
    if found.tzinfo is None:
        raise ConfigError(f"`{name}` has no offset: write it as 2026-01-31T09:30:00+08:00 or …Z")
    return found


def fix_window(state: Connection, store: LeadStore, pipeline: Pipeline, request: Request) -> Window:
    """The window of a run: from the oldest watermark of those that take part, or `since`, to the safe bound.

    Destinations that are new get to be known, at the place where the pipeline file lets them start.
    """
    schema.check(state)
    store.check()
    bound = store.bound()
    marks = watermark.read(state, pipeline.name, request.destinations)
    targets = [target for target in pipeline.destinations if target.name in request.destinations]
    places = {t.name: marks[t.name].at if t.name in marks else _start(t, bound.upper) for t in targets}
    if not request.dry_run:
        _report_bound(state, pipeline, bound)
        for name in places.keys() - marks.keys():
            watermark.register(state, pipeline.name, name, places[name])
    lower = request.since
    if lower is None:
        lower = None if None in places.values() else min(place for place in places.values() if place is not None)
    upper = bound.upper if request.until is None else min(request.until, bound.upper)
    if bound.prepared or (lower is not None and upper < lower):
        upper = lower or BEGINNING
    return Window(lower, upper)


def open_operation(state: Connection, pipeline: Pipeline, run_id: str, request: Request, window: Window) -> Operation:
    """Gives the run's operation a new attempt with this window."""
    operation = Operation(
        sync_id=str(uuid4()),
        attempt_id=str(uuid4()),
        pipeline=pipeline.name,
        kind="run" if request.since is None else "backfill",
        lower=window.lower,
        upper=window.upper,
        destinations=list(request.destinations),
        resend=request.resend,
        sequence=None,
        rows=None,
        committed=False,
    )
    operation = replace(operation, sync_id=operations.open_operation(state, operation, run_id))
    log.info("opened", **{name: str(value) for name, value in asdict(operation).items()})
    return operation


def _start(target: Destination, now: datetime) -> datetime | None:
    """Where a new destination begins: at a time, now, or (None) before all rows."""
    if isinstance(target.start, datetime):
        return target.start
    return now if target.start == "now" else None


def _report_bound(state: Connection, pipeline: Pipeline, bound: Bound) -> None:
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


def take_snapshot(
    state: Connection, store: LeadStore, snapshots: SnapshotStore, pipeline: Pipeline, sync_id: str, attempt_id: str
) -> None:
    """Streams the window's rows into Redis, under the pipeline's lock and a sequence taken in it."""
    operation = current(state, sync_id, attempt_id)
    try:
        policy = snapshots.eviction_policy()
        if policy is not None:
            message = (
                f"Redis evicts keys when it is full (maxmemory-policy {policy}), so snapshots may vanish; "
                "set maxmemory-policy noeviction"
            )
            log.warning("eviction", reason=message)
            recovery_log.append(state, pipeline.name, "redis", message, sync_id=sync_id)
        with fence.pipeline_lock(state, pipeline.name):
            sequence = operations.take_sequence(state)
            rows = store.stream(Window(operation.lower, operation.upper))
            manifest = snapshots.write(attempt_id, rows, sequence, pipeline.source.columns)
            if not operations.record_snapshot(state, operation, sequence, manifest.rows):
                raise Superseded("a newer attempt of `extract` has replaced this one; nothing was lost")
    except SnapshotError as error:
        recovery_log.append(state, pipeline.name, "snapshot", str(error), sync_id=sync_id)
        raise
    log.info("snapshot", sync_id=sync_id, **asdict(manifest))


def load(
    state: Connection,
    open_store: Callable[[], AbstractContextManager[LeadStore]],
    snapshots: SnapshotStore,
    sealer: Sealer,
    pipeline: Pipeline,
    sync_id: str,
    attempt_id: str,
    destination: str,
    adapter: CRMAdapter,
) -> dict[str, int]:
    """Delivers the snapshot to one destination and returns the counts; raises what the retry is to react to."""
    operation = current(state, sync_id, attempt_id)
    target = next((target for target in pipeline.destinations if target.name == destination), None)
    mark = watermark.read(state, pipeline.name, [destination]).get(destination)
    if target is None or mark is None:
        raise ConfigError(f"the pipeline file has no destination {destination!r} any more; clear `extract` of this run")

    def reread(keys: Sequence[Sequence[str]]) -> tuple[int, list[str]]:
        with open_store() as store, fence.pipeline_lock(state, pipeline.name):
            sequence = operations.take_sequence(state)
            lines = b"".join(bytes(row) for row in store.read(keys)).decode().split("\n")[:-1]
        return sequence, lines

    row = None
    try:
        with (
            fence.hold(state, mark.destination_id, adapter.longest_request) as held,
            Sender(adapter, held, target.in_flight) as sender,
        ):
            work = Load(
                state, snapshots, sealer, pipeline, operation, destination, mark.destination_id, held, sender, reread
            )
            row = work.log
            counts = work.run()
            operations.end_load(state, row)
    except LeadsyncError as error:
        if not state.broken:
            with state.transaction():
                if row is not None:
                    operations.end_load(state, row, str(error))
                kind = type(error).__name__
                recovery_log.append(state, pipeline.name, kind, str(error), destination=destination, sync_id=sync_id)
        raise
    log.info("loaded", destination=destination, **asdict(counts))
    return asdict(counts)


def commit(state: Connection, pipeline: Pipeline, sync_id: str, attempt_id: str) -> dict[str, Any]:
    """Moves the watermarks to the window's end, after every load of the attempt ended well and its sum holds."""
    operation = current(state, sync_id, attempt_id)
    ended = operations.ended_loads(state, operation)
    for name in operation.destinations:
        result, counts = ended.get(name, (None, operations.Counts()))
        if result != 1:
            raise LeadsyncError(f"the load of {name} has not succeeded, so the watermark stays; clear it to retry")
        if counts.read != operation.rows or counts.read != counts.ended:
            raise LeadsyncError(
                f"the sum of {name} does not hold, so the watermark stays: rows {operation.rows}, {asdict(counts)}"
            )
    with state.transaction():
        if operation.kind == "run" and operation.upper != BEGINNING:
            watermark.advance(state, pipeline.name, operation.destinations, operation.upper)
        operations.mark_committed(state, sync_id)
    moved = operation.kind == "run"
    log.info("committed", sync_id=sync_id, upper=operation.upper.isoformat(), watermark_moved=moved)
    return {"upper": operation.upper.isoformat(), "watermark_moved": moved}


def current(state: Connection, sync_id: str, attempt_id: str) -> Operation:
    """The operation, as long as this attempt is its newest. Raises Superseded otherwise."""
    operation = operations.read(state, sync_id)
    if operation is None:
        raise Superseded(f"there is no sync operation {sync_id} any more; trigger a new run")
    if operation.attempt_id != attempt_id:
        raise Superseded("`extract` of this run was run again since: clear `snapshot` and what follows it")
    return operation
