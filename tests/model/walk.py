"""One random history: writers write, runs run, everything breaks; then the world calms down and has to end right."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Any

from tests.model import checks
from tests.model.airflow import Airflow, Run
from tests.model.database import Database, Operation, Standing
from tests.model.world import LEADS, Crm, Destination, Network, Request, Row, Store, Violation

TROUBLED_TICKS = 220
PATIENCE = 3000  # ticks within which a calm world has to get somewhere

# What may happen in a history. Each history has its own choice of these, so that rare things meet.
DISTURBANCES = (
    "kill", "lose", "break", "pause", "down", "sick", "backfill", "clear", "subset", "replay", "recover", "repair",
    "damage", "expire", "join", "network", "dirty", "revert",
)  # fmt: skip


class World:
    """Everything there is, at one tick of the clock."""

    def __init__(self, seed: int, without: Collection[str] = (), log: list[str] | None = None) -> None:
        self.chance = random.Random(seed)  # noqa: S311
        # Whether the others of a run wait only so long for a slow CRM. Chances of its own: it came later, and the
        # histories of other seeds are to stay what they were.
        self.slow = random.Random(f"{seed} slow")  # noqa: S311
        self.patient = self.slow.random() < 0.75
        self._without = frozenset(without)
        self._log = log
        self.now = 1
        self.calm = False
        self.changed = False  # something that a promise speaks of
        self.store = Store(self.chance)
        self.network = Network(self.chance)
        self.destinations: list[Destination] = []
        self.database = Database()
        self.airflow = Airflow(self)

    def obeys(self, rule: str) -> bool:
        return rule not in self._without

    def note(self, text: str, *values: object) -> None:
        """Adds a line to the log of the history, when one is kept."""
        if self._log is not None:
            self._log.append(f"{self.now:5} {text % values}")

    def send(self, crm: Crm, row: Row, verb: str) -> Request:
        self.note("%s to CRM %d: %s", verb, crm.name, row)
        return self.network.send(crm, row, verb, self.now)

    def register(self, name: int) -> None:
        """A destination becomes known, and starts at the beginning."""
        self.database.standings[name] = Standing(0)

    @property
    def known(self) -> list[int]:
        return list(self.database.standings)

    def tick(self, disturb: Callable[[], None] | None = None) -> None:
        self.now += 1
        for row in self.store.step(self.now, self.calm):
            self.note("commits %s", row)
            self.changed = True
        for request in self.network.land(self.now):
            self.note("landed at CRM %d: %s %s", request.crm.name, request.row, request.outcome)
            self.changed = True
        if disturb:
            disturb()
        self.airflow.step()
        if self.changed:
            self.changed = False
            checks.nothing_lost(self)


class Walk:
    """Runs one history; `run` raises Violation when a promise is broken."""

    def __init__(self, seed: int, without: Collection[str] = (), log: list[str] | None = None) -> None:
        self.world = World(seed, without, log)
        self._chance = self.world.chance
        self._habits = {habit for habit in DISTURBANCES if self._chance.random() < 0.6}
        self._busy = self._chance.choice((1, 1, 3))
        dirty = "dirty" in self._habits
        self.world.destinations = [Destination(n, Crm(n, upserts=n < 2, picky=dirty), dirty) for n in range(3)]
        self._until: dict[tuple[str, int], int] = {}  # when an outage ends
        self.world.network.faulty = "network" in self._habits
        if "revert" in self._habits:
            self.world.store.reverts = 0.7
        late = [2] if "join" in self._habits else []
        for destination in self.world.destinations:
            if destination.name not in late:
                self.world.register(destination.name)
        self._joins = self._chance.randint(1, TROUBLED_TICKS)

    def run(self) -> None:
        for _ in range(TROUBLED_TICKS):
            self.world.tick(self._disturb)
        self._come_to_rest()

    # Trouble -----------------------------------------------------------------------------------------------------

    def _happens(self, what: str, probability: float) -> bool:
        return what in self._habits and self._chance.random() < probability

    def _disturb(self) -> None:
        world = self.world
        if world.now >= self._joins and 2 not in world.database.standings:
            world.register(2)
        self._schedule(0.5)
        self._people()
        for destination in world.destinations:
            self._crm(destination.crm)
        for worker in list(world.airflow.workers):
            # Death is most dangerous while requests are under way.
            under_way = any(request.outcome is None for request in worker.requests)
            if self._happens("kill", 0.06 if under_way else 0.008):
                world.airflow.lose(worker, dead=True)
            elif self._happens("lose", 0.008):
                world.airflow.lose(worker, dead=False)
            elif self._happens("pause", 0.012):
                worker.paused = world.now + self._chance.randint(5, 40)
                world.note("%s stands still until %d", worker, worker.paused)
                if "break" in self._habits:
                    world.database.break_session(worker)
            elif self._happens("break", 0.012):
                world.note("%s loses its session", worker)
                world.database.break_session(worker)

    def _schedule(self, probability: float) -> None:
        """At most one scheduled run at a time; cleared ones go on beside it."""
        airflow = self.world.airflow
        if any(run.kind == "run" and not run.cleared for run in airflow.active):
            return
        if self._chance.random() < probability:
            names = self._some() if self._happens("subset", 0.1) else self.world.known
            airflow.trigger("run", names)

    def _people(self) -> None:
        """What people do: backfills, clearing, replays, recoveries, reconciliations."""
        world, trigger, chance = self.world, self.world.airflow.trigger, self._chance
        resend, busy = chance.random() < 0.5, self._busy
        if self._happens("backfill", 0.025 * busy):
            since = chance.randint(0, world.now)
            trigger("backfill", self._some(), since=since, until=chance.randint(since, world.now + 30), resend=resend)
        if self._happens("replay", 0.02 * busy):
            trigger("replay", self._some())
        if self._happens("recover", 0.02 * busy):
            kept = [snapshot for snapshot in self._snapshots() if chance.random() < 0.6]
            chance.shuffle(kept)
            trigger("recover", self._some(), sources=kept, resend=resend)
        if self._happens("repair", 0.02 * busy):
            trigger("repair", self._some())
        if self._happens("clear", 0.06 * busy):
            self._clear()
        if self._happens("expire", 0.02) and self._snapshots():
            chance.choice(self._snapshots()).items = None

    def _clear(self) -> None:
        chance, runs = self._chance, self.world.database.runs
        run = chance.choice(runs) if runs else None
        if run is None or (not run.over and chance.random() < 0.7):
            return
        if run.handed is None or ("snapshot",) not in run.done or chance.random() < 0.25:
            self.world.airflow.clear(run, "extract")
        elif run.kind in ("run", "backfill") and chance.random() < 0.25:  # the others have no task of their own for it
            self.world.airflow.clear(run, "snapshot")
        else:
            name = chance.choice([None, *run.destinations])
            self.world.airflow.clear(run, "load", name, rewind=chance.random() < 0.5)

    def _crm(self, crm: Crm) -> None:
        world = self.world
        for what in ("down", "sick"):
            over = world.now >= self._until.get((what, crm.name), world.now)
            if getattr(crm, what) and over:
                setattr(crm, what, False)
            elif over and self._happens(what, 0.006):
                world.note("CRM %d is %s", crm.name, what)
                setattr(crm, what, True)
                self._until[what, crm.name] = world.now + self._chance.randint(5, 90)
        if self._happens("damage", 0.02):
            crm.back_up()
        elif self._happens("damage", 0.006):
            lead = self._chance.choice([None, *LEADS])
            if lead is None and crm.searches:
                return  # no client can help it: the create that follows makes a second record (docs/reliability.md)
            world.note("CRM %d loses %s", crm.name, "what came after its backup" if lead is None else f"lead {lead}")
            crm.lose(lead)

    def _some(self) -> list[int]:
        known = self.world.known
        return sorted(self._chance.sample(known, self._chance.randint(1, len(known))))

    def _snapshots(self) -> list[Operation]:
        """The snapshots that are still kept."""
        attempts = [run.current for run in self.world.database.runs if run.current and run.kind != "recover"]
        return [operation for attempt in attempts for operation in attempt.operations if operation.items is not None]

    # Calm --------------------------------------------------------------------------------------------------------

    def _come_to_rest(self) -> None:
        """Nothing breaks any more; then nobody writes any more; then all has to end right."""
        world, chance = self.world, self._chance
        world.note("nothing breaks any more")
        world.network.faulty = False
        for worker in world.airflow.workers:
            worker.paused = 0
        for name, destination in enumerate(world.destinations):
            destination.crm.down = destination.crm.sick = False
            destination.crm.picky &= chance.random() < 0.7
            if name not in world.database.standings:
                world.register(name)
        for destination in world.destinations:
            if destination.crm.damaged and chance.random() < 0.5:
                self._heal(destination, chance.choice(["repair", *self._recovery]))
        world.note("calm")
        world.calm = True
        world.tick()  # whoever still writes commits
        ill = chance.choice([None, "down", "sick"])
        if ill:
            self._islands(chance.choice(world.destinations), ill)
        self._wait("to get in step", lambda: self._in_step(world.known))
        repaired = set()
        for destination in world.destinations:
            if destination.crm.damaged:
                way = chance.choice(["repair", "backfill", *self._recovery])
                self._heal(destination, way)
                repaired |= {destination.name} if way == "repair" else set()
        self._wait("for the last workers", self._at_rest, runs=0)
        self._finish("replay", world.known)  # what stays open then has a reason that holds
        for destination in world.destinations:
            checks.in_step(world, destination, repaired=destination.name in repaired)

    @property
    def _recovery(self) -> list[str]:
        """A recovery needs every snapshot."""
        return [] if "expire" in self._habits else ["recover"]

    def _islands(self, sick: Destination, how: str) -> None:
        """One CRM takes nothing: the others get in step all the same."""
        setattr(sick.crm, how, True)
        self.world.note("CRM %d stays %s", sick.name, how)
        others = [name for name in self.world.known if name != sick.name]
        self._wait(f"with CRM {sick.name} {how}", lambda: self._in_step(others))
        setattr(sick.crm, how, False)

    def _in_step(self, names: list[int]) -> bool:
        times = [row.time for row in self.world.store.rows.values()]
        newest = max(times, default=0)
        return all(self.world.database.standings[name].watermark > newest for name in names)

    def _wait(self, what: str, reached: Callable[[], bool], *, runs: float = 0.5) -> None:
        until = self.world.now + PATIENCE
        while not reached():
            if self.world.now > until:
                raise Violation("stuck", what)
            self._schedule(runs)
            self.world.tick()

    def _finish(self, kind: str, names: list[int], **request: Any) -> Run:
        run = self.world.airflow.trigger(kind, names, **request)
        self._wait(f"for the {kind}", lambda: run.over)
        return run

    def _heal(self, destination: Destination, way: str) -> None:
        """Restores what the CRM lost. A backfill does so only while nobody writes: a change that it has not read may
        be reverted to what the ledger knows as delivered."""
        name, crm = destination.name, destination.crm
        if self._chance.random() < 0.5:
            self.world.note("CRM %d loses everything", name)
            crm.records.clear()
        crm.damaged = False
        if way == "backfill":
            self._finish("backfill", [name], since=0, until=self.world.now, resend=True)
        elif way == "recover":
            snapshots = self._snapshots()
            chosen = snapshots[: len(snapshots) - self._chance.randint(0, 2)]
            run = self._finish("recover", [name], sources=chosen, resend=True)
            reached = {item.row.lead for snapshot in chosen for item in snapshot.items or []}
            skipped = run.handed.operations[0].skipped[name] if run.handed else set()
            self._finish("repair", [name], leads=sorted(skipped | (set(LEADS) - reached)))
        else:
            self._finish("repair", [name])

    def _at_rest(self) -> bool:
        return not (self.world.airflow.active or self.world.airflow.workers or self.world.network.under_way)


def walk(seed: int, without: Collection[str] = (), log: list[str] | None = None) -> Violation | None:
    """Runs the history of a seed; returns how it broke a promise, or None."""
    try:
        Walk(seed, without, log).run()
    except Violation as violation:
        if log is not None:
            log.append(str(violation))
        return violation
    return None
