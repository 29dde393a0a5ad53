"""Plays events: one method for each kind, named after it."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from tests.chaos import events
from tests.chaos.hive import name_of
from tests.chaos.scheduler import Scheduler
from tests.chaos.workers import Job
from tests.chaos.world import World


class Player:
    """One sequence's events on a world. `counts` are the events that took effect, by kind.

    `damaged`: a CRM has lost records, or rows of the lead store are gone, so that only a reconciliation gets it right.
    """

    def __init__(self, world: World, scheduler: Scheduler) -> None:
        self._world = world
        self._scheduler = scheduler
        self._began = datetime.now(UTC)
        self._frozen: list[threading.Timer] = []
        self.counts: Counter[str] = Counter()
        self.damaged = False
        self.rejected: dict[str, set[str]] = {name: set() for name in world.crms}

    def play(self, sequence: Sequence[events.Event]) -> None:
        """Plays all of them, each followed by its pause."""
        for event in sequence:
            kind = type(event).__name__
            if getattr(self, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower())(event) is not False:
                self.counts[kind] += 1
            time.sleep(event.wait)

    def thaw(self) -> None:
        """Waits until frozen workers go on."""
        for timer in self._frozen:
            timer.join()

    def begin(self, event: events.Begin) -> None:
        self.damaged |= any(action == "remove" for action, _, _ in event.changes)
        self._world.writers.begin(event.transaction, event.changes)

    def end(self, event: events.End) -> None:
        self._world.writers.end(event.transaction, commit=event.commit)

    def run(self, event: events.Run) -> bool:
        parameters = {"destinations": event.destinations} if event.destinations else {}
        return self._scheduler.run(parameters) is not None

    def backfill(self, event: events.Backfill) -> None:
        since = self._moment(event.since)
        self._scheduler.run({"since": since, "resend": event.resend, "destinations": event.destinations})

    def _moment(self, share: float) -> str:
        # A worker whose clock is behind would say that `since` is in the future.
        now = datetime.now(UTC)
        since = self._began + (now - self._began) * share - timedelta(seconds=max(0.0, -self._world.clock))
        return since.isoformat()

    def replay(self, event: events.Replay) -> None:
        self._scheduler.replay(event.crm)

    def recover(self, event: events.Recover) -> None:
        since = self._moment(event.since)
        self._scheduler.recover({"since": since, "resend": event.resend, "destinations": [event.crm]})

    def reconcile(self, event: events.Reconcile) -> None:
        self._scheduler.reconcile(event.crm)

    def lose(self, event: events.Lose) -> bool:
        if event.crm in self._world.stopped:
            return False
        self.damaged |= self._world.lose(event.crm, [name_of(lead) for lead in event.leads])
        return True

    def clear(self, event: events.Clear) -> bool:
        return self._scheduler.clear(event.back, event.task)

    def rest(self, event: events.Rest) -> None:
        self._scheduler.wait(event.seconds)

    def kill(self, event: events.Kill) -> bool:
        job = self._worker(event.worker)
        if job is None:
            return False
        self._world.workers.signal(job, "kill")
        return True

    def doom(self, event: events.Doom) -> None:
        self._scheduler.doom(event.task, event.point)

    def abandon(self, event: events.Abandon) -> bool:
        job = self._worker(event.worker)
        if job is None:
            return False
        job.abandoned = True
        job.done.set()
        return True

    def freeze(self, event: events.Freeze) -> bool:
        job = self._worker(event.worker)
        if job is None:
            return False
        self._world.workers.signal(job, "stop")
        timer = threading.Timer(event.seconds, self._world.workers.signal, (job, "go"))
        timer.start()
        self._frozen.append(timer)
        return True

    def rotate_key(self, event: events.RotateKey) -> None:
        self._world.rotate_key()

    def clock(self, event: events.Clock) -> None:
        self._world.clock = event.seconds

    def faults(self, event: events.Faults) -> bool:
        if event.crm in self._world.stopped:
            return False
        self.rejected[event.crm] |= set(event.faults.get("reject", {}).get("external_ids", []))
        self._world.crms[event.crm].faults(**event.faults)
        return True

    def network(self, event: events.Network) -> None:
        self._world.proxies[event.service].set(event.faults)

    def stop(self, event: events.Stop) -> None:
        self._world.stop(event.service, lose=event.lose)

    def start(self, event: events.Start) -> None:
        self._world.start(event.service)

    def fill_redis(self, event: events.FillRedis) -> None:
        self._world.fill_redis(full=event.full)

    def _worker(self, number: int) -> Job | None:
        running = [job for job in self._world.workers.running() if not job.abandoned]
        return running[number % len(running)] if running else None
