"""The findings of reconciliations by lead: for the page, and for erasing a person."""

from alembic import op

revision = "0008"
down_revision = "0007"

UP = "CREATE INDEX reconciliation_finding_lead ON leadsync.reconciliation_finding (lead_key)"

DOWN = "DROP INDEX leadsync.reconciliation_finding_lead"


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
