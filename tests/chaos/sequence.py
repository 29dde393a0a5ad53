"""One sequence on a world: storm, calm, verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos import calm, hive
from tests.chaos.checker import Checker, Finding, Seen
from tests.chaos.events import Event
from tests.chaos.player import Player
from tests.chaos.scheduler import Scheduler
from tests.chaos.stack import StackScheduler, StackWorld
from tests.chaos.world import World


@dataclass
class Verdict:
    """What one sequence showed. `failures` are to be empty; `figures` are counted for the table."""

    failures: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    figures: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)


def play(world: World | StackWorld, seed: int, events: Sequence[Event], *, broken: str | None = None) -> Verdict:
    """Plays events on an empty world and judges what became of them; `broken` names a rule of the product to break."""
    world.reset(seed)
    verdict = Verdict()
    scheduler = StackScheduler(world) if isinstance(world, StackWorld) else Scheduler(world, broken)
    player = Player(world, scheduler)
    try:
        player.play(events)
        player.thaw()
        calm.calm_down(world, scheduler)
        if player.damaged:
            verdict.figures["reconciled in the end"] += 1
            calm.reconcile(world, scheduler)
        first = judge(world, player, verdict)
        if first.letters:
            # A lead with an open dead letter is in step again once it changes.
            verdict.figures["dead letters"] += len(first.letters)
            hive.touch(world.hive, [first.key(lead) for _, lead in first.letters if lead in first.present])
            calm.settle(world, scheduler)
            if player.damaged:
                calm.reconcile(world, scheduler)
            second = judge(world, player, verdict, final=True)
            verdict.failures += [f"letter: {lead} in {crm} is still open" for crm, lead in second.letters]
            verdict.kinds.update(["letter"] * len(second.letters))
    except calm.NotCalm as error:
        verdict.failures.append(f"not calm: {error}")
        verdict.kinds["not calm"] += 1
    finally:
        scheduler.closing = True
    if isinstance(scheduler, StackScheduler):
        scheduler.count()
    verdict.failures += scheduler.defects
    verdict.kinds.update(["defect"] * len(scheduler.defects))
    verdict.events, verdict.tasks = player.counts, scheduler.tasks
    verdict.figures["runs"] += len(scheduler.runs)
    verdict.figures["replays, recoveries and reconciliations"] += len(scheduler.chores)
    return verdict


def judge(world: World | StackWorld, player: Player, verdict: Verdict, *, final: bool = False) -> Checker:
    """Compares every CRM with the lead store; `final`: nothing is explained any more."""
    checker = Checker(world.hive, world.state)
    for name, crm in world.crms.items():
        stats = crm.stats()
        seen = Seen(crm.records(), crm.journal(), stats["records"])
        findings = checker.check(name, seen, player.rejected[name])
        wrong: list[Finding] = [finding for finding in findings if final or not finding.explained]
        verdict.failures += map(str, wrong)
        verdict.kinds.update(finding.kind for finding in wrong)
        if not final:
            verdict.figures.update({"requests": stats["requests"], "changes in CRMs": len(seen.journal)})
            verdict.figures["explained by a dead letter"] += len(findings) - len(wrong)
    if not final:
        verdict.figures["in doubt"] += checker.in_doubt
        verdict.figures["leads"] += len(checker.present)
        verdict.figures["committed changes"] += sum(map(len, checker.versions.values()))
    return checker
