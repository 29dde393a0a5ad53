"""The world outside Leadsync: the lead store with its writers, the CRMs, and the requests under way to them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

LEADS = range(4)
# Ticks. A request takes effect at most LONGEST after it left; its sender stops waiting for an answer after TIMEOUT.
LONGEST = 16
TIMEOUT = 4

DELETED = 0  # the value of a row that is soft-deleted, or gone
NEVER = -1  # the time of a row that is gone


class Violation(Exception):
    """A promise was broken. `kind` says which one."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Row(NamedTuple):
    """One state of one lead. `value` is what its payload is made from; `time` the start of the transaction that wrote
    it; `rank` counts the commits of this lead, so a higher one is newer. Only the checks look at `rank`."""

    lead: int
    value: int
    time: int
    rank: int


@dataclass(eq=False)
class Transaction:
    """A writer. It stamps its rows with its start, and commits when it likes; a written None is a hard delete."""

    start: int
    haste: float
    writes: dict[int, int | None] = field(default_factory=dict)


class Store:
    """The lead store."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._written = 0
        self.reverts = 0.3  # of the changes
        self._values: dict[int, list[int]] = {}  # by lead, so that a change can be reverted
        self._ranks = dict.fromkeys(LEADS, 0)
        self.rows: dict[int, Row] = {}
        self.writers: list[Transaction] = []

    def bound(self, now: int) -> int:
        """The safe bound: whatever commits from here on has a time at or above it."""
        return min([writer.start for writer in self.writers] + [now])

    def read(self, lead: int) -> Row:
        """The lead's committed state; one that is gone reads as deleted."""
        return self.rows.get(lead) or Row(lead, DELETED, NEVER, self._ranks[lead])

    def window(self, lower: int, upper: int) -> list[Row]:
        """The committed rows with `lower <= time < upper`."""
        return [row for row in self.rows.values() if lower <= row.time < upper]

    def step(self, now: int, calm: bool) -> list[Row]:
        """Lets the writers do something; returns the states that were committed."""
        chance = self._chance.random
        if not calm and len(self.writers) < 3 and chance() < 0.25:
            self.writers.append(Transaction(now, self._chance.choice((0.05, 0.2, 0.4))))
        committed: list[Row] = []
        for writer in list(self.writers):
            if calm or chance() < writer.haste:
                self.writers.remove(writer)
                if chance() < 0.85:
                    committed += self._commit(writer)
            elif chance() < 0.4:
                self._write(writer, self._chance.choice(LEADS))
        return committed

    def _write(self, writer: Transaction, lead: int) -> None:
        if any(lead in other.writes for other in self.writers if other is not writer):
            return  # the row is locked
        kind = self._chance.random()
        self._written += 1
        if kind < 0.06:
            writer.writes[lead] = None
        elif kind < 0.2:
            writer.writes[lead] = DELETED
        elif kind < 0.2 + self.reverts and lead in self._values:
            writer.writes[lead] = self._chance.choice(self._values[lead][-3:])
        else:
            writer.writes[lead] = self._written

    def _commit(self, writer: Transaction) -> list[Row]:
        states = []
        for lead, value in writer.writes.items():
            self._ranks[lead] += 1
            if value is None:
                self.rows.pop(lead, None)
                continue
            self.rows[lead] = Row(lead, value, writer.start, self._ranks[lead])
            self._values.setdefault(lead, []).append(value)
            states.append(self.rows[lead])
        return states


class Crm:
    """A CRM, and its journal of accepted changes. Without an upsert of its own, records are looked up and then created
    or updated."""

    def __init__(self, name: int, *, upserts: bool, picky: bool) -> None:
        self.name = name
        self.upserts = upserts
        self.picky = picky
        self.records: dict[int, list[int]] = {}
        self.newest: dict[int, Row] = {}  # the last state accepted, by lead
        self.down = False  # refuses connections
        self.sick = False  # answers the probe and takes nothing: its quota is spent
        self.backup: dict[int, list[int]] = {}
        self.damaged = False  # has lost what it once accepted
        self.searches = 0  # senders that have searched and not yet sent what follows from it

    def refuses(self, value: int) -> bool:
        """Whether the CRM says that the data is wrong."""
        return self.picky and value != DELETED and (value + self.name) % 7 == 4

    def content(self, lead: int) -> int:
        """The value that the CRM holds, DELETED when it has no record."""
        return (self.records.get(lead) or [DELETED])[0]

    def accept(self, row: Row, verb: str) -> str:
        """Takes a request and returns its outcome: ok, rejected or failed."""
        held = self.records.get(row.lead, [])
        if self.refuses(row.value):
            return "rejected"
        if verb == "update" and not held:
            return "failed"
        newest = self.newest.get(row.lead)
        if newest and row.rank < newest.rank:
            raise Violation("went back", f"CRM {self.name} got {row} after {newest}")
        self.newest[row.lead] = row
        if row.value == DELETED:
            self.records.pop(row.lead, None)
        elif verb == "create" and held:
            raise Violation("doubled", f"CRM {self.name} has two records of lead {row.lead}")
        else:
            self.records[row.lead] = [row.value]
        return "ok"

    def back_up(self) -> None:
        self.backup = dict(self.records)

    def lose(self, lead: int | None) -> None:
        """Loses one lead's record, or goes back to the last backup."""
        if lead is None:
            self.records = dict(self.backup)
        else:
            self.records.pop(lead, None)
        self.damaged = True


class Destination(NamedTuple):
    """A CRM, and what the pipeline file says of it."""

    name: int
    crm: Crm
    picky: bool

    def routed(self, row: Row) -> bool:
        return not self.picky or row.value == DELETED or (row.value + 2 * self.name) % 9 != 3

    def mapped(self, row: Row) -> bool:
        """Whether the row can be turned into a record."""
        return not self.picky or row.value == DELETED or (row.value + self.name) % 6 != 1


@dataclass(eq=False, slots=True)
class Request:
    """A write under way. `lands` is when it takes effect, None when it never does; `answered` whether the sender hears
    of it. `outcome` is what became of it."""

    crm: Crm
    row: Row
    verb: str
    sent: int
    lands: int | None
    answered: bool
    outcome: str | None = None


class Network:
    """Carries requests: some late, some without an answer, some not at all."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.under_way: list[Request] = []
        self.faulty = True

    def send(self, crm: Crm, row: Row, verb: str, now: int) -> Request:
        request = Request(crm, row, verb, now, now, True)
        if crm.down or crm.sick:
            request.outcome = "refused"
            return request
        fate = self._chance.random() if self.faulty else 1.0
        if fate < 0.04:
            request.lands, request.answered = None, False
        elif fate < 0.10:
            request.lands, request.answered = now + self._chance.randint(0, TIMEOUT - 1), False
        elif fate < 0.16:
            request.lands, request.answered = now + self._chance.randint(TIMEOUT, LONGEST), False
        elif fate < 0.22:
            request.outcome = "failed"
            return request
        elif self.faulty:
            request.lands = now + self._chance.randint(0, TIMEOUT - 1)
        self.under_way.append(request)
        return request

    def sender_died(self, requests: list[Request]) -> None:
        """What the sender had under way may land much later than it would have."""
        for request in requests:
            if request in self.under_way and request.lands is not None and self._chance.random() < 0.5:
                request.lands = self._chance.randint(request.lands, request.sent + LONGEST)

    def land(self, now: int) -> list[Request]:
        """Lets due requests take effect, in any order; returns them."""
        landed = [request for request in self.under_way if request.lands is None or request.lands <= now]
        if len(landed) > 1:
            self._chance.shuffle(landed)
        for request in landed:
            self.under_way.remove(request)
            if request.lands is not None:
                request.outcome = request.crm.accept(request.row, request.verb)
        return landed


def answer(request: Request, now: int) -> str | None:
    """What the sender knows: an outcome, `unanswered` when it has waited long enough, or None."""
    if request.outcome is not None and request.answered:
        return request.outcome
    return "unanswered" if now >= request.sent + TIMEOUT else None
