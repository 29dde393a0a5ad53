"""View 2: the sync operations, what each destination made of them, and what was sent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal, LiteralString
from uuid import UUID

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import StreamingResponse

from leadsync import operation_log
from leadsync.state import recovery_log
from leadsync.ui.access import Asks, Backend, Text, Uses, database, one, require_edit, visible
from leadsync.ui.queries import Limit, dag_of, mark, place

router = APIRouter()

Kind = Literal["run", "backfill", "replay", "recover", "repair"]
State = Literal["done", "failed", "open", "superseded"]

# Newest first. An operation failed when a load of it did and it was never committed.
LIST: LiteralString = """
SELECT sync_id::text, pipeline, kind, run_id, lower_bound, upper_bound, destinations, resend, sequence, rows_read,
       started_at, snapshot_at, committed_at, superseded_at, state
  FROM (SELECT o.*, CASE WHEN superseded_at IS NOT NULL THEN 'superseded'
                         WHEN committed_at IS NOT NULL THEN 'done'
                         WHEN EXISTS (SELECT FROM leadsync.operation_log l
                                       WHERE l.sync_id = o.sync_id AND l.result = 0) THEN 'failed'
                         ELSE 'open' END AS state
          FROM leadsync.sync_operation o
         WHERE pipeline = ANY (%(pipelines)s)
           AND (%(before_at)s::timestamptz IS NULL OR (started_at, sync_id) < (%(before_at)s, %(before_id)s::uuid))
           AND (%(kind)s::text IS NULL OR kind = %(kind)s)
           AND (%(sync_id)s::uuid IS NULL OR sync_id = %(sync_id)s)
           AND (%(destination)s::text IS NULL OR %(destination)s = ANY (destinations))
           AND (%(since)s::timestamptz IS NULL OR started_at >= %(since)s)
           AND (%(until)s::timestamptz IS NULL OR started_at < %(until)s)) o
 WHERE %(state)s::text IS NULL OR state = %(state)s
 ORDER BY started_at DESC, sync_id DESC LIMIT %(limit)s
"""

# The shards of a load are one.
LOADS: LiteralString = """
SELECT sync_id::text, destination_id, min(start_at), CASE WHEN bool_and(end_at IS NOT NULL) THEN max(end_at) END,
       CASE WHEN bool_or(result = 0) THEN 0 WHEN bool_and(result IS NOT NULL) THEN 1 END, max(failure), max(error),
       sum(rows_read)::bigint, sum(delivered)::bigint, sum(unchanged)::bigint, sum(overtaken)::bigint,
       sum(not_routed)::bigint, sum(dead)::bigint
  FROM leadsync.operation_log WHERE sync_id = ANY (%(sync_ids)s::uuid[])
 GROUP BY sync_id, destination_id ORDER BY min(id)
"""

OF_PIPELINE: LiteralString = "SELECT pipeline FROM leadsync.sync_operation WHERE sync_id = %(sync_id)s"


@router.get("/operations")
def operations(
    backend: Uses,
    user: Asks,
    pipeline: Text | None = None,
    destination: Text | None = None,
    kind: Kind | None = None,
    state: State | None = None,
    sync_id: UUID | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    before: Text | None = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """One page, newest first; `next` is `before` of the following one. A time without offset is UTC."""
    after = place(before, [datetime, UUID]) or [None, None]
    with database(backend) as connection:
        targets = visible(connection, user)
        names = {target.pipeline for target in targets.values()}
        values = {
            "pipelines": [name for name in names if pipeline in (None, name)],
            "destination": destination,
            "kind": kind,
            "state": state,
            "sync_id": sync_id,
            "since": since,
            "until": until,
            "before_at": after[0],
            "before_id": after[1],
            "limit": limit + 1,
        }
        rows = connection.execute(LIST, values).fetchall()
        shown = [_operation(*row) for row in rows[:limit]]
        loads: dict[str, list[dict[str, Any]]] = {each["sync_id"]: [] for each in shown}
        for owner, number, *rest in connection.execute(LOADS, {"sync_ids": list(loads)}):
            if number in targets:
                loads[owner].append(_load(targets[number].destination, *rest))
    edits = {name: user.edits(name) for name in names}
    for each in shown:
        each["loads"] = loads[each["sync_id"]]
        each["may_edit"] = edits[each["pipeline"]]
    following = mark(shown[-1]["started_at"], shown[-1]["sync_id"]) if len(rows) > limit else None
    return {"operations": shown, "next": following}


@router.post("/operations/{sync_id}/log")
def log(
    backend: Uses, user: Asks, sync_id: UUID, destination: Annotated[Text, Query(min_length=1)]
) -> StreamingResponse:
    """The operation log of one load as JSON. It holds leads, so it needs the right to edit, and is itself logged."""
    with database(backend) as connection:
        row = connection.execute(OF_PIPELINE, {"sync_id": sync_id}).fetchone()
        if row is None or not user.sees(row[0]):
            raise HTTPException(404, "there is no such sync operation")
        target = one(visible(connection, user), row[0], destination)
        require_edit(user, target.pipeline)
        if not operation_log.knows(connection, str(sync_id), destination):
            raise HTTPException(404, "this operation has no load of that destination")
        message = f"{user.name} read what was sent to {destination}"
        recovery_log.append(
            connection, target.pipeline, "revealed", message, destination=destination, sync_id=str(sync_id),
            by=user.name,
        )  # fmt: skip
    headers = {"Content-Disposition": f'attachment; filename="{sync_id}-{target.destination}.json"'}
    body = _body(backend, str(sync_id), destination)
    return StreamingResponse(body, media_type="application/json", headers=headers)


def _body(backend: Backend, sync_id: str, destination: str) -> Iterator[bytes]:
    """On a connection of its own: that of the request is closed before the answer is sent."""
    with database(backend) as connection:
        yield from operation_log.stream(connection, backend.sealer(), sync_id, destination)


def _operation(
    sync_id: str, pipeline: str, kind: str, run_id: str, lower: Any, upper: Any, destinations: list[str], resend: bool,
    sequence: int | None, rows: int | None, started_at: Any, snapshot_at: Any, committed_at: Any, superseded_at: Any,
    state: str,
) -> dict[str, Any]:  # fmt: skip
    return {
        "sync_id": sync_id,
        "pipeline": pipeline,
        "kind": kind,
        "dag_id": dag_of(kind, pipeline),
        "run_id": run_id,
        "lower": lower,
        "upper": upper,
        "destinations": destinations,
        "resend": resend,
        "sequence": sequence,
        "rows": rows,
        "started_at": started_at,
        "snapshot_at": snapshot_at,
        "committed_at": committed_at,
        "superseded_at": superseded_at,
        "state": state,
    }


def _load(
    destination: str, start_at: Any, end_at: Any, result: int | None, failure: str | None, error: str | None,
    read: int, delivered: int, unchanged: int, overtaken: int, not_routed: int, dead: int,
) -> dict[str, Any]:  # fmt: skip
    return {
        "destination": destination,
        "start_at": start_at,
        "end_at": end_at,
        "result": result,
        "failure": failure,
        "error": error,
        "counts": {
            "read": read,
            "delivered": delivered,
            "unchanged": unchanged,
            "overtaken": overtaken,
            "not_routed": not_routed,
            "dead": dead,
        },
    }
