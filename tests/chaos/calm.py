"""After the storm: faults off, servers up, writers done, then runs until nothing is left to do."""

from __future__ import annotations

import time

import psycopg

from leadsync.models import Kind
from tests.chaos.scheduler import DagRun, Scheduler
from tests.chaos.world import World

MOST_RUNS = 30
MOST_RECONCILIATIONS = 6
# A parked destination whose quota is spent is tried again after hours, unless a person names it.
PATIENT_RUNS = 5


class NotCalm(Exception):
    """Work was left that never ended."""


def calm_down(world: World, scheduler: Scheduler) -> None:
    """Returns after two runs in a row that found nothing. Raises NotCalm."""
    world.heal()
    scheduler.spare()
    if not scheduler.wait(world.patience):
        raise NotCalm(f"runs did not end in {world.patience:.0f} s: {_unfinished(world)}")
    _wait_for_workers(world)
    settle(world, scheduler)


def settle(world: World, scheduler: Scheduler) -> None:
    """Runs until two in a row find nothing, with every service well. Raises NotCalm."""
    quiet = 0
    for number in range(MOST_RUNS):
        parameters = {"destinations": list(world.crms)} if number % PATIENT_RUNS == PATIENT_RUNS - 1 else {}
        run = scheduler.run(parameters)
        assert run is not None
        if not scheduler.wait(world.patience):
            raise NotCalm(f"a run did not end in {world.patience:.0f} s: {_unfinished(world)}")
        quiet = quiet + 1 if _found_nothing(run) else 0
        if quiet == 2:
            break
    else:
        last = scheduler.runs[-1]
        raise NotCalm(f"{MOST_RUNS} runs did not come to rest; the last: {last.loads} {last.counts}")
    for proxy in world.proxies.values():
        proxy.drain()


def reconcile(world: World, scheduler: Scheduler) -> None:
    """Reconciles every CRM, with repair, until there is nothing to repair and no letter of a lead that is gone."""
    for name in world.crms:
        for _ in range(MOST_RECONCILIATIONS):
            scheduler.replay(name)
            chore = scheduler.reconcile(name)
            if not scheduler.wait(world.patience):
                raise NotCalm(f"a reconciliation did not end in {world.patience:.0f} s: {_unfinished(world)}")
            if chore.result is not None and not any(chore.result.get(kind) for kind in (*Kind, "pending")):
                break
        else:
            raise NotCalm(f"{MOST_RECONCILIATIONS} reconciliations of {name} did not come to rest: {chore.result}")


def _found_nothing(run: DagRun) -> bool:
    return run.committed and all(
        run.loads[name] == "success" and run.counts[name]["read"] == 0 for name in (run.opened or {})["destinations"]
    )


def _wait_for_workers(world: World) -> None:
    """Those that the scheduler gave up still run."""
    until = time.monotonic() + world.patience
    for job in world.workers.running():
        if not job.ended.wait(max(0.0, until - time.monotonic())):
            raise NotCalm(f"a worker did not end in {world.patience:.0f} s: {_unfinished(world)}")


def _unfinished(world: World) -> str:
    with psycopg.connect(world.state) as connection:
        locks = connection.execute(
            "SELECT l.classid, l.objid, l.granted, a.state, left(a.query, 80) FROM pg_locks l"
            " JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory'"
        ).fetchall()
    for job in world.workers.running():
        world.workers.signal(job, "trace")
    return f"{[(job.task, job.abandoned) for job in world.workers.running()]}, locks {locks}"
