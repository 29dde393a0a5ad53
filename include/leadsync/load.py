"""Loads one snapshot into one destination: route, map, **claim, send, settle**, a group of chunks at a time.

Claiming writes the snapshot's sequence into the ledger and clears the hash (in doubt) before a request leaves;
settling writes outcomes, dead letters, retry queue, operation log and the place in one transaction, so a load that
dies goes on where it had settled last. While one group is under way the next is read and claimed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from uuid import UUID

import structlog

from leadsync import changes
from leadsync.clients import Clients
from leadsync.config import Destination, Pipeline
from leadsync.copytext import parse_line
from leadsync.errors import BrokenMapping, LeadsyncError, TransientFailure, Unavailable
from leadsync.letters import Letters
from leadsync.mapping import Mapped, Mapper, MappingFailure, Row, lead_key
from leadsync.models import Lead, Outcome, Status
from leadsync.sending import Sender, request_failed
from leadsync.state import dead_letters, ledger, operations, redeliveries
from leadsync.state.dead_letters import MAX_ATTEMPTS, NAMELESS, DeadLetter, Retry
from leadsync.state.fence import Fence
from leadsync.state.operations import Counts, LoadLog, Operation

log = structlog.get_logger(__name__)

# Rows that are claimed, and settled, in one transaction.
GROUP_ROWS = 10_000
# Leads that failed before travel in smaller batches, at last alone: one lead that makes a CRM fail harms no other.
BATCH_SHARES = (1.0, 0.1, 0.0)

# Reads leads (by their key columns' values) anew from the lead store, under the pipeline's lock and so under a new
# sequence: (sequence, COPY lines).
Reread = Callable[[Sequence[Sequence[str]]], tuple[int, list[str]]]


@dataclass(slots=True)
class Item:
    """One lead on its way; `attempts` are its failures so far."""

    mapped: Mapped
    line: str
    chunk: int
    sequence: int
    attempts: int
    crm_id: str | None = None
    outcome: Outcome | None = None


@dataclass(slots=True)
class Group:
    """Some chunks, or of one chunk the leads that wait to be tried again (`read` is 0 then)."""

    next_chunk: int
    read: int = 0
    not_routed: int = 0
    items: list[Item] = field(default_factory=list)
    unchanged: list[UUID] = field(default_factory=list)
    overtaken: list[UUID] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    batches: list[tuple[list[Item], Future[list[Outcome]]]] = field(default_factory=list)


class Load:
    """One try of one destination's load. `run` returns the counts, or raises what keeps it from being done."""

    def __init__(
        self,
        clients: Clients,
        pipeline: Pipeline,
        operation: Operation,
        target: Destination,
        destination_id: int,
        row: LoadLog,
        fence: Fence,
        sender: Sender,
        reread: Reread | None,
    ) -> None:
        self._state = state = clients.state
        self._snapshots = clients.snapshots
        self._sealer = clients.sealer
        self._source = pipeline.source
        self._operation = operation
        self._target = target
        self._id = destination_id
        self._mapper = Mapper(pipeline.source, self._target)
        self._fence = fence
        self._sender = sender
        self._reread = reread
        self._taken_up = redeliveries.taken_up(state, operation.sync_id) if operation.kind == "recover" else set()
        self._letters = Letters(state, clients.sealer, operation, target.name, destination_id)
        self._retry_after: float | None = None
        self._held_up = False  # a group is not settled as a whole: no later one may move the place past it
        self.log = row

    def run(self) -> Counts:
        """Goes over what is not settled yet. Whatever stops it, all that ended until then is settled."""
        under_way: deque[Group] = deque()
        for group in self._groups():
            self._claim(group)
            self._send(group)
            under_way.append(group)
            if len(under_way) > 1:
                self._settle(under_way.popleft())
            if self._sender.stopped:
                break
        while under_way:
            self._settle(under_way.popleft())
        self._judge()
        return self.log.counts

    # Reading ---------------------------------------------------------------------------------------------------

    def _groups(self) -> Iterator[Group]:
        """First the leads that wait to be tried again, then the chunks that are not settled yet."""
        snapshot, sequence = self._operation.snapshot_id, self._operation.sequence or 0
        waiting = dead_letters.waiting(self._state, self._id, self._operation.sync_id)
        for chunk in sorted(chunk for chunk in waiting if chunk < self.log.next_chunk):
            group = Group(self.log.next_chunk)
            lines = _lines(self._snapshots.chunk(snapshot, chunk))
            self._read(group, lines, chunk, sequence, waiting[chunk], only=waiting[chunk])
            yield group
        group = Group(self.log.next_chunk)
        for chunk, text in self._snapshots.chunks(snapshot, self.log.next_chunk):
            lines = _lines(text)
            self._read(group, lines, chunk, sequence, waiting.get(chunk, {}))
            group.read += len(lines)
            group.next_chunk = chunk + 1
            if group.read >= GROUP_ROWS:
                yield group
                group = Group(chunk + 1)
        if group.read:
            yield group

    def _read(
        self,
        group: Group,
        lines: Sequence[str],
        chunk: int,
        sequence: int,
        attempts: Mapping[UUID, int],
        *,
        only: Collection[UUID] | None = None,
    ) -> None:
        """Routes and maps rows; `only` some leads' when it is given."""
        for line in lines:
            row = parse_line(line)
            if only is not None and lead_key(self._external_id(row, line)) not in only:
                continue
            if not self._mapper.routed(row):
                group.not_routed += 1
                continue
            try:
                mapped = self._mapper.map(row)
            except MappingFailure as failure:
                group.letters.append(self._letters.unmapped(self._external_id(row, line), line, failure))
                continue
            group.items.append(Item(mapped, line, chunk, sequence, attempts.get(mapped.key, 0)))

    def _external_id(self, row: Row, line: str) -> str:
        try:
            return self._mapper.external_id(row)
        except MappingFailure:
            return f"{NAMELESS}{lead_key(line)}"

    # Claiming and sending --------------------------------------------------------------------------------------

    def _claim(self, group: Group) -> None:
        items = group.items
        claims = self._claim_under(self._operation.sequence or 0, items)
        group.unchanged, group.overtaken = list(claims.unchanged), list(claims.overtaken)
        group.items = _to_send(items, claims)
        self._compare(group, items)
        if self._reread is None:
            # A recovery leaves the lead store alone: whoever claimed the newer state answers for it.
            group.overtaken += claims.in_doubt
        elif claims.in_doubt:
            self._refresh(group, self._reread, [item for item in items if item.mapped.key in claims.in_doubt])

    def _compare(self, group: Group, items: Sequence[Item]) -> None:
        """Sees to the leads of which a newer state was delivered.

        Those that can't be mapped claim nothing, and are no dead letters either. What a recovery leaves out though it
        resends is named when the newer state is in none of its snapshots: the CRM may have lost that one.
        """
        unmapped = {letter.lead_key: letter.external_id for letter in group.letters}
        resends = self._operation.kind == "recover" and self._operation.resend
        keys = [*unmapped, *(group.overtaken if resends else ())]
        newer = ledger.newer(self._state, self._id, self._operation.sequence or 0, keys)
        ended = {key for key in unmapped if key in newer and (newer[key][1] or self._reread is None)}
        group.letters = [letter for letter in group.letters if letter.lead_key not in ended]
        group.overtaken += ended
        if resends:
            names = unmapped | {item.mapped.key: item.mapped.external_id for item in items}
            lost = [key for key, (sequence, delivered) in newer.items() if delivered and sequence not in self._taken_up]
            group.passed_over = [names[key] for key in lost]

    def _claim_under(self, sequence: int, items: Sequence[Item]) -> ledger.Claims:
        leads = [(item.mapped.key, item.mapped.digest, item.mapped.external_id) for item in items]
        with self._state.transaction():
            self._fence.busy()
            return ledger.claim(self._state, self._id, sequence, leads, resend=self._operation.resend)

    def _refresh(self, group: Group, reread: Reread, doubtful: Sequence[Item]) -> None:
        """Leads that a newer snapshot has claimed but is not known to have delivered: their present state is sent."""
        places = [self._source.columns.index(name) for name in self._source.key]
        rows = [parse_line(item.line) for item in doubtful]
        sequence, lines = reread([[row[place] or "" for place in places] for row in rows])
        attempts = {item.mapped.key: item.attempts for item in doubtful}
        chunks = {item.mapped.key: item.chunk for item in doubtful}
        fresh = Group(group.next_chunk)
        self._read(fresh, lines, 0, sequence, attempts)
        for item in fresh.items:
            item.chunk = chunks[item.mapped.key]  # where its next try looks for it
        claims = self._claim_under(sequence, fresh.items)
        group.items += _to_send(fresh.items, claims)
        group.unchanged += claims.unchanged
        group.letters += fresh.letters
        group.not_routed += fresh.not_routed
        present = {lead_key(self._external_id(parse_line(line), line)) for line in lines}
        for item in doubtful:
            if item.mapped.key not in present:
                gone = self._letters.undelivered(item.mapped, "failed", 1, "gone_from_lead_store", None, None)
                group.letters.append(gone)

    def _send(self, group: Group) -> None:
        """Leads that never failed first; deletes apart from the rest."""
        for attempts, share in enumerate(BATCH_SHARES):
            size = max(1, int(self._sender.adapter.max_batch * share))
            tier = [item for item in group.items if min(item.attempts, len(BATCH_SHARES) - 1) == attempts]
            for delete in (False, True):
                items = [item for item in tier if item.mapped.delete is delete]
                for first in range(0, len(items), size):
                    batch = items[first : first + size]
                    leads = [Lead(item.mapped.external_id, item.mapped.fields, item.crm_id) for item in batch]
                    group.batches.append((batch, self._sender.send(leads, delete=delete)))

    # Settling --------------------------------------------------------------------------------------------------

    def _settle(self, group: Group) -> None:
        self._sender.finish(future for _, future in group.batches)
        for batch, future in group.batches:
            for item, outcome in zip(batch, future.result(), strict=False):  # a batch that was not tried has none
                item.outcome = outcome
        tried = [(item, item.outcome) for item in group.items if item.outcome is not None]
        failed = {item.mapped.key: (item, outcome) for item, outcome in tried if outcome.status is Status.TRANSIENT}
        if failed and not self._sender.proven and all(request_failed(outcome) for _, outcome in failed.values()):
            self._sender.unavailable = True
            self._held_up = True
        self._held_up = self._held_up or len(tried) < len(group.items)

        delivered: dict[int, list[tuple[UUID, UUID, str | None, bool]]] = {}
        records = []
        for item, outcome in tried:
            mapped = item.mapped
            if outcome.status is Status.REJECTED:
                why = (outcome.code, outcome.field, outcome.message)
                group.letters.append(self._letters.undelivered(mapped, "rejected", item.attempts + 1, *why))
            elif outcome.status is not Status.TRANSIENT:
                entry = (mapped.key, mapped.digest, outcome.crm_id, outcome.status is Status.DELETED)
                delivered.setdefault(item.sequence, []).append(entry)
                records.append(changes.record(outcome.status, item.line))
        arrived = [entry[0] for entries in delivered.values() for entry in entries]

        with self._state.transaction():
            for sequence, entries in delivered.items():
                ledger.settle(self._state, self._id, sequence, entries)
            self._letters.resolve(arrived + group.unchanged)
            group.letters += self._queue(failed)
            self._letters.bury(group.letters)
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

    def _queue(self, failed: Mapping[UUID, tuple[Item, Outcome]]) -> list[DeadLetter]:
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
        tries = dead_letters.queue_retries(self._state, self._id, self._operation.sync_id, retries)
        letters = []
        for key, attempts in tries.items():
            item, outcome = failed[key]
            if attempts >= MAX_ATTEMPTS:
                why = (outcome.code, outcome.field, outcome.message)
                letters.append(self._letters.undelivered(item.mapped, "failed", attempts, *why))
        return letters

    def _count(self, group: Group, delivered: int) -> None:
        counts = self.log.counts
        counts.read += group.read
        counts.not_routed += group.not_routed
        counts.delivered += delivered
        counts.unchanged += len(group.unchanged)
        counts.overtaken += len(group.overtaken)
        counts.dead += len(group.letters)
        self.log.next_chunk = group.next_chunk

    # Judging ---------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Raises what keeps the load from being done."""
        sender, counts, name = self._sender, self.log.counts, self._target.name
        if sender.error is not None:
            raise sender.error
        if sender.unavailable:
            raise Unavailable(f"{name} takes nothing at the moment; what is left stays queued", self._retry_after)
        waiting = dead_letters.waiting(self._state, self._id, self._operation.sync_id)
        if waiting:
            many = sum(map(len, waiting.values()))
            raise TransientFailure(f"{name}: {many} leads failed in passing and wait in the queue", self._retry_after)
        if counts.read != counts.ended or counts.read != self._operation.rows:
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


def _lines(text: bytes) -> list[str]:
    return text.decode().split("\n")[:-1]


def _to_send(items: Sequence[Item], claims: ledger.Claims) -> list[Item]:
    chosen = [item for item in items if item.mapped.key in claims.send]
    for item in chosen:
        item.crm_id = claims.send[item.mapped.key]
    return chosen
