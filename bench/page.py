"""How fast the page answers over a large state: 10,000,000 ledger rows, 1,000,000 open dead letters, 90 days of runs.

    python -m bench.page [--rows 10000000] [--letters 1000000] [--requests 100]

Fills a PostgreSQL of its own (about ten minutes and 4 GB at full size), serves the page from this process, and asks one
question after the other. The limit is 300 ms at p95 for the overview.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
from tests.support.page import Page, serving
from tests.support.servers import running_postgres, running_valkey
from tests.support.world import SHIPPED, World

from demo import lead_store
from leadsync.config import Pipeline
from leadsync.state import migration

LIMIT = 0.3
DESTINATIONS = 5
DAYS = 90

TARGETS: LiteralString = """
INSERT INTO leadsync.watermark (pipeline, destination, watermark)
SELECT 'leads', CASE n WHEN 1 THEN 'hubspot' WHEN 2 THEN 'salesforce' ELSE 'crm' || n END, now()
  FROM generate_series(1, %(destinations)s::int) n
"""
LEDGER: LiteralString = """
INSERT INTO leadsync.delivery (destination_id, lead_key, sequence, digest, crm_id, external_id)
SELECT 1 + n %% %(destinations)s, gen_random_uuid(), n / 100, gen_random_uuid(), n::text, 'ASDAD:' || n
  FROM generate_series(%(first)s::int, %(last)s::int) n
"""
# Skewed, as in life: most letters are of one kind.
LETTERS: LiteralString = """
INSERT INTO leadsync.dead_letter
       (destination_id, lead_key, external_id, sequence, reason, code, field, attempts, message, payload, created_at)
SELECT 1 + n %% %(destinations)s, gen_random_uuid(), 'ASDAD:' || n, 1, 'rejected',
       'CODE_' || floor(20 * random() ^ 4), 'field', 1, %(blob)s, %(blob)s, now() - n * interval '1 second'
  FROM generate_series(%(first)s::int, %(last)s::int) n
"""
OPERATIONS: LiteralString = """
INSERT INTO leadsync.sync_operation
       (sync_id, snapshot_id, pipeline, run_id, kind, lower_bound, upper_bound, destinations, sequence, rows_read,
        started_at, snapshot_at, committed_at)
SELECT id, id, 'leads', 'run ' || n, 'run', at - interval '1 minute', at,
       (SELECT array_agg(destination) FROM leadsync.watermark), n, 100, at, at, at + interval '20 seconds'
  FROM (SELECT n, gen_random_uuid() AS id, now() - n * interval '1 minute' AS at
          FROM generate_series(1, %(days)s::int * 1440) n) run
"""
LOADS: LiteralString = """
INSERT INTO leadsync.operation_log
       (sync_id, destination_id, start_at, end_at, result, rows_read, delivered, unchanged, dead, error, failure)
SELECT o.sync_id, w.destination_id, o.started_at, o.started_at + interval '15 seconds',
       CASE WHEN random() < 0.99 THEN 1 ELSE 0 END, 100, 90, 9, 1, NULL, NULL
  FROM leadsync.sync_operation o CROSS JOIN leadsync.watermark w ORDER BY o.started_at
"""
RECOVERY: LiteralString = """
INSERT INTO leadsync.recovery_log (at, pipeline, destination, kind, message, details)
SELECT now() - n * interval '1 minute', 'leads', 'hubspot',
       (ARRAY['dead_letter', 'resolved', 'Unavailable', 'parked', 'replay'])[1 + n % 5], 'line ' || n, '{}'
  FROM generate_series(500000, 1, -1) n
"""
RETRIES: LiteralString = """
INSERT INTO leadsync.retry_queue (destination_id, sync_id, lead_key, external_id, chunk, attempts)
SELECT 1, gen_random_uuid(), gen_random_uuid(), 'ASDAD:' || n, 1, 1 FROM generate_series(1, 100000) n
"""
HIVE: LiteralString = """
INSERT INTO customer (appkey, uid, phone, name, email)
SELECT 'ASDAD', n, '138' || lpad(n::text, 8, '0'), 'Lead ' || n, 'lead' || n || '@example.com'
  FROM generate_series(%(first)s::int, %(last)s::int) n
"""
STEP = 500_000


def fill(world: World, rows: int, letters: int) -> None:
    """The state of a busy installation that has gone on for a while, vacuumed as it would be."""
    state = world.state
    state.execute(TARGETS, {"destinations": DESTINATIONS})
    blob = world.sealer.seal(b'{"delete": false, "fields": {"email": "lead@example.com"}}', "bench")
    for name, query, size in (
        ("ledger", LEDGER, rows),
        ("dead letters", LETTERS, letters),
        ("lead store", HIVE, rows // 5),
    ):
        for first in range(1, size + 1, STEP):
            values = {"first": first, "last": min(first + STEP - 1, size), "destinations": DESTINATIONS, "blob": blob}
            (world.hive if query is HIVE else state).execute(query, values)
            print(f"\r{name}: {values['last']:,}", end="", file=sys.stderr)
        print(file=sys.stderr)
    state.execute(OPERATIONS, {"days": DAYS})
    for query in (LOADS, RECOVERY, RETRIES):
        state.execute(query)
    for connection in (state, world.hive):
        connection.execute("VACUUM ANALYZE")


def measure(page: Page, name: str, method: str, path: str, parameters: dict[str, Any], requests: int) -> float:
    """Prints how long the answers took, in ms; returns the 95th percentile in seconds."""
    client, times = page.admin, []
    client.headers["Authorization"] = f"Bearer {page.token}"
    body = parameters if method == "POST" else None
    for number in range(requests + 3):
        started = time.perf_counter()
        reply = client.request(method, path, params=None if body else parameters, json=body)
        if number >= 3:
            times.append(time.perf_counter() - started)
        reply.raise_for_status()
    p95 = statistics.quantiles(times, n=20)[-1]
    print(
        f"| {name} | {statistics.median(times) * 1000:.0f} | {p95 * 1000:.0f} | {max(times) * 1000:.0f} |", flush=True
    )
    return p95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the ledger; default: %(default)s")
    parser.add_argument("--letters", type=int, default=1_000_000, help="open dead letters; default: %(default)s")
    parser.add_argument("--requests", type=int, default=100, help="of each kind; default: %(default)s")
    arguments = parser.parse_args()
    with running_postgres(max_wal_size="8GB") as dsn, running_valkey() as client:
        databases = {}
        with psycopg.connect(dsn, autocommit=True) as connection:
            for name in ("hive", "leadsync"):
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
                databases[name] = f"{dsn.rpartition('/')[0]}/{name}"
        migration.migrate(databases["leadsync"])
        with psycopg.connect(databases["leadsync"], autocommit=True) as state:
            lead_store.create(databases["hive"])
            world = World(databases["hive"], state, client, {})
            world.pipeline = SHIPPED
            fill(world, arguments.rows, arguments.letters)
            page = Page(world)
            page.pipeline = five(page.pipeline)
            with serving(page):
                return 0 if run(page, world, arguments.requests) <= LIMIT else 1


def five(pipeline: Pipeline) -> Pipeline:
    """The shipped pipeline with more destinations."""
    first = pipeline.destinations[0]
    names = ["hubspot", "salesforce", *(f"crm{number}" for number in range(3, DESTINATIONS + 1))]
    return pipeline.model_copy(
        update={"destinations": tuple(first.model_copy(update={"name": name}) for name in names)}
    )


def run(page: Page, world: World, requests: int) -> float:
    """Asks every view; returns the overview's p95 in seconds."""
    hubspot = {"pipeline": "leads", "destination": "hubspot"}
    row = world.state.execute(
        "SELECT external_id FROM leadsync.delivery WHERE lead_key > %s LIMIT 1", (uuid4(),)
    ).fetchone()
    lead = row[0] if row else "ASDAD:1"
    groups = page.get("dead-letters/groups", user="admin")["groups"]
    largest = next(group["group"] for group in groups if group["destination"] == "hubspot")
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    print("| view | p50, ms | p95, ms | longest, ms |\n| --- | --- | --- | --- |")
    worst = measure(page, "overview", "GET", "/api/overview", {}, requests)
    for name, method, path, parameters in (
        ("operations", "GET", "operations", {}),
        ("operations that failed", "GET", "operations", {"state": "failed"}),
        ("groups of dead letters", "GET", "dead-letters/groups", {}),
        ("dead letters of the largest group", "GET", "dead-letters", {**hubspot, "group": largest}),
        ("a lead", "GET", "leads", {"pipeline": "leads", "external_id": lead}),
        ("search by phone", "POST", "leads/search", {"query": "13800000077"}),
        ("search by uid", "POST", "leads/search", {"query": "77"}),
        ("recovery log", "GET", "recovery-log", {}),
        ("recovery log, one kind", "GET", "recovery-log", {"kind": "parked", "acknowledged": False}),
    ):
        measure(page, name, method, f"/api/{path}", parameters, requests)
    measure(page, "scrape", "GET", "/metrics", {}, requests)
    return worst


if __name__ == "__main__":
    sys.exit(main())
