"""Compares lead store, ledger and CRM of one destination, page by page: `comparison` says what differs, `repair` mends.

First over the leads of the lead store in the order of their key, then over the ledger for leads that are gone from the
lead store. Place, counts and findings of a page are written in one transaction, so whatever stops it, the next try of
the same run goes on behind the last page that is counted. A page is all that is held in memory.

Its requests are the last in the budget of the CRM's account: they wait for those of the loads, and of a limit per day
they leave a fifth. What they cost is decided by what is compared: `config.Reconcile`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from leadsync import repair
from leadsync.clients import Clients
from leadsync.comparison import Comparison, Page
from leadsync.config import Pipeline
from leadsync.errors import ConfigError, LeadsyncError
from leadsync.mapping import DELETED
from leadsync.models import Digest, Kind
from leadsync.reconcile_request import Request
from leadsync.source import RING, LeadStore, Sample, Window
from leadsync.state import fence, ledger, reconciliation, recovery_log, schema, watermark
from leadsync.state.reconciliation import EXAMPLES, Reconciliation, Scope
from leadsync.state.watermark import Watermark
from leadsync.windows import BEGINNING

log = structlog.get_logger(__name__)

AGAIN = "clear this task: it reads the leads anew"
# Leads that are read, compared and counted together.
PAGE = 500
MERGE_BY_HAND = "a load can't mend doubled records: merge them in the CRM, then reconcile again"


def run(clients: Clients, pipeline: Pipeline, destination: str, run_id: str, request: Request) -> dict[str, int]:
    """Compares one destination and returns the counts; empty when it has never run.

    `read` = `in_step` + `pending` + `dead_letters` + `not_routed` + `before_start` + `unmappable` + the findings by
    kind, without `hard_deleted`: those are among `vanished`. Raises ConfigError and what keeps it from comparing.
    """
    state = clients.state
    schema.check(state)
    if all(target.name != destination for target in pipeline.destinations):
        raise ConfigError(f"pipeline {pipeline.name} has no destination {destination!r}")
    mark = watermark.read(state, pipeline.name, [destination]).get(destination)
    if mark is None:
        return {}
    with fence.reconcile_lock(state, mark.destination_id):
        with clients.open_store() as store:
            store.check()
            row = reconciliation.resume(state, mark.destination_id, run_id)
            if row is None:
                scope = _scope(clients, store, pipeline, mark, request)
                row = reconciliation.begin(state, mark.destination_id, run_id, scope)
        try:
            _Run(clients, pipeline, mark, run_id, row).go()
        except LeadsyncError as error:
            if not state.broken:
                with state.transaction():
                    reconciliation.end(state, row, error)
                    recovery_log.append(state, pipeline.name, error.kind, str(error), destination=destination)
            raise
        with state.transaction():
            reconciliation.end(state, row)
            _remember(clients, pipeline, destination, row.counts)
    log.info("reconciled", destination=destination, **row.counts)
    return dict(row.counts)


def describe(counts: Mapping[str, int]) -> str:
    """The counts in some words: `3 missing, 1 stale; 4 repaired`, or `in step`."""
    found = [f"{counts[kind]} {kind.replace('_', ' ')}" for kind in Kind if counts.get(kind)]
    words = ", ".join(found) or ("in step" if counts.get("read") else "nothing to compare")
    return f"{words}; {counts['repaired']} repaired" if counts.get("repaired") else words


def _scope(clients: Clients, store: LeadStore, pipeline: Pipeline, mark: Watermark, request: Request) -> Scope:
    """What is compared; it stays the same however often the run is tried."""
    # Above the watermark everything is still on its way, and so it is as far below as windows reach back.
    until = BEGINNING if mark.at is None else mark.at - timedelta(seconds=pipeline.source.lookback)
    if request.nightly:
        # On from where the last one ended, so that none is left out however the nights go.
        start = reconciliation.last_sample(clients.state, mark.destination_id) % RING
        recent = datetime.now(UTC) - timedelta(days=pipeline.reconcile.recent_days)
        return Scope(None, until, recent, start, round(pipeline.reconcile.sample * RING), True, request.repair)
    # A lead that is gone has no time of change: a range says nothing of it.
    vanished = request.since is None and request.until is None
    if request.until is not None:
        until = min(until, request.until)
    share = request.sample if request.sample is not None else 1.0
    if share > 1:
        share = min(1.0, share / max(1, store.count(Window(request.since, until), at_most=RING)))
    return Scope(request.since, until, None, 0, round(share * RING), vanished, request.repair)


def _remember(clients: Clients, pipeline: Pipeline, destination: str, counts: Counter[str]) -> None:
    """One line of the recovery log for all that a person may have to look at."""
    found: dict[str, Any] = {kind.value: counts[kind] for kind in Kind if counts[kind]}
    if found:
        message = f"{destination} differs from the lead store: {describe(counts)}"
        if counts[Kind.DOUBLED]:
            message += f"; {MERGE_BY_HAND}"
        found["repaired"] = counts["repaired"]
        recovery_log.append(clients.state, pipeline.name, "reconcile", message, destination=destination, **found)


class _Run:
    """One try of one reconciliation."""

    def __init__(self, clients: Clients, pipeline: Pipeline, mark: Watermark, run_id: str, row: Reconciliation) -> None:
        self._clients = clients
        self._state = clients.state
        self._pipeline = pipeline
        self._mark = mark
        self._run_id = run_id
        self._row = row

    def go(self) -> None:
        row, scope = self._row, self._row.scope
        self._mend()  # what an earlier try has found and not mended
        with self._clients.open_store() as store, self._clients.open_adapter(self._mark.destination) as adapter:
            adapter.check()  # a field that the CRM does not know would look as if every lead differed
            target = adapter.destination
            comparison = Comparison(self._clients, self._pipeline, target, self._mark, store, adapter)
            if row.phase == "leads":
                window = Window(scope.since, scope.until)
                sample = Sample(scope.sample_start, scope.sample_width, scope.recent)
                while lines := store.scan(row.cursor, PAGE, window, sample):
                    self._count(comparison.leads(lines), comparison.key(lines[-1]))
                row.phase, row.cursor = "ledger", None
            # Whatever the sample: the CRM is asked only for leads that are gone.
            while scope.vanished and (rows := self._ledger_page()):
                self._count(comparison.vanished(rows), [str(rows[-1][0])])
        self._mend()

    def _ledger_page(self) -> list[tuple[Digest, str]]:
        after = Digest.parse(self._row.cursor[0]) if self._row.cursor else Digest(16)
        return ledger.scan(self._state, self._mark.destination_id, after, PAGE, DELETED)

    def _count(self, page: Page, cursor: list[str]) -> None:
        """Writes a page: what was found, what it adds up to, and where to go on."""
        row = self._row
        kept, seen = [], Counter({kind: row.counts[kind] for kind in Kind})
        for finding in page.findings:
            seen[finding.kind] += 1
            if seen[finding.kind] <= EXAMPLES or (row.scope.repair and finding.kind is not Kind.DOUBLED):
                kept.append(finding)
        row.counts.update(page.counts)
        row.cursor = cursor
        with self._state.transaction():
            reconciliation.add(self._state, row, kept)
            reconciliation.save(self._state, row)
            if row.scope.repair:
                ledger.distrust(self._state, self._mark.destination_id, page.distrusted)
        self._mend(at_least=repair.BATCH)

    def _mend(self, at_least: int = 1) -> None:
        if self._row.scope.repair:
            name = self._mark.destination
            repair.mend(self._clients, self._pipeline, name, self._run_id, self._row, at_least=at_least)
