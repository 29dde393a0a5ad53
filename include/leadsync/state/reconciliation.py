"""Reconciliations: their place, what they counted, and examples of what they found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from leadsync.errors import LeadsyncError
from leadsync.models import Digest, Finding, Kind
from leadsync.state.fence import DESTINATION_LOCKS

# Kept of each kind and reconciliation.
EXAMPLES = 100

# The newest reconciliation of this run, unless it is done: a done one is not gone over again.
RESUME: LiteralString = """
UPDATE leadsync.reconciliation SET state = 'running', error = NULL, ended_at = NULL
 WHERE id = (SELECT max(id) FROM leadsync.reconciliation
              WHERE destination_id = %(destination)s AND run_id = %(run_id)s)
   AND state <> 'done'
RETURNING id, since, until, recent, sample_start, sample_width, vanished, repair, phase, cursor, counts
"""

BEGIN: LiteralString = """
INSERT INTO leadsync.reconciliation
       (destination_id, run_id, since, until, recent, sample_start, sample_width, vanished, repair)
VALUES (%(destination)s, %(run_id)s, %(since)s, %(until)s, %(recent)s, %(sample_start)s, %(sample_width)s,
        %(vanished)s, %(repair)s)
RETURNING id
"""

SAVE: LiteralString = """
UPDATE leadsync.reconciliation SET phase = %(phase)s, cursor = %(cursor)s, counts = %(counts)s WHERE id = %(id)s
"""

# The cursor names a lead: one that is done keeps none.
END: LiteralString = """
UPDATE leadsync.reconciliation
   SET state = %(state)s, error = %(error)s, ended_at = now(), cursor = CASE WHEN %(state)s <> 'done' THEN cursor END
 WHERE id = %(id)s
"""

# Where the sample of the last nightly reconciliation that was done ended.
LAST_SAMPLE: LiteralString = """
SELECT sample_start + sample_width FROM leadsync.reconciliation
 WHERE destination_id = %(destination)s AND state = 'done' AND recent IS NOT NULL
 ORDER BY id DESC LIMIT 1
"""

ADD_FINDING: LiteralString = """
INSERT INTO leadsync.reconciliation_finding (reconciliation_id, kind, external_id, lead_key, fields, crm_ids)
VALUES (%(id)s, %(kind)s, %(external_id)s, %(lead_key)s, %(fields)s, %(crm_ids)s)
"""

# Findings that a repair has not gone over yet.
WAITING: LiteralString = """
SELECT kind, external_id, lead_key, fields, crm_ids FROM leadsync.reconciliation_finding
 WHERE reconciliation_id = %(id)s AND repair_id IS NULL AND kind = ANY (%(kinds)s)
 ORDER BY id LIMIT %(limit)s
"""

MENDED: LiteralString = """
UPDATE leadsync.reconciliation_finding
   SET repair_id = %(repair)s, repaired_at = CASE WHEN lead_key = ANY (%(repaired)s) THEN now() END
 WHERE reconciliation_id = %(id)s AND repair_id IS NULL AND lead_key = ANY (%(tried)s)
"""

# Until they are mended all findings are kept, then as many as are kept without a repair.
TRIM: LiteralString = """
DELETE FROM leadsync.reconciliation_finding f
 USING (SELECT id, row_number() OVER (PARTITION BY kind ORDER BY id) AS place
          FROM leadsync.reconciliation_finding WHERE reconciliation_id = %(id)s) p
 WHERE f.id = p.id AND p.place > %(examples)s AND f.repair_id IS NOT NULL
"""

# Whether a load of this destination sends (it holds the destination's lock), or failed of late and will be retried.
DELIVERING: LiteralString = """
SELECT EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND granted
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND classid = %(class)s::int::oid AND objid = %(destination)s::int::oid)
    OR EXISTS (SELECT FROM leadsync.operation_log l JOIN leadsync.sync_operation o USING (sync_id)
                WHERE l.destination_id = %(destination)s AND l.result IS DISTINCT FROM 1 AND o.superseded_at IS NULL
                  AND coalesce(l.end_at, l.start_at) > now() - interval '1 hour')
"""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which leads a reconciliation goes over; times are on the watermark column, the sample is of `source.RING`.

    `vanished` tells whether it also searches the ledger for leads that are gone from the lead store.
    """

    since: datetime | None
    until: datetime
    recent: datetime | None
    sample_start: int
    sample_width: int
    vanished: bool
    repair: bool


@dataclass(slots=True)
class Reconciliation:
    """One reconciliation of a destination; `cursor` is None before the first page of a phase."""

    id: int
    scope: Scope
    phase: str
    cursor: list[str] | None
    counts: Counter[str]


def resume(connection: psycopg.Connection[Any], destination: int, run_id: str) -> Reconciliation | None:
    """The one that an earlier try of this run has left, None when there is none or it is done."""
    row = connection.execute(RESUME, {"destination": destination, "run_id": run_id}).fetchone()
    if row is None:
        return None
    return Reconciliation(row[0], Scope(*row[1:8]), row[8], row[9], Counter(row[10]))


def begin(connection: psycopg.Connection[Any], destination: int, run_id: str, scope: Scope) -> Reconciliation:
    """A new one."""
    values = {name: getattr(scope, name) for name in Scope.__slots__}
    row = connection.execute(BEGIN, {"destination": destination, "run_id": run_id, **values}).fetchone()
    if row is None:
        raise RuntimeError("the reconciliation gave no row back")
    return Reconciliation(row[0], scope, "leads", None, Counter())


def last_sample(connection: psycopg.Connection[Any], destination: int) -> int:
    """Where the next nightly sample begins; it may be past the ring's end."""
    row = connection.execute(LAST_SAMPLE, {"destination": destination}).fetchone()
    return int(row[0]) if row else 0


def save(connection: psycopg.Connection[Any], row: Reconciliation) -> None:
    """Writes place and counts; in the transaction of the findings that they count."""
    values = {"id": row.id, "phase": row.phase, "cursor": row.cursor, "counts": Jsonb(dict(row.counts))}
    connection.execute(SAVE, values)


def end(connection: psycopg.Connection[Any], row: Reconciliation, error: LeadsyncError | None = None) -> None:
    """It is done, or failed and keeps its place."""
    values = {"id": row.id, "state": "failed" if error else "done", "error": str(error) if error else None}
    connection.execute(END, values)


def add(connection: psycopg.Connection[Any], row: Reconciliation, findings: Iterable[Finding]) -> None:
    """Keeps findings."""
    rows = [
        {
            "id": row.id,
            "kind": each.kind.value,
            "external_id": each.external_id,
            "lead_key": each.lead_key,
            "fields": list(each.fields),
            "crm_ids": list(each.crm_ids),
        }
        for each in findings
    ]
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(ADD_FINDING, rows)


def waiting(
    connection: psycopg.Connection[Any], row: Reconciliation, kinds: Sequence[Kind], limit: int
) -> list[Finding]:
    """The next findings of these kinds that no repair has gone over."""
    found = connection.execute(WAITING, {"id": row.id, "kinds": [kind.value for kind in kinds], "limit": limit})
    return [
        Finding(Kind(kind), external_id, Digest(key.bytes), fields, ids)
        for kind, external_id, key, fields, ids in found
    ]


def mended(
    connection: psycopg.Connection[Any],
    row: Reconciliation,
    repair: str,
    tried: Sequence[Digest],
    repaired: set[Digest],
) -> None:
    """Notes that the operation `repair` went over these leads, and which of them are right now."""
    values = {"id": row.id, "repair": UUID(repair), "tried": list(tried), "repaired": list(repaired)}
    connection.execute(MENDED, values)
    connection.execute(TRIM, {"id": row.id, "examples": EXAMPLES})


def delivering(connection: psycopg.Connection[Any], destination: int) -> bool:
    """Whether what is in doubt is likely to be delivered without anybody's doing."""
    row = connection.execute(DELIVERING, {"class": DESTINATION_LOCKS, "destination": destination}).fetchone()
    return bool(row and row[0])
