"""Deletes the records of leads whose rows are gone from the lead store: there is no row that a load could deliver.

As a load does: claim, send, settle, under the destination's fence. That the leads are gone is read under the pipeline's
lock and a sequence taken there, so whoever reads one that comes back does so under a higher sequence and delivers it
after this delete; and a snapshot from before the row vanished counts as overtaken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from uuid import uuid4

import structlog

from leadsync import changes
from leadsync.clients import Clients
from leadsync.config import Destination, Pipeline
from leadsync.copytext import escape
from leadsync.crm.base import CRMAdapter
from leadsync.errors import LeadsyncError, TransientFailure, Unavailable
from leadsync.mapping import Mapped, deletion, split_key
from leadsync.models import Digest, Lead, Outcome, Status
from leadsync.sending import Sender
from leadsync.state import dead_letters, fence, ledger, operations, recovery_log, watermark
from leadsync.state.fence import Fence
from leadsync.state.operations import LoadLog, Operation

log = structlog.get_logger(__name__)


def remove(clients: Clients, pipeline: Pipeline, run_id: str, destination: str, external_ids: Sequence[str]) -> str:
    """One sync operation over these leads; returns its id. Leads that came back are left alone, and count as overtaken.

    Raises TransientFailure or Unavailable when some could not be deleted now, and what the adapter raises.
    """
    target = next(target for target in pipeline.destinations if target.name == destination)
    mark = watermark.read(clients.state, pipeline.name, [destination])[destination]
    with ExitStack() as stack:
        adapter = stack.enter_context(clients.open_adapter(destination))
        held = stack.enter_context(
            fence.hold(clients.state, mark.destination_id, adapter.longest_request, end_work=adapter.end_work)
        )
        there = _still_there(target, adapter, external_ids)
        sender = stack.enter_context(Sender(adapter, held, target.in_flight))
        return _Removal(clients, pipeline, target, mark.destination_id, held, sender).run(run_id, there)


def _still_there(target: Destination, adapter: CRMAdapter, external_ids: Sequence[str]) -> list[str]:
    """With `mode: field` a delete is an upsert, and must not make a record that is not there any more."""
    if target.on_delete.mode != "field":
        return list(external_ids)
    return [external_id for external_id, records in adapter.fetch(external_ids).items() if records]


class _Removal:
    def __init__(
        self, clients: Clients, pipeline: Pipeline, target: Destination, number: int, held: Fence, sender: Sender
    ) -> None:
        self._clients = clients
        self._state = clients.state
        self._pipeline = pipeline
        self._target = target
        self._id = number
        self._fence = held
        self._sender = sender

    def run(self, run_id: str, external_ids: Sequence[str]) -> str:
        keys = {external_id: split_key(external_id) for external_id in external_ids}
        with self._clients.open_store() as store, fence.pipeline_lock(self._state, self._pipeline.name):
            sequence = operations.take_sequence(self._state)
            present = store.present(list(keys.values()))
        operation = self._operation(sequence, len(external_ids))
        gone = [deletion(self._target, each) for each in external_ids if tuple(keys[each]) not in present]
        with self._state.transaction():
            operations.open_operation(self._state, operation, run_id)
            row = operations.start_load(self._state, operation, self._id)
            row.counts.read = operation.rows or 0
            self._fence.busy()
            leads = [(each.key, each.digest, each.external_id) for each in gone]
            ids = self._sender.adapter.needs_crm_id
            claims = ledger.claim(self._state, self._id, sequence, leads, resend=True, ids=ids)
        claimed = [each for each in gone if each.key not in claims.kept]
        row.counts.overtaken = row.counts.read - len(claimed)
        try:
            self._settle(sequence, row, self._send(claimed, claims.crm_ids))
        except LeadsyncError as error:
            if not self._state.broken:
                operations.end_load(self._state, row, error)
            raise
        operations.end_load(self._state, row)
        operations.mark_committed(self._state, operation.sync_id)
        log.info("removed", destination=self._target.name, **asdict(row.counts))
        return operation.sync_id

    def _operation(self, sequence: int, rows: int) -> Operation:
        sync_id = str(uuid4())
        return Operation(
            sync_id=sync_id,
            snapshot_id=sync_id,
            pipeline=self._pipeline.name,
            kind="repair",
            lower=None,
            upper=datetime.now(UTC),
            destinations=[self._target.name],
            resend=True,
            sequence=sequence,
            rows=rows,
        )

    def _send(self, claimed: Sequence[Mapped], crm_ids: Mapping[Digest, str | None]) -> list[tuple[Mapped, Outcome]]:
        delete = self._target.on_delete.mode != "field"
        under_way = []
        for batch in self._sender.adapter.cut(claimed, delete=delete):
            leads = [Lead(each.external_id, each.fields, crm_ids.get(each.key)) for each in batch]
            under_way.append((batch, self._sender.send(leads, delete=delete)))
        self._sender.finish(future for _, future in under_way)
        return [pair for batch, future in under_way for pair in zip(batch, future.result(), strict=False)]

    def _settle(self, sequence: int, row: LoadLog, told: Sequence[tuple[Mapped, Outcome]]) -> None:
        """Writes what became of them; raises what keeps the rest from being done."""
        done: list[tuple[Digest, Digest, str | None, bool]] = []
        records, refused, passing = [], [], []
        for mapped, outcome in told:
            if outcome.status is Status.REJECTED:
                refused.append(outcome)
            elif outcome.status is Status.TRANSIENT:
                passing.append(outcome)
                if outcome.sent and outcome.code in ("timeout", "connection"):
                    self._fence.unanswered()
            else:
                done.append((mapped.key, mapped.digest, outcome.crm_id, outcome.status is Status.DELETED))
                records.append(changes.record(Status.DELETED, self._line(mapped.external_id)))
        row.counts.delivered, row.counts.dead = len(done), len(refused)
        self._sender.adapter.meter.add({"leads:delivered": len(done), "leads:dead": len(refused)})
        with self._state.transaction():
            ledger.settle(self._state, self._id, sequence, done)
            dead_letters.resolve(self._state, self._id, [key for key, *_ in done], "deleted with the lead")
            if records:
                part = changes.pack(self._pipeline.source, records)
                sealed = self._clients.sealer.seal(part, operations.data_context(row.id))
                operations.add_data(self._state, row, sealed)
            operations.save_progress(self._state, row)
            if refused:
                self._tell(refused)
        name, waits = self._target.name, [each.retry_after for each in passing if each.retry_after]
        if self._sender.error is not None:
            raise self._sender.error
        if self._sender.unavailable:
            raise Unavailable(f"{name} takes nothing at the moment", max(waits, default=None))
        if row.counts.read != row.counts.ended:
            raise TransientFailure(f"{name}: {len(passing)} records could not be deleted now", max(waits, default=None))

    def _tell(self, refused: Sequence[Outcome]) -> None:
        message = f"{self._target.name} refuses to delete {len(refused)} records of leads that are gone"
        codes = sorted({outcome.code for outcome in refused if outcome.code})
        ids = [outcome.external_id for outcome in refused][:100]
        recovery_log.append(
            self._state, self._pipeline.name, "removal", message, destination=self._target.name, codes=codes,
            external_ids=ids,
        )  # fmt: skip

    def _line(self, external_id: str) -> str:
        """The lead as a COPY line, of which only the key is known."""
        source = self._pipeline.source
        known = dict(zip(source.key, split_key(external_id), strict=True))
        return "\t".join(escape(known.get(name)) for name in source.columns)
