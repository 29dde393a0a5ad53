"""The daily upkeep of Leadsync's own stores: what is old goes, needless snapshots go, tables are vacuumed.

Each verb may run at any time, beside any run, and again: it takes away only what nothing needs.
"""

from __future__ import annotations

from typing import Any

import psycopg
import structlog

from leadsync.clients import Clients
from leadsync.config import Pipeline
from leadsync.state import retention, schema, vacuum

log = structlog.get_logger(__name__)

# Snapshots that are judged, and then dropped, together.
SNAPSHOTS_AT_ONCE = 200


def remove_expired(clients: Clients, pipeline: Pipeline) -> dict[str, int]:
    """Removes what the pipeline file's `retention` does not keep any longer; the number of rows by table."""
    schema.check(clients.state)
    removed = retention.remove_expired(clients.state, pipeline.name, pipeline.retention)
    log.info("removed what has expired", pipeline=pipeline.name, **removed)
    return removed


def drop_snapshots(clients: Clients, pipeline: Pipeline) -> dict[str, int]:
    """Drops snapshots before they expire: of superseded operations at once, of committed ones after
    `snapshot_keep_hours`. One that an operation which is current and not committed may still load stays.

    Returns the numbers of snapshots that were `dropped` and `kept`, and the bytes that were `freed` in Redis. One whose
    operation the database does not know is left to its time to live.
    """
    schema.check(clients.state)
    counts = {"dropped": 0, "kept": 0, "freed": 0}
    stored = sorted(clients.snapshots.stored())
    for first in range(0, len(stored), SNAPSHOTS_AT_ONCE):
        some = stored[first : first + SNAPSHOTS_AT_ONCE]
        needless = retention.needless_snapshots(clients.state, some, pipeline.snapshot_keep_hours)
        counts["freed"] += sum(map(clients.snapshots.drop, needless))
        counts["dropped"] += len(needless)
        counts["kept"] += len(some) - len(needless)
        log.info("snapshots", pipeline=pipeline.name, **counts)
    return counts


def vacuum_tables(state: psycopg.Connection[Any]) -> dict[str, str]:
    """VACUUM (ANALYZE) of the tables with many dead rows; by table `vacuumed`, or why PostgreSQL skipped it."""
    return vacuum.vacuum(state, vacuum.bloated(state))
