"""The delivery ledger: per destination and lead the highest sequence claimed, the hash of the payload delivered
(NULL while in doubt) and the CRM's id. Its rules are those of DESIGN's protocol model: claim before sending,
count "overtaken" only when the newer state was delivered, write the sequence of unchanged leads too.

All run inside the caller's transaction, a chunk of leads at a time: COPY into a temporary table, one merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

import psycopg

CLAIMS: LiteralString = """
CREATE TEMPORARY TABLE IF NOT EXISTS claim
    (lead_key uuid NOT NULL, digest uuid NOT NULL, external_id text NOT NULL) ON COMMIT DELETE ROWS
"""

COPY_CLAIMS: LiteralString = "COPY claim (lead_key, digest, external_id) FROM STDIN (FORMAT binary)"

# What the ledger says of each lead. Every lead of the chunk that is known comes back.
COMPARE: LiteralString = """
SELECT c.lead_key, d.sequence, d.digest, d.crm_id
  FROM claim c JOIN leadsync.delivery d ON d.destination_id = %(destination)s AND d.lead_key = c.lead_key
"""

# Claims: the sequence is written, and the hash cleared unless the lead is unchanged. A lead whose ledger row has a
# higher sequence is left alone. In key order, so that neighbouring index pages are written together.
CLAIM: LiteralString = """
MERGE INTO leadsync.delivery d
USING (SELECT lead_key, digest, external_id FROM claim ORDER BY lead_key) c
   ON d.destination_id = %(destination)s AND d.lead_key = c.lead_key
 WHEN MATCHED AND d.sequence <= %(sequence)s THEN
      UPDATE SET sequence = %(sequence)s, external_id = c.external_id,
                 digest = CASE WHEN d.digest = c.digest AND NOT %(resend)s THEN d.digest END
 WHEN NOT MATCHED THEN
      INSERT (destination_id, lead_key, sequence, external_id)
      VALUES (%(destination)s, c.lead_key, %(sequence)s, c.external_id)
"""

# Leads that are claimed under a higher sequence, and whether that state is known to be delivered.
NEWER: LiteralString = """
SELECT lead_key, sequence, digest IS NOT NULL FROM leadsync.delivery
 WHERE destination_id = %(destination)s AND lead_key = ANY (%(lead_keys)s) AND sequence > %(sequence)s
"""

SETTLEMENTS: LiteralString = """
CREATE TEMPORARY TABLE IF NOT EXISTS settlement
    (lead_key uuid NOT NULL, digest uuid NOT NULL, crm_id text, gone boolean NOT NULL) ON COMMIT DELETE ROWS
"""

COPY_SETTLEMENTS: LiteralString = "COPY settlement (lead_key, digest, crm_id, gone) FROM STDIN (FORMAT binary)"

# Settles: the hash of what was accepted, as long as nobody claimed the lead under a higher sequence meanwhile. A record
# that was deleted has no id any more.
SETTLE: LiteralString = """
UPDATE leadsync.delivery d
   SET digest = s.digest, crm_id = CASE WHEN NOT s.gone THEN coalesce(s.crm_id, d.crm_id) END
  FROM settlement s
 WHERE d.destination_id = %(destination)s AND d.lead_key = s.lead_key AND d.sequence = %(sequence)s
"""


# Forgets what was accepted, of leads that nobody has claimed under a higher sequence than the one given.
DISTRUST: LiteralString = """
UPDATE leadsync.delivery d SET digest = NULL
  FROM unnest(%(lead_keys)s::uuid[], %(sequences)s::bigint[]) AS t (lead_key, sequence)
 WHERE d.destination_id = %(destination)s AND d.lead_key = t.lead_key AND d.sequence <= t.sequence
   AND d.digest IS NOT NULL
"""

LOOK: LiteralString = """
SELECT lead_key, sequence, digest FROM leadsync.delivery
 WHERE destination_id = %(destination)s AND lead_key = ANY (%(lead_keys)s)
"""

# Leads of which a record may be in the CRM, in the order of their keys. A row that is older than the column external_id
# and was not claimed since has none.
SCAN: LiteralString = """
SELECT lead_key, external_id FROM leadsync.delivery
 WHERE destination_id = %(destination)s AND lead_key > %(after)s AND external_id IS NOT NULL
   AND digest IS DISTINCT FROM %(deleted)s
 ORDER BY lead_key LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger knows of one lead; `digest` is None while in doubt."""

    sequence: int
    digest: UUID | None


@dataclass(frozen=True, slots=True)
class Claims:
    """The verdict on a chunk: what to send (with the CRM ids known), and what not, by lead key."""

    send: dict[UUID, str | None]
    unchanged: set[UUID]
    overtaken: set[UUID]
    in_doubt: set[UUID]  # claimed by a newer snapshot but not known to be delivered: read it again and send that


def claim(
    connection: psycopg.Connection[Any],
    destination: int,
    sequence: int,
    leads: Sequence[tuple[UUID, UUID, str]],
    *,
    resend: bool = False,
    dry_run: bool = False,
) -> Claims:
    """Claims leads (key, hash of the payload, external id) under a sequence; `dry_run` only looks."""
    if not leads:
        return Claims({}, set(), set(), set())
    digests = {key: digest for key, digest, _ in leads}
    connection.execute(CLAIMS)
    _copy(connection, COPY_CLAIMS, ["uuid", "uuid", "text"], leads)
    verdict = Claims(dict.fromkeys(digests), set(), set(), set())
    for key, claimed, digest, crm_id in connection.execute(COMPARE, {"destination": destination}):
        if claimed > sequence:
            (verdict.in_doubt if digest is None else verdict.overtaken).add(key)
        elif digest == digests[key] and not resend:
            verdict.unchanged.add(key)
        else:
            verdict.send[key] = crm_id
            continue
        del verdict.send[key]
    if not dry_run:
        connection.execute(CLAIM, {"destination": destination, "sequence": sequence, "resend": resend})
    return verdict


def newer(
    connection: psycopg.Connection[Any], destination: int, sequence: int, lead_keys: Sequence[UUID]
) -> dict[UUID, tuple[int, bool]]:
    """Of the leads that are claimed under a higher sequence: that, and whether its state is known to be delivered."""
    if not lead_keys:
        return {}
    values = {"destination": destination, "sequence": sequence, "lead_keys": list(lead_keys)}
    return {key: (claimed, delivered) for key, claimed, delivered in connection.execute(NEWER, values)}


def settle(
    connection: psycopg.Connection[Any],
    destination: int,
    sequence: int,
    delivered: Iterable[tuple[UUID, UUID, str | None, bool]],
) -> None:
    """Writes what was accepted: key, hash, CRM id, and whether the record is gone with it."""
    connection.execute(SETTLEMENTS)
    _copy(connection, COPY_SETTLEMENTS, ["uuid", "uuid", "text", "bool"], delivered)
    connection.execute(SETTLE, {"destination": destination, "sequence": sequence})


def distrust(connection: psycopg.Connection[Any], destination: int, leads: Mapping[UUID, int]) -> None:
    """Forgets the hashes of leads (key → the sequence up to which it is known): they will not look unchanged."""
    if leads:
        values = {"destination": destination, "lead_keys": list(leads), "sequences": list(leads.values())}
        connection.execute(DISTRUST, values)


def look(connection: psycopg.Connection[Any], destination: int, lead_keys: Sequence[UUID]) -> dict[UUID, Entry]:
    """The entries of these leads, by lead key; a lead that was never claimed has none."""
    values = {"destination": destination, "lead_keys": list(lead_keys)}
    return {key: Entry(sequence, digest) for key, sequence, digest in connection.execute(LOOK, values)}


def scan(
    connection: psycopg.Connection[Any], destination: int, after: UUID, limit: int, deleted: UUID
) -> list[tuple[UUID, str]]:
    """The next leads (key, external id) behind `after`, but those whose delete was delivered (digest `deleted`)."""
    values = {"destination": destination, "after": after, "limit": limit, "deleted": deleted}
    return connection.execute(SCAN, values).fetchall()


def _copy(
    connection: psycopg.Connection[Any], statement: LiteralString, types: list[str], rows: Iterable[tuple[Any, ...]]
) -> None:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)
