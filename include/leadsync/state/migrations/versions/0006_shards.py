"""Loads of one destination in several shards."""

from alembic import op

revision = "0006"
down_revision = "0005"

UP = """
-- In how many shards each destination loads it; fixed with the snapshot.
ALTER TABLE leadsync.sync_operation ADD COLUMN shards integer NOT NULL DEFAULT 1;

-- Whoever sends to a destination: until when a request of it may be under way.
CREATE TABLE leadsync.sender (
    destination_id integer NOT NULL,
    shard integer NOT NULL,
    busy_until timestamptz,
    PRIMARY KEY (destination_id, shard)
);
INSERT INTO leadsync.sender SELECT destination_id, 0, busy_until FROM leadsync.watermark WHERE busy_until IS NOT NULL;
ALTER TABLE leadsync.watermark
    DROP COLUMN busy_until,
    ADD COLUMN loading uuid;  -- the sync operation whose shards share the destination's lock

-- A chunk updates its rows twice. A page that is half empty takes both states of a row: no other page, no index entry.
ALTER TABLE leadsync.delivery SET (fillfactor = 50);
"""

DOWN = """
ALTER TABLE leadsync.delivery SET (fillfactor = 80);
ALTER TABLE leadsync.watermark DROP COLUMN loading, ADD COLUMN busy_until timestamptz;
UPDATE leadsync.watermark w SET busy_until = s.busy_until
  FROM (SELECT destination_id, max(busy_until) AS busy_until FROM leadsync.sender GROUP BY destination_id) s
 WHERE s.destination_id = w.destination_id;
DROP TABLE leadsync.sender;
DELETE FROM leadsync.operation_data d USING leadsync.operation_log l WHERE l.id = d.operation_id AND l.shard > 0;
DELETE FROM leadsync.operation_log WHERE shard > 0;
ALTER TABLE leadsync.sync_operation DROP COLUMN shards;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
