"""Whether leads may be erased: gone or soft-deleted in the lead store, and their delete delivered everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg

from leadsync import windows
from leadsync.clients import Clients
from leadsync.config import Destination, Pipeline
from leadsync.copytext import parse_line
from leadsync.errors import Refused
from leadsync.mapping import DELETED, Mapper, Row, lead_key, split_key
from leadsync.models import Digest
from leadsync.source import LeadStore
from leadsync.transforms import MappingFailure

LEDGER: LiteralString = """
SELECT w.destination, d.lead_key, d.digest
  FROM leadsync.delivery d JOIN leadsync.watermark w USING (destination_id)
 WHERE w.pipeline = %(pipeline)s AND d.lead_key = ANY (%(leads)s)
"""


def refuse_unless_deleted(clients: Clients, pipeline: Pipeline, external_ids: Sequence[str]) -> set[str]:
    """Raises Refused, saying what to do first, for the first lead that may not be erased yet.

    Returns the leads whose deleted row is still in the lead store. A destination that the pipeline file does not list
    any more is not asked: nothing is delivered there.
    """
    rows = _deleted_rows(clients, pipeline, external_ids)
    keys = {lead_key(external_id): external_id for external_id in external_ids}
    values = {"pipeline": pipeline.name, "leads": list(keys)}
    ledger: dict[str, dict[Digest, Digest | None]] = {}
    for name, key, digest in clients.state.execute(LEDGER, values):
        ledger.setdefault(name, {})[Digest(key.bytes)] = Digest(digest.bytes) if digest else None
    for target in pipeline.destinations:
        mapper, delivered = Mapper(pipeline.source, target), ledger.get(target.name, {})
        doubtful = [
            keys[key]
            for key, digest in delivered.items()
            if digest not in (DELETED, _deleted_digest(mapper, rows.get(keys[key])))
        ]
        if doubtful:
            _refuse_what_it_holds(clients, pipeline, target, doubtful)
    return set(rows)


def _deleted_rows(clients: Clients, pipeline: Pipeline, external_ids: Sequence[str]) -> dict[str, Row]:
    """The rows of the leads that are still in the lead store."""
    mapper = Mapper(pipeline.source, pipeline.destinations[0])
    names = [target.name for target in pipeline.destinations]
    rows = {}
    with clients.open_store() as store:
        store.check()
        marks = windows.register(clients.state, pipeline, names, store.bound(), dry_run=True)
        for external_id in external_ids:
            row = _row(store, mapper, external_id)
            if row is None:
                continue
            if not mapper.deleted(row):
                raise Refused(
                    f"{external_id} is alive in the lead store: delete it there, let a run of {pipeline.name}_sync "
                    "deliver the delete, then erase"
                )
            for mark in marks.values():
                if store.awaits(split_key(external_id), mark.at):
                    raise Refused(
                        f"{mark.destination} has not got so far as the delete of {external_id} yet: let a run of "
                        f"{pipeline.name}_sync succeed, then erase"
                    )
            rows[external_id] = row
    return rows


def _row(store: LeadStore, mapper: Mapper, external_id: str) -> Row | None:
    try:
        lines = b"".join(bytes(row) for row in store.read([split_key(external_id)])).decode().split("\n")[:-1]
    except psycopg.DataError:
        raise Refused(f"{external_id} can't be a lead: its parts do not fit the key columns") from None
    if not lines:
        return None
    row = parse_line(lines[0])
    if mapper.external_id(row) != external_id:
        raise Refused(f"there is no lead {external_id}: the lead store writes it {mapper.external_id(row)}")
    return row


def _deleted_digest(mapper: Mapper, row: Row | None) -> Any:
    """The hash of the deleted lead as the destination is to hold it; DELETED where nobody can tell."""
    if row is None or not mapper.routed(row):
        return DELETED
    try:
        return mapper.map(row).digest
    except MappingFailure:
        return DELETED


def _refuse_what_it_holds(
    clients: Clients, pipeline: Pipeline, target: Destination, external_ids: Sequence[str]
) -> None:
    """The ledger does not show the delete as delivered, so the CRM is asked."""
    with clients.open_adapter(target.name) as adapter:
        held = sorted(each for each, records in adapter.fetch(external_ids).items() if records)
    if held:
        raise Refused(
            f"{target.name} still holds {held[0]}, whose delete was not delivered to it: let a run of "
            f"{pipeline.name}_sync deliver it, or, where the lead store has no row of it any more, delete it there; "
            "then erase"
        )
