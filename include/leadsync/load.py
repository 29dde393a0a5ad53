"""Loads a snapshot, or a shard of it, into one destination: route, map, **claim, send, settle**, some chunks at a time.

Claiming writes the snapshot's sequence into the ledger and clears the hash (in doubt) before a request leaves;
settling writes outcomes, dead letters, retry queue, operation log and the place in one transaction, so a load that
dies goes on where it had settled last. While one group is under way the next is read and claimed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial

import structlog

from leadsync import changes
from leadsync.claiming import Claiming, Reread
from leadsync.clients import Clients
from leadsync.config import Destination, Pipeline
from leadsync.errors import BrokenMapping, LeadsyncError, LeftBehind, TransientFailure, Unavailable
from leadsync.freshness import Freshness
from leadsync.groups import Group, Item, Reader
from leadsync.letters import Letters
from leadsync.mapping import Mapper
from leadsync.memory import for_many_leads
from leadsync.models import Digest, Lead, Outcome, Share, Status
from leadsync.patience import Patience
from leadsync.sending import Sender, request_failed
from leadsync.state import dead_letters, ledger, operations
from leadsync.state.dead_letters import MAX_ATTEMPTS, DeadLetter, Retry
from leadsync.state.fence import Fence
from leadsync.state.operations import Counts, LoadLog, Operation

log = structlog.get_logger(__name__)

# Leads that failed before travel in smaller batches, at last alone: one lead that makes a CRM fail harms no other.
BATCH_SHARES = (1.0, 0.1, 0.0)


class Load:
    """One try of one destination's load. `run` returns the counts, or raises what keeps it from being done."""

    def __init__(
        self,
        clients: Clients,
        pipeline: Pipeline,
        operation: Operation,
        target: Destination,
        destination_id: int,
        share: Share,
        row: LoadLog,
        fence: Fence,
        sender: Sender,
        reread: Reread | None,
    ) -> None:
        self._state = state = clients.state
        self._sealer = clients.sealer
        self._source = pipeline.source
        self._operation = operation
        self._target = target
        self._id = destination_id
        self._share = share
        self._fence = fence
        self._sender = sender
        self._letters = Letters(state, clients.sealer, operation, target.name, destination_id)
        # Leads that are not routed matter one by one only where there is something to close, or to distrust.
        self._letters_open = dead_letters.any_open(state, destination_id)
        follows = operation.resend or self._letters_open
        mapper = Mapper(pipeline.source, target)
        self._reader = reader = Reader(clients.snapshots, operation.snapshot_id, mapper, follows=follows, share=share)
        self._claiming = Claiming(
            state, pipeline.source, operation, destination_id, fence, reader, self._letters, reread,
            ids=sender.adapter.needs_crm_id,
        )  # fmt: skip
        self._meter = sender.adapter.meter
        self._freshness = Freshness(pipeline.source, self._meter)
        self._patience = Patience(clients, pipeline, operation, destination_id)
        self._left_behind = False  # leads were left for the next run, since the others' patience has ended
        self._retry_after: float | None = None
        self._retries = False  # there may be leads in the retry queue
        self._held_up = False  # a group is not settled as a whole: no later one may move the place past it
        self.log = row

    def run(self) -> Counts:
        """Goes over what is not settled yet. Whatever stops it, all that ended until then is settled."""
        with for_many_leads():
            self._go_over_all()
        self._judge()
        return self.log.counts

    def _go_over_all(self) -> None:
        under_way: deque[Group] = deque()
        waiting = dead_letters.waiting(self._state, self._id, self._operation.sync_id, self._share)
        self._retries = bool(waiting)
        for group in self._reader.groups(self.log.next_chunk, self._operation.sequence or 0, waiting):
            if self._sender.ending:
                self._left_behind = True
                break
            self._claiming.claim(group)
            self._send(group)
            under_way.append(group)
            if len(under_way) > 1:
                self._settle(under_way.popleft())
            if self._sender.stopped:
                break
        while under_way:
            self._settle(under_way.popleft())

    # Sending ---------------------------------------------------------------------------------------------------

    def _send(self, group: Group) -> None:
        """Leads that never failed first; deletes apart from the rest."""
        tiers: dict[tuple[int, bool], list[Item]] = {}
        for item in group.items:
            tiers.setdefault((min(item.attempts, len(BATCH_SHARES) - 1), item.mapped.delete), []).append(item)
        for (attempts, delete), items in sorted(tiers.items()):
            for batch in self._sender.adapter.cut(items, delete=delete, share=BATCH_SHARES[attempts]):
                leads = [Lead(item.mapped.external_id, item.mapped.fields, item.crm_id) for item in batch]
                sent = self._sender.send(leads, delete=delete)
                if self._operation.kind == "run":  # what the other kinds send is old on purpose
                    sent.add_done_callback(partial(self._measure, batch))
                group.batches.append((batch, sent))

    def _measure(self, batch: Sequence[Item], sent: Future[list[Outcome]]) -> None:
        """The sender's thread comes here as soon as the CRM has answered."""
        if not sent.cancelled() and sent.exception() is None:
            self._freshness.accepted(lambda place: batch[place].line, sent.result(), time.time())

    # Settling --------------------------------------------------------------------------------------------------

    def _settle(self, group: Group) -> None:
        self._sender.finish((future for _, future in group.batches), self._look_at_the_others)
        # A batch that was not tried has no outcomes.
        tried = [pair for batch, future in group.batches for pair in zip(batch, future.result(), strict=False)]
        failed = {item.mapped.key: (item, outcome) for item, outcome in tried if outcome.status is Status.TRANSIENT}
        if failed and not self._sender.proven and all(request_failed(outcome) for _, outcome in failed.values()):
            self._sender.unavailable = True
            self._held_up = True
        untried = len(tried) < len(group.items)
        self._held_up = self._held_up or untried
        self._left_behind = self._left_behind or (untried and self._sender.ending)

        delivered: dict[int, list[tuple[Digest, Digest, str | None, bool]]] = {}
        records = []
        for item, outcome in tried:
            mapped, status = item.mapped, outcome.status
            if status is Status.REJECTED:
                why = (outcome.code, outcome.field, outcome.message)
                letter = self._letters.undelivered(mapped, item.sequence, "rejected", item.attempts + 1, *why)
                group.letters.append(letter)
            elif status is not Status.TRANSIENT:
                entry = (mapped.key, mapped.digest, outcome.crm_id, status is Status.DELETED)
                delivered.setdefault(item.sequence, []).append(entry)
                records.append(changes.record(status, item.line))
        arrived = [entry[0] for entries in delivered.values() for entry in entries]

        with self._state.transaction():
            for sequence, entries in delivered.items():
                ledger.settle(self._state, self._id, sequence, entries)
            if self._letters_open:
                self._letters.resolve(arrived + group.unchanged)
            for sequence, keys in group.nothing_due.items():
                self._letters.close(sequence, keys)
            group.letters += self._queue(failed)
            self._letters.bury(group.letters)
            self._letters_open = self._letters_open or bool(group.letters)
            if self._retries:
                ended = [*arrived, *group.unchanged, *group.overtaken, *(letter.lead_key for letter in group.letters)]
                dead_letters.forget_retries(self._state, self._id, self._operation.sync_id, ended)
            if records:
                sealed = self._sealer.seal(changes.pack(self._source, records), operations.data_context(self.log.id))
                operations.add_data(self._state, self.log, sealed)
            # A chunk that is held up is read again from its place on. Leads that waited lie before it (`read` is 0):
            # those that ended wait no longer, so they are counted now or never.
            if not self._held_up or group.read == 0:
                self._letters.pass_over(group.passed_over)
                self._count(group, len(arrived))
                operations.save_progress(self._state, self.log)
        log.info("settled", destination=self._target.name, **asdict(self.log.counts))
        self._judge_mapping()

    def _look_at_the_others(self) -> None:
        if not self._sender.ending and self._patience.ended():
            self._sender.ending = True

    def _queue(self, failed: Mapping[Digest, tuple[Item, Outcome]]) -> list[DeadLetter]:
        """Puts leads that failed in passing into the retry queue; those that failed too often become dead letters."""
        retries = []
        nonsense = None
        for key, (item, outcome) in failed.items():
            retries.append(Retry(key, item.mapped.external_id, item.chunk, outcome.code, int(outcome.sent)))
            if outcome.retry_after is not None:
                self._retry_after = max(self._retry_after or 0.0, outcome.retry_after)
            if outcome.sent and outcome.code in ("timeout", "connection"):
                self._fence.unanswered()
            if outcome.code == "malformed_reply":
                nonsense = outcome.message
        if nonsense:
            self._letters.remember("nonsense", f"{self._target.name} answered what makes no sense", {"reply": nonsense})
        self._meter.add({"retries": len(retries)})
        self._retries = self._retries or bool(retries)
        tries = dead_letters.queue_retries(self._state, self._id, self._operation.sync_id, retries)
        letters = []
        for key, attempts in tries.items():
            item, outcome = failed[key]
            if attempts >= MAX_ATTEMPTS:
                why = (outcome.code, outcome.field, outcome.message)
                letters.append(self._letters.undelivered(item.mapped, item.sequence, "failed", attempts, *why))
        return letters

    def _count(self, group: Group, delivered: int) -> None:
        counts = self.log.counts
        before = asdict(counts)
        counts.read += group.read
        counts.not_routed += group.not_routed
        counts.delivered += delivered
        counts.unchanged += len(group.unchanged)
        counts.overtaken += len(group.overtaken)
        counts.dead += len(group.letters)
        self._meter.add({f"leads:{name}": number - before[name] for name, number in asdict(counts).items()})
        self.log.next_chunk = group.next_chunk

    # Judging ---------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Raises what keeps the load from being done."""
        sender, counts, name = self._sender, self.log.counts, self._target.name
        if sender.error is not None:
            raise sender.error
        if sender.unavailable:
            raise Unavailable(f"{name} takes nothing at the moment; what is left stays queued", self._retry_after)
        if self._left_behind:
            rows = self._operation.rows
            raise LeftBehind(f"{name} is slow: {counts.read} of {rows} leads are done; it goes on in the next runs")
        waiting = dead_letters.waiting(self._state, self._id, self._operation.sync_id, self._share)
        if waiting:
            many = sum(map(len, waiting.values()))
            raise TransientFailure(f"{name}: {many} leads failed in passing and wait in the queue", self._retry_after)
        whole = counts.read == self._operation.rows or self._share.of > 1  # the shards together: see `commit`
        if counts.read != counts.ended or not whole:
            raise LeadsyncError(f"{name}: the sum does not hold: rows {self._operation.rows}, {asdict(counts)}")
        self._judge_mapping(all_of=True)

    def _judge_mapping(self, *, all_of: bool = False) -> None:
        """Raises BrokenMapping when too large a share, or in the end all, of the leads became dead letters."""
        counts, target, kind = self.log.counts, self._target, self._operation.kind
        if kind == "replay":
            return  # its leads were refused before: that they are again says nothing of the mapping
        routed = counts.read - counts.not_routed
        many = counts.dead >= target.max_rejected_floor and counts.dead > target.max_rejected * routed
        # A recovery goes over many snapshots, and a reconciliation repairs some leads at a time: neither is to end at
        # the few that are bad.
        if not many and not (all_of and kind not in ("recover", "repair") and 0 < routed == counts.dead):
            return
        operations.rewind(self._state, self.log)
        reasons = "; ".join(f"{count} × {why}" for why, count in self._letters.reasons.most_common(3))
        raise BrokenMapping(
            f"{target.name}: {counts.dead} of {routed} leads became dead letters ({reasons or 'in an earlier try'}): "
            "the field mapping or the CRM's set-up is broken; mend it, then clear this task or let the next run do it"
        )
