"""The operation log for its readers: what each load of a sync operation sent, when, and with what result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, LiteralString

import orjson
import psycopg

from leadsync import changes
from leadsync.sealing import Sealer
from leadsync.state import operations

LOADS: LiteralString = """
SELECT w.destination, array_agg(l.id ORDER BY l.id), min(l.start_at),
       CASE WHEN bool_and(l.end_at IS NOT NULL) THEN max(l.end_at) END,
       CASE WHEN bool_or(l.result = 0) THEN 0 WHEN bool_and(l.result IS NOT NULL) THEN 1 END
  FROM leadsync.operation_log l JOIN leadsync.watermark w USING (destination_id)
 WHERE l.sync_id = %(sync_id)s AND (%(destination)s::text IS NULL OR w.destination = %(destination)s)
 GROUP BY w.destination ORDER BY w.destination
"""

NEXT_PART: LiteralString = """
SELECT operation_id, part, records FROM leadsync.operation_data
 WHERE operation_id = ANY (%(ids)s) AND (operation_id, part) > (%(load)s, %(part)s)
 ORDER BY operation_id, part LIMIT 1
"""


def read(connection: psycopg.Connection[Any], sealer: Sealer, sync_id: str) -> list[dict[str, Any]]:
    """One entry per destination: `id`, `destination`, `data` (one SQL statement per change sent), `start_at` and
    `end_at` (epoch milliseconds, None while it runs) and `result` (1: well, 0: failed, None while it runs).
    """
    entries = []
    for destination, ids, start_at, end_at, result in _loads(connection, sync_id, None):
        data = list(_statements(connection, sealer, ids))
        entries.append({**_head(sync_id, destination), "data": data, **_end(start_at, end_at, result)})
    return entries


def knows(connection: psycopg.Connection[Any], sync_id: str, destination: str) -> bool:
    """Whether the operation has a load of that destination."""
    return bool(_loads(connection, sync_id, destination))


def stream(connection: psycopg.Connection[Any], sealer: Sealer, sync_id: str, destination: str) -> Iterator[bytes]:
    """One destination's entry as JSON, piece by piece: what is held at once does not grow with it."""
    (_, ids, start_at, end_at, result), *_ = _loads(connection, sync_id, destination)
    yield orjson.dumps(_head(sync_id, destination))[:-1] + b',"data":['
    for number, statement in enumerate(_statements(connection, sealer, ids)):
        yield (b",\n" if number else b"\n") + orjson.dumps(statement)
    yield b"]," + orjson.dumps(_end(start_at, end_at, result))[1:]


def _loads(connection: psycopg.Connection[Any], sync_id: str, destination: str | None) -> list[tuple[Any, ...]]:
    return connection.execute(LOADS, {"sync_id": sync_id, "destination": destination}).fetchall()


def _statements(connection: psycopg.Connection[Any], sealer: Sealer, ids: Sequence[int]) -> Iterator[str]:
    load, part = 0, -1
    while row := connection.execute(NEXT_PART, {"ids": ids, "load": load, "part": part}).fetchone():
        load, part, records = row
        yield from changes.statements(sealer.open(records, operations.data_context(load)))


def _head(sync_id: str, destination: str) -> dict[str, Any]:
    return {"id": sync_id, "destination": destination}


def _end(start_at: datetime, end_at: datetime | None, result: int | None) -> dict[str, Any]:
    return {"start_at": _milliseconds(start_at), "end_at": _milliseconds(end_at), "result": result}


def _milliseconds(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)
