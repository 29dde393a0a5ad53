"""View 5: the recovery log, and which lines of it a person has dealt with."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from fastapi import APIRouter, HTTPException

from leadsync.state import recovery_log
from leadsync.ui.access import Asks, Body, Reason, Text, Uses, database, require_edit, visible
from leadsync.ui.queries import Id, Limit

router = APIRouter()

LINES: LiteralString = """
SELECT r.id, r.at, r.pipeline, r.destination, r.sync_id::text, r.kind, r.message, r.details, a.at, a.details ->> 'by',
       a.details ->> 'note'
  FROM leadsync.recovery_log r
  LEFT JOIN LATERAL (SELECT id, at, details FROM leadsync.recovery_log
                      WHERE kind = 'acknowledged' AND (details ->> 'line')::bigint = r.id LIMIT 1) a ON true
 WHERE r.pipeline = ANY (%(pipelines)s)
   AND (%(id)s::bigint IS NULL OR r.id < %(id)s)
   AND (%(kind)s::text IS NULL OR r.kind = %(kind)s)
   AND (%(destination)s::text IS NULL OR r.destination = %(destination)s)
   AND (%(acknowledged)s::boolean IS NULL OR (a.id IS NOT NULL) = %(acknowledged)s)
   AND (%(kind)s IS NOT NULL OR r.kind <> 'acknowledged')
 ORDER BY r.id DESC LIMIT %(limit)s
"""

# From kind to kind along the index.
KINDS: LiteralString = """
WITH RECURSIVE step (pipeline, kind) AS (
    SELECT p.name, (SELECT kind FROM leadsync.recovery_log WHERE pipeline = p.name ORDER BY kind LIMIT 1)
      FROM unnest(%(pipelines)s::text[]) AS p (name)
    UNION ALL
    SELECT step.pipeline, (SELECT kind FROM leadsync.recovery_log
                            WHERE pipeline = step.pipeline AND kind > step.kind ORDER BY kind LIMIT 1)
      FROM step WHERE step.kind IS NOT NULL)
SELECT DISTINCT kind FROM step WHERE kind IS NOT NULL ORDER BY kind LIMIT 100
"""

OF_LINE: LiteralString = (
    "SELECT pipeline, destination, sync_id::text, kind FROM leadsync.recovery_log WHERE id = %(id)s"
)


class Acknowledge(Body):
    """Why a line needs no more attention."""

    note: Reason


@router.get("/recovery-log")
def lines(
    backend: Uses,
    user: Asks,
    pipeline: Text | None = None,
    destination: Text | None = None,
    kind: Text | None = None,
    acknowledged: bool | None = None,
    before: Id | None = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """One page, newest first."""
    with database(backend) as state:
        names = {target.pipeline for target in visible(state, user).values()}
        pipelines = [name for name in names if pipeline in (None, name)]
        values = {
            "pipelines": pipelines,
            "destination": destination,
            "kind": kind,
            "acknowledged": acknowledged,
            "id": before,
            "limit": limit + 1,
        }
        rows = state.execute(LINES, values).fetchall()
        kinds = [name for (name,) in state.execute(KINDS, {"pipelines": list(names)})]
    return {
        "lines": [_line(*row, may_edit=user.edits(row[2])) for row in rows[:limit]],
        "next": rows[limit - 1][0] if len(rows) > limit else None,
        "kinds": kinds,
    }


@router.post("/recovery-log/{line}/acknowledge")
def acknowledge(backend: Uses, user: Asks, line: int, body: Acknowledge) -> dict[str, Any]:
    """Notes who dealt with a line, and how. Once: the first one stands."""
    with database(backend) as state:
        found = state.execute(OF_LINE, {"id": line}).fetchone() if 0 < line < 2**63 else None
        if found is None or not user.sees(found[0]) or found[3] == "acknowledged":
            raise HTTPException(404, "there is no such line")
        pipeline, destination, sync_id, kind = found
        require_edit(user, pipeline)
        message = f"{user.name} acknowledged line {line} ({kind}): {body.note}"
        try:
            recovery_log.append(
                state, pipeline, "acknowledged", message, destination=destination, sync_id=sync_id, line=line,
                by=user.name, note=body.note,
            )  # fmt: skip
        except psycopg.errors.UniqueViolation:
            raise HTTPException(409, "somebody has acknowledged this line already") from None
    return {"line": line, "by": user.name, "note": body.note}


def _line(
    line: int, at: Any, pipeline: str, destination: str | None, sync_id: str | None, kind: str, message: str,
    details: dict[str, Any], acknowledged_at: Any, by: str | None, note: str | None, *, may_edit: bool,
) -> dict[str, Any]:  # fmt: skip
    return {
        "id": line,
        "at": at,
        "pipeline": pipeline,
        "destination": destination,
        "sync_id": sync_id,
        "kind": kind,
        "message": message,
        "details": details,
        "acknowledged": acknowledged_at and {"at": acknowledged_at, "by": by, "note": note},
        "may_edit": may_edit,
    }
