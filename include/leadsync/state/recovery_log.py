"""The recovery log: append-only, everything that a person may have to look at. No leads and no secrets in it."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg.types.json import Jsonb

APPEND: LiteralString = """
INSERT INTO leadsync.recovery_log (pipeline, destination, sync_id, kind, message, details)
VALUES (%(pipeline)s, %(destination)s, %(sync_id)s, %(kind)s, %(message)s, %(details)s)
"""


def append(
    connection: psycopg.Connection[Any],
    pipeline: str,
    kind: str,
    message: str,
    *,
    destination: str | None = None,
    sync_id: str | None = None,
    **details: Any,
) -> None:
    """Adds one entry; `kind` is a short word to filter by, `details` are ids, codes and counts."""
    values = {"pipeline": pipeline, "destination": destination, "sync_id": sync_id, "kind": kind, "message": message}
    connection.execute(APPEND, {**values, "details": Jsonb(details)})
