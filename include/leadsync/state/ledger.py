"""The delivery ledger: per destination and lead the highest sequence claimed, the hash of the payload delivered
(NULL while in doubt) and the CRM's id. Its rules are those of DESIGN's protocol model: claim before sending,
count "overtaken" only when the newer state was delivered, write the sequence of unchanged leads too.

All run inside the caller's transaction, a chunk of leads at a time: COPY into a temporary table, one statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, LiteralString

import psycopg

from leadsync.errors import LeadsyncError
from leadsync.models import Digest

MOST_TRIES = 10

# Each lead is looked up by the primary key. Left alone the planner reads the whole ledger for every chunk, as soon as
# its statistics are out of date; they always are while a ledger grows. The queries are written so that the chunk drives
# the loop whatever it believes: by LATERAL, and by a WHEN NOT MATCHED, though it be one that never comes to pass.
BY_KEY: LiteralString = """
SELECT set_config(name, 'off', true)
  FROM unnest(ARRAY['enable_hashjoin', 'enable_mergejoin', 'enable_seqscan', 'enable_bitmapscan', 'enable_material'])
       AS name
"""

CLAIMS: LiteralString = """
CREATE TEMPORARY TABLE IF NOT EXISTS claim
    (lead_key uuid NOT NULL, digest uuid NOT NULL, external_id text NOT NULL) ON COMMIT DELETE ROWS
"""

COPY_CLAIMS: LiteralString = "COPY claim (lead_key, digest, external_id) FROM STDIN (FORMAT binary)"

# Each lead beside what the ledger says of it, in the order of the temporary table. Found by key once: `place` leads to
# the row from there on.
_KNOWN: LiteralString = """
WITH known AS MATERIALIZED (
    SELECT c.lead_key, c.digest, c.external_id, d.place, d.sequence, d.crm_id,
           CASE WHEN d.sequence > %(sequence)s THEN CASE WHEN d.digest IS NULL THEN 'in_doubt' ELSE 'overtaken' END
                WHEN d.digest = c.digest AND NOT %(resend)s THEN 'unchanged' END AS verdict
      FROM claim c LEFT JOIN LATERAL (
               SELECT ctid AS place, sequence, digest, crm_id FROM leadsync.delivery
                WHERE destination_id = %(destination)s AND lead_key = c.lead_key OFFSET 0) d ON true)
"""

# A row for each verdict, with the keys one behind the other; and of leads that are to be sent the CRM's ids, where they
# are wanted and the ledger knows the lead.
_VERDICTS: LiteralString = """
SELECT verdict, string_agg(uuid_send(lead_key), ''::bytea), array_agg(crm_id) FILTER (WHERE verdict IS NULL)
  FROM known
 WHERE place IS NOT NULL AND (verdict IS NOT NULL OR %(ids)s)
 GROUP BY verdict
"""

# The sequence is written, and the hash cleared unless the lead is unchanged. A row that has a higher sequence is left
# alone. In key order, so that neighbouring index pages are written together.
_WRITTEN: LiteralString = """
, claimed AS (
    UPDATE leadsync.delivery d
       SET sequence = %(sequence)s, external_id = k.external_id,
           digest = CASE WHEN d.digest = k.digest AND NOT %(resend)s THEN d.digest END
      FROM known k
     WHERE d.ctid = k.place AND d.sequence <= %(sequence)s
 RETURNING d.sequence)
, added AS (
    INSERT INTO leadsync.delivery (destination_id, lead_key, sequence, external_id)
    SELECT %(destination)s, lead_key, %(sequence)s, external_id FROM known WHERE place IS NULL)
"""

# A row was not at its place any more, as somebody else had just written it.
_MISSED: LiteralString = """
 UNION ALL
SELECT 'missed', NULL, NULL
 WHERE (SELECT count(*) FROM claimed) < (SELECT count(*) FROM known WHERE sequence <= %(sequence)s)
"""

COMPARE: LiteralString = _KNOWN + _VERDICTS
CLAIM: LiteralString = _KNOWN + _WRITTEN + _VERDICTS + _MISSED

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
MERGE INTO leadsync.delivery d
USING (SELECT lead_key, digest, crm_id, gone FROM settlement ORDER BY lead_key) s
   ON d.destination_id = %(destination)s AND d.lead_key = s.lead_key
 WHEN MATCHED AND d.sequence = %(sequence)s THEN
      UPDATE SET digest = s.digest, crm_id = CASE WHEN NOT s.gone THEN coalesce(s.crm_id, d.crm_id) END
 WHEN NOT MATCHED AND s.lead_key IS NULL THEN
      INSERT (destination_id, lead_key, sequence) VALUES (%(destination)s, s.lead_key, 0)
"""


# Forgets what was accepted, of leads that nobody has claimed under a higher sequence than the one given.
DISTRUST: LiteralString = """
MERGE INTO leadsync.delivery d
USING unnest(%(lead_keys)s::uuid[], %(sequences)s::bigint[]) AS t (lead_key, sequence)
   ON d.destination_id = %(destination)s AND d.lead_key = t.lead_key
 WHEN MATCHED AND d.sequence <= t.sequence AND d.digest IS NOT NULL THEN
      UPDATE SET digest = NULL
 WHEN NOT MATCHED AND t.lead_key IS NULL THEN
      INSERT (destination_id, lead_key, sequence) VALUES (%(destination)s, t.lead_key, 0)
"""

LOOK: LiteralString = """
SELECT lead_key, sequence, digest, crm_id FROM leadsync.delivery
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
    """What the ledger knows of one lead; `digest` is None while in doubt, `crm_id` where no delivery learnt it."""

    sequence: int
    digest: Digest | None
    crm_id: str | None


@dataclass(frozen=True, slots=True)
class Claims:
    """The verdict on some leads, by lead key: what not to send and why; the rest is claimed, and to be sent.

    `crm_ids` are of leads that are to be sent and that the ledger knows.
    """

    unchanged: set[Digest]
    overtaken: set[Digest]
    in_doubt: set[Digest]  # claimed by a newer snapshot but not known to be delivered: read it again and send that
    crm_ids: dict[Digest, str | None]

    @property
    def kept(self) -> set[Digest]:
        """All that is not to be sent."""
        return self.unchanged | self.overtaken | self.in_doubt


def claim(
    connection: psycopg.Connection[Any],
    destination: int,
    sequence: int,
    leads: Sequence[tuple[Digest, Digest, str]],
    *,
    resend: bool = False,
    ids: bool = False,
    dry_run: bool = False,
) -> Claims:
    """Claims leads (key, hash of the payload, external id) under a sequence.

    `ids`: the CRM's ids are wanted. `dry_run` only looks. Where somebody else (an erasure) has just written a row it
    claims once more, which leaves what it has claimed as it is.
    """
    verdict = Claims(set(), set(), set(), {})
    if not leads:
        return verdict
    connection.execute(BY_KEY)
    connection.execute(CLAIMS)
    # In key order: what looks them up finds neighbours in the same pages of the index.
    _copy(connection, COPY_CLAIMS, [_claim(*lead) for lead in sorted(leads)])
    values = {"destination": destination, "sequence": sequence, "resend": resend, "ids": ids}
    for _ in range(MOST_TRIES):
        found = connection.execute(COMPARE if dry_run else CLAIM, values, binary=True).fetchall()
        if all(name != "missed" for name, _, _ in found):
            break
    else:
        raise LeadsyncError(
            "leads could not be claimed: their rows in leadsync.delivery are written by somebody else all the time, or "
            "the lead store has several rows with the same key (source.key has to be unique)"
        )
    for name, blob, crm_ids in found:
        keys = [Digest(blob[start : start + 16]) for start in range(0, len(blob), 16)]
        if name is None:
            verdict.crm_ids.update(zip(keys, crm_ids, strict=True))
        else:
            getattr(verdict, name).update(keys)
    return verdict


def newer(
    connection: psycopg.Connection[Any], destination: int, sequence: int, lead_keys: Sequence[Digest]
) -> dict[Digest, tuple[int, bool]]:
    """Of the leads that are claimed under a higher sequence: that, and whether its state is known to be delivered."""
    if not lead_keys:
        return {}
    values = {"destination": destination, "sequence": sequence, "lead_keys": list(lead_keys)}
    return {Digest(key.bytes): (claimed, delivered) for key, claimed, delivered in connection.execute(NEWER, values)}


def settle(
    connection: psycopg.Connection[Any],
    destination: int,
    sequence: int,
    delivered: Sequence[tuple[Digest, Digest, str | None, bool]],
) -> None:
    """Writes what was accepted: key, hash, CRM id, and whether the record is gone with it."""
    connection.execute(BY_KEY)
    connection.execute(SETTLEMENTS)
    _copy(connection, COPY_SETTLEMENTS, [_settlement(*each) for each in delivered])
    connection.execute(SETTLE, {"destination": destination, "sequence": sequence})


def distrust(connection: psycopg.Connection[Any], destination: int, leads: Mapping[Digest, int]) -> None:
    """Forgets the hashes of leads (key → the sequence up to which it is known): they will not look unchanged."""
    if leads:
        values = {"destination": destination, "lead_keys": list(leads), "sequences": list(leads.values())}
        connection.execute(BY_KEY)
        connection.execute(DISTRUST, values)


def look(connection: psycopg.Connection[Any], destination: int, lead_keys: Sequence[Digest]) -> dict[Digest, Entry]:
    """The entries of these leads, by lead key; a lead that was never claimed has none."""
    values = {"destination": destination, "lead_keys": list(lead_keys)}
    return {
        Digest(key.bytes): Entry(sequence, Digest(digest.bytes) if digest else None, crm_id)
        for key, sequence, digest, crm_id in connection.execute(LOOK, values)
    }


def scan(
    connection: psycopg.Connection[Any], destination: int, after: Digest, limit: int, deleted: Digest
) -> list[tuple[Digest, str]]:
    """The next leads (key, external id) behind `after`, but those whose delete was delivered (digest `deleted`)."""
    values = {"destination": destination, "after": after, "limit": limit, "deleted": deleted}
    return [(Digest(key.bytes), external_id) for key, external_id in connection.execute(SCAN, values)]


# COPY's binary format, packed by hand: a row costs a fraction of what it costs through an adapter for each value. Each
# value has its length before it, -1 for NULL.
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_beginning = Struct(">hi16si16si").pack  # of a row: number of values, key, hash, length of the text
_GONE, _THERE = b"\0\0\0\1\1", b"\0\0\0\1\0"


def _claim(key: bytes, digest: bytes, external_id: str) -> bytes:
    text = external_id.encode()
    return _beginning(3, 16, key, 16, digest, len(text)) + text


def _settlement(key: bytes, digest: bytes, crm_id: str | None, gone: bool) -> bytes:
    end = _GONE if gone else _THERE
    if crm_id is None:
        return _beginning(4, 16, key, 16, digest, -1) + end
    text = crm_id.encode()
    return _beginning(4, 16, key, 16, digest, len(text)) + text + end


def _copy(connection: psycopg.Connection[Any], statement: LiteralString, rows: Iterable[bytes]) -> None:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(b"".join((HEADER, *rows, TRAILER)))
