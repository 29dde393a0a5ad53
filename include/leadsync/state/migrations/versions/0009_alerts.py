"""What people are alerted of."""

from alembic import op

revision = "0009"
down_revision = "0008"

UP = """
-- What is wrong now, or is over and not everybody has been told. An empty pipeline: what all of them share; an empty
-- destination: what is the pipeline's own.
CREATE TABLE leadsync.alert (
    pipeline text NOT NULL,
    destination text NOT NULL,
    kind text NOT NULL,
    started_at timestamptz NOT NULL,
    detail text NOT NULL,
    -- Since when it has been well, which is not yet the end.
    calm_since timestamptz,
    ended_at timestamptz,
    -- The addresses, by their hash, that were told of its start and of its end.
    told_start text[] NOT NULL DEFAULT '{}',
    told_end text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (pipeline, destination, kind)
);
"""

DOWN = "DROP TABLE leadsync.alert"


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
