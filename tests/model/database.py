"""What Leadsync remembers in its own database. Whatever happens between two yields of a task is one transaction."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.model.world import LONGEST, Row

if TYPE_CHECKING:
    from tests.model.airflow import Run, Worker

# A sender relies at most so many ticks on the last time that it saw its lock.
CHECK = 2

Steps = Generator[None, None, None]


class TaskFailed(Exception):
    """The task ends without success; Airflow may try it again."""


class LeftBehind(TaskFailed):
    """The others of the run wait no longer: Airflow skips the task, and the run goes on."""


class SessionLost(TaskFailed):
    """The worker's database session is gone, and its locks with it. Nothing more may be sent or written."""


class Entry(NamedTuple):
    """The ledger's row of one lead: the highest sequence claimed, the hash of what was delivered (None: in doubt)."""

    sequence: int
    digest: int | None


class Letter(NamedTuple):
    """An open dead letter. `sequence` is the one under which the state was read."""

    row: Row
    sequence: int
    reason: str  # rejected, mapping, failed or gone


@dataclass(eq=False, slots=True)
class Item:
    """One lead's state in a snapshot, with the sequence under which it was read."""

    row: Row
    sequence: int


@dataclass(eq=False)
class Operation:
    """A sync operation: a window (or chosen leads), a snapshot, a sequence, and how far each load of it has come."""

    kind: str  # run, backfill, replay, recover or repair
    destinations: list[int]
    lower: int = 0
    upper: int = 0
    open_ended: bool = False  # ends wherever the bound is when the snapshot is taken
    leads: list[int] | None = None  # instead of a window
    resend: bool = False
    sequence: int = 0
    items: list[Item] | None = None  # the snapshot; None before it is taken and when it has expired
    size: int | None = None  # of the snapshot, once it was complete
    shards: int = 1
    sources: list[Operation] = field(default_factory=list)  # of a recovery: the snapshots chosen
    compared: list[Row] = field(default_factory=list)  # of a repair or replay: what made it necessary
    ended: dict[int, dict[Item, str]] = field(default_factory=dict)  # by destination: verdict on each item
    tries: dict[int, dict[Item, int]] = field(default_factory=dict)  # by destination: failures of each item
    skipped: dict[int, set[int]] = field(default_factory=dict)  # by destination: leads that a resend left alone
    left: dict[int, set[int]] = field(default_factory=dict)  # by destination: shards that were left behind

    def __post_init__(self) -> None:
        for name in self.destinations:
            self.ended[name], self.tries[name], self.skipped[name], self.left[name] = {}, {}, set(), set()

    def keep(self, items: list[Item]) -> None:
        """Makes the snapshot complete. The number of shards is fixed with it. Loads go on by their place in it."""
        if self.items is not None:
            places = {item: place for place, item in enumerate(self.items)}
            for name, ended in self.ended.items():
                at = {places[item]: verdict for item, verdict in ended.items() if item in places}
                self.ended[name] = {item: at[place] for place, item in enumerate(items) if place in at}
        self.items, self.size = items, len(items)
        self.shards = 2 if len(items) > 1 else 1

    def loaded(self, name: int) -> bool:
        """Whether the destination's load is done: each item has ended somewhere."""
        return len(self.ended[name]) == self.size

    def left_behind(self, name: int) -> bool:
        """Whether the destination's load is not done, and every shard of it that is not was left behind."""
        left = [item.row.lead % self.shards for item in self.items or [] if item not in self.ended[name]]
        return self.size is not None and bool(left) and set(left) <= self.left[name]

    def rewind(self, name: int) -> None:
        """The load starts over, as after a broken mapping was mended."""
        self.ended[name], self.tries[name] = {}, {}


@dataclass(eq=False)
class Attempt:
    """What one run of `extract` opened."""

    operations: list[Operation]
    parked: list[int] = field(default_factory=list)


class Fence:
    """The lock that keeps loads of one destination apart, and the marks of senders that may have requests under way."""

    def __init__(self) -> None:
        self.holders: dict[Worker, tuple[Operation, int]] = {}
        self.busy: dict[Worker | None, tuple[float, int]] = {}  # until when, and which shard's
        self.waiting: Worker | None = None  # who came first, and waits for what dead senders left

    def take(self, worker: Worker, operation: Operation, shard: int) -> Steps:
        """Waits for the lock; whoever is alone then waits until nothing that a dead sender left can be under way."""
        obeys = worker.world.obeys
        while self._blocked(worker, operation, shard):
            yield
        alone = not self.holders
        self.holders[worker] = (operation, shard)
        worker.confirm()
        if not obeys("wait_out") or not alone:
            return
        left = {sender: until for sender, (until, _) in self.busy.items() if sender not in self.holders}
        longest = worker.world.now + LONGEST + CHECK
        until = max((min(until, longest) for until in left.values()), default=0)
        self.waiting = worker
        while worker.world.now < until:
            yield
        self.waiting = None
        worker.confirm()
        for sender in left:
            self.busy.pop(sender, None)

    def _blocked(self, worker: Worker, operation: Operation, shard: int) -> bool:
        """Whether somebody else is in the way: another load, the same shard, or a dead one's requests."""
        obeys = worker.world.obeys
        if obeys("fence") and any(
            (obeys("one_load") and other is not operation) or (obeys("one_worker_per_shard") and held == shard)
            for other, held in self.holders.values()
        ):
            return True
        if not (self.holders and obeys("wait_out") and obeys("wait_out_siblings")):
            return False
        return self.waiting in self.holders or any(
            at == shard and until > worker.world.now and sender not in self.holders
            for sender, (until, at) in self.busy.items()
        )

    def mark(self, worker: Worker, shard: int) -> None:
        """Requests may be under way from here on."""
        self.busy[self._sender(worker)] = (float("inf"), shard)

    def free(self, worker: Worker, shard: int, unanswered: int | None) -> None:
        """All requests are over, except those without an answer, of which the last was given up at `unanswered`."""
        if unanswered is None or not worker.world.obeys("unanswered"):
            self.busy.pop(self._sender(worker), None)
        else:
            self.busy[self._sender(worker)] = (unanswered + LONGEST, shard)

    def release(self, worker: Worker) -> None:
        self.holders.pop(worker, None)

    def _sender(self, worker: Worker) -> Worker | None:
        return worker if worker.world.obeys("mark_per_sender") else None


@dataclass(eq=False)
class Standing:
    """What is known of one destination."""

    watermark: int
    ledger: dict[int, Entry] = field(default_factory=dict)
    letters: dict[int, Letter] = field(default_factory=dict)
    fence: Fence = field(default_factory=Fence)


@dataclass(eq=False)
class Database:
    sequence: int = 0
    snapshot_lock: Worker | None = None
    standings: dict[int, Standing] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def break_session(self, worker: Worker) -> None:
        """The worker's session is gone, and with it its locks."""
        if self.snapshot_lock is worker:
            self.snapshot_lock = None
        for standing in self.standings.values():
            standing.fence.release(worker)
        worker.connected = False
