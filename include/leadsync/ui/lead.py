"""View 4: one lead over all CRMs: where it stands, what was sent, and what became of it.

What a person searches by (a phone number, an address) goes to the lead store as a parameter and is kept nowhere: it
comes in the body of a POST, so that no access log has it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, LiteralString
from urllib.parse import quote

import psycopg
from fastapi import APIRouter, HTTPException
from pydantic import AfterValidator, StringConstraints

from leadsync import changes
from leadsync.config import Pipeline
from leadsync.copytext import parse_line
from leadsync.errors import LeadsyncError, SnapshotError
from leadsync.figures import Target
from leadsync.mapping import Mapper, lead_key
from leadsync.state import operations
from leadsync.traces import Sought
from leadsync.ui import lead_store
from leadsync.ui.access import Asks, Backend, Body, Connection, Text, User, Uses, database, storable, visible
from leadsync.ui.dead_letters import ONE_LEAD, Letter
from leadsync.ui.queries import dag_of, mark, place

router = APIRouter()

Searched = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300), AfterValidator(storable)
]
MOST_FOUND = 50
# Seconds that one request looks through the sealed records, newest first; the next one goes on there.
SEARCH_SECONDS = 1.5
MOST_CHANGES = 100

KNOWN: LiteralString = """
SELECT DISTINCT external_id, destination_id FROM leadsync.delivery
 WHERE destination_id = ANY (%(numbers)s) AND lead_key = ANY (%(keys)s::uuid[]) AND external_id IS NOT NULL
 UNION
SELECT DISTINCT external_id, destination_id FROM leadsync.dead_letter
 WHERE lead_key = ANY (%(keys)s::uuid[]) AND destination_id = ANY (%(numbers)s)
"""

# Where the lead stands, and the operation that claimed it last: a replay's slice or a second look has none.
LEDGER: LiteralString = """
SELECT d.destination_id, d.sequence, d.digest IS NOT NULL, d.crm_id, o.sync_id::text, o.pipeline, o.kind, o.run_id,
       o.started_at
  FROM leadsync.delivery d
  LEFT JOIN LATERAL (SELECT * FROM leadsync.sync_operation WHERE sequence = d.sequence LIMIT 1) o ON true
 WHERE d.destination_id = ANY (%(numbers)s) AND d.lead_key = %(key)s
"""

RETRIES: LiteralString = """
SELECT destination_id, sync_id::text, attempts, code, updated_at FROM leadsync.retry_queue
 WHERE destination_id = ANY (%(numbers)s) AND lead_key = %(key)s ORDER BY updated_at DESC LIMIT 50
"""

# What reconciliations found of the lead, the newest first. Names of fields, never their values.
FINDINGS: LiteralString = """
SELECT r.destination_id, f.kind, f.fields, f.crm_ids, f.found_at, f.repaired_at, f.repair_id::text
  FROM leadsync.reconciliation_finding f JOIN leadsync.reconciliation r ON r.id = f.reconciliation_id
 WHERE f.lead_key = %(key)s AND r.destination_id = ANY (%(numbers)s)
 ORDER BY f.id DESC LIMIT 50
"""

# The sealed records of loads, the newest first.
PART: LiteralString = """
SELECT d.operation_id, d.part, d.records, l.destination_id, l.start_at, l.end_at, o.sync_id::text, o.kind, o.run_id
  FROM leadsync.operation_data d
  JOIN leadsync.operation_log l ON l.id = d.operation_id
  JOIN leadsync.sync_operation o USING (sync_id)
 WHERE l.destination_id = ANY (%(numbers)s) AND (d.operation_id, d.part) < (%(load)s, %(part)s)
 ORDER BY d.operation_id DESC, d.part DESC LIMIT 1
"""

CHANGES = {"i": "created", "u": "updated", "d": "deleted"}


class Search(Body):
    """An external id, a uid, or the value of a `lookup` column."""

    query: Searched


@router.post("/leads/search")
def search(backend: Uses, user: Asks, body: Search) -> dict[str, Any]:
    """The leads found, each with its pipeline and by what, and what could not be searched."""
    found: dict[tuple[str, str], str] = {}
    problems: list[dict[str, Any]] = []
    with database(backend) as state:
        targets = visible(state, user)
        _known(state, targets.values(), [body.query], "external_id", found)
        for pipeline in backend.pipelines():
            if not user.sees(pipeline.name):
                continue
            own = [target for target in targets.values() if target.pipeline == pipeline.name]
            try:
                if lead_store.is_there(backend, pipeline, body.query):
                    found.setdefault((pipeline.name, body.query), "external_id")
                candidates = lead_store.with_uid(backend, pipeline, body.query) if ":" not in body.query else []
                _known(state, own, candidates, "uid", found)
                ids, slow = lead_store.find(backend, pipeline, body.query)
            except LeadsyncError as error:
                problems.append({"pipeline": pipeline.name, "problem": "away", "detail": str(error)})
            except psycopg.errors.QueryCanceled:
                problems.append({"pipeline": pipeline.name, "problem": "slow", "columns": list(pipeline.source.key)})
            else:
                for external_id in ids:
                    found.setdefault((pipeline.name, external_id), "lookup")
                if slow:
                    problems.append({"pipeline": pipeline.name, "problem": "slow", "columns": slow})
                if not pipeline.source.lookup:
                    problems.append({"pipeline": pipeline.name, "problem": "no_lookup"})
    leads = [{"pipeline": name, "external_id": lead, "by": by} for (name, lead), by in found.items()]
    return {"leads": leads[:MOST_FOUND], "more": len(leads) > MOST_FOUND, "problems": problems}


def _known(
    state: Connection, targets: Any, external_ids: Sequence[str], by: str, found: dict[tuple[str, str], str]
) -> None:
    """Adds those of the leads that ledger or dead letters know."""
    pipelines = {target.number: target.pipeline for target in targets}
    values = {"numbers": list(pipelines), "keys": [lead_key(external_id) for external_id in external_ids]}
    if external_ids and pipelines:
        for external_id, number in state.execute(KNOWN, values):
            found.setdefault((pipelines[number], external_id), by)


@router.get("/leads")
def lead(backend: Uses, user: Asks, pipeline: Text, external_id: Text) -> dict[str, Any]:
    """Where one lead stands: in the lead store, in each CRM; dead letters, retries, findings of reconciliations."""
    shown = _pipeline(backend, user, pipeline)
    with database(backend) as state:
        targets = {t.number: t for t in visible(state, user).values() if t.pipeline == pipeline}
        values = {"numbers": list(targets), "key": lead_key(external_id)}
        ledger = {number: rest for number, *rest in state.execute(LEDGER, values)}
        retries = state.execute(RETRIES, values).fetchall()
        letters = [Letter(row, backend.sealer(), shown) for row in state.execute(ONE_LEAD, values)]
        findings = [_finding(backend, shown, targets, row) for row in state.execute(FINDINGS, values)]
    source, row = _source(backend, shown, external_id)
    return {
        "pipeline": pipeline,
        "external_id": external_id,
        "known": bool(ledger or letters or findings or row),
        "source": source,
        "destinations": [
            {
                "destination": target.destination,
                "routed": _routed(shown, target, row),
                "ledger": _entry(backend, shown, target, ledger.get(number)),
                "retries": [
                    {"sync_id": sync_id, "attempts": attempts, "code": code, "at": at}
                    for owner, sync_id, attempts, code, at in retries
                    if owner == number
                ],
            }
            for number, target in targets.items()
        ],
        "letters": [letter.shown(targets[letter.number]) for letter in letters],
        "findings": findings,
        "may_edit": user.edits(pipeline),
    }


@router.get("/leads/history")
def history(backend: Uses, user: Asks, pipeline: Text, external_id: Text, before: Text | None = None) -> dict[str, Any]:
    """What was sent of a lead, newest first: it looks back for a while and says how far it got (`searched_to`).

    `changed` are the columns that differ from what was sent to the same CRM before; None where that is not known.
    """
    _pipeline(backend, user, pipeline)
    load, part = place(before, [int, int]) or (2**62, 0)
    sought, sealer, until = Sought([external_id]), backend.sealer(), time.monotonic() + SEARCH_SECONDS
    found: list[dict[str, Any]] = []
    unreadable, searched_to, more = 0, None, True
    with database(backend) as state:
        targets = {t.number: t for t in visible(state, user).values() if t.pipeline == pipeline}
        values = {"numbers": list(targets)}
        while time.monotonic() < until and len(found) < MOST_CHANGES:
            row = state.execute(PART, {**values, "load": load, "part": part}).fetchone()
            if row is None:
                more = False
                break
            load, part, records, number, start_at, end_at, sync_id, kind, run_id = row
            searched_to = start_at
            try:
                head, lines = changes.unpack(sealer.open(records, operations.data_context(load)))
            except SnapshotError:
                unreadable += 1
                continue
            places = sought.among([line[1:] for line in lines], head["columns"], head["key"])
            for index in sorted(places, reverse=True):
                found.append(
                    {
                        "destination": targets[number].destination,
                        "sync_id": sync_id,
                        "kind": kind,
                        "dag_id": dag_of(kind, pipeline),
                        "run_id": run_id,
                        "at": end_at or start_at,
                        "change": CHANGES[lines[index][0]],
                        "row": dict(zip(head["columns"], parse_line(lines[index][1:]), strict=True)),
                    }
                )
    return {
        "changes": _without_values(found),
        "searched_to": searched_to,
        "next": mark(load, part) if more else None,
        "unreadable": unreadable,
    }


def _without_values(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The names of the columns that changed in place of the rows."""
    older: dict[str, dict[str, Any]] = {}
    for change in reversed(found):
        row, before = change.pop("row"), older.get(change["destination"])
        change["changed"] = None
        if before is not None:
            change["changed"] = [name for name, value in row.items() if before.get(name) != value]
        older[change["destination"]] = row
    return found


def _pipeline(backend: Backend, user: User, name: str) -> Pipeline:
    for pipeline in backend.pipelines():
        if pipeline.name == name and user.sees(name):
            return pipeline
    raise HTTPException(404, "there is no such pipeline")


def _source(backend: Backend, pipeline: Pipeline, external_id: str) -> tuple[dict[str, Any], Any]:
    try:
        row = lead_store.row_of(backend, pipeline, external_id)
    except LeadsyncError as error:
        return {"reachable": False, "problem": str(error)}, None
    except psycopg.errors.QueryCanceled:
        return {"reachable": False, "problem": "the lead store took too long"}, None
    if row is None:
        return {"reachable": True, "present": False}, None
    source = pipeline.source
    deleted = Mapper(source, pipeline.destinations[0]).deleted(row)
    at = row[source.columns.index(source.watermark)]
    return {"reachable": True, "present": True, "deleted": deleted, "watermark": at}, row


def _routed(pipeline: Pipeline, target: Target, row: Any) -> bool | None:
    destination = next((each for each in pipeline.destinations if each.name == target.destination), None)
    return Mapper(pipeline.source, destination).routed(row) if destination and row is not None else None


def _entry(backend: Backend, pipeline: Pipeline, target: Target, entry: Sequence[Any] | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    sequence, delivered, crm_id, sync_id, owner, kind, run_id, started_at = entry
    by = {"sync_id": sync_id, "kind": kind, "dag_id": dag_of(kind, owner), "run_id": run_id, "at": started_at}
    return {
        "sequence": sequence,
        "delivered": delivered,
        "crm_id": crm_id,
        "url": _record_url(backend, pipeline, target, crm_id),
        "claimed_by": by if sync_id else None,
    }


def _finding(backend: Backend, pipeline: Pipeline, targets: Mapping[int, Target], row: Sequence[Any]) -> dict[str, Any]:
    number, kind, fields, crm_ids, found_at, repaired_at, repair_id = row
    target = targets[number]
    return {
        "destination": target.destination,
        "kind": kind,
        "fields": fields,
        "records": [{"crm_id": each, "url": _record_url(backend, pipeline, target, each)} for each in crm_ids],
        "found_at": found_at,
        "repaired_at": repaired_at,
        "repair_id": repair_id,
    }


def _record_url(backend: Backend, pipeline: Pipeline, target: Target, crm_id: str | None) -> str | None:
    destination = next((each for each in pipeline.destinations if each.name == target.destination), None)
    if destination is None or destination.record_url is None or crm_id is None:
        return None
    address = ""
    if "{url}" in destination.record_url:
        try:
            address = backend.endpoint(destination).url
        except LeadsyncError:
            return None
    found = destination.record_url.replace("{url}", address).replace("{id}", quote(crm_id, safe=""))
    return found if found.startswith(("https://", "http://")) else None
