"""Delivers from the snapshots in Redis, without the lead store: to a CRM that lost data, or while the store is down.

Each chosen snapshot is loaded by an operation of its own that has the snapshot's sequence, the newest first. What the
ledger shows as claimed under a higher sequence is therefore left alone, be it that a newer snapshot went before or that
a run has newer states: no lead goes back. What a run of the recovery has done is not done again when it is cleared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import structlog

from leadsync import operations
from leadsync.clients import Clients
from leadsync.config import Destination, Pipeline
from leadsync.errors import ConfigError, RedisAway, SnapshotError
from leadsync.letters import NAMED
from leadsync.request import check_names, chosen_destinations, moment
from leadsync.state import operations as state_operations
from leadsync.state import recovery_log, redeliveries, schema, watermark
from leadsync.state.operations import Operation

log = structlog.get_logger(__name__)

PARAMETERS = ("pipeline", "destinations", "operations", "since", "until", "resend")
# What the label of a task tells.
STANDS_OUT = {"dead": "refused", "passed_over": "passed over"}
AGAIN = "what it held is still in the lead store: run the pipeline's own DAG with `since`, and `resend` if need be"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person asked for: some operations, or those whose snapshots were taken in `[since, until)`."""

    destinations: tuple[str, ...]
    named: bool
    sync_ids: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    resend: bool = False


def read_choice(pipeline: Pipeline, parameters: Mapping[str, Any]) -> Choice:
    """The parameters, checked. Raises ConfigError that says which one is wrong."""
    check_names(parameters, PARAMETERS)
    destinations, named = chosen_destinations(pipeline, parameters)
    since, until = moment("since", parameters), moment("until", parameters)
    sync_ids = tuple(dict.fromkeys(_sync_id(given) for given in parameters.get("operations") or ()))
    if bool(sync_ids) == (since is not None) or (until is not None and since is None):
        raise ConfigError("choose either `operations`, or `since` (and `until`): times at which snapshots were taken")
    if since is not None and until is not None and since >= until:
        raise ConfigError(f"`since` ({since.isoformat()}) must be before `until` ({until.isoformat()})")
    return Choice(destinations, named, sync_ids, since, until, resend=bool(parameters.get("resend")))


def choose(clients: Clients, pipeline: Pipeline, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is to be recovered: an item for each destination. Sends and changes nothing.

    Raises ConfigError for a choice that holds nothing, and SnapshotError when an operation that was named can't be
    delivered as a whole.
    """
    choice, state = read_choice(pipeline, parameters), clients.state
    schema.check(state)
    until = choice.until or redeliveries.now(state)  # fixed, so that every try goes over the same snapshots
    fixed = replace(choice, until=until if choice.since else None)
    unknown = set(choice.destinations) - set(watermark.read(state, pipeline.name, choice.destinations))
    if unknown and choice.named:
        raise ConfigError(f"{', '.join(unknown)}: never took part in a run of {pipeline.name}_sync; let one run first")
    if choice.sync_ids:
        _check_named(clients, pipeline, fixed)
    found = [name for name in choice.destinations if _kept(clients, pipeline, fixed, name)]
    if not found:
        raise ConfigError(f"there is no snapshot with leads among those chosen for {', '.join(choice.destinations)}")
    chosen = {
        "pipeline": pipeline.name,
        "named": choice.named,
        "operations": list(choice.sync_ids),
        "since": choice.since and choice.since.isoformat(),
        "until": fixed.until and fixed.until.isoformat(),
        "resend": choice.resend,
    }
    return [{**chosen, "destination": name} for name in found]


def run(clients: Clients, pipeline: Pipeline, run_id: str, item: Mapping[str, Any], by: str | None) -> dict[str, int]:
    """Delivers what `choose` found to one destination, and goes on where an earlier try stopped.

    Returns the counts of all its loads, the number of `snapshots`, and how many rows a resend has `passed_over`: of
    those leads a newer state was delivered that is in none of the snapshots, and the CRM may have lost it. Raises
    SnapshotError in the end when some snapshots can't be read, after the others were delivered.
    """
    name = str(item["destination"])
    target = next(target for target in pipeline.destinations if target.name == name)
    choice = Choice(
        (name,),
        bool(item["named"]),
        tuple(item["operations"]),
        moment("since", item),
        moment("until", item),
        resend=bool(item["resend"]),
    )
    opened = {
        operation.snapshot_id: operation
        for operation in redeliveries.of_run(clients.state, pipeline.name, run_id, "recover", name)
    }
    kept = _kept(clients, pipeline, choice, name)
    lost: dict[str, str] = {}
    for origin in kept:
        operation = opened.get(origin.snapshot_id)
        if operation is not None and operation.committed:
            continue
        try:
            fitted = _fit(clients, pipeline, target, origin)
            if operation is None:
                operation = _open(clients, run_id, origin, name, resend=choice.resend)
            operations.load(clients, fitted, operation.sync_id, name)
        except RedisAway:
            raise
        except SnapshotError as error:
            lost[origin.sync_id] = str(error)
            continue
        state_operations.mark_committed(clients.state, operation.sync_id)
    return _end(clients, pipeline, run_id, name, len(kept), lost, by)


def _end(
    clients: Clients, pipeline: Pipeline, run_id: str, name: str, many: int, lost: Mapping[str, str], by: str | None
) -> dict[str, int]:
    total = redeliveries.totals(clients.state, pipeline.name, run_id, "recover", name)
    passed_over = redeliveries.passed_over(clients.state, pipeline.name, run_id, name)
    counts = {"snapshots": many - len(lost), **asdict(total), "passed_over": passed_over}
    told = ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in counts.items() if count)
    message = f"recovered by {by or 'a person'}: {told}"
    if lost:
        message = f"{message}; {len(lost)} of {many} snapshots can't be delivered"
    details = {"by": by, "run_id": run_id, "lost": list(lost)[:NAMED], **counts}
    recovery_log.append(clients.state, pipeline.name, "recover", message, destination=name, **details)
    log.info("recovered", destination=name, lost=len(lost), **counts)
    if lost:
        sync_id, why = next(iter(lost.items()))
        raise SnapshotError(
            f"{name}: {len(lost)} of {many} snapshots can't be delivered; the others were ({told}). "
            f"The recovery log lists them; that of operation {sync_id}: {why}"
        )
    return counts


def _kept(clients: Clients, pipeline: Pipeline, choice: Choice, name: str) -> list[Operation]:
    """The operations to recover, the newest first: those that the destination took part in, or all if it was named."""
    found = redeliveries.kept(clients.state, pipeline.name, choice.sync_ids or None, choice.since, choice.until)
    return [operation for operation in found if choice.named or name in operation.destinations]


def _open(clients: Clients, run_id: str, origin: Operation, name: str, *, resend: bool) -> Operation:
    operation = replace(
        origin,
        sync_id=str(uuid4()),
        kind="recover",
        destinations=[name],
        resend=resend,
        shards=1,  # however many the snapshot was loaded in
        superseded=False,
        committed=False,
    )
    state_operations.open_operation(clients.state, operation, run_id)
    return operation


def _fit(clients: Clients, pipeline: Pipeline, target: Destination, origin: Operation) -> Pipeline:
    """The pipeline with the columns that the snapshot has, in their order. Raises SnapshotError when one is missing."""
    columns, source = clients.snapshots.manifest(origin.snapshot_id).columns, pipeline.source
    mapped = [rule.column for rule in target.fields.values()]
    for column in (*source.key, source.deleted, *mapped, *target.route):
        if column is not None and column not in columns:
            raise SnapshotError(
                f"it has no column {column!r}, which the pipeline file wants for {target.name}; {AGAIN}"
            )
    return pipeline.model_copy(update={"source": source.model_copy(update={"columns": columns})})


def _check_named(clients: Clients, pipeline: Pipeline, choice: Choice) -> None:
    """Reads every snapshot that was named as a whole, and names all those that can't be delivered."""
    wrong = [
        f"operation {sync_id}: {why}"
        for sync_id in choice.sync_ids
        for why in _wrong(clients, pipeline, choice, sync_id)
    ]
    if wrong:
        raise SnapshotError("; ".join(wrong))


def _wrong(clients: Clients, pipeline: Pipeline, choice: Choice, sync_id: str) -> Iterator[str]:
    origin = state_operations.read(clients.state, sync_id)
    if origin is None or origin.pipeline != pipeline.name:
        yield f"there is none of this id in {pipeline.name}"
    elif origin.kind == "recover":
        yield "it is a recovery itself: name the operation that it recovered"
    elif origin.sequence is None:
        yield f"its snapshot was never finished; {AGAIN}"
    else:
        try:
            for target in pipeline.destinations:
                if target.name in choice.destinations:
                    _fit(clients, pipeline, target, origin)
            for _ in clients.snapshots.chunks(origin.snapshot_id):
                pass
        except RedisAway:
            raise
        except SnapshotError as error:
            yield str(error)


def _sync_id(given: object) -> str:
    try:
        return str(UUID(str(given)))
    except ValueError:
        raise ConfigError(f"`operations`: {str(given)!r} is not the id of a sync operation") from None
