"""A ledger of a hundred million rows, and what it needs of the disk."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from typing import LiteralString

import psycopg

from bench import leads
from leadsync.mapping import lead_key

# Of the ledger with its index, half empty as its fill factor has it; and what is needed beside it while it is filled.
BYTES_A_ROW, SPARE = 260, 12e9
ROWS_A_SECOND = 100_000  # roughly: filled, indexed and vacuumed
STEP = 5_000_000

SPECIAL: LiteralString = "CREATE TEMPORARY TABLE special (uid bigint PRIMARY KEY, lead_key uuid NOT NULL)"
# gen_random_uuid() would take ten times as long as the hash.
FILL: LiteralString = """
INSERT INTO leadsync.delivery (destination_id, lead_key, sequence, digest, crm_id, external_id)
SELECT 1, key, 0, key, 1000000 + n, 'BENCH:' || n
  FROM (SELECT n, coalesce(s.lead_key, md5(n::text)::uuid) AS key
          FROM generate_series(%(first)s::bigint, %(last)s::bigint) n LEFT JOIN special s ON s.uid = n OFFSET 0) lead
"""
PRIMARY_KEY: LiteralString = """
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
 WHERE conrelid = 'leadsync.delivery'::regclass AND contype = 'p'
"""
OTHER_INDEXES: LiteralString = """
SELECT count(*) FROM pg_index WHERE indrelid = 'leadsync.delivery'::regclass AND NOT indisprimary
"""


def announce(rows: int) -> None:
    """Says what time and disk it takes. Raises SystemExit where there is too little."""
    free, needed = shutil.disk_usage(tempfile.gettempdir()).free, rows * BYTES_A_ROW + SPARE
    print(
        f"a ledger of {rows:,} rows: about {rows / ROWS_A_SECOND / 60:.0f} minutes to fill, and up to "
        f"{needed / 1e9:.0f} GB of {tempfile.gettempdir()}, which has {free / 1e9:.0f} GB free",
        flush=True,
    )
    if free < needed:
        raise SystemExit("that is not enough: take fewer --rows, or name another folder in TMPDIR")


def fill(dsn: str, rows: int, known: Sequence[int]) -> None:
    """A ledger of so many rows, as the migrations make it, vacuumed; the keys of the `known` leads are theirs."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        if connection.execute(OTHER_INDEXES).fetchone() != (0,):
            raise SystemExit("the ledger has more indexes than its primary key: let this script make them anew as well")
        (key,) = connection.execute(PRIMARY_KEY).fetchall()
        connection.execute(SPECIAL)
        with connection.cursor() as cursor, cursor.copy("COPY special FROM STDIN") as copy:
            for uid in known:
                copy.write_row((uid, lead_key(f"{leads.APPKEY}:{uid}").hex()))
        connection.execute("ANALYZE special")
        began = time.monotonic()
        # In one transaction with its TRUNCATE the table needs no log; the index is faster to make than to keep.
        with connection.transaction():
            connection.execute("TRUNCATE leadsync.delivery")
            connection.execute(f"ALTER TABLE leadsync.delivery DROP CONSTRAINT {key[0]}")
            for first in range(1, rows + 1, STEP):
                last = min(first + STEP - 1, rows)
                connection.execute(FILL, {"first": first, "last": last})
                print(f"  {last:,} rows, {time.monotonic() - began:.0f} s", flush=True)
            print("  index", flush=True)
            connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
            connection.execute(f"ALTER TABLE leadsync.delivery ADD CONSTRAINT {key[0]} {key[1]}")
        print(f"  vacuum, {time.monotonic() - began:.0f} s", flush=True)
        connection.execute("VACUUM (ANALYZE) leadsync.delivery")
        connection.execute("CHECKPOINT")
        size = connection.execute("SELECT pg_total_relation_size('leadsync.delivery')").fetchone()
        print(f"  done in {time.monotonic() - began:.0f} s; {size[0] / 1e9 if size else 0:.1f} GB", flush=True)
