"""Reconciliations and what they found; where each destination began."""

from alembic import op

revision = "0005"
down_revision = "0004"

UP = """
-- One comparison of a destination with the lead store and the ledger. The retry of its task goes on at its cursor.
CREATE TABLE leadsync.reconciliation (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    destination_id integer NOT NULL,
    run_id text NOT NULL,
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'failed')),
    error text,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    -- Which leads: those with a watermark in [since, until), and of them the ones on `sample_width` of 2^32 places from
    -- `sample_start` on, and those that changed at `recent` or later. `recent` is that of a nightly one only.
    since timestamptz,
    until timestamptz NOT NULL,
    recent timestamptz,
    sample_start bigint NOT NULL,
    sample_width bigint NOT NULL,
    vanished boolean NOT NULL,  -- whether leads that are gone from the lead store are searched
    repair boolean NOT NULL,
    -- First over the leads of the lead store (the cursor is the key of the last one), then over the ledger (its key).
    phase text NOT NULL DEFAULT 'leads' CHECK (phase IN ('leads', 'ledger')),
    cursor text[],
    counts jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX ON leadsync.reconciliation (destination_id, id);

-- What differs; of each kind only the first ones, the counts are exact. Names of fields, never their values.
CREATE TABLE leadsync.reconciliation_finding (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reconciliation_id bigint NOT NULL REFERENCES leadsync.reconciliation ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('missing', 'doubled', 'stale', 'wrongly_alive', 'wrongly_deleted',
                                       'changed_by_hand', 'hard_deleted')),
    external_id text NOT NULL,
    lead_key uuid NOT NULL,
    fields text[] NOT NULL,
    crm_ids text[] NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    repair_id uuid,  -- the sync operation that was to mend it
    repaired_at timestamptz
);
CREATE INDEX ON leadsync.reconciliation_finding (reconciliation_id, id);

-- Where a destination began: leads that are older were never its business. NULL: at the beginning.
ALTER TABLE leadsync.watermark ADD COLUMN starts_at timestamptz;
-- Its first run began there; without a run the watermark still stands there.
UPDATE leadsync.watermark w
   SET starts_at = CASE WHEN first.sync_id IS NULL THEN w.watermark ELSE first.lower_bound END
  FROM leadsync.watermark v
  LEFT JOIN LATERAL (SELECT o.sync_id, o.lower_bound FROM leadsync.sync_operation o
                      WHERE o.pipeline = v.pipeline AND v.destination = ANY (o.destinations) AND o.kind = 'run'
                      ORDER BY o.started_at LIMIT 1) first ON true
 WHERE w.destination_id = v.destination_id;
"""

DOWN = """
ALTER TABLE leadsync.watermark DROP COLUMN starts_at;
DROP TABLE leadsync.reconciliation_finding;
DROP TABLE leadsync.reconciliation;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
