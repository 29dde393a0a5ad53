"""The retry queue and the dead letters: leads that failed in passing, and leads that wait for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

import psycopg

MAX_ATTEMPTS = 3

# One more failure of a lead; how many it has had in this attempt of the operation.
QUEUE_RETRY: LiteralString = """
INSERT INTO leadsync.retry_queue AS q
       (destination_id, lead_key, external_id, sync_id, attempt_id, chunk, code)
VALUES (%(destination)s, %(lead_key)s, %(external_id)s, %(sync_id)s, %(attempt_id)s, %(chunk)s, %(code)s)
ON CONFLICT (destination_id, lead_key) DO UPDATE
   SET attempts = CASE WHEN q.attempt_id = excluded.attempt_id THEN q.attempts + %(counts)s ELSE %(counts)s END,
       sync_id = excluded.sync_id, attempt_id = excluded.attempt_id, chunk = excluded.chunk, code = excluded.code,
       updated_at = now()
RETURNING attempts
"""

WAITING: LiteralString = """
SELECT chunk, lead_key FROM leadsync.retry_queue
 WHERE destination_id = %(destination)s AND attempt_id = %(attempt_id)s
"""

FORGET_RETRY: LiteralString = """
DELETE FROM leadsync.retry_queue WHERE destination_id = %(destination)s AND lead_key = ANY (%(lead_keys)s)
"""

# A lead has one open dead letter per destination; a further failure renews it.
BURY: LiteralString = """
INSERT INTO leadsync.dead_letter AS l
       (destination_id, lead_key, external_id, sync_id, sequence, reason, code, field, message, payload, attempts)
VALUES (%(destination)s, %(lead_key)s, %(external_id)s, %(sync_id)s, %(sequence)s, %(reason)s, %(code)s, %(field)s,
        %(message)s, %(payload)s, %(attempts)s)
ON CONFLICT (destination_id, lead_key) WHERE resolved_at IS NULL DO UPDATE
   SET sync_id = excluded.sync_id, sequence = excluded.sequence, reason = excluded.reason, code = excluded.code,
       field = excluded.field, message = excluded.message, payload = excluded.payload,
       attempts = l.attempts + excluded.attempts, updated_at = now()
 WHERE l.sequence <= excluded.sequence
"""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A lead that a destination refused; `message` and `payload` are sealed."""

    lead_key: UUID
    external_id: str
    reason: str  # rejected, mapping or failed
    code: str | None
    field: str | None
    message: bytes | None
    payload: bytes | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Retry:
    """A lead that failed in passing; `counts` is 0 when no byte of its request can have reached the CRM."""

    lead_key: UUID
    external_id: str
    chunk: int
    code: str | None
    counts: int


def queue_retries(
    connection: psycopg.Connection[Any], destination: int, sync_id: str, attempt_id: str, retries: Sequence[Retry]
) -> dict[UUID, int]:
    """Counts one more failure for each lead; returns how many each has had."""
    attempts = {}
    for retry in retries:
        row = connection.execute(
            QUEUE_RETRY,
            {
                "destination": destination,
                "sync_id": sync_id,
                "attempt_id": attempt_id,
                "lead_key": retry.lead_key,
                "external_id": retry.external_id,
                "chunk": retry.chunk,
                "code": retry.code,
                "counts": retry.counts,
            },
        ).fetchone()
        attempts[retry.lead_key] = row[0] if row else 0
    return attempts


def waiting(connection: psycopg.Connection[Any], destination: int, attempt_id: str) -> dict[int, set[UUID]]:
    """The leads of this attempt that wait to be tried again, by the chunk that holds them."""
    found: dict[int, set[UUID]] = {}
    for chunk, key in connection.execute(WAITING, {"destination": destination, "attempt_id": attempt_id}):
        found.setdefault(chunk, set()).add(key)
    return found


def forget_retries(connection: psycopg.Connection[Any], destination: int, lead_keys: Sequence[UUID]) -> None:
    """Takes leads out of the retry queue: they have ended otherwise."""
    connection.execute(FORGET_RETRY, {"destination": destination, "lead_keys": list(lead_keys)})


def bury(
    connection: psycopg.Connection[Any], destination: int, sync_id: str, sequence: int, letters: Sequence[DeadLetter]
) -> None:
    """Keeps leads for a person, and takes them out of the retry queue."""
    if not letters:
        return
    forget_retries(connection, destination, [letter.lead_key for letter in letters])
    rows = [
        {
            "destination": destination,
            "sync_id": sync_id,
            "sequence": sequence,
            **{name: getattr(letter, name) for name in DeadLetter.__slots__},
        }
        for letter in letters
    ]
    with connection.cursor() as cursor:
        cursor.executemany(BURY, rows)
