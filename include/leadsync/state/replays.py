"""Which dead letters a replay takes up, and the groups of them that a person has marked as mended.

A dead letter that is replayed is resolved, or renewed under a higher sequence: either takes it out of the selection, so
a replay that was killed goes on where it stopped, and none takes up a letter twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from leadsync.models import Digest
from leadsync.state.dead_letters import NAMELESS

_SELECTED: LiteralString = """
 WHERE destination_id = %(destination)s AND resolved_at IS NULL AND sequence <= %(sequence)s
   AND (%(upto)s::bigint IS NULL OR id <= %(upto)s)
   AND (%(group)s::text IS NULL OR error_group = %(group)s)
   AND (%(lead_keys)s::uuid[] IS NULL OR lead_key = ANY (%(lead_keys)s))
   AND NOT starts_with(external_id, %(nameless)s)
"""

# The oldest first: how many, and the last one's id.
MEASURE: LiteralString = f"""
SELECT count(*), max(id)
  FROM (SELECT id FROM leadsync.dead_letter {_SELECTED} ORDER BY id LIMIT %(limit)s) selected
"""  # noqa: S608

SLICE: LiteralString = f"""
SELECT id, external_id FROM leadsync.dead_letter {_SELECTED} AND id > %(after)s ORDER BY id LIMIT %(size)s
"""  # noqa: S608

GROUPS: LiteralString = """
SELECT destination, error_group, count(*)
  FROM leadsync.dead_letter JOIN leadsync.watermark USING (destination_id)
 WHERE destination_id = ANY (%(destinations)s) AND resolved_at IS NULL
   AND (%(sync_ids)s::uuid[] IS NULL OR sync_id = ANY (%(sync_ids)s))
   AND NOT starts_with(external_id, %(nameless)s)
 GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT %(limit)s
"""

# An open dead letter of each lead that has one, of the others that which was resolved last.
LOOK_UP: LiteralString = """
SELECT DISTINCT ON (lead_key) lead_key, resolved_at, resolution
  FROM leadsync.dead_letter
 WHERE destination_id = ANY (%(destinations)s) AND lead_key = ANY (%(lead_keys)s)
 ORDER BY lead_key, resolved_at DESC NULLS FIRST
"""

LAST_SEQUENCE: LiteralString = "SELECT last_value FROM leadsync.snapshot_sequence"

MARK: LiteralString = """
INSERT INTO leadsync.mended_group (destination_id, error_group, sequence, marked_by)
VALUES (%(destination)s, %(group)s, %(sequence)s, %(by)s)
ON CONFLICT (destination_id, error_group) DO UPDATE
   SET sequence = excluded.sequence, marked_at = now(), marked_by = excluded.marked_by
"""

MARKED: LiteralString = """
SELECT pipeline, destination, error_group, sequence
  FROM leadsync.mended_group JOIN leadsync.watermark USING (destination_id)
 ORDER BY pipeline, destination, error_group
"""

# One that was marked again meanwhile stays.
UNMARK: LiteralString = """
DELETE FROM leadsync.mended_group
 WHERE destination_id = %(destination)s AND error_group = %(group)s AND sequence <= %(sequence)s
"""


@dataclass(frozen=True, slots=True)
class Selection:
    """Some open dead letters of one destination; what is None does not restrict it.

    None is meant that was written or renewed under a higher `sequence`, or that comes after the id `upto`.
    """

    sequence: int
    upto: int | None = None
    group: str | None = None
    lead_keys: Sequence[Digest] | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """When and how a lead's last dead letter was resolved; None while one is open."""

    resolved_at: datetime | None
    resolution: str | None


def last_sequence(connection: psycopg.Connection[Any]) -> int:
    """The sequence that was taken last: whatever is written from now on has a higher one, or belongs to a load that
    is under way."""
    row = connection.execute(LAST_SEQUENCE).fetchone()
    return int(row[0]) if row else 0


def measure(
    connection: psycopg.Connection[Any], destination: int, selection: Selection, limit: int | None
) -> tuple[int, int | None]:
    """How many dead letters a selection holds, at most `limit`, and the id of the last of them."""
    row = connection.execute(MEASURE, {**_values(destination, selection), "limit": limit}).fetchone()
    return (int(row[0]), row[1]) if row else (0, None)


def next_slice(
    connection: psycopg.Connection[Any], destination: int, selection: Selection, after: int, size: int
) -> list[tuple[int, str]]:
    """Id and external id of the next `size` dead letters of a selection, after the one with the id `after`."""
    values = {**_values(destination, selection), "after": after, "size": size}
    return connection.execute(SLICE, values).fetchall()


def groups(
    connection: psycopg.Connection[Any], destinations: Sequence[int], limit: int, sync_ids: Sequence[str] | None = None
) -> list[tuple[str, str, int]]:
    """The largest groups of open dead letters, of all or those of some operations: destination, group, how many."""
    ids = None if sync_ids is None else [UUID(sync_id) for sync_id in sync_ids]
    values = {"destinations": list(destinations), "limit": limit, "sync_ids": ids, "nameless": NAMELESS}
    return connection.execute(GROUPS, values).fetchall()


def look_up(
    connection: psycopg.Connection[Any], destinations: Sequence[int], lead_keys: Sequence[Digest]
) -> dict[Digest, Known]:
    """What is known of the leads' dead letters; those that never had one are missing."""
    values = {"destinations": list(destinations), "lead_keys": list(lead_keys)}
    return {Digest(key.bytes): Known(*rest) for key, *rest in connection.execute(LOOK_UP, values)}


def mark(connection: psycopg.Connection[Any], destination: int, group: str, sequence: int, by: str | None) -> None:
    """Notes that a group is mended; marking it again takes in what has come since."""
    connection.execute(MARK, {"destination": destination, "group": group, "sequence": sequence, "by": by})


def marked(connection: psycopg.Connection[Any]) -> list[tuple[str, str, str, int]]:
    """The marked groups of all pipelines: pipeline, destination, group, sequence."""
    return connection.execute(MARKED).fetchall()


def unmark(connection: psycopg.Connection[Any], destination: int, group: str, sequence: int) -> None:
    """Ends a mark."""
    connection.execute(UNMARK, {"destination": destination, "group": group, "sequence": sequence})


def _values(destination: int, selection: Selection) -> dict[str, Any]:
    keys = None if selection.lead_keys is None else list(selection.lead_keys)
    return {
        "destination": destination,
        "sequence": selection.sequence,
        "upto": selection.upto,
        "group": selection.group,
        "lead_keys": keys,
        "nameless": NAMELESS,
    }
