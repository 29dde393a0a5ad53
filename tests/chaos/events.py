"""The events of a sequence: plain data, one JSON line each, so that a failing sequence can be kept, cut and replayed.

To add a kind of event: a dataclass here, its name in `KINDS`, when it comes up in `generator.py`, and what it does in
`player.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens; `wait` are the seconds until the next event."""

    wait: float = 0.05


# The lead store ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Begin(Event):
    """A writer opens a transaction and makes changes in it: [action, lead, value].

    Actions: insert, update, delete (soft), undelete, remove (the row goes). A lead is a number from 1, a value a number
    from 0: the same value is the same contents.
    """

    transaction: int
    changes: list[tuple[str, int, int]]


@dataclass(frozen=True, kw_only=True)
class End(Event):
    """A transaction ends."""

    transaction: int
    commit: bool = True


# Runs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run(Event):
    """The schedule is due. Nothing happens while an ordinary run is still going on.

    With destinations it is a person's run, which goes on beside others.
    """

    destinations: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Backfill(Event):
    """A person triggers a run with `since`: the time at this share of the sequence so far (0: its begin)."""

    since: float
    resend: bool = False
    destinations: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Clear(Event):
    """A person clears a task, and what follows it, of the run that is `back` runs before the last that has ended.

    `task` is `extract`, `snapshot`, or the name of a destination, whose load it then is.
    """

    back: int
    task: str


@dataclass(frozen=True, kw_only=True)
class Replay(Event):
    """A person replays all dead letters of a CRM."""

    crm: str


@dataclass(frozen=True, kw_only=True)
class Recover(Event):
    """A person delivers to a CRM what the snapshots since a time hold (see `Backfill`)."""

    crm: str
    since: float
    resend: bool = False


@dataclass(frozen=True, kw_only=True)
class Reconcile(Event):
    """A person compares a CRM with the lead store and has it repaired."""

    crm: str


@dataclass(frozen=True, kw_only=True)
class Rest(Event):
    """Nothing happens until all runs have ended, or for so many seconds."""

    seconds: float = 60.0


# Workers -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Kill(Event):
    """kill -9 of a worker that runs just now, the n-th of them (modulo their number)."""

    worker: int


@dataclass(frozen=True, kw_only=True)
class Doom(Event):
    """The next worker with this task dies (kill -9) of itself at its n-th point: see hazards.py.

    Several of them doom as many workers; a point that is never reached spares one.
    """

    task: str
    point: int


@dataclass(frozen=True, kw_only=True)
class Abandon(Event):
    """The scheduler believes a worker dead that is not: the next try starts beside it."""

    worker: int


@dataclass(frozen=True, kw_only=True)
class Freeze(Event):
    """A worker stands still (SIGSTOP) and goes on some seconds later, as on a machine without memory."""

    worker: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RotateKey(Event):
    """A new encryption key comes before those in use, for the workers that start from now on."""


@dataclass(frozen=True, kw_only=True)
class Clock(Event):
    """The wall clock of workers that start from now on is this many seconds off."""

    seconds: float


# Services ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Faults(Event):
    """Replaces the faults of a simulated CRM (see demo.crm.faults); `{}` switches all off."""

    crm: str
    faults: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Lose(Event):
    """A CRM loses the records of these leads (numbers), and nothing tells it: its journal knows nothing of it."""

    crm: str
    leads: list[int]


@dataclass(frozen=True, kw_only=True)
class Network(Event):
    """Replaces the faults of the network before a service (see proxy.py); `{}` switches all off.

    Services: state, hive, redis, and the names of the CRMs.
    """

    service: str
    faults: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Stop(Event):
    """kill -9 of a service: postgres, redis or a CRM; `lose` takes the data with it (redis only)."""

    service: str
    lose: bool = False


@dataclass(frozen=True, kw_only=True)
class Start(Event):
    """A service that was stopped starts again."""

    service: str


@dataclass(frozen=True, kw_only=True)
class FillRedis(Event):
    """Redis takes nothing more (`full`), or has room again."""

    full: bool = True


KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Begin, End, Run, Backfill, Clear, Replay, Recover, Reconcile, Rest, Kill, Doom, Abandon, Freeze, RotateKey,
        Clock, Faults, Lose, Network, Stop, Start, FillRedis,
    )
}  # fmt: skip


def dump(events: Iterable[Event]) -> str:
    """A JSON line per event."""
    return "\n".join(json.dumps({"event": type(event).__name__, **asdict(event)}) for event in events)


def parse(text: str) -> list[Event]:
    """The events of JSON lines."""
    events = []
    for line in filter(None, map(str.strip, text.splitlines())):
        values = json.loads(line)
        events.append(KINDS[values.pop("event")](**values))
    return events
