"""The first tables."""

from alembic import op

revision = "0001"
down_revision = None

UP = """
-- Grows with every snapshot taken of any pipeline: the fencing token.
CREATE SEQUENCE leadsync.snapshot_sequence;

-- How far each destination is in step with its source. NULL: nothing was read yet and all of it is wanted.
CREATE TABLE leadsync.watermark (
    destination_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline text NOT NULL,
    destination text NOT NULL,
    watermark timestamptz,
    -- Until when a request may be under way (infinity while a load sends): whoever comes next waits it out.
    busy_until timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (pipeline, destination)
);

-- One pass over one window. A window belongs to the attempt that made its snapshot.
CREATE TABLE leadsync.sync_operation (
    sync_id uuid PRIMARY KEY,
    pipeline text NOT NULL,
    run_id text NOT NULL,
    attempt_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('run', 'backfill')),
    lower_bound timestamptz,
    upper_bound timestamptz NOT NULL,
    destinations text[] NOT NULL,
    resend boolean NOT NULL DEFAULT false,
    sequence bigint,
    rows_read bigint,
    started_at timestamptz NOT NULL DEFAULT now(),
    snapshot_at timestamptz,
    committed_at timestamptz,
    UNIQUE (pipeline, run_id)
);
CREATE INDEX ON leadsync.sync_operation (pipeline, started_at);

-- The ledger. `digest` is the hash of the payload that the CRM accepted; NULL while in doubt.
CREATE TABLE leadsync.delivery (
    destination_id integer NOT NULL,
    lead_key uuid NOT NULL,
    sequence bigint NOT NULL,
    digest uuid,
    crm_id text,
    PRIMARY KEY (destination_id, lead_key)
) WITH (fillfactor = 80);  -- room for updates in place: nothing that changes is indexed

-- Leads of a load that failed in passing: the next try of that load takes them up again. They are that attempt's
-- alone, since every load has to account for each lead that it read.
CREATE TABLE leadsync.retry_queue (
    destination_id integer NOT NULL,
    attempt_id uuid NOT NULL,
    lead_key uuid NOT NULL,
    external_id text NOT NULL,
    chunk integer NOT NULL,
    attempts integer NOT NULL,
    code text,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (destination_id, attempt_id, lead_key)
);

-- Leads that a destination refused, or that failed three times, until they are resolved.
CREATE TABLE leadsync.dead_letter (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    destination_id integer NOT NULL,
    lead_key uuid NOT NULL,
    external_id text NOT NULL,
    sync_id uuid,
    sequence bigint NOT NULL,
    reason text NOT NULL CHECK (reason IN ('rejected', 'mapping', 'failed')),
    code text,
    field text,
    message bytea,
    payload bytea,
    attempts integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolution text
);
-- A lead has at most one open dead letter per destination.
CREATE UNIQUE INDEX dead_letter_open ON leadsync.dead_letter (destination_id, lead_key) WHERE resolved_at IS NULL;

-- Append-only: everything that a person may have to look at.
CREATE TABLE leadsync.recovery_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    pipeline text NOT NULL,
    destination text,
    sync_id uuid,
    kind text NOT NULL,
    message text NOT NULL,
    details jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX ON leadsync.recovery_log (at);

-- One row per sync operation, attempt, destination and shard; result is NULL while it runs, then 1 or 0.
CREATE TABLE leadsync.operation_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sync_id uuid NOT NULL,
    attempt_id uuid NOT NULL,
    destination_id integer NOT NULL,
    shard integer NOT NULL DEFAULT 0,
    start_at timestamptz NOT NULL DEFAULT now(),
    end_at timestamptz,
    result smallint,
    next_chunk integer NOT NULL DEFAULT 0,
    rows_read bigint NOT NULL DEFAULT 0,
    delivered bigint NOT NULL DEFAULT 0,
    unchanged bigint NOT NULL DEFAULT 0,
    overtaken bigint NOT NULL DEFAULT 0,
    not_routed bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0,
    error text,
    UNIQUE (sync_id, attempt_id, destination_id, shard)
);
-- The changes that were sent, sealed: a letter (i, u, d) and the row as COPY text, a line each.
CREATE TABLE leadsync.operation_data (
    operation_id bigint NOT NULL REFERENCES leadsync.operation_log ON DELETE CASCADE,
    part integer NOT NULL,
    records bytea NOT NULL,
    PRIMARY KEY (operation_id, part)
);
"""

TABLES = "operation_data, operation_log, recovery_log, dead_letter, retry_queue, delivery, sync_operation, watermark"


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    for table in TABLES.split(", "):
        op.execute(f"DROP TABLE leadsync.{table}")
    op.execute("DROP SEQUENCE leadsync.snapshot_sequence")
