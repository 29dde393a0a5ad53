"""Removes every trace of some leads from Leadsync's own stores, and leaves a certificate in the recovery log.

What goes: dead letters, rows of the retry queue, findings of reconciliations, records of the operation log (a part is
sealed again without them), whole snapshots that hold one of the leads, the places of reconciliations that are not done
(they start over), and the external id (and the CRM's id) from ledger and recovery log. What stays is the ledger's row
under the lead's key, a hash: without it a later run would deliver an old state again.

A snapshot is dropped as a whole since its count of rows is what every load of it has to account for. It costs other
leads a recovery from it, and no delivery: a window that is not committed yet is not touched, and a committed one can be
delivered again from the lead store with `since` and `resend`.

The lead must be deleted first, and its delete delivered: a lead that is alive would come back with the next run, and
one whose delete is still to be sent would stay in a CRM for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
import structlog
from psycopg.types.json import Jsonb

from leadsync import changes, traces
from leadsync.clients import Clients
from leadsync.config import Pipeline
from leadsync.erasable import refuse_unless_deleted
from leadsync.errors import InUse, Refused
from leadsync.mapping import join_key, split_key
from leadsync.models import Digest
from leadsync.state import fence, operations, recovery_log, schema, vacuum
from leadsync.traces import Sought, Traces

log = structlog.get_logger(__name__)

# What a run that went on meanwhile has left is removed in another round.
ROUNDS = 3
# Seconds after which a snapshot that is in use may be free.
WAIT = 60.0
TABLES = ("dead_letter", "retry_queue", "operation_data", "delivery", "reconciliation_finding", "recovery_log")

DESTINATIONS: LiteralString = "SELECT destination_id FROM leadsync.watermark WHERE pipeline = %(pipeline)s"

KNOWN: LiteralString = """
SELECT DISTINCT lead_key FROM leadsync.delivery
 WHERE destination_id = ANY (%(destinations)s) AND lead_key = ANY (%(leads)s)
"""

# The operations that may still load one of these snapshots. A run's window that the watermarks have passed since was
# delivered by a later run: whoever clears the old one delivers nothing.
NEEDED_BY: LiteralString = """
SELECT o.kind, o.run_id FROM leadsync.sync_operation o
 WHERE o.snapshot_id = ANY (%(snapshots)s::uuid[]) AND o.committed_at IS NULL AND o.superseded_at IS NULL
   AND NOT (o.kind = 'run' AND o.upper_bound <= ALL (
            SELECT coalesce(w.watermark, '-infinity') FROM leadsync.watermark w
             WHERE w.pipeline = o.pipeline AND w.destination = ANY (o.destinations)))
 LIMIT 1
"""

READ_PART: LiteralString = """
SELECT records FROM leadsync.operation_data WHERE operation_id = %(load)s AND part = %(part)s
"""
WRITE_PART: LiteralString = """
UPDATE leadsync.operation_data SET records = %(records)s WHERE operation_id = %(load)s AND part = %(part)s
"""
REMOVE_PART: LiteralString = """
DELETE FROM leadsync.operation_data WHERE operation_id = %(load)s AND part = %(part)s
"""

READ_LINES: LiteralString = "SELECT id, message, details FROM leadsync.recovery_log WHERE id = ANY (%(lines)s)"
WRITE_LINE: LiteralString = """
UPDATE leadsync.recovery_log SET message = %(message)s, details = %(details)s WHERE id = %(id)s
"""

REMOVE_DEAD_LETTERS: LiteralString = """
DELETE FROM leadsync.dead_letter WHERE destination_id = ANY (%(destinations)s) AND lead_key = ANY (%(leads)s)
"""
REMOVE_RETRIES: LiteralString = """
DELETE FROM leadsync.retry_queue WHERE destination_id = ANY (%(destinations)s) AND lead_key = ANY (%(leads)s)
"""
REMOVE_FINDINGS: LiteralString = """
DELETE FROM leadsync.reconciliation_finding f USING leadsync.reconciliation r
 WHERE r.id = f.reconciliation_id AND r.destination_id = ANY (%(destinations)s) AND f.lead_key = ANY (%(leads)s)
"""
# One that is not done has its place at a lead, by its key. It starts over.
START_OVER: LiteralString = """
WITH stopped AS (
    UPDATE leadsync.reconciliation SET cursor = NULL, phase = 'leads', counts = '{}'
     WHERE destination_id = ANY (%(destinations)s) AND state = 'failed' AND phase = 'leads' AND cursor IS NOT NULL
    RETURNING id)
DELETE FROM leadsync.reconciliation_finding WHERE reconciliation_id IN (SELECT id FROM stopped)
"""
HIDE_DELIVERIES: LiteralString = """
UPDATE leadsync.delivery SET external_id = NULL, crm_id = NULL
 WHERE destination_id = ANY (%(destinations)s) AND lead_key = ANY (%(leads)s)
"""


def erase(
    clients: Clients, pipeline: Pipeline, external_ids: Sequence[str], asked_by: str | None = None
) -> dict[str, Any]:
    """Erases leads by external id: all of them, or none when one can't be. Returns their number and what was removed.

    Raises Refused, saying what to do first, and InUse while a snapshot that holds one may still be loaded.
    """
    state = clients.state
    schema.check(state)
    sought = _sought(pipeline, external_ids)
    still_there = refuse_unless_deleted(clients, pipeline, list(sought.keys))
    destinations = [row[0] for row in state.execute(DESTINATIONS, {"pipeline": pipeline.name})]
    # A snapshot that was being written may have been read before the leads were deleted. What is written from here on
    # is not, and what is incomplete now is left over from a task that died.
    with fence.pipeline_lock(state, pipeline.name, patience=300.0):
        for snapshot_id, complete in clients.snapshots.stored().items():
            if not complete:
                clients.snapshots.drop(snapshot_id)
    _wait_for_loads(state, destinations)
    found = traces.find(clients, pipeline, destinations, sought)
    _refuse_unknown(state, destinations, sought, found)
    removed = {key: Counter[str]() for key in found.counts}
    for _ in range(ROUNDS):
        if not found:
            break
        _refuse_needed(state, found)
        _remove(clients, destinations, sought, found)
        for key, counts in found.counts.items():
            removed[key] += counts
        found = traces.find(clients, pipeline, destinations, sought)
    if found:
        raise InUse(
            f"new traces keep coming: pause {pipeline.name}_sync and what else is running, then try again", WAIT
        )
    vacuum.vacuum(state, TABLES)
    _certify(state, pipeline, sought, removed, still_there, asked_by)
    total = sum(removed.values(), Counter[str]())
    log.info("erased", pipeline=pipeline.name, leads=len(removed), **total)
    return {"leads": len(removed), "removed": dict(total)}


def _sought(pipeline: Pipeline, external_ids: Sequence[str]) -> Sought:
    columns = pipeline.source.key
    if not external_ids:
        raise Refused("no external id was given")
    for external_id in external_ids:
        if not isinstance(external_id, str) or not external_id:
            raise Refused("an external id is a text such as ASDAD:12345")
        values = split_key(external_id)
        if len(values) != len(columns) or join_key(values) != external_id:
            raise Refused(
                f"{external_id} is not an external id of {pipeline.name}: it is made of {', '.join(columns)}, joined "
                "by `:`, with `\\` before a `:` or `\\` inside of one"
            )
    return Sought(external_ids)


def _refuse_unknown(state: psycopg.Connection[Any], destinations: Sequence[int], sought: Sought, found: Traces) -> None:
    values = {"destinations": list(destinations), "leads": list(sought.keys.values())}
    known = {Digest(key.bytes) for (key,) in state.execute(KNOWN, values)}
    for external_id, key in sought.keys.items():
        if key not in known and not found.counts[key]:
            raise Refused(f"no store of Leadsync holds anything of {external_id}: is it spelled right?")


def _refuse_needed(state: psycopg.Connection[Any], found: Traces) -> None:
    needed = state.execute(NEEDED_BY, {"snapshots": found.snapshots}).fetchone()
    if needed:
        raise InUse(
            f"a snapshot that holds the leads is still needed by the {needed[0]} {needed[1]}, which is not committed: "
            "let it succeed, or clear its first task, then erase",
            WAIT,
        )


def _remove(clients: Clients, destinations: Sequence[int], sought: Sought, found: Traces) -> None:
    state = clients.state
    for snapshot_id in found.snapshots:
        clients.snapshots.drop(snapshot_id)
    # A load that had read one of them before settles what it holds. None can start to any more.
    _wait_for_loads(state, destinations)
    for load, part in found.parts:
        _remove_records(clients, sought, load, part)
    values = {"destinations": list(destinations), "leads": list(sought.keys.values())}
    with state.transaction():
        state.execute(REMOVE_DEAD_LETTERS, values)
        state.execute(REMOVE_RETRIES, values)
        state.execute(REMOVE_FINDINGS, values)
        state.execute(START_OVER, values)
        state.execute(HIDE_DELIVERIES, values)
        for line, message, details in state.execute(READ_LINES, {"lines": found.lines}).fetchall():
            message, details = sought.hide([message, details], set())
            state.execute(WRITE_LINE, {"id": line, "message": message, "details": Jsonb(details)})


def _wait_for_loads(state: psycopg.Connection[Any], destinations: Sequence[int]) -> None:
    for destination in destinations:
        fence.wait_for_load(state, destination)


def _remove_records(clients: Clients, sought: Sought, load: int, part: int) -> None:
    """Seals one part of the operation log again without the records of the leads."""
    place = {"load": load, "part": part}
    row = clients.state.execute(READ_PART, place).fetchone()
    if row is None:  # old enough to go, meanwhile
        return
    context = operations.data_context(load)
    head, records = changes.unpack(clients.sealer.open(row[0], context))
    unwanted = sought.among([record[1:] for record in records], head["columns"], head["key"])
    rest = [record for index, record in enumerate(records) if index not in unwanted]
    if rest:
        sealed = clients.sealer.seal(changes.repack(head, rest), context)
        clients.state.execute(WRITE_PART, {**place, "records": sealed})
    else:
        clients.state.execute(REMOVE_PART, place)


def _certify(
    state: psycopg.Connection[Any],
    pipeline: Pipeline,
    sought: Sought,
    removed: dict[Digest, Counter[str]],
    still_there: set[str],
    asked_by: str | None,
) -> None:
    with state.transaction():
        for external_id, key in sought.keys.items():
            in_store = external_id in still_there
            message = "a lead was erased from every store of Leadsync; a second search found nothing of it"
            if in_store:
                message += "; the lead store still holds its deleted row, which a backfill would read again"
            recovery_log.append(
                state,
                pipeline.name,
                "erased",
                message,
                lead_key=str(key),
                removed=dict(removed[key]),
                asked_by=asked_by,
                lead_store="deleted row" if in_store else "gone",
            )
