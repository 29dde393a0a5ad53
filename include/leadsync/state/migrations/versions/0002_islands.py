"""A run opens one sync operation per window, so that a destination that lags or is parked holds up no other."""

from alembic import op

revision = "0002"
down_revision = "0001"

UP = """
-- Whoever runs `extract` again opens new operations; those of the earlier try are superseded. So an operation needs no
-- attempts. Where there were some, each becomes an operation of its own.
ALTER TABLE leadsync.sync_operation
    DROP CONSTRAINT sync_operation_pipeline_run_id_key,
    DROP CONSTRAINT sync_operation_kind_check,
    ADD CHECK (kind IN ('run', 'backfill', 'replay', 'recover', 'repair')),
    ADD COLUMN superseded_at timestamptz,
    ADD COLUMN snapshot_id uuid;  -- whose snapshot is loaded: its own, but for a recovery
UPDATE leadsync.sync_operation SET snapshot_id = attempt_id;
ALTER TABLE leadsync.sync_operation ALTER COLUMN snapshot_id SET NOT NULL;
CREATE INDEX ON leadsync.sync_operation (pipeline, run_id);

UPDATE leadsync.operation_log l SET sync_id = l.attempt_id
  FROM leadsync.sync_operation o WHERE o.sync_id = l.sync_id AND o.attempt_id <> l.attempt_id;
ALTER TABLE leadsync.operation_log
    DROP COLUMN attempt_id,
    ADD UNIQUE (sync_id, destination_id, shard),
    ADD COLUMN failure text,  -- the error's class
    ADD COLUMN resets_at timestamptz;  -- when a quota that is spent is filled again
CREATE INDEX ON leadsync.operation_log (destination_id, id);

DELETE FROM leadsync.retry_queue q
 WHERE NOT EXISTS (SELECT FROM leadsync.sync_operation o WHERE o.attempt_id = q.attempt_id);
UPDATE leadsync.retry_queue q SET attempt_id = o.sync_id
  FROM leadsync.sync_operation o WHERE o.attempt_id = q.attempt_id;
ALTER TABLE leadsync.retry_queue RENAME COLUMN attempt_id TO sync_id;
ALTER TABLE leadsync.sync_operation DROP COLUMN attempt_id;

-- A destination that keeps failing is parked: it takes no part in runs, and its watermark stays.
ALTER TABLE leadsync.watermark
    ADD COLUMN parked_at timestamptz,
    ADD COLUMN parked_because text,
    ADD COLUMN probe_after timestamptz,
    ADD COLUMN unparked_at timestamptz;

-- The ledger knows leads by the hash of their external id; the id itself finds those that vanished from the lead store.
ALTER TABLE leadsync.delivery ADD COLUMN external_id text;
"""

DOWN = """
ALTER TABLE leadsync.delivery DROP COLUMN external_id;
ALTER TABLE leadsync.watermark
    DROP COLUMN parked_at, DROP COLUMN parked_because, DROP COLUMN probe_after, DROP COLUMN unparked_at;
ALTER TABLE leadsync.retry_queue RENAME COLUMN sync_id TO attempt_id;
UPDATE leadsync.retry_queue q SET attempt_id = o.snapshot_id
  FROM leadsync.sync_operation o WHERE o.sync_id = q.attempt_id;
ALTER TABLE leadsync.operation_log ADD COLUMN attempt_id uuid;
UPDATE leadsync.operation_log SET attempt_id = sync_id;
UPDATE leadsync.operation_log l SET attempt_id = o.snapshot_id
  FROM leadsync.sync_operation o WHERE o.sync_id = l.sync_id;
DROP INDEX leadsync.operation_log_destination_id_id_idx;
ALTER TABLE leadsync.operation_log
    ALTER COLUMN attempt_id SET NOT NULL,
    DROP COLUMN failure, DROP COLUMN resets_at,
    DROP CONSTRAINT operation_log_sync_id_destination_id_shard_key,
    ADD UNIQUE (sync_id, attempt_id, destination_id, shard);
DELETE FROM leadsync.sync_operation WHERE kind NOT IN ('run', 'backfill') OR superseded_at IS NOT NULL;
DELETE FROM leadsync.sync_operation o
 WHERE EXISTS (SELECT FROM leadsync.sync_operation p
                WHERE p.pipeline = o.pipeline AND p.run_id = o.run_id AND p.sync_id > o.sync_id);
DROP INDEX leadsync.sync_operation_pipeline_run_id_idx;
ALTER TABLE leadsync.sync_operation
    ADD COLUMN attempt_id uuid,
    DROP COLUMN superseded_at, DROP CONSTRAINT sync_operation_kind_check,
    ADD CHECK (kind IN ('run', 'backfill')),
    ADD UNIQUE (pipeline, run_id);
UPDATE leadsync.sync_operation SET attempt_id = snapshot_id;
ALTER TABLE leadsync.sync_operation ALTER COLUMN attempt_id SET NOT NULL, DROP COLUMN snapshot_id;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
