"""One shard of one destination's load: route, map, claim, send, settle, a group of leads at a time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.model.database import CHECK, Entry, Item, LeftBehind, Letter, Operation, SessionLost, Steps, TaskFailed
from tests.model.world import NEVER, Destination, Request, Row, Violation, answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.airflow import Worker

# Leads that are claimed, and settled, in one transaction.
GROUP = 2
MAX_FAILURES = 3


@dataclass(eq=False, slots=True)
class Parcel:
    """One state on its way. `sequence` is not the item's when the lead had to be read again."""

    item: Item
    row: Row
    sequence: int
    request: Request | None = None


Verdicts = dict[Item, tuple[str, Parcel]]


class Load:
    """One try. `run` returns when every lead of the shard has ended somewhere, and raises TaskFailed otherwise."""

    def __init__(
        self, worker: Worker, operation: Operation, destination: Destination, shard: int, others: list[Operation]
    ) -> None:
        """`others` are the operations of the run, this one among them."""
        self._worker = worker
        self._world = worker.world
        self._obeys = worker.world.obeys
        self._operation = operation
        self._destination = destination
        self._shard = shard
        self._standing = worker.world.database.standings[destination.name]
        self._ended = operation.ended[destination.name]
        self._tries = operation.tries[destination.name]
        self._unanswered: int | None = None
        self._unavailable = False
        self._others = others

    def run(self) -> Steps:
        fence = self._standing.fence
        try:
            yield from fence.take(self._worker, self._operation, self._shard)
            try:
                yield from self._deliver()
            except SessionLost:
                raise
            except TaskFailed:
                fence.free(self._worker, self._shard, self._unanswered)
                raise
            fence.free(
                self._worker, self._shard, self._unanswered
            )  # not after a surprise: whoever comes next then waits
        finally:
            fence.release(self._worker)

    def _deliver(self) -> Steps:
        if self._operation.items is None:
            raise TaskFailed("the snapshot is gone")
        self._operation.left[self._destination.name].discard(self._shard)
        waiting = [item for item in self._operation.items if self._mine(item) and item not in self._ended]
        for first in range(0, len(waiting), GROUP):
            if self._others_wait():
                self._operation.left[self._destination.name].add(self._shard)
                raise LeftBehind("the others of the run do not wait any longer")
            verdicts: Verdicts = {}
            parcels = yield from self._claim(waiting[first : first + GROUP], verdicts)
            yield
            yield from self._send(parcels)
            self._settle(parcels, verdicts)
            yield
            if self._unavailable:
                break
        if any(item not in self._ended for item in waiting):
            raise TaskFailed("leads wait to be tried again")

    def _others_wait(self) -> bool:
        """Whether another destination of the run is done, and its patience has ended."""
        if self._world.patient or self._operation.kind != "run":
            return False
        own = self._destination.name
        done = any(o.loaded(name) for o in self._others for name in o.destinations if name != own)
        return done and self._world.slow.random() < 0.4

    def _mine(self, item: Item) -> bool:
        """Whether the lead is of this shard. Shards of one load hold disjoint leads."""
        shards = self._operation.shards
        if not self._obeys("disjoint_shards") and item.row.lead == 0:
            return True
        return item.row.lead % shards == self._shard

    # Claiming ----------------------------------------------------------------------------------------------------

    def _claim(self, items: list[Item], verdicts: Verdicts) -> Generator[None, None, list[Parcel]]:
        to_send, doubtful = self._claim_under_fence([Parcel(i, i.row, i.sequence) for i in items], verdicts)
        if not doubtful:
            return to_send
        if self._operation.kind == "recover":  # does without the lead store
            for parcel in doubtful:
                verdicts[parcel.item] = ("in doubt", parcel)
                self._skip(parcel)
            return to_send
        leads = [parcel.row.lead for parcel in doubtful]
        sequence, rows = yield from read_under_lock(self._worker, lambda: list(map(self._world.store.read, leads)))
        fresh = [Parcel(old.item, row, sequence) for old, row in zip(doubtful, rows, strict=True)]
        if self._obeys("reread_claimed"):
            fresh, doubtful = self._claim_under_fence(fresh, verdicts)
            if doubtful:
                raise TaskFailed("somebody else claims while the fence is held")
        return to_send + fresh

    def _claim_under_fence(self, parcels: list[Parcel], verdicts: Verdicts) -> tuple[list[Parcel], list[Parcel]]:
        """One transaction: what to send, and what a newer snapshot has claimed but is not known to have delivered."""
        self._worker.use_session()
        self._standing.fence.mark(self._worker, self._shard)
        chosen: dict[str, list[Parcel]] = {"send": [], "in doubt": []}
        for parcel in parcels:
            verdict = self._judge(parcel)
            if verdict in chosen:
                chosen[verdict].append(parcel)
            else:
                verdicts[parcel.item] = (verdict, parcel)
        return chosen["send"], chosen["in doubt"]

    def _judge(self, parcel: Parcel) -> str:
        """Compares one lead with the ledger, and claims it when it is to be sent."""
        obeys, ledger, row, sequence = self._obeys, self._standing.ledger, parcel.row, parcel.sequence
        operation, entry = self._operation, self._standing.ledger.get(row.lead)
        routed, mapped = self._destination.routed(row), self._destination.mapped(row)
        newer = entry if entry and entry.sequence > sequence else None
        if newer and self._resends() and operation.kind != "recover" and obeys("resend_rereads"):
            return "in doubt"
        if not routed:
            (self._skip if newer else self._leave_in_doubt)(parcel)
            return "not routed"
        if not mapped and not obeys("unmapped_compared"):
            return "mapping"
        if newer and obeys("sequence") and (obeys("resend_fenced") or not operation.resend):
            if newer.digest is not None or not obeys("overtaken_if_delivered"):
                self._skip(parcel)
                return "overtaken"
            if operation.kind != "recover" or obeys("recover_in_doubt"):
                return "in doubt"
        if not mapped:
            self._leave_in_doubt(parcel)
            return "mapping"
        if row.time == NEVER and operation.kind not in ("repair", "recover"):
            return "gone"
        if entry and entry.digest == row.value and not self._resends():
            if obeys("unchanged_sequence"):
                ledger[row.lead] = Entry(sequence, entry.digest)
            return "unchanged"
        if obeys("claim_first"):
            ledger[row.lead] = Entry(sequence, None if obeys("doubt") or entry is None else entry.digest)
        return "send"

    def _leave_in_doubt(self, parcel: Parcel) -> None:
        """A resend trusts no hash, also where it has nothing to send."""
        entry = self._standing.ledger.get(parcel.row.lead)
        if entry and self._resends() and self._obeys("resend_leaves_doubt"):
            self._standing.ledger[parcel.row.lead] = Entry(entry.sequence, None)

    def _resends(self) -> bool:
        rule = "repair_resends" if self._operation.kind == "repair" else "resend"
        return self._operation.resend and self._obeys(rule)

    def _skip(self, parcel: Parcel) -> None:
        if self._obeys("skipped_reported"):
            self._operation.skipped[self._destination.name].add(parcel.row.lead)

    # Sending -----------------------------------------------------------------------------------------------------

    def _send(self, parcels: list[Parcel]) -> Steps:
        """Puts the group's requests under way, several at once, and waits for their answers."""
        worker = self._worker
        worker.requests = []
        for parcel in parcels:
            self._before_request()
            verb = "upsert"
            if not self._destination.crm.upserts:
                verb = yield from self._search(parcel.row.lead)
                self._before_request()
            parcel.request = worker.world.send(self._destination.crm, parcel.row, verb)
            worker.requests.append(parcel.request)
            yield
            if parcel.request.outcome == "refused":
                self._unavailable = True  # stops early instead of hammering
                break
        sent = [parcel.request for parcel in parcels if parcel.request]
        while any(answer(request, self._world.now) is None for request in sent):
            yield

    def _search(self, lead: int) -> Generator[None, None, str]:
        crm = self._destination.crm
        verb = "update" if crm.records.get(lead) else "create"
        crm.searches += 1
        try:
            yield
        finally:
            crm.searches -= 1
        return verb

    def _before_request(self) -> None:
        if self._obeys("fence_checked") and self._world.now - self._worker.confirmed > CHECK:
            self._worker.confirm()

    # Settling ----------------------------------------------------------------------------------------------------

    def _settle(self, parcels: list[Parcel], verdicts: Verdicts) -> None:
        """One transaction: ledger, dead letters, and the place in the snapshot."""
        if self._obeys("own_claim"):
            self._worker.use_session()
        for parcel in parcels:
            outcome = answer(parcel.request, self._world.now) if parcel.request else "refused"
            if outcome == "unanswered":
                self._unanswered = self._world.now
            if outcome == "ok":
                self._delivered(parcel)
                verdicts[parcel.item] = ("delivered", parcel)
            elif outcome == "rejected":
                verdicts[parcel.item] = ("rejected", parcel)
                if not self._obeys("refused_in_doubt"):
                    self._write_hash(parcel)
            elif outcome != "refused":
                self._tries[parcel.item] = self._tries.get(parcel.item, 0) + 1
                if self._tries[parcel.item] >= MAX_FAILURES:
                    verdicts[parcel.item] = ("failed", parcel)
        for item, (verdict, parcel) in verdicts.items():
            nothing_to_deliver = verdict == "not routed" and self._obeys("unrouted_resolves")
            if verdict in ("delivered", "unchanged") or nothing_to_deliver:
                self._resolve(parcel)
            elif verdict in ("rejected", "mapping", "failed", "gone"):
                self._bury(parcel, verdict)
            self._ended[item] = verdict
            self._world.note("%s: %s under sequence %d %s", self._worker, parcel.row, parcel.sequence, verdict)

    def _delivered(self, parcel: Parcel) -> None:
        if not self._obeys("claim_first"):
            self._standing.ledger[parcel.row.lead] = Entry(parcel.sequence, parcel.row.value)
        else:
            self._write_hash(parcel)

    def _write_hash(self, parcel: Parcel) -> None:
        entry = self._standing.ledger[parcel.row.lead]
        if entry.sequence == parcel.sequence or not self._obeys("own_claim"):
            self._standing.ledger[parcel.row.lead] = Entry(entry.sequence, parcel.row.value)

    def _resolve(self, parcel: Parcel) -> None:
        letter = self._standing.letters.get(parcel.row.lead)
        if letter and (letter.sequence <= parcel.sequence or not self._obeys("resolve_by_newer")):
            del self._standing.letters[parcel.row.lead]
            self._world.changed = True

    def _bury(self, parcel: Parcel, reason: str) -> None:
        letter = self._standing.letters.get(parcel.row.lead)
        if letter and letter.sequence > parcel.sequence and self._obeys("renew_by_newer"):
            return
        self._standing.letters[parcel.row.lead] = Letter(parcel.row, parcel.sequence, reason)
        self._world.changed = True
        newest = self._destination.crm.newest.get(parcel.row.lead)
        if newest and newest.rank > parcel.row.rank:
            raise Violation("false letter", f"CRM {self._destination.name}: {parcel.row} after {newest} was delivered")


def read_under_lock(
    worker: Worker, read: Callable[[], list[Row]], begin: Callable[[], None] = lambda: None
) -> Generator[None, None, tuple[int, list[Row]]]:
    """Takes a sequence and reads the lead store, both under the pipeline's lock: a higher sequence has read a state at
    least as new. `begin` is what comes before the read, under the lock as well."""
    world, database = worker.world, worker.world.database
    locked = world.obeys("sequence_with_read")
    while locked and database.snapshot_lock is not None:
        yield
    worker.use_session()
    if locked:
        database.snapshot_lock = worker
    try:
        begin()
        database.sequence += 1
        sequence = database.sequence
        yield
        rows = read()
        yield
        worker.use_session()
    finally:
        if database.snapshot_lock is worker:
            database.snapshot_lock = None
    return sequence, rows
