"""What is old enough to go, table by table. Each statement removes one batch, in a transaction of its own.

A sync operation and its log go together, so many days after its last sign of life: opened, snapshot taken, committed or
superseded. Its snapshot has expired long before (the pipeline file is held to that), so nothing of it could be cleared
any more. Reconciliations stay as long, the newest of each destination longer. Open dead letters, the ledger, the
watermarks and certificates of erasure never go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

import psycopg
import structlog

from leadsync.config import Retention

log = structlog.get_logger(__name__)

# Rows that are removed in one transaction; of the sealed records, which may have a megabyte each, fewer.
BATCH = 5000
BATCH_OF_RECORDS = 100

# Loads whose operation is not kept any more. Every load ends after it starts, so the index on `start_at` serves.
EXPIRED_LOADS: LiteralString = """
SELECT l.id FROM leadsync.operation_log l
 WHERE l.start_at < now() - %(days)s * interval '1 day'
   AND coalesce(l.end_at, l.start_at) < now() - %(days)s * interval '1 day'
   AND l.destination_id IN (SELECT destination_id FROM leadsync.watermark WHERE pipeline = %(pipeline)s)
   AND NOT EXISTS (SELECT FROM leadsync.sync_operation o
                    WHERE o.sync_id = l.sync_id
                      AND greatest(o.started_at, o.snapshot_at, o.committed_at, o.superseded_at)
                          >= now() - %(days)s * interval '1 day')
 ORDER BY l.start_at LIMIT %(batch)s
"""

REMOVE_RECORDS: LiteralString = """
DELETE FROM leadsync.operation_data
 WHERE (operation_id, part) IN (SELECT operation_id, part FROM leadsync.operation_data
                                 WHERE operation_id = ANY (%(loads)s) LIMIT %(batch)s)
"""

REMOVE_LOADS: LiteralString = "DELETE FROM leadsync.operation_log WHERE id = ANY (%(loads)s)"

REMOVE_OPERATIONS: LiteralString = """
DELETE FROM leadsync.sync_operation
 WHERE sync_id IN (SELECT o.sync_id FROM leadsync.sync_operation o
                    WHERE o.pipeline = %(pipeline)s AND o.started_at < now() - %(days)s * interval '1 day'
                      AND greatest(o.started_at, o.snapshot_at, o.committed_at, o.superseded_at)
                          < now() - %(days)s * interval '1 day'
                      AND NOT EXISTS (SELECT FROM leadsync.operation_log l WHERE l.sync_id = o.sync_id)
                    LIMIT %(batch)s)
"""

# Leads that wait for another try of a load that nobody can try again.
REMOVE_RETRIES: LiteralString = """
DELETE FROM leadsync.retry_queue
 WHERE (destination_id, sync_id, lead_key) IN (
       SELECT q.destination_id, q.sync_id, q.lead_key FROM leadsync.retry_queue q
        WHERE q.destination_id IN (SELECT destination_id FROM leadsync.watermark WHERE pipeline = %(pipeline)s)
          AND NOT EXISTS (SELECT FROM leadsync.sync_operation o
                           WHERE o.sync_id = q.sync_id AND o.superseded_at IS NULL)
        LIMIT %(batch)s)
"""

REMOVE_DEAD_LETTERS: LiteralString = """
DELETE FROM leadsync.dead_letter
 WHERE id IN (SELECT id FROM leadsync.dead_letter
               WHERE resolved_at < now() - %(days)s * interval '1 day'
                 AND destination_id IN (SELECT destination_id FROM leadsync.watermark WHERE pipeline = %(pipeline)s)
               LIMIT %(batch)s)
"""

REMOVE_RECOVERY_LOG: LiteralString = """
DELETE FROM leadsync.recovery_log
 WHERE id IN (SELECT id FROM leadsync.recovery_log
               WHERE at < now() - %(days)s * interval '1 day' AND pipeline = %(pipeline)s AND kind <> 'erased'
               LIMIT %(batch)s)
"""

# With their findings.
REMOVE_RECONCILIATIONS: LiteralString = """
DELETE FROM leadsync.reconciliation
 WHERE id IN (SELECT id FROM leadsync.reconciliation
               WHERE coalesce(ended_at, started_at) < now() - %(days)s * interval '1 day'
                 AND destination_id IN (SELECT destination_id FROM leadsync.watermark WHERE pipeline = %(pipeline)s)
                 AND id NOT IN (SELECT max(id) FROM leadsync.reconciliation GROUP BY destination_id)
               LIMIT %(batch)s)
"""

# Snapshots that nobody needs: no operation that is current and not committed loads them (a recovery loads another's),
# and those of committed ones have been kept for recoveries as long as they should.
NEEDLESS_SNAPSHOTS: LiteralString = """
SELECT snapshot_id::text FROM leadsync.sync_operation
 WHERE snapshot_id = ANY (%(snapshots)s::uuid[])
 GROUP BY snapshot_id
HAVING bool_and(CASE WHEN committed_at IS NULL THEN superseded_at IS NOT NULL
                     ELSE committed_at <= now() - %(hours)s * interval '1 hour' END)
"""


def remove_expired(connection: psycopg.Connection[Any], pipeline: str, keep: Retention) -> dict[str, int]:
    """Removes what has been kept as long as it should; the number of rows by table."""
    operations = {"pipeline": pipeline, "days": keep.operation_log_days}
    letters = {"pipeline": pipeline, "days": keep.dead_letter_days}
    lines = {"pipeline": pipeline, "days": keep.recovery_log_days}
    return {
        **_remove_loads(connection, operations),
        "sync_operation": _remove(connection, "sync_operation", REMOVE_OPERATIONS, operations),
        "retry_queue": _remove(connection, "retry_queue", REMOVE_RETRIES, {"pipeline": pipeline}),
        "reconciliation": _remove(connection, "reconciliation", REMOVE_RECONCILIATIONS, operations),
        "dead_letter": _remove(connection, "dead_letter", REMOVE_DEAD_LETTERS, letters),
        "recovery_log": _remove(connection, "recovery_log", REMOVE_RECOVERY_LOG, lines),
    }


def needless_snapshots(connection: psycopg.Connection[Any], snapshots: Sequence[str], keep_hours: float) -> list[str]:
    """Those of the snapshots that may be dropped before they expire."""
    values = {"snapshots": list(snapshots), "hours": keep_hours}
    return [row[0] for row in connection.execute(NEEDLESS_SNAPSHOTS, values)]


def _remove_loads(connection: psycopg.Connection[Any], values: Mapping[str, Any]) -> dict[str, int]:
    counts = {"operation_data": 0, "operation_log": 0}
    while True:
        found = connection.execute(EXPIRED_LOADS, {**values, "batch": BATCH}).fetchall()
        loads = {"loads": [row[0] for row in found]}
        if not found:
            return counts
        # Before their loads, which would take all of theirs at once.
        counts["operation_data"] += _remove(connection, "operation_data", REMOVE_RECORDS, loads, BATCH_OF_RECORDS)
        counts["operation_log"] += connection.execute(REMOVE_LOADS, loads).rowcount
        log.info("removed", table="operation_log", rows=counts["operation_log"])


def _remove(
    connection: psycopg.Connection[Any],
    table: str,
    statement: LiteralString,
    values: Mapping[str, Any],
    batch: int | None = None,
) -> int:
    removed = 0
    while rows := connection.execute(statement, {**values, "batch": batch or BATCH}).rowcount:
        removed += rows
        log.info("removed", table=table, rows=removed)
    return removed
