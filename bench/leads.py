"""The leads of the benchmarks: some 280 bytes each, with nested JSON, quotes, newlines and what is not ASCII."""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

import psycopg

from demo import lead_store

APPKEY = "BENCH"
_INSERT: LiteralString = """
INSERT INTO customer (appkey, uid, phone, name, email, city, answers)
SELECT 'BENCH', n, '+86' || 13000000000 + n * 7919 %% 6999999999,
       (ARRAY['James', 'Wei', 'Fatima', '张伟', 'Søren'])[1 + n %% 5] || ' ' ||
       (ARRAY['Garcia', 'O''Brien', '李', 'Kowalski'])[1 + n / 5 %% 4],
       'lead' || n || '@example.com', (ARRAY['Shanghai', 'São Paulo', '深圳', NULL])[1 + n * 31 %% 4],
       jsonb_build_object('source', 'web', 'score', n * 37 %% 101, 'utm', jsonb_build_object('campaign', md5(n::text)),
           'note', CASE WHEN n %% 97 = 0 THEN E'line 1\\nline 2 "quoted", comma' END)
  FROM """
FILL: LiteralString = _INSERT + "generate_series(1, %s::bigint) n"
FILL_SOME: LiteralString = _INSERT + "unnest(%s::bigint[]) n"


def fill(dsn: str, rows: int) -> None:
    """Makes the lead store anew with so many leads."""
    lead_store.create(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE customer")
        connection.execute(FILL, (rows,))
        connection.execute("VACUUM ANALYZE customer")


def keysum(rows: int) -> str:
    """What the benchmark's CRM counts when it has got each of them once: the sum of the FNV-1a hashes of their keys."""
    return keysum_of(range(1, rows + 1))


def keysum_of(uids: Iterable[int]) -> str:
    """The same for these leads."""
    total = 0
    for number in uids:
        value = 1469598103934665603
        for byte in f"{APPKEY}:{number}".encode():
            value = (value ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
        total += value
    return f"{total & 0xFFFFFFFFFFFFFFFF:016x}"
