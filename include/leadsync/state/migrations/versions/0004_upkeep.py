"""Indexes for what maintenance looks for: what is old, and whose snapshot it is."""

from alembic import op

revision = "0004"
down_revision = "0003"

UP = """
CREATE INDEX ON leadsync.operation_log (start_at);
CREATE INDEX ON leadsync.sync_operation (snapshot_id);
CREATE INDEX ON leadsync.dead_letter (resolved_at) WHERE resolved_at IS NOT NULL;
"""

DOWN = """
DROP INDEX leadsync.operation_log_start_at_idx;
DROP INDEX leadsync.sync_operation_snapshot_id_idx;
DROP INDEX leadsync.dead_letter_resolved_at_idx;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
