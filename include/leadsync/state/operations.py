"""Sync operations and the operation log: which windows were passed over, by whom, with what result."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

import psycopg

from leadsync.errors import LeadsyncError, QuotaExceeded

# A re-run of `extract` opens new operations, and those of the run's earlier try end with their windows and snapshots.
# Runs of other DAGs may have the same id.
SUPERSEDE: LiteralString = """
UPDATE leadsync.sync_operation SET superseded_at = now()
 WHERE pipeline = %(pipeline)s AND run_id = %(run_id)s AND kind IN ('run', 'backfill') AND superseded_at IS NULL
"""

SUPERSEDE_ONE: LiteralString = "UPDATE leadsync.sync_operation SET superseded_at = now() WHERE sync_id = %(sync_id)s"

OPEN: LiteralString = """
INSERT INTO leadsync.sync_operation
       (sync_id, snapshot_id, pipeline, run_id, kind, lower_bound, upper_bound, destinations, resend, sequence,
        rows_read, shards, open_ended)
VALUES (%(sync_id)s, %(snapshot_id)s, %(pipeline)s, %(run_id)s, %(kind)s, %(lower)s, %(upper)s, %(destinations)s,
        %(resend)s, %(sequence)s, %(rows)s, %(shards)s, %(open_ended)s)
"""

SELECT: LiteralString = """
SELECT sync_id::text, snapshot_id::text, pipeline, kind, lower_bound, upper_bound, destinations, resend, sequence,
       rows_read, shards, open_ended, superseded_at IS NOT NULL, committed_at IS NOT NULL
  FROM leadsync.sync_operation
"""
READ: LiteralString = f"{SELECT} WHERE sync_id = %(sync_id)s"

# Up to where every destination of the newest run of a pipeline reads, whatever became of it. Its operations were opened
# in one transaction.
NEWEST: LiteralString = """
SELECT min(upper_bound), started_at FROM leadsync.sync_operation
 WHERE pipeline = %(pipeline)s AND kind = 'run' AND superseded_at IS NULL
 GROUP BY started_at ORDER BY started_at DESC LIMIT 1
"""

# Of the run of an operation: since when another destination's loads have all ended well, and up to where it reads.
OTHERS: LiteralString = """
SELECT extract(epoch FROM clock_timestamp() - min(done.at))::float8, max(run.upper_bound)
  FROM leadsync.sync_operation mine
  JOIN leadsync.sync_operation run
    ON (run.pipeline, run.run_id, run.kind) = (mine.pipeline, mine.run_id, mine.kind) AND run.superseded_at IS NULL
  LEFT JOIN LATERAL (SELECT max(end_at) AS at FROM leadsync.operation_log
                      WHERE sync_id = run.sync_id AND destination_id <> %(destination)s
                      GROUP BY destination_id HAVING count(*) FILTER (WHERE result = 1) = run.shards) done ON true
 WHERE mine.sync_id = %(sync_id)s
"""

TAKE_SEQUENCE: LiteralString = "SELECT nextval('leadsync.snapshot_sequence')"

# The snapshot is about to be taken; there is none yet.
MOVE_END: LiteralString = """
UPDATE leadsync.sync_operation SET upper_bound = greatest(upper_bound, %(upper)s) WHERE sync_id = %(sync_id)s
RETURNING upper_bound
"""

# The snapshot is complete. The operation must not be superseded.
SNAPSHOT: LiteralString = """
UPDATE leadsync.sync_operation
   SET sequence = %(sequence)s, rows_read = %(rows)s, shards = %(shards)s, snapshot_at = now()
 WHERE sync_id = %(sync_id)s AND superseded_at IS NULL
"""

# In how many shards each destination loads in a run. A later snapshot of the same run does not take fewer: Airflow does
# not take well to a run whose mapped tasks become fewer.
SHARDS_OF_RUN: LiteralString = """
SELECT destination, max(shards)
  FROM leadsync.sync_operation, unnest(destinations) AS destination
 WHERE (pipeline, run_id) = (SELECT pipeline, run_id FROM leadsync.sync_operation WHERE sync_id = %(sync_id)s)
   AND kind IN ('run', 'backfill') AND snapshot_at IS NOT NULL
 GROUP BY destination
"""

COMMITTED: LiteralString = "UPDATE leadsync.sync_operation SET committed_at = now() WHERE sync_id = %(sync_id)s"

# A load starts, or goes on where an earlier try stopped.
START_LOAD: LiteralString = """
INSERT INTO leadsync.operation_log AS l (sync_id, destination_id, shard)
VALUES (%(sync_id)s, %(destination)s, %(shard)s)
ON CONFLICT (sync_id, destination_id, shard) DO UPDATE
   SET end_at = NULL, result = NULL, error = NULL, failure = NULL, resets_at = NULL
RETURNING id, next_chunk, rows_read, delivered, unchanged, overtaken, not_routed, dead
"""

PROGRESS: LiteralString = """
UPDATE leadsync.operation_log
   SET next_chunk = %(next_chunk)s, rows_read = %(rows_read)s, delivered = %(delivered)s, unchanged = %(unchanged)s,
       overtaken = %(overtaken)s, not_routed = %(not_routed)s, dead = %(dead)s
 WHERE id = %(id)s
"""

END_LOAD: LiteralString = """
UPDATE leadsync.operation_log
   SET end_at = now(), result = %(result)s, error = %(error)s, failure = %(failure)s, resets_at = %(resets_at)s
 WHERE id = %(id)s
"""

ADD_DATA: LiteralString = """
INSERT INTO leadsync.operation_data (operation_id, part, records)
SELECT %(id)s, coalesce(max(part) + 1, 0), %(records)s FROM leadsync.operation_data WHERE operation_id = %(id)s
"""

# By destination: how many of the operation's loads ended well, how many were left behind, and what they add up to.
ENDED: LiteralString = """
SELECT w.destination, count(*) FILTER (WHERE l.result = 1), count(*) FILTER (WHERE l.failure = 'LeftBehind'),
       sum(l.rows_read)::bigint, sum(l.delivered)::bigint, sum(l.unchanged)::bigint, sum(l.overtaken)::bigint,
       sum(l.not_routed)::bigint, sum(l.dead)::bigint
  FROM leadsync.operation_log l JOIN leadsync.watermark w USING (destination_id)
 WHERE l.sync_id = %(sync_id)s
 GROUP BY w.destination
"""


@dataclass(frozen=True, slots=True)
class Operation:
    """One sync operation as the database knows it; `sequence` and `rows` are None until the snapshot is complete.

    Until then the `upper` end of an `open_ended` one may still move on.
    `snapshot_id` is the operation whose snapshot is loaded: itself, but for a recovery.
    """

    sync_id: str
    snapshot_id: str
    pipeline: str
    kind: str  # run, backfill, replay, recover or repair
    lower: datetime | None
    upper: datetime
    destinations: list[str]
    resend: bool
    sequence: int | None
    rows: int | None
    shards: int = 1
    open_ended: bool = False
    superseded: bool = False
    committed: bool = False


@dataclass(frozen=True, slots=True)
class Others:
    """The other destinations of a run: one has been done for so many seconds, and none reads further than `upper`."""

    waited: float
    upper: datetime


@dataclass(slots=True)
class Counts:
    """What became of the leads that a load read; the sum holds when the load is done."""

    read: int = 0
    delivered: int = 0
    unchanged: int = 0
    overtaken: int = 0
    not_routed: int = 0
    dead: int = 0

    @property
    def ended(self) -> int:
        return self.delivered + self.unchanged + self.overtaken + self.not_routed + self.dead


@dataclass(frozen=True, slots=True)
class Ended:
    """The loads of one destination (one per shard): how many ended well, how many were left behind, their counts."""

    well: int = 0
    left: int = 0
    counts: Counts = field(default_factory=Counts)


@dataclass(slots=True)
class LoadLog:
    """The row of one load in the operation log, and how far it has come."""

    id: int
    next_chunk: int
    counts: Counts


def supersede(connection: psycopg.Connection[Any], pipeline: str, run_id: str) -> None:
    """Ends the operations that an earlier try of the run has opened."""
    connection.execute(SUPERSEDE, {"pipeline": pipeline, "run_id": run_id})


def supersede_one(connection: psycopg.Connection[Any], sync_id: str) -> None:
    """Ends an operation whose snapshot is gone."""
    connection.execute(SUPERSEDE_ONE, {"sync_id": sync_id})


def open_operation(connection: psycopg.Connection[Any], operation: Operation, run_id: str) -> None:
    """Writes a new operation."""
    connection.execute(
        OPEN,
        {
            "sync_id": operation.sync_id,
            "snapshot_id": operation.snapshot_id,
            "pipeline": operation.pipeline,
            "run_id": run_id,
            "kind": operation.kind,
            "lower": operation.lower,
            "upper": operation.upper,
            "destinations": operation.destinations,
            "resend": operation.resend,
            "sequence": operation.sequence,
            "rows": operation.rows,
            "shards": operation.shards,
            "open_ended": operation.open_ended,
        },
    )


def read(connection: psycopg.Connection[Any], sync_id: str) -> Operation | None:
    """The operation, or None."""
    row = connection.execute(READ, {"sync_id": sync_id}).fetchone()
    return Operation(*row) if row else None


def newest_run(connection: psycopg.Connection[Any], pipeline: str) -> tuple[datetime, datetime] | None:
    """Up to where every destination of the newest run reads, and when its windows were fixed; None before the first."""
    return connection.execute(NEWEST, {"pipeline": pipeline}).fetchone()


def others(connection: psycopg.Connection[Any], sync_id: str, destination: int) -> Others | None:
    """What another destination's load has to know of the run; None while no other one has ended well."""
    row = connection.execute(OTHERS, {"sync_id": sync_id, "destination": destination}).fetchone()
    return Others(*row) if row and row[0] is not None else None


def take_sequence(connection: psycopg.Connection[Any]) -> int:
    """The next fencing token; only under the pipeline's lock, before the read that it stands for."""
    row = connection.execute(TAKE_SEQUENCE).fetchone()
    return int(row[0]) if row else 0


def move_end(connection: psycopg.Connection[Any], operation: Operation, upper: datetime) -> datetime:
    """Moves the end of an operation without a snapshot on, never back; returns where it is now."""
    row = connection.execute(MOVE_END, {"sync_id": operation.sync_id, "upper": upper}).fetchone()
    if row is None:
        raise RuntimeError("the operation is gone")
    end: datetime = row[0]
    return end


def record_snapshot(
    connection: psycopg.Connection[Any], operation: Operation, sequence: int, rows: int, shards: int
) -> bool:
    """Notes the complete snapshot; False when the operation was superseded meanwhile."""
    values = {"sync_id": operation.sync_id, "sequence": sequence, "rows": rows, "shards": shards}
    return connection.execute(SNAPSHOT, values).rowcount == 1


def shards_of_run(connection: psycopg.Connection[Any], operation: Operation) -> dict[str, int]:
    """In how many shards each destination loads in the operation's run, as far as a snapshot was taken."""
    return dict(connection.execute(SHARDS_OF_RUN, {"sync_id": operation.sync_id}).fetchall())


def mark_committed(connection: psycopg.Connection[Any], sync_id: str) -> None:
    """Notes that the operation's watermarks were moved, or that it was done without any."""
    connection.execute(COMMITTED, {"sync_id": sync_id})


def start_load(connection: psycopg.Connection[Any], operation: Operation, destination: int, shard: int = 0) -> LoadLog:
    """Opens the row of a load (or of one shard of it), or goes on with that of an earlier try."""
    values = {"sync_id": operation.sync_id, "destination": destination, "shard": shard}
    row = connection.execute(START_LOAD, values).fetchone()
    if row is None:
        raise RuntimeError("the operation log gave no row back")
    return LoadLog(row[0], row[1], Counts(*row[2:]))


def save_progress(connection: psycopg.Connection[Any], log: LoadLog) -> None:
    """Writes the place and the counts."""
    counts = log.counts
    connection.execute(
        PROGRESS,
        {
            "id": log.id,
            "next_chunk": log.next_chunk,
            "rows_read": counts.read,
            "delivered": counts.delivered,
            "unchanged": counts.unchanged,
            "overtaken": counts.overtaken,
            "not_routed": counts.not_routed,
            "dead": counts.dead,
        },
    )


def rewind(connection: psycopg.Connection[Any], log: LoadLog) -> None:
    """Sends the load back to the start: once what was broken is mended, it goes over everything again."""
    log.next_chunk, log.counts = 0, Counts()
    save_progress(connection, log)


def data_context(log_id: int) -> str:
    """To what the sealed records of one load are bound."""
    return f"operation_data:{log_id}"


def add_data(connection: psycopg.Connection[Any], log: LoadLog, records: bytes) -> None:
    """Adds the sealed records of changes that were sent."""
    connection.execute(ADD_DATA, {"id": log.id, "records": records})


def end_load(connection: psycopg.Connection[Any], log: LoadLog, error: LeadsyncError | None = None) -> None:
    """Closes the load's row: result 1, or 0 with the error and, of a quota, the time at which it is filled again."""
    connection.execute(
        END_LOAD,
        {
            "id": log.id,
            "result": 0 if error else 1,
            "error": str(error) if error else None,
            "failure": error.kind if error else None,
            "resets_at": error.resets_at if isinstance(error, QuotaExceeded) else None,
        },
    )


def ended_loads(connection: psycopg.Connection[Any], operation: Operation) -> dict[str, Ended]:
    """By destination, what became of the operation's loads."""
    values = {"sync_id": operation.sync_id}
    found = connection.execute(ENDED, values)
    return {name: Ended(well, left, Counts(*rest)) for name, well, left, *rest in found}
