"""Windows that end where it is safe to read when their snapshot is taken."""

from alembic import op

revision = "0010"
down_revision = "0009"

UP = """
-- Until it has its snapshot, `upper_bound` may still move on.
ALTER TABLE leadsync.sync_operation ADD COLUMN open_ended boolean NOT NULL DEFAULT false;
"""

DOWN = "ALTER TABLE leadsync.sync_operation DROP COLUMN open_ended"


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
