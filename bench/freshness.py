"""`python -m bench.freshness`: how long a change takes from its commit in the lead store until a CRM has accepted it.

A whole stack of its own on real Airflow, with the shipped pipeline file but for the CRMs' request limits; both CRMs
answer after 50 ms. Leads are inserted, and now and then changed, at an even pace, each in a transaction of its own. The
CRM's journal says when it accepted each change, and the change itself when it was made.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from datetime import datetime
from typing import Any

import psycopg
import requests

from bench.stack import running_stack
from demo.stack.stack import Stack

CRMS = {"hubspot": "leadsync_updated_at", "salesforce": "Updated_At__c"}
# HubSpot wants addresses to be unique.
INSERT = """
INSERT INTO customer (appkey, uid, name, email, city)
VALUES ('FRESH', %(uid)s::bigint, 'Lead', 'lead' || %(uid)s::bigint || '@example.com', 'Köln')
"""
UPDATE = "UPDATE customer SET name = 'Changed' || clock_timestamp() WHERE appkey = 'FRESH' AND uid = %s"
UPDATES = 0.3  # share of the changes


def write(dsn: str, rate: float, seconds: float) -> int:
    """Makes the changes; returns how many."""
    chance, made, leads = random.Random(1), 0, 0  # noqa: S311 - no secret
    with psycopg.connect(dsn, autocommit=True) as connection:
        began = time.monotonic()
        said = began
        while (now := time.monotonic()) < began + seconds:
            if leads > rate * 60 and chance.random() < UPDATES:
                connection.execute(UPDATE, (chance.randrange(1, leads - int(rate * 30)),))
            else:
                leads += 1
                connection.execute(INSERT, {"uid": leads})
            made += 1
            if now - said > 60:
                said = now
                print(f"  {now - began:.0f} s, {made:,} changes", flush=True)
            time.sleep(max(0.0, began + made / rate - time.monotonic()))
    return made


def ages(stack: Stack, crm: str, field: str, since: datetime) -> list[float]:
    """Seconds from the making of each change to its acceptance, of those that were made after `since`."""
    reply = requests.get(f"{stack.url(f'crm-{crm}')}/_demo/journal", timeout=120)
    reply.raise_for_status()
    pairs = ((moment(entry["fields"].get(field)), moment(entry["at"])) for entry in reply.json())
    return sorted((accepted - made).total_seconds() for made, accepted in pairs if made and accepted and made >= since)


def moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def runs(stack: Stack) -> Counter[str]:
    """The DAG's runs by their state."""
    found: Counter[str] = Counter()
    offset = 0
    while page := stack.api("GET", f"/dags/leads_sync/dagRuns?limit=100&offset={offset}").json()["dag_runs"]:
        found.update(run["state"] for run in page)
        offset += len(page)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.freshness", description=__doc__)
    parser.add_argument("--rate", type=float, default=100, help="changes per second; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=5, help="default: %(default)s")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds, of the CRMs; default: %(default)s")
    arguments = parser.parse_args()
    with running_stack(lambda pipeline: None) as stack:
        for crm in CRMS:
            faults = {"latency": arguments.latency}
            requests.post(f"{stack.url(f'crm-{crm}')}/_demo/faults", json=faults, timeout=10).raise_for_status()
        with psycopg.connect(stack.lead_store_dsn) as connection:
            row = connection.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None  # noqa: S101
            since: datetime = row[0]
        made = write(stack.lead_store_dsn, arguments.rate, arguments.minutes * 60)
        time.sleep(20)
        what = f"{made:,} changes in {arguments.minutes:g} minutes, CRMs with {arguments.latency * 1000:.0f} ms"
        print(f"\n{what}; runs: {dict(runs(stack))}\n")
        print("| CRM | accepted | p50 s | p95 s | p99 s | longest s |\n| --- | --- | --- | --- | --- | --- |")
        for crm, field in CRMS.items():
            found = ages(stack, crm, field, since)
            figures = (found[int(len(found) * share)] for share in (0.5, 0.95, 0.99))
            print(f"| {crm} | {len(found):,} | {' | '.join(f'{each:.1f}' for each in figures)} | {found[-1]:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
