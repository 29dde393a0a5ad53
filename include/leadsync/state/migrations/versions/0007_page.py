"""What the page asks for without counting a large table."""

from alembic import op

revision = "0007"
down_revision = "0006"

UP = """
-- The kind of failure, as recovery log and replays name it: one home, and an index that leads from group to group.
ALTER TABLE leadsync.dead_letter
    ADD COLUMN error_group text NOT NULL
    GENERATED ALWAYS AS (
        -- What a CRM calls code or field may be as long as it likes, an entry of an index may not.
        left(reason || coalesce(' ' || nullif(code, ''), '') || coalesce(' ' || nullif(field, ''), ''), 200)
    ) STORED;
CREATE INDEX dead_letter_group ON leadsync.dead_letter (destination_id, error_group, id) WHERE resolved_at IS NULL;
CREATE INDEX dead_letter_group_seen ON leadsync.dead_letter (destination_id, error_group, updated_at)
 WHERE resolved_at IS NULL;
CREATE INDEX dead_letter_resolved ON leadsync.dead_letter (destination_id, resolved_at, id)
 WHERE resolved_at IS NOT NULL;
CREATE INDEX dead_letter_lead ON leadsync.dead_letter (lead_key);

CREATE INDEX operation_log_succeeded ON leadsync.operation_log (destination_id, end_at) WHERE result = 1;
CREATE INDEX operation_log_under_way ON leadsync.operation_log (start_at) WHERE end_at IS NULL;
CREATE INDEX sync_operation_started ON leadsync.sync_operation (started_at, sync_id);
CREATE INDEX sync_operation_sequence ON leadsync.sync_operation (sequence);

CREATE INDEX recovery_log_kind ON leadsync.recovery_log (pipeline, kind, id);
CREATE INDEX recovery_log_pipeline ON leadsync.recovery_log (pipeline, id);
-- A line is acknowledged by another line, so the log stays append-only; once.
CREATE UNIQUE INDEX recovery_log_acknowledged ON leadsync.recovery_log (((details ->> 'line')::bigint))
 WHERE kind = 'acknowledged';
"""

DOWN = """
DROP INDEX leadsync.recovery_log_acknowledged;
DROP INDEX leadsync.recovery_log_pipeline;
DROP INDEX leadsync.recovery_log_kind;
DROP INDEX leadsync.sync_operation_sequence;
DROP INDEX leadsync.sync_operation_started;
DROP INDEX leadsync.operation_log_under_way;
DROP INDEX leadsync.operation_log_succeeded;
DROP INDEX leadsync.dead_letter_lead;
DROP INDEX leadsync.dead_letter_resolved;
ALTER TABLE leadsync.dead_letter DROP COLUMN error_group;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
