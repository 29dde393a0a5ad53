"""What replays and recoveries ask of the sync operations: what a run of theirs did, and which snapshots are kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from leadsync.state.operations import SELECT, Counts, Operation

# What a run of a replay or a recovery has opened for one destination.
OF_RUN: LiteralString = f"""
{SELECT}
 WHERE pipeline = %(pipeline)s AND run_id = %(run_id)s AND kind = %(kind)s AND destinations = ARRAY[%(destination)s]
   AND superseded_at IS NULL
 ORDER BY sequence
"""

# The snapshots that were taken in a time, or those of some operations; the newest state first.
KEPT: LiteralString = f"""
{SELECT}
 WHERE pipeline = %(pipeline)s AND kind <> 'recover' AND rows_read > 0
   AND (%(sync_ids)s::uuid[] IS NULL OR sync_id = ANY (%(sync_ids)s))
   AND (%(since)s::timestamptz IS NULL OR snapshot_at >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR snapshot_at < %(until)s)
 ORDER BY sequence DESC
"""

# What the loads of a replay or a recovery add up to, also those that were superseded.
TOTALS: LiteralString = """
SELECT coalesce(sum(l.rows_read), 0)::bigint, coalesce(sum(l.delivered), 0)::bigint,
       coalesce(sum(l.unchanged), 0)::bigint, coalesce(sum(l.overtaken), 0)::bigint,
       coalesce(sum(l.not_routed), 0)::bigint, coalesce(sum(l.dead), 0)::bigint
  FROM leadsync.sync_operation o JOIN leadsync.operation_log l USING (sync_id)
 WHERE o.pipeline = %(pipeline)s AND o.run_id = %(run_id)s AND o.kind = %(kind)s
   AND o.destinations = ARRAY[%(destination)s]
"""

NOW: LiteralString = "SELECT now()"


def now(connection: psycopg.Connection[Any]) -> datetime:
    """The time by the clock that stamps the snapshots."""
    moment: datetime
    ((moment,),) = connection.execute(NOW).fetchall()
    return moment


def of_run(
    connection: psycopg.Connection[Any], pipeline: str, run_id: str, kind: str, destination: str
) -> list[Operation]:
    """The operations that a run of this kind has opened for one destination, in the order of their snapshots."""
    values = {"pipeline": pipeline, "run_id": run_id, "kind": kind, "destination": destination}
    return [Operation(*row) for row in connection.execute(OF_RUN, values)]


def totals(connection: psycopg.Connection[Any], pipeline: str, run_id: str, kind: str, destination: str) -> Counts:
    """What the loads of such operations add up to."""
    values = {"pipeline": pipeline, "run_id": run_id, "kind": kind, "destination": destination}
    row = connection.execute(TOTALS, values).fetchone()
    return Counts(*row) if row else Counts()


def kept(
    connection: psycopg.Connection[Any],
    pipeline: str,
    sync_ids: Sequence[str] | None,
    since: datetime | None,
    until: datetime | None,
) -> list[Operation]:
    """The operations with a complete snapshot that holds rows, the newest first. What is None does not restrict."""
    ids = None if sync_ids is None else [UUID(sync_id) for sync_id in sync_ids]
    values = {"pipeline": pipeline, "sync_ids": ids, "since": since, "until": until}
    return [Operation(*row) for row in connection.execute(KEPT, values)]
