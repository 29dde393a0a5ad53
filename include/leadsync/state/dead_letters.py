"""The retry queue and the dead letters: leads that failed in passing, and leads that wait for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from leadsync.models import WHOLE, Digest, Share

MAX_ATTEMPTS = 3
# How the external id of a row begins that has none since a key column is NULL. Nothing can find such a row by it.
NAMELESS = "row without key "

# One more failure of each lead; how many it has had in this operation.
QUEUE_RETRIES: LiteralString = """
INSERT INTO leadsync.retry_queue AS q (destination_id, sync_id, lead_key, external_id, chunk, code, attempts)
SELECT %(destination)s, %(sync_id)s, *
  FROM unnest(%(lead_keys)s::uuid[], %(external_ids)s::text[], %(chunks)s::int[], %(codes)s::text[], %(counts)s::int[])
ON CONFLICT (destination_id, sync_id, lead_key) DO UPDATE
   SET attempts = q.attempts + excluded.attempts, code = excluded.code, updated_at = now()
RETURNING lead_key, attempts
"""

WAITING: LiteralString = """
SELECT chunk, lead_key, attempts FROM leadsync.retry_queue
 WHERE destination_id = %(destination)s AND sync_id = %(sync_id)s AND chunk %% %(of)s = %(shard)s
"""

FORGET_RETRIES: LiteralString = """
DELETE FROM leadsync.retry_queue
 WHERE destination_id = %(destination)s AND sync_id = %(sync_id)s AND lead_key = ANY (%(lead_keys)s)
"""

OPEN_AMONG: LiteralString = """
SELECT lead_key FROM leadsync.dead_letter
 WHERE destination_id = %(destination)s AND lead_key = ANY (%(lead_keys)s) AND resolved_at IS NULL
"""

ANY_OPEN: LiteralString = """
SELECT EXISTS (SELECT FROM leadsync.dead_letter WHERE destination_id = %(destination)s AND resolved_at IS NULL)
"""

# A dead letter is resolved by itself when the lead is delivered, in a state that is no older than the letter's.
RESOLVE: LiteralString = """
UPDATE leadsync.dead_letter l
   SET resolved_at = now(), updated_at = now(), resolution = %(resolution)s
  FROM leadsync.delivery d
 WHERE l.destination_id = %(destination)s AND l.lead_key = ANY (%(lead_keys)s) AND l.resolved_at IS NULL
   AND d.destination_id = l.destination_id AND d.lead_key = l.lead_key AND d.sequence >= l.sequence
RETURNING l.external_id
"""

# For leads that will not be delivered any more. What was written or renewed since they were looked at stays open.
CLOSE: LiteralString = """
UPDATE leadsync.dead_letter
   SET resolved_at = now(), updated_at = now(), resolution = %(resolution)s
 WHERE destination_id = %(destination)s AND lead_key = ANY (%(lead_keys)s) AND resolved_at IS NULL
   AND sequence < %(sequence)s
RETURNING external_id
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

    lead_key: Digest
    external_id: str
    sequence: int  # under which the state was read that could not be delivered
    reason: str  # rejected, mapping or failed
    code: str | None
    field: str | None
    message: bytes | None
    payload: bytes | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Retry:
    """A lead that failed in passing; `counts` is 0 when no byte of its request can have reached the CRM."""

    lead_key: Digest
    external_id: str
    chunk: int
    code: str | None
    counts: int


def queue_retries(
    connection: psycopg.Connection[Any], destination: int, sync_id: str, retries: Sequence[Retry]
) -> dict[Digest, int]:
    """Counts one more failure for each lead; returns how many each has had."""
    values = {
        "destination": destination,
        "sync_id": UUID(sync_id),
        "lead_keys": [retry.lead_key for retry in retries],
        "external_ids": [retry.external_id for retry in retries],
        "chunks": [retry.chunk for retry in retries],
        "codes": [retry.code for retry in retries],
        "counts": [retry.counts for retry in retries],
    }
    if not retries:
        return {}
    return {Digest(key.bytes): attempts for key, attempts in connection.execute(QUEUE_RETRIES, values)}


def waiting(
    connection: psycopg.Connection[Any], destination: int, sync_id: str, share: Share = WHOLE
) -> dict[int, dict[Digest, int]]:
    """The leads of this operation (of one shard of it) that wait to be tried again: chunk → lead key → failures."""
    found: dict[int, dict[Digest, int]] = {}
    values = {"destination": destination, "sync_id": UUID(sync_id), "shard": share.shard, "of": share.of}
    for chunk, key, attempts in connection.execute(WAITING, values):
        found.setdefault(chunk, {})[Digest(key.bytes)] = attempts
    return found


def forget_retries(
    connection: psycopg.Connection[Any], destination: int, sync_id: str, lead_keys: Sequence[Digest]
) -> None:
    """Takes leads out of the retry queue: they have ended otherwise."""
    if lead_keys:
        values = {"destination": destination, "sync_id": UUID(sync_id), "lead_keys": list(lead_keys)}
        connection.execute(FORGET_RETRIES, values)


def any_open(connection: psycopg.Connection[Any], destination: int) -> bool:
    """Whether the destination has an open dead letter."""
    ((found,),) = connection.execute(ANY_OPEN, {"destination": destination}).fetchall()
    return bool(found)


def open_among(connection: psycopg.Connection[Any], destination: int, lead_keys: Sequence[Digest]) -> set[Digest]:
    """Which of these leads are open dead letters of the destination."""
    values = {"destination": destination, "lead_keys": list(lead_keys)}
    return {Digest(key.bytes) for (key,) in connection.execute(OPEN_AMONG, values)}


def resolve(
    connection: psycopg.Connection[Any], destination: int, lead_keys: Sequence[Digest], resolution: str
) -> list[str]:
    """Closes the open dead letters of leads that were delivered and settled; returns their external ids."""
    if not lead_keys:
        return []
    values = {"destination": destination, "lead_keys": list(lead_keys), "resolution": resolution}
    return [row[0] for row in connection.execute(RESOLVE, values)]


def close(
    connection: psycopg.Connection[Any], destination: int, sequence: int, lead_keys: Sequence[Digest], resolution: str
) -> list[str]:
    """Closes the open dead letters of leads that had nothing to deliver under `sequence`; returns external ids."""
    if not lead_keys:
        return []
    values = {"destination": destination, "sequence": sequence, "lead_keys": list(lead_keys), "resolution": resolution}
    return [row[0] for row in connection.execute(CLOSE, values)]


def bury(connection: psycopg.Connection[Any], destination: int, sync_id: str, letters: Sequence[DeadLetter]) -> None:
    """Keeps leads for a person; a lead's open dead letter is renewed."""
    if not letters:
        return
    rows = [
        {
            "destination": destination,
            "sync_id": sync_id,
            **{name: getattr(letter, name) for name in DeadLetter.__slots__},
        }
        for letter in letters
    ]
    with connection.cursor() as cursor:
        cursor.executemany(BURY, rows)
