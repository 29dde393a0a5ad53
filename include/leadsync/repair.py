"""Mends what a reconciliation found: leads are delivered anew, and records of leads that are gone are deleted."""

from __future__ import annotations

from collections.abc import Sequence

from leadsync import operations, redelivery, removal
from leadsync.clients import Clients
from leadsync.config import Pipeline
from leadsync.models import Digest, Finding, Kind
from leadsync.state import ledger, reconciliation, watermark
from leadsync.state import operations as state_operations
from leadsync.state.reconciliation import Reconciliation

# Leads that go through one load.
BATCH = 1000
# An upsert by external id can't tell doubles apart, let alone merge them.
REDELIVERED = [kind for kind in Kind if kind not in (Kind.DOUBLED, Kind.HARD_DELETED)]


def mend(
    clients: Clients, pipeline: Pipeline, destination: str, run_id: str, row: Reconciliation, *, at_least: int = 1
) -> None:
    """Goes over the findings that wait, as long as there are `at_least` so many; raises what a load raises.

    A lead that the CRM refuses is a dead letter then.
    """
    for kinds, send in (REDELIVERED, _redeliver), ([Kind.HARD_DELETED], removal.remove):
        while len(findings := reconciliation.waiting(clients.state, row, kinds, BATCH)) >= at_least:
            sync_id = send(clients, pipeline, run_id, destination, [each.external_id for each in findings])
            _note(clients, pipeline, destination, row, sync_id, findings)


def _redeliver(clients: Clients, pipeline: Pipeline, run_id: str, destination: str, external_ids: Sequence[str]) -> str:
    prepared = redelivery.prepare(clients, pipeline, run_id, "repair", destination, external_ids, resend=True)
    sync_id = prepared.operation.sync_id
    operations.load(clients, pipeline, sync_id, destination)
    operations.commit(clients, pipeline, [sync_id])
    return sync_id


def _note(
    clients: Clients,
    pipeline: Pipeline,
    destination: str,
    row: Reconciliation,
    sync_id: str,
    findings: Sequence[Finding],
) -> None:
    """Mended is what was delivered under the operation's sequence, or under a newer one."""
    state = clients.state
    operation = state_operations.read(state, sync_id)
    sequence = operation.sequence if operation and operation.sequence else 0
    number = watermark.read(state, pipeline.name, [destination])[destination].destination_id
    keys = [each.lead_key for each in findings]
    entries = ledger.look(state, number, keys)
    repaired: set[Digest] = {
        key for key, entry in entries.items() if entry.digest is not None and entry.sequence >= sequence
    }
    row.counts["repaired"] += len(repaired)
    with state.transaction():
        reconciliation.mended(state, row, sync_id, keys, repaired)
        reconciliation.save(state, row)
