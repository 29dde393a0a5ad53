"""Groups of dead letters that a person has marked as mended, for the scheduled replay."""

from alembic import op

revision = "0003"
down_revision = "0002"

UP = """
CREATE TABLE leadsync.mended_group (
    destination_id integer NOT NULL,
    error_group text NOT NULL,  -- reason, code and field, as the recovery log writes them
    sequence bigint NOT NULL,  -- dead letters that were written or renewed under a later one are not meant
    marked_at timestamptz NOT NULL DEFAULT now(),
    marked_by text,
    PRIMARY KEY (destination_id, error_group)
);
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute("DROP TABLE leadsync.mended_group")
