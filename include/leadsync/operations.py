"""The verbs of a sync run, as the DAG's tasks call them: open, snapshot, load, commit.

A run opens one sync operation per window (windows.py). Running `extract` again opens new ones; the snapshot, the loads
and the commit of those that it superseded refuse to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from uuid import uuid4

import structlog

from leadsync import parking, tracing, windows
from leadsync.clients import Clients
from leadsync.config import Pipeline
from leadsync.errors import ConfigError, LeadsyncError, LeftBehind, SnapshotError, Superseded
from leadsync.load import Load
from leadsync.models import Share
from leadsync.request import Request
from leadsync.sending import Sender
from leadsync.snapshot import Manifest
from leadsync.source import Bound, Buffer, LeadStore, Window
from leadsync.state import fence, operations, recovery_log, schema, watermark
from leadsync.state.operations import Operation
from leadsync.state.watermark import Watermark

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """What a run goes over: its operations, and the destinations that are parked, each with the leads that wait."""

    operations: list[Operation]
    parked: dict[str, int]


def look(clients: Clients, store: LeadStore, pipeline: Pipeline, request: Request) -> list[windows.Plan]:
    """The windows that a run would go over. Changes nothing."""
    schema.check(clients.state)
    store.check()
    bound = store.bound()
    marks = windows.register(clients.state, pipeline, request.destinations, bound, dry_run=True)
    return windows.plan(store, pipeline, request, list(marks.values()), bound)


def open_run(clients: Clients, store: LeadStore, pipeline: Pipeline, run_id: str, request: Request) -> Opened:
    """Plans the windows of a run and opens an operation for each; those of the run's earlier try end."""
    state = clients.state
    schema.check(state)
    store.check()
    bound = store.bound()
    windows.report(state, pipeline, bound)
    marks = windows.register(state, pipeline, request.destinations, bound)
    parked: dict[str, Watermark] = {}
    if request.since is None and not request.named:
        parked = parking.park(state, pipeline, marks)
    taking_part = [mark for name, mark in marks.items() if name not in parked]
    opened = [
        _operation(pipeline, "run" if request.since is None else "backfill", plan, resend=request.resend)
        for plan in windows.plan(store, pipeline, request, taking_part, bound)
    ]
    with state.transaction():
        operations.supersede(state, pipeline.name, run_id)
        for operation in opened:
            operations.open_operation(state, operation, run_id)
    for operation in opened:
        log.info("opened", **{name: str(value) for name, value in asdict(operation).items()})
    return Opened(opened, {name: store.count(Window(mark.at, bound.upper)) for name, mark in parked.items()})


def _operation(pipeline: Pipeline, kind: str, plan: windows.Plan, *, resend: bool) -> Operation:
    sync_id = str(uuid4())
    return Operation(
        sync_id=sync_id,
        snapshot_id=sync_id,
        pipeline=pipeline.name,
        kind=kind,
        lower=plan.window.lower,
        upper=plan.window.upper,
        destinations=list(plan.destinations),
        resend=resend,
        sequence=None,
        rows=None,
        open_ended=plan.open_ended,
    )


def take_snapshots(clients: Clients, store: LeadStore, pipeline: Pipeline, sync_ids: Sequence[str]) -> dict[str, int]:
    """Streams the rows of the windows into Redis; returns in how many shards each destination of the run loads so far.

    Open-ended windows of one run end together: only destinations at the same watermark share the next one.
    """
    bound, shards = store.bound(), dict[str, int]()
    for sync_id in sync_ids:
        operation = current(clients, sync_id)
        keep_rows(clients, pipeline, operation, partial(_read_window, clients, store, operation, bound))
        shards |= operations.shards_of_run(clients.state, operation)
    return shards


def _read_window(clients: Clients, store: LeadStore, operation: Operation, bound: Bound) -> Iterable[Buffer]:
    upper = operation.upper
    if operation.open_ended:
        upper = operations.move_end(clients.state, operation, upper if bound.prepared else bound.upper)
    return store.stream(Window(operation.lower, upper))


def keep_rows(clients: Clients, pipeline: Pipeline, operation: Operation, read: Callable[[], Iterable[Buffer]]) -> None:
    """Keeps the rows that `read` yields as the operation's snapshot, unless it has one: loads go on by their place in
    it, and what was read later has other rows at other places.

    They are read under the pipeline's lock and a sequence taken in it, so that a higher sequence is newer.
    """
    state, snapshots = clients.state, clients.snapshots
    with tracing.span("snapshot", pipeline=pipeline.name, sync_id=operation.sync_id) as span:
        try:
            policy = snapshots.eviction_policy()
            if policy is not None:
                message = (
                    f"Redis evicts keys when it is full (maxmemory-policy {policy}), so snapshots may vanish; "
                    "set maxmemory-policy noeviction"
                )
                log.warning("eviction", reason=message)
                recovery_log.append(state, pipeline.name, "redis", message, sync_id=operation.sync_id)
            # Closed: a read that is left half done holds its connection, whose end would then be waited for in vain.
            with fence.pipeline_lock(state, pipeline.name), closing(_rows(read)) as rows:
                if current(clients, operation.sync_id).sequence is not None:
                    snapshots.check_columns(operation.snapshot_id, pipeline.source.columns)
                    return
                sequence = operations.take_sequence(state)
                manifest = snapshots.write(operation.snapshot_id, rows, sequence, pipeline.source.columns)
                shards = _shards(clients, pipeline, operation, manifest)
                if not operations.record_snapshot(state, operation, sequence, manifest.rows, shards):
                    raise Superseded("`extract` of this run was run again since; nothing was lost")
        except SnapshotError as error:
            recovery_log.append(state, pipeline.name, "snapshot", str(error), sync_id=operation.sync_id)
            raise
        tracing.note(span, rows=manifest.rows, chunks=manifest.chunks, shards=shards)
    snapshots.count(manifest)
    log.info("snapshot", sync_id=operation.sync_id, **asdict(manifest))


def _rows(read: Callable[[], Iterable[Buffer]]) -> Generator[Buffer, None, None]:
    yield from read()


def _shards(clients: Clients, pipeline: Pipeline, operation: Operation, manifest: Manifest) -> int:
    """In how many shards a snapshot is loaded. Those of people's DAGs load one operation after the other themselves."""
    if operation.kind not in ("run", "backfill"):
        return 1
    before = operations.shards_of_run(clients.state, operation)
    known = [before[name] for name in operation.destinations if name in before]
    wanted = min(-(-manifest.rows // pipeline.shard_rows), manifest.chunks, pipeline.max_shards)
    return max(known, default=max(1, wanted))


def load(clients: Clients, pipeline: Pipeline, sync_id: str, destination: str, shard: int = 0) -> dict[str, int]:
    """Delivers the snapshot, or a shard of it, to one destination and returns the counts.

    Raises what the retry is to react to.
    """
    with tracing.span("load", pipeline=pipeline.name, sync_id=sync_id, destination=destination, shard=shard) as span:
        counts = asdict(_load(clients, pipeline, sync_id, destination, shard))
        tracing.note(span, **counts)
    log.info("loaded", destination=destination, **counts)
    return counts


def _load(clients: Clients, pipeline: Pipeline, sync_id: str, destination: str, shard: int) -> operations.Counts:
    operation, state = current(clients, sync_id), clients.state
    if shard >= operation.shards:
        raise Superseded(f"the snapshot has {operation.shards} shards, and not so many as before: clear `snapshot`")
    share = Share(shard, operation.shards)
    target = next((target for target in pipeline.destinations if target.name == destination), None)
    mark = watermark.read(state, pipeline.name, [destination]).get(destination)
    if target is None or mark is None:
        raise ConfigError(f"the pipeline file has no destination {destination!r} any more; clear `extract` of this run")

    def reread(keys: Sequence[Sequence[str]]) -> tuple[int, list[str]]:
        with clients.open_store() as store, fence.pipeline_lock(state, pipeline.name):
            sequence = operations.take_sequence(state)
            lines = b"".join(bytes(row) for row in store.read(keys)).decode().split("\n")[:-1]
        return sequence, lines

    row = operations.start_load(state, operation, mark.destination_id, shard)
    try:
        with (
            clients.open_adapter(destination) as adapter,
            adapter.meter.loading(),
            fence.share(
                state, mark.destination_id, adapter.longest_request, sync_id, shard, end_work=adapter.end_work
            ) as held,
            Sender(adapter, held, target.in_flight) as sender,
        ):
            # Again: whoever held the lock until now may have got further.
            row = operations.start_load(state, operation, mark.destination_id, shard)
            again = None if operation.kind == "recover" else reread
            clients.snapshots.check_columns(operation.snapshot_id, pipeline.source.columns)
            load = Load(clients, pipeline, operation, target, mark.destination_id, share, row, held, sender, again)
            counts = load.run()
            operations.end_load(state, row)
    except LeadsyncError as error:
        if not state.broken:
            with state.transaction():
                operations.end_load(state, row, error)
                if not isinstance(error, LeftBehind):
                    recovery_log.append(
                        state, pipeline.name, error.kind, str(error), destination=destination, sync_id=sync_id
                    )
        raise
    return counts


def probe(clients: Clients, pipeline: Pipeline, destination: str) -> str | None:
    """Looks whether a parked destination is well; returns what keeps it parked, None when it takes part again."""
    mark = watermark.read(clients.state, pipeline.name, [destination])[destination]
    if mark.parked_at is None:
        return None
    try:
        with clients.open_adapter(destination) as adapter:
            return parking.probe(clients.state, pipeline, mark, adapter)
    except ConfigError as error:
        return str(error)


def commit(clients: Clients, pipeline: Pipeline, sync_ids: Sequence[str]) -> dict[str, datetime]:
    """Moves the watermarks to the ends of the windows, after every load of the run ended well and its sum holds.

    Returns the watermark of each destination that moved: none in a backfill, and not that of one that was left behind.
    """
    state = clients.state
    moved: dict[str, datetime] = {}
    for operation in [current(clients, sync_id) for sync_id in sync_ids]:
        ended = operations.ended_loads(state, operation)
        for name in operation.destinations:
            loads = ended.get(name, operations.Ended())
            if loads.left and loads.well + loads.left == operation.shards:
                continue  # it stays where it is, and catches up
            counts = loads.counts
            if loads.well != operation.shards:
                raise LeadsyncError(f"the load of {name} has not succeeded, so the watermark stays; clear it to retry")
            if counts.read != operation.rows or counts.read != counts.ended:
                raise LeadsyncError(
                    f"the sum of {name} does not hold, so the watermark stays: rows {operation.rows}, {asdict(counts)}"
                )
            if operation.kind == "run" and operation.upper != windows.BEGINNING:
                moved[name] = operation.upper
    with state.transaction():
        for name, upper in moved.items():
            watermark.advance(state, pipeline.name, [name], upper)
        for sync_id in sync_ids:
            operations.mark_committed(state, sync_id)
        for mark in watermark.read(state, pipeline.name, list(moved)).values():
            parking.release(state, pipeline, mark)
    log.info("committed", **{name: upper.isoformat() for name, upper in moved.items()})
    return moved


def current(clients: Clients, sync_id: str) -> Operation:
    """The operation, as long as it is not superseded. Raises Superseded otherwise."""
    operation = operations.read(clients.state, sync_id)
    if operation is None:
        raise Superseded(f"there is no sync operation {sync_id} any more; trigger a new run")
    if operation.superseded:
        raise Superseded("`extract` of this run was run again since: clear `snapshot` and what follows it")
    return operation
