"""The rules of the sync protocol, and the tasks of a run.

Each rule is a switch (`World.obeys`), and with any one of them off some history breaks a promise.

Window and snapshot
- `safe_bound`: a window ends at the oldest start of an open transaction; what commits later then lies in a later
  window.
- `bound_before_read`: the bound is taken before the read; what commits between the two would lie below it, unread.
- `half_open`: a window holds its lower end and not its upper one; the watermark itself is the next window's first
  time.
- `sequence_with_read`: sequence and read go under one lock, so that a higher sequence has never read an older state.
- `one_snapshot`: an operation's snapshot is taken once, by whatever try; loads go on by their place in it, and what is
  read later has other leads at other places.
- `attempt`: extract, snapshot, loads and commit carry one attempt; a window that was fixed and never read is not
  committed.

Ledger
- `sequence`: a state is never sent after a higher sequence was claimed for its lead; an old run would send an old
  state.
- `claim_first`: the claim is written before the request leaves; a sender that died has else left no trace of it.
- `doubt`: the claim clears the hash; a change that is reverted after a lost reply would look unchanged.
- `overtaken_if_delivered`: overtaken counts only when the newer state was delivered; else both loads skip the lead.
- `reread_claimed`: a lead in doubt is read again under a new sequence and claimed under it; else the sequence in
  doubt sends its older state afterwards.
- `unchanged_sequence`: an unchanged lead's sequence is written too; else an older run sends a state from before a
  revert.
- `own_claim`: the ledger is settled in the session that holds the fence, and only under the sequence claimed; a load
  that lost its lock would say that its state was the last.
- `refused_in_doubt`: a state that the CRM refused leaves no hash; else it counts as delivered when it is read again.
- `resend`: a resend does not compare hashes; they speak of what the CRM has lost since.
- `resend_leaves_doubt`: a resend clears the hash also where it has nothing to send (not routed, not mappable); else
  the lead looks unchanged when it comes back.
- `resend_rereads`: a resend that was overtaken reads the lead again; what overtook it may have been taken for
  unchanged, by a hash that speaks of what the CRM has lost since.
- `resend_fenced`: a resend does compare sequences; what is older goes back however much it is wanted.

Fence
- `fence`: loads of one destination exclude each other; else two of them have different states of a lead under way.
- `one_load`: shards share the fence only with shards of their own load; those of another one hold the same leads.
- `one_worker_per_shard`: a shard excludes itself; Airflow starts it again while the worker believed dead goes on.
- `disjoint_shards`: the lead decides on its shard; else two workers have the same lead under way.
- `fence_checked`: a sender that has not seen its lock lately looks before each request; it may have stood still for
  long.
- `wait_out`: who takes the fence waits until what a dead sender left can't land any more.
- `wait_out_siblings`: the first shard of a load waits before any other joins it, and one whose predecessor died waits
  until it is alone; else what dead senders left lands among theirs.
- `mark_per_sender`: each sender marks for itself that requests are under way; a shard that ends would clear its
  sibling's.
- `unanswered`: a load that ends in order keeps its mark while a request without an answer may still land.

Commit
- `all_loads`: nothing is committed before every load of the run has succeeded.
- `left_stays`: the watermark of one that was left behind, since it is slow and others waited, stays where it is.
- `own_upper`: each destination moves to the end of its own operation's window; it has not read further.
- `greatest`: never back; runs that were cleared end in any order.
- `only_runs`: backfills, replays, recoveries and repairs move no watermark; their windows don't begin at it.

Parking and slices
- `park`: after two runs in a row whose load of it failed, a destination takes no part; else it holds up all others.
- `sit_out`: one that is parked and fails again, though its probe is well, sits out a run; else it holds up all of
  them.
- `probe`: each run probes it, and it takes part again when it is well; nobody else would.
- `parked_stays`: its watermark stays while those of the others move.
- `own_lower`: one that lags has its own operation, from its own watermark; in the others' window it skips what lies
  between.
- `slice_bound`: a slice too ends at the safe bound.

Dead letters
- `resolve_by_newer`: only a state at least as new resolves a letter; an old run that delivers what came before says
  nothing of it. (A state that can't be mapped claims nothing, so the ledger alone does not keep an older one off.)
- `renew_by_newer`: only a state at least as new replaces a letter.
- `unmapped_compared`: a state that can't be mapped is compared with the ledger too; an old run would bury a lead
  whose newer state was delivered.
- `unrouted_resolves`: a newer state that is not routed resolves a letter: there is nothing to deliver any more.
- `replay_rereads`: a replay reads the lead again, under the lock; the letter's state under a new sequence may be old.

Recovery, from kept snapshots and without the lead store
- `recover_newest`: per lead only the newest of the states chosen; several of them under way land in any order.
- `recover_sequence`: a state keeps the sequence of its snapshot; under a new one it looks newer than what was
  delivered.
- `recover_in_doubt`: a state older than a claim in doubt is not sent, as there is no store to read it again from.
- `skipped_reported`: what a recovery passed over as older (also when that state is not routed) is named, and repaired
  from the store; the CRM may have lost the newer one.

Reconciliation
- `repair_rereads`: a repair reads the lead again under a new sequence, also one whose row is gone; what was compared
  is old.
- `ledger_compared`: a lead is in order when the CRM equals the store and the ledger knows that very state as
  delivered; else what was lost is taken for unchanged once the store reverts to it.
- `repair_resends`: it resends; to the ledger nothing is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TYPE_CHECKING

from tests.model.database import Attempt, Entry, Item, Operation, Steps, TaskFailed
from tests.model.load import Load, read_under_lock
from tests.model.world import DELETED, LEADS, NEVER, Destination, Row, Violation

if TYPE_CHECKING:
    from tests.model.airflow import Run, Worker

RULES = tuple(re.findall(r"^- `(\w+)`", __doc__ or "", re.MULTILINE))

PARK_AFTER = 2  # runs in a row in which a destination's load failed
SLICE = 60  # ticks of the watermark column that a destination which lags takes at once


def extract(worker: Worker, run: Run) -> Generator[None, None, Attempt]:
    """Opens the run's operations, as a new attempt."""
    bound = _bound(worker)
    yield
    worker.use_session()
    if run.kind == "run":
        attempt = _windows(worker, run, bound)
    elif run.kind == "backfill":
        upper = min(run.until, bound)
        attempt = Attempt([Operation("backfill", run.destinations, min(run.since, upper), upper, resend=run.resend)])
    elif run.kind == "replay":
        attempt = Attempt([_replay(worker, name) for name in run.destinations])
    elif run.kind == "recover":
        sources = run.sources
        attempt = Attempt([Operation("recover", [n], sources=sources, resend=run.resend) for n in run.destinations])
    else:
        operations = []
        for name in run.destinations:
            operations.append((yield from _compare(worker, run, name)))
        worker.use_session()
        attempt = Attempt(operations)
    run.current = attempt
    yield
    return attempt


def _windows(worker: Worker, run: Run, bound: int) -> Attempt:
    """Who takes part, and with which window: destinations at the same watermark share an operation; one that lags
    has its own, from its own watermark, a slice at a time."""
    obeys, standings = worker.world.obeys, worker.world.database.standings
    parked = [name for name in run.destinations if _parked(worker, name)]
    groups: dict[int, list[int]] = {}
    for name in run.destinations:
        if name not in parked:
            groups.setdefault(standings[name].watermark, []).append(name)
    front = max(groups, default=0)
    if not obeys("own_lower") and groups:
        groups = {front: [name for names in groups.values() for name in names]}
    operations = []
    for lower, names in groups.items():
        upper = bound
        if lower < front:
            upper = min(lower + SLICE, bound) if obeys("slice_bound") else lower + SLICE
        operations.append(Operation("run", names, lower, max(lower, upper), open_ended=upper == bound))
    return Attempt(operations, parked)


def _parked(worker: Worker, name: int) -> bool:
    """Whether the destination sits this run out: its loads failed PARK_AFTER runs in a row, and it either took part in
    the last one or its probe fails."""
    world, failures, sat_out = worker.world, 0, False
    for run in reversed(world.database.runs):
        if run.kind != "run" or not run.over or run.current is None:
            continue
        own = [operation for operation in run.current.operations if name in operation.destinations]
        if not own:
            sat_out = sat_out or failures == 0
        elif own[0].loaded(name) or own[0].left_behind(name):
            break
        elif own[0].size is not None:
            failures += 1
    if failures < PARK_AFTER or not world.obeys("park"):
        return False
    crm = world.destinations[name].crm
    return crm.down or not world.obeys("probe") or (world.obeys("sit_out") and not sat_out)


def _replay(worker: Worker, name: int) -> Operation:
    letters = worker.world.database.standings[name].letters
    return Operation("replay", [name], leads=list(letters), compared=[letter.row for letter in letters.values()])


def _compare(worker: Worker, run: Run, name: int) -> Generator[None, None, Operation]:
    """Compares lead store, CRM and ledger, lead by lead; by the time that it is judged, either may have moved on."""
    world = worker.world
    destination = world.destinations[name]
    compared: list[Row] = []
    for lead in run.leads if run.leads is not None else LEADS:
        held = destination.crm.content(lead)
        yield
        row = world.store.read(lead)
        yield
        entry = world.database.standings[name].ledger.get(lead)
        if run.leads is not None or not _agree(worker, destination, held, row, entry):
            compared.append(row)
    return Operation("repair", [name], leads=[row.lead for row in compared], compared=compared, resend=True)


def _agree(worker: Worker, destination: Destination, held: int, row: Row, entry: Entry | None) -> bool:
    """Whether the CRM holds the lead's state, and the ledger knows that one as delivered."""
    if not destination.routed(row):
        return not worker.world.obeys("ledger_compared") or entry is None or entry.digest is None
    if held != row.value:
        return False
    return not worker.world.obeys("ledger_compared") or (entry.digest if entry else DELETED) == row.value


def snapshot(worker: Worker, run: Run, attempt: Attempt) -> Steps:
    """Takes the snapshot of every operation of the run. Their windows end together."""
    bound = _bound(worker)
    yield
    for operation in attempt.operations:
        _check_current(worker, run, attempt)
        if operation.kind == "recover":
            _choose_states(worker, operation)
        else:
            yield from _read(worker, run, attempt, operation, bound)
        yield


class Taken(Exception):
    """The operation has its snapshot."""


def _bound(worker: Worker) -> int:
    """Up to where it is safe to read."""
    world = worker.world
    return world.store.bound(world.now) if world.obeys("safe_bound") else world.now


def _read(worker: Worker, run: Run, attempt: Attempt, operation: Operation, bound: int) -> Steps:
    world = worker.world
    store = world.store
    sent_as_compared = {"replay": "replay_rereads", "repair": "repair_rereads"}

    def begin() -> None:
        if operation.sequence and world.obeys("one_snapshot"):
            raise Taken
        if operation.open_ended:
            operation.upper = max(operation.upper, bound)

    def read() -> list[Row]:
        if operation.leads is None:
            lower = operation.lower if world.obeys("half_open") else operation.lower + 1
            return store.window(lower, operation.upper)
        if not world.obeys(sent_as_compared[operation.kind]):
            return operation.compared
        rows = map(store.read, operation.leads)
        return [row for row in rows if row.time != NEVER or operation.kind == "repair"]

    try:
        sequence, rows = yield from read_under_lock(worker, read, begin)
    except Taken:
        return
    _check_current(worker, run, attempt)
    world.chance.shuffle(rows)
    if not world.obeys("bound_before_read") and operation.leads is None:
        operation.upper = max(operation.upper, store.bound(world.now))
    operation.sequence = sequence
    operation.keep([Item(row, sequence) for row in rows])
    world.note("%s: sequence %d of %s", worker, sequence, rows)


def _choose_states(worker: Worker, operation: Operation) -> None:
    """Of the snapshots chosen, per lead the newest state, under the sequence that it was read under."""
    world = worker.world
    states = [item for source in operation.sources for item in source.items or []]
    if world.obeys("recover_newest"):
        newest: dict[int, Item] = {}
        for item in states:
            if item.row.lead not in newest or newest[item.row.lead].sequence < item.sequence:
                newest[item.row.lead] = item
        states = list(newest.values())
    if not world.obeys("recover_sequence"):
        world.database.sequence += 1
        states = [Item(item.row, world.database.sequence) for item in states]
    operation.keep(states)


def load(worker: Worker, run: Run, attempt: Attempt, operation: Operation, name: int, shard: int) -> Steps:
    """Delivers one shard of a snapshot to one destination."""
    _check_current(worker, run, attempt)
    yield
    yield from Load(worker, operation, worker.world.destinations[name], shard, attempt.operations).run()


def commit(worker: Worker, run: Run, attempt: Attempt) -> Steps:
    """Moves the watermarks, in one step, once every load of the run has succeeded."""
    _check_current(worker, run, attempt)
    yield
    worker.use_session()
    obeys = worker.world.obeys
    loads = [(o, name) for o in attempt.operations for name in o.destinations]
    if obeys("all_loads") and not all(o.loaded(name) or o.left_behind(name) for o, name in loads):
        raise TaskFailed("a load has not succeeded")
    if run.kind != "run" and (obeys("only_runs") or run.kind != "backfill"):
        return
    window = attempt if obeys("attempt") or run.current is None else run.current
    front = max((operation.upper for operation in window.operations), default=0)
    for operation in window.operations:
        for name in operation.destinations:
            if operation.left_behind(name) and obeys("left_stays"):
                continue
            _advance(worker, name, operation.upper if obeys("own_upper") else front)
    if not obeys("parked_stays"):
        for name in window.parked:
            _advance(worker, name, front)


def _advance(worker: Worker, name: int, upper: int) -> None:
    world = worker.world
    standing = world.database.standings[name]
    world.note("%s moves the watermark of CRM %d to %d", worker, name, upper)
    if upper < standing.watermark:
        if world.obeys("greatest"):
            return
        raise Violation("watermark went back", f"CRM {name}: {upper} after {standing.watermark}")
    standing.watermark = upper
    world.changed = True


def _check_current(worker: Worker, run: Run, attempt: Attempt) -> None:
    worker.use_session()
    if run.current is not attempt and worker.world.obeys("attempt"):
        raise TaskFailed("a newer attempt has replaced this one")
