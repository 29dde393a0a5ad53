"""Replays dead letters: reads each lead anew from the lead store and delivers it through the ordinary load.

A run goes over its letters in slices, each a sync operation of its own. A letter ends delivered, renewed (the CRM
refused the lead again) or closed (there is nothing to deliver any more); what was taken up and then killed is still
open, and so is taken up again. When nothing but refusals comes of it the replay fails, for it did not do what was
asked. No watermark moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC
from typing import Any

import psycopg
import structlog

from leadsync import operations, redelivery
from leadsync.clients import Clients
from leadsync.config import Pipeline
from leadsync.errors import ConfigError, RedisAway, RefusedAgain, SnapshotError
from leadsync.letters import NAMED
from leadsync.mapping import lead_key
from leadsync.models import Digest
from leadsync.request import check_names, chosen_destinations
from leadsync.state import dead_letters, recovery_log, redeliveries, replays, schema, watermark
from leadsync.state import operations as state_operations
from leadsync.state.replays import Selection

log = structlog.get_logger(__name__)

PARAMETERS = ("pipeline", "destinations", "group", "external_ids", "all", "limit", "mended")
# What the label of a task tells.
STANDS_OUT = {"dead": "refused again"}
AGAIN = "clear this task: it reads the leads anew"
# Dead letters of one sync operation.
SLICE = 10_000
# Groups that an error lists.
LISTED = 20


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person asked for: a group, some leads, or everything; `limit` is per destination."""

    destinations: tuple[str, ...]
    group: str | None = None
    external_ids: tuple[str, ...] = ()
    everything: bool = False
    limit: int | None = None
    mended: bool = False


def read_choice(pipeline: Pipeline, parameters: Mapping[str, Any]) -> Choice:
    """The parameters, checked. Raises ConfigError that says which one is wrong."""
    check_names(parameters, PARAMETERS)
    destinations, _ = chosen_destinations(pipeline, parameters)
    group = str(parameters.get("group") or "").strip() or None
    external_ids = tuple(dict.fromkeys(map(str, parameters.get("external_ids") or ())))
    everything, limit = bool(parameters.get("all")), parameters.get("limit")
    if sum(map(bool, (group, external_ids, everything))) > 1:
        raise ConfigError("choose one of `group`, `external_ids` and `all`")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ConfigError("`limit` is a number of leads, 1 or more")
    mended = bool(parameters.get("mended"))
    if mended and (group is None or limit is not None):
        raise ConfigError("`mended` marks a whole `group`: it needs `group`, and no `limit`")
    return Choice(destinations, group, external_ids, everything, limit, mended)


def choose(
    state: psycopg.Connection[Any], pipeline: Pipeline, parameters: Mapping[str, Any], by: str | None
) -> list[dict[str, Any]]:
    """What is to be replayed: an item for each destination that has some of it. Changes nothing.

    With `mended` it marks the group for the schedule instead, and returns no item. Raises ConfigError for a choice that
    is empty, or names what is not an open dead letter.
    """
    choice = read_choice(pipeline, parameters)
    schema.check(state)
    marks = watermark.read(state, pipeline.name, choice.destinations)
    numbers = {name: marks[name].destination_id for name in choice.destinations if name in marks}
    if not (choice.group or choice.external_ids or choice.everything):
        raise ConfigError(f"choose `group`, `external_ids` or `all`; {_listing(state, numbers)}")
    _check_ids(state, numbers, choice)
    sequence, found = replays.last_sequence(state), []
    for name, number in numbers.items():
        selection = Selection(sequence, None, choice.group, _keys(choice.external_ids))
        letters, upto = replays.measure(state, number, selection, choice.limit)
        if letters:
            found.append(_item(pipeline.name, name, sequence, choice.group, upto, choice.external_ids))
            log.info("chosen", destination=name, letters=letters)
    if choice.group and not found:
        raise ConfigError(f"no open dead letter is of the group {choice.group!r}; {_listing(state, numbers)}")
    if not choice.mended or choice.group is None:
        return found
    for item in found:
        replays.mark(state, numbers[item["destination"]], choice.group, sequence, by)
        message = f"{by or 'a person'} marked {choice.group!r} as mended: the schedule replays it"
        recovery_log.append(state, pipeline.name, "mended", message, destination=item["destination"], by=by)
    return []


def marked(state: psycopg.Connection[Any], pipelines: Sequence[Pipeline]) -> list[dict[str, Any]]:
    """The groups that are marked as mended, as items like those of `choose`."""
    schema.check(state)
    found: dict[tuple[str, str], dict[str, Any]] = {}
    known = {(pipeline.name, target.name) for pipeline in pipelines for target in pipeline.destinations}
    for pipeline, destination, group, sequence in replays.marked(state):
        if (pipeline, destination) in known:
            item = _item(pipeline, destination, sequence, group, mended=True)
            found.setdefault((pipeline, destination), {**item, "selections": []})["selections"] += item["selections"]
    return list(found.values())


def run(clients: Clients, pipeline: Pipeline, run_id: str, item: Mapping[str, Any], by: str | None) -> dict[str, int]:
    """Replays what `choose` or `marked` found for one destination, and goes on where an earlier try was killed.

    Returns the counts of all its loads, and how many letters this try closed: `gone` from the lead store, and
    `elsewhere`: not routed to the destination any more. Raises RefusedAgain when nothing came through.
    """
    return _Replay(clients, pipeline, run_id, str(item["destination"])).run(item["selections"], by)


class _Replay:
    """One destination's part of a run."""

    def __init__(self, clients: Clients, pipeline: Pipeline, run_id: str, destination: str) -> None:
        self._clients, self._state = clients, clients.state
        self._pipeline, self._run_id, self._destination = pipeline, run_id, destination
        self._id = watermark.read(clients.state, pipeline.name, [destination])[destination].destination_id
        self._closed = {"gone": 0, "elsewhere": 0}

    def run(self, selections: Sequence[Mapping[str, Any]], by: str | None) -> dict[str, int]:
        for operation in self._opened():
            if operation.sequence is not None and not operation.committed:
                with suppress(SnapshotError):  # its letters are still open, and so among those below
                    self._load(operation.sync_id)
        left = sum(self._replay(selection) for selection in selections)
        return self._end(left, by)

    def _opened(self) -> list[state_operations.Operation]:
        return redeliveries.of_run(self._state, self._pipeline.name, self._run_id, "replay", self._destination)

    def _replay(self, chosen: Mapping[str, Any]) -> int:
        """Goes over one selection; returns how many are left, for it ends early when nothing but refusals comes."""
        selection = Selection(chosen["sequence"], chosen["upto"], chosen["group"], _keys(chosen["external_ids"]))
        after, arrived, left = 0, 0, 0
        while letters := replays.next_slice(self._state, self._id, selection, after, SLICE):
            after, ids = letters[-1][0], [external_id for _, external_id in letters]
            found = redelivery.prepare(self._clients, self._pipeline, self._run_id, "replay", self._destination, ids)
            self._close(found)
            counts = self._load(found.operation.sync_id)
            arrived += counts["delivered"] + counts["unchanged"] + counts["overtaken"]
            if counts["dead"] and not arrived:
                left, _ = replays.measure(self._state, self._id, selection, None)
                break
        if chosen["mended"]:
            replays.unmark(self._state, self._id, chosen["group"], chosen["sequence"])
        return left

    def _close(self, found: redelivery.Redelivery) -> None:
        sequence = operations.current(self._clients, found.operation.sync_id).sequence or 0
        for why, ids, resolution in (
            ("gone", found.gone, "gone from the lead store"),
            ("elsewhere", found.elsewhere, f"not routed to {self._destination} any more"),
        ):
            closed = dead_letters.close(self._state, self._id, sequence, list(map(lead_key, ids)), resolution)
            self._closed[why] += len(closed)
            if closed:
                message = f"{len(closed)} dead letters were closed: {resolution}"
                self._remember("resolved", message, found.operation.sync_id, external_ids=closed[:NAMED])

    def _load(self, sync_id: str) -> dict[str, int]:
        try:
            counts = operations.load(self._clients, self._pipeline, sync_id, self._destination)
        except RedisAway:
            raise
        except SnapshotError:
            state_operations.supersede_one(self._state, sync_id)
            raise
        state_operations.mark_committed(self._state, sync_id)
        return counts

    def _end(self, left: int, by: str | None) -> dict[str, int]:
        total = redeliveries.totals(self._state, self._pipeline.name, self._run_id, "replay", self._destination)
        counts = {**asdict(total), **self._closed}
        told = ", ".join(f"{name.replace('dead', 'refused again')} {count}" for name, count in counts.items() if count)
        message = f"replayed by {by or 'the schedule'}: {told or 'nothing was left to do'}"
        self._remember("replay", message, None, by=by, run_id=self._run_id, left=left, **counts)
        log.info("replayed", destination=self._destination, left=left, **counts)
        if total.dead and not (total.delivered or total.unchanged or total.overtaken):
            sync_ids = [operation.sync_id for operation in self._opened()]
            groups = replays.groups(self._state, [self._id], 3, sync_ids)
            reasons = "; ".join(f"{count} × {group}" for _, group, count in groups)
            more = f"; {left} more were not tried: clear this task to try them" if left else ""
            raise RefusedAgain(
                f"{self._destination}: all {total.dead} leads were refused again ({reasons}); "
                f"they stay dead letters{more}"
            )
        return counts

    def _remember(self, kind: str, message: str, sync_id: str | None, **details: Any) -> None:
        recovery_log.append(
            self._state, self._pipeline.name, kind, message, destination=self._destination, sync_id=sync_id, **details
        )


def _item(
    pipeline: str,
    destination: str,
    sequence: int,
    group: str | None,
    upto: int | None = None,
    external_ids: Sequence[str] = (),
    *,
    mended: bool = False,
) -> dict[str, Any]:
    """What one mapped task goes over; it travels as JSON."""
    selection = {"sequence": sequence, "group": group, "upto": upto, "external_ids": list(external_ids)}
    return {"pipeline": pipeline, "destination": destination, "selections": [{**selection, "mended": mended}]}


def _keys(external_ids: Sequence[str]) -> list[Digest] | None:
    return list(map(lead_key, external_ids)) or None


def _check_ids(state: psycopg.Connection[Any], numbers: Mapping[str, int], choice: Choice) -> None:
    """Raises ConfigError for the first lead that has no open dead letter in any of the destinations."""
    keys = _keys(choice.external_ids)
    known = replays.look_up(state, list(numbers.values()), keys) if keys else {}
    for external_id in choice.external_ids:
        found = known.get(lead_key(external_id))
        if found is None:
            raise ConfigError(f"there is no dead letter of {external_id!r} in {', '.join(choice.destinations)}")
        if found.resolved_at is not None:
            raise ConfigError(
                f"the dead letter of {external_id!r} was resolved at "
                f"{found.resolved_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC: {found.resolution}"
            )
        if external_id.startswith(dead_letters.NAMELESS):
            raise ConfigError(f"{external_id!r} can't be found by its key: mend the row in the lead store")


def _listing(state: psycopg.Connection[Any], numbers: Mapping[str, int]) -> str:
    groups = replays.groups(state, list(numbers.values()), LISTED)
    lines = [f"{destination}: {count} × {group}" for destination, group, count in groups]
    return "the groups of open dead letters: " + "; ".join(lines) if lines else "there are no open dead letters"
