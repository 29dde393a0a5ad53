"""From a seed to a sequence of events. Each sequence stresses some hazards, so that they meet each other often."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.chaos.events import (
    Abandon,
    Backfill,
    Begin,
    Clear,
    Clock,
    Doom,
    End,
    Event,
    Faults,
    FillRedis,
    Freeze,
    Kill,
    Lose,
    Network,
    Reconcile,
    Recover,
    Replay,
    Rest,
    RotateKey,
    Run,
    Start,
    Stop,
)
from tests.chaos.hive import name_of

CRMS = ("hubspot", "salesforce")
TASKS = {"extract": 30, "take_snapshot": 30, "load": 120, "commit": 24}
LENGTH = 60  # events chosen; those that end what others began come on top
LEADS = 24
VALUES = 4


class Generator:
    """Makes one sequence; `_later` holds what ends an earlier event, by the step at which it is due."""

    length = LENGTH
    waits: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1)

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311
        self._later: dict[int, list[Event]] = {}
        self._step = 0
        self._transactions = 0
        self._held: dict[int, int] = {}  # lead → step at which its transaction ends
        self._known = 0
        self._away: set[str] = set()
        self._hazards: dict[str, Callable[[], Event | None]] = {
            "kill": self._kill, "doom": self._doom, "abandon": self._abandon, "freeze": self._freeze,
            "faults": self._faults, "network": self._network, "stop": self._stop, "redis": self._fill_redis,
            "key": self._key, "clock": self._clock, "lose": self._lose, "repair": self._repair,
        }  # fmt: skip
        everyday = {"write": 30.0, "run": 24.0, "backfill": 7.0, "clear": 12.0, "person": 3.0, "rest": 8.0}
        rare = {"faults": 1.5, "stop": 0.4, "redis": 0.5, "key": 0.5, "clock": 0.5}
        stressed = self._random.sample(sorted(self._hazards), 3)
        self._weights = everyday | {
            name: (8.0 if name in stressed else 1.5) * rare.get(name, 1.0) for name in self._hazards
        }
        # What only a reconciliation mends hides what it would mend as well: most sequences go without.
        self._damages = "lose" in stressed
        if not self._damages:
            del self._weights["lose"]
        self._everyday: dict[str, Callable[[], Event | None]] = {
            "write": self._write, "run": self._run, "backfill": self._backfill, "clear": self._clear,
            "person": self._person, "rest": self._rest,
        }  # fmt: skip

    def events(self) -> Iterator[Event]:
        """The sequence. It may end with faults on and transactions open."""
        makers = self._everyday | self._hazards
        yield self._write(many=True)
        for step in range(1, self.length):
            self._step = step
            yield from self._later.pop(self._step, ())
            (name,) = self._random.choices(list(self._weights), list(self._weights.values()))
            event = makers[name]()
            if event is not None:
                yield event

    def _wait(self) -> float:
        return self._random.choice(self.waits)

    def _due(self, event: Event, most: int) -> int:
        """Plans an event some steps ahead; the step."""
        step = self._step + self._random.randint(1, most)
        self._later.setdefault(step, []).append(event)
        return step

    def _write(self, *, many: bool = False) -> Event:
        pick = self._random
        self._transactions += 1
        changes = []
        commit = pick.random() < 0.85
        ends = self._due(End(transaction=self._transactions, commit=commit, wait=0.0), 2 if pick.random() < 0.7 else 9)
        for _ in range(LEADS // 2 if many else pick.randint(1, 5)):
            free = [lead for lead in range(1, self._known + 1) if self._held.get(lead, 0) < self._step]
            if self._known < LEADS and (not free or many or pick.random() < 0.3):
                self._known += 1
                lead, action = self._known, "insert"
            elif free:
                lead = pick.choice(free[-12:] if pick.random() < 0.3 else free[:8])
                actions = ("update", "delete", "undelete", "remove", "insert")
                action = pick.choices(actions, (5, 3, 3, *((1, 2) if self._damages else (0, 0))))[0]
            else:
                break
            self._held[lead] = ends
            changes.append((action, lead, pick.randrange(VALUES)))
        return Begin(transaction=self._transactions, changes=changes, wait=self._wait())

    def _run(self) -> Event:
        return Run(wait=self._wait())

    def _person(self) -> Event:
        return Run(destinations=self._some(), wait=self._wait())

    def _backfill(self) -> Event:
        since = round(self._random.random(), 2)
        destinations = [] if self._random.random() < 0.6 else self._some()
        return Backfill(since=since, resend=self._random.random() < 0.4, destinations=destinations, wait=self._wait())

    def _clear(self) -> Event:
        task = self._random.choice(("extract", "snapshot", *CRMS, *CRMS))
        return Clear(back=self._random.randrange(5), task=task, wait=self._wait())

    def _rest(self) -> Event:
        return Rest(seconds=1.5, wait=0.0)

    def _kill(self) -> Event:
        return Kill(worker=self._random.randrange(4), wait=self._wait())

    def _doom(self) -> Event:
        task = self._random.choices(list(TASKS), (1, 2, 6, 1))[0]
        return Doom(task=task, point=self._random.randint(1, TASKS[task]), wait=0.0)

    def _abandon(self) -> Event:
        return Abandon(worker=self._random.randrange(4), wait=self._wait())

    def _freeze(self) -> Event:
        # Shorter than a sender may rely on its lock: a request that leaves later can't be told from a live one.
        return Freeze(worker=self._random.randrange(4), seconds=round(self._random.uniform(0.05, 0.3), 2))

    def _faults(self) -> Event:
        pick, crm = self._random, self._random.choice(CRMS)
        few = {"next": pick.randint(1, 3)}
        some = {"rate": round(pick.uniform(0.1, 0.9), 1)}
        chance = few if pick.random() < 0.5 else some
        faults = pick.choice((
            {"latency": round(pick.uniform(0.02, 0.5), 2)},
            {"too_many": {**chance, "retry_after": pick.choice((0, 1))}},
            {"too_many": chance},
            {"server_error": {**chance, "status": pick.choice((500, 502, 503, 504))}},
            {"lose_reply": chance},
            {"malformed": chance},
            {"lose_reply": few, "latency": 0.1},
            {"reject": {"external_ids": self._ids()}},
            {"reject": {"external_ids": self._ids()}, "whole_batch": True},
            {"rate_limit": {"requests": pick.randint(1, 6), "seconds": 0.5}},
            {"quota_spent": True},
            {"expire_tokens": True},
            {"down": True},
            {"slow_job": round(pick.uniform(0.1, 2.0), 2)},
            {"slow_job": round(pick.uniform(0.1, 2.0), 2), "lose_reply": some},
            {"fail_job": few},
        ))  # fmt: skip
        self._due(Faults(crm=crm, faults={}, wait=0.0), 20)
        return Faults(crm=crm, faults=faults, wait=self._wait())

    def _ids(self) -> list[str]:
        return list(map(name_of, self._random.sample(range(1, LEADS + 1), 4)))

    def _lose(self) -> Event:
        leads = self._random.sample(range(1, LEADS + 1), self._random.randint(1, LEADS))
        return Lose(crm=self._random.choice(CRMS), leads=leads, wait=self._wait())

    def _repair(self) -> Event:
        pick, crm = self._random, self._random.choice(CRMS)
        way = pick.choice(("replay", "recover", "reconcile"))
        if way == "replay":
            return Replay(crm=crm, wait=self._wait())
        if way == "reconcile":
            return Reconcile(crm=crm, wait=self._wait())
        return Recover(crm=crm, since=round(pick.random(), 2), resend=pick.random() < 0.5, wait=self._wait())

    def _network(self) -> Event:
        pick, service = self._random, self._random.choice(("state", "hive", "redis", *CRMS, *CRMS, *CRMS))
        rate = round(pick.uniform(0.05, 0.5), 2)
        if service in CRMS:
            hold = {"delay": pick.choice((0.3, 1.0))}
            faults = pick.choice(({"cut": rate}, hold, {"double": rate, "gap": 0.2}, {"cut": rate, **hold}))
        else:
            faults = pick.choice(({"cut": rate / 10}, {"delay": 0.03}))
        self._due(Network(service=service, faults={}, wait=0.0), 6)
        return Network(service=service, faults=faults, wait=self._wait())

    def _stop(self) -> Event | None:
        service = self._random.choices(("postgres", "redis", *CRMS), (3, 3, 1, 1))[0]
        if service in self._away:
            return None
        self._away.add(service)
        self._due(Start(service=service, wait=0.0), 4)
        lose = service == "redis" and self._random.random() < 0.5
        return Stop(service=service, lose=lose, wait=self._wait())

    def _fill_redis(self) -> Event:
        self._due(FillRedis(full=False, wait=0.0), 5)
        return FillRedis(wait=self._wait())

    def _key(self) -> Event:
        return RotateKey(wait=0.0)

    def _clock(self) -> Event:
        return Clock(seconds=self._random.choice((-3600.0, -5.0, 0.0, 5.0, 3600.0, 40_000_000.0)), wait=0.0)

    def _some(self) -> list[str]:
        return self._random.choice((["hubspot"], ["salesforce"], ["hubspot", "salesforce"]))


class StackGenerator(Generator):
    """For the whole stack: slower, without what only the suite's own workers suffer; Airflow itself dies too."""

    length = 22
    waits = (0.1, 0.5, 1.0, 2.0, 3.0)
    programs = ("airflow-scheduler", "airflow-dag-processor", "airflow-api-server", "airflow-triggerer")

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        for name in ("doom", "abandon", "key", "clock", "lose"):
            del self._hazards[name]
            self._weights.pop(name, None)

    def _stop(self) -> Event | None:
        services = ("postgres", "redis", *CRMS, *self.programs)
        (service,) = self._random.choices(services, (3, 3, 1, 1, 3, 1, 1, 1))
        return Stop(service=service, lose=service == "redis" and self._random.random() < 0.5, wait=self._wait())
