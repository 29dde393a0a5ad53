"""The operation log for its readers: what each load of a sync operation sent, when, and with what result."""

from __future__ import annotations

from datetime import datetime
from typing import Any, LiteralString

import psycopg

from leadsync import changes
from leadsync.sealing import Sealer
from leadsync.state import operations

LOADS: LiteralString = """
SELECT w.destination, array_agg(l.id ORDER BY l.id), min(l.start_at),
       CASE WHEN bool_and(l.end_at IS NOT NULL) THEN max(l.end_at) END,
       CASE WHEN bool_or(l.result = 0) THEN 0 WHEN bool_and(l.result IS NOT NULL) THEN 1 END
  FROM leadsync.operation_log l JOIN leadsync.watermark w USING (destination_id)
 WHERE l.sync_id = %(sync_id)s
 GROUP BY w.destination ORDER BY w.destination
"""

PARTS: LiteralString = """
SELECT operation_id, records FROM leadsync.operation_data WHERE operation_id = ANY (%(ids)s) ORDER BY operation_id, part
"""


def read(connection: psycopg.Connection[Any], sealer: Sealer, sync_id: str) -> list[dict[str, Any]]:
    """One entry per destination: `id`, `destination`, `data` (one SQL statement per change sent), `start_at` and
    `end_at` (epoch milliseconds, None while it runs) and `result` (1: well, 0: failed, None while it runs).
    """
    entries = []
    for destination, ids, start_at, end_at, result in connection.execute(LOADS, {"sync_id": sync_id}).fetchall():
        data: list[str] = []
        for log_id, records in connection.execute(PARTS, {"ids": ids}):
            data += changes.statements(sealer.open(records, operations.data_context(log_id)))
        entries.append(
            {
                "id": sync_id,
                "destination": destination,
                "data": data,
                "start_at": _milliseconds(start_at),
                "end_at": _milliseconds(end_at),
                "result": result,
            }
        )
    return entries


def _milliseconds(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)
