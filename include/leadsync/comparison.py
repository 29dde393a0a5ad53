"""Compares a page of leads with what the CRM holds. What is merely on its way is no finding.

A lead that differs at first sight is looked at again before anything is said: the record is read anew, and then the
lead. Had the lead the same state before and after, below the watermark, then that state was delivered before, and what
the record held in between was wrong. A lead that changed meanwhile is the next run's business.

No CRM is called inside a database transaction: all connections are in autocommit, and pages are read whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from leadsync.clients import Clients
from leadsync.config import Destination, Pipeline
from leadsync.copytext import parse_line
from leadsync.crm.base import CRMAdapter
from leadsync.crm.http import RequestFailed
from leadsync.errors import Unavailable
from leadsync.mapping import DELETED, Mapped, Mapper, lead_key, split_key
from leadsync.models import Digest, Finding, Kind, Record
from leadsync.source import LeadStore, Window
from leadsync.state import dead_letters, ledger, reconciliation
from leadsync.state.ledger import Entry
from leadsync.state.watermark import Watermark
from leadsync.transforms import MappingFailure

log = structlog.get_logger(__name__)

# Seconds between the tries of a page that the CRM does not answer in full; afterwards the task's own retry takes over.
PAUSES = (1.0, 4.0)


@dataclass(slots=True)
class Page:
    """What became of the leads of one page: `counts` sum up to those that were read.

    `distrusted` are leads (key → sequence) that are no finding, but of which the ledger shows another state as
    delivered than the CRM has. Nothing is amiss until the lead takes on that state again: it would look unchanged.
    """

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    distrusted: dict[Digest, int] = field(default_factory=dict)

    def found(self, finding: Finding) -> None:
        self.counts[finding.kind.value] += 1
        self.findings.append(finding)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A lead that the CRM should know: its COPY line, and what the destination makes of it."""

    line: str
    key: list[str]
    mapped: Mapped


class Comparison:
    """Compares one destination."""

    def __init__(
        self,
        clients: Clients,
        pipeline: Pipeline,
        target: Destination,
        mark: Watermark,
        store: LeadStore,
        adapter: CRMAdapter,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._state = clients.state
        self._source = pipeline.source
        self._target = target
        self._mark = mark
        self._store = store
        self._adapter = adapter
        self._sleep = sleep
        self._mapper = Mapper(pipeline.source, target)
        self._places = [pipeline.source.columns.index(name) for name in pipeline.source.key]

    def key(self, line: str) -> list[str]:
        """The values of the key columns, none of which is NULL."""
        row = parse_line(line)
        return [row[place] or "" for place in self._places]

    def leads(self, lines: Sequence[str]) -> Page:
        """Compares leads of the lead store that lie below the destination's watermark."""
        page = Page(Counter(read=len(lines)))
        candidates = self._candidates(lines, page)
        entries = ledger.look(self._state, self._mark.destination_id, [each.mapped.key for each in candidates])
        due = self._due(candidates, entries, page)
        records = self._fetch([(each.mapped.key, each.mapped.external_id) for each in due], entries)
        suspects = [each for each in due if self._judge(each.mapped, records, None)]
        page.counts["in_step"] += len(due) - len(suspects)
        found = {each.mapped.key for each in suspects}
        self._distrust(page, {e.mapped.key: e.mapped.digest for e in due if e.mapped.key not in found}, entries)
        if suspects:
            self._look_again(suspects, entries, page)
        return page

    def vanished(self, rows: Sequence[tuple[Digest, str]]) -> Page:
        """Looks for leads (key, external id) of the ledger that are gone from the lead store but not from the CRM."""
        page = Page()
        gone = self._gone(rows)
        page.counts["vanished"] += len(gone)
        entries = ledger.look(self._state, self._mark.destination_id, [key for key, _ in gone])
        for _ in range(2):  # at second sight the record is read before the lead store, as above
            records = self._fetch(gone, entries)
            alive = [row for row in gone if self._is_there(records[row[1]])]
            gone = self._gone(alive)
        for key, external_id in gone:
            ids = [record.crm_id for record in records[external_id]]
            page.found(Finding(Kind.HARD_DELETED, external_id, key, (), ids))
        return page

    # Which leads are to be in the CRM ----------------------------------------------------------------------------

    def _candidates(self, lines: Iterable[str], page: Page) -> list[Candidate]:
        candidates = []
        aside: dict[Digest, Digest | None] = {}
        for line in lines:
            row = parse_line(line)
            routed = self._mapper.routed(row)
            try:
                mapped = self._mapper.map(row) if routed else None
            except MappingFailure:
                mapped = None
            if mapped:
                candidates.append(Candidate(line, self.key(line), mapped))
                continue
            page.counts["unmappable" if routed else "not_routed"] += 1
            aside[lead_key(self._mapper.external_id(row))] = None
        self._distrust(page, aside, ledger.look(self._state, self._mark.destination_id, list(aside)))
        return candidates

    def _distrust(self, page: Page, states: Mapping[Digest, Digest | None], entries: Mapping[Digest, Entry]) -> None:
        """Leads with the hash of their state, None when it is not for this CRM: whose entry shows another one?"""
        for key, digest in states.items():
            entry = entries.get(key)
            if entry is not None and entry.digest not in (None, digest):
                page.distrusted[key] = entry.sequence

    def _due(self, candidates: Sequence[Candidate], known: Mapping[Digest, Entry], page: Page) -> list[Candidate]:
        """Without dead letters, and without leads from before the destination's start that nobody delivered to it."""
        keys = [each.mapped.key for each in candidates]
        dead = dead_letters.open_among(self._state, self._mark.destination_id, keys)
        page.counts["dead_letters"] += len(dead)
        due = [each for each in candidates if each.mapped.key not in dead]
        start = self._mark.starts_at
        if start is None:
            return due
        unknown = [each.key for each in due if each.mapped.key not in known]
        older = set(self._lines(unknown, Window(None, start)))
        page.counts["before_start"] += len(older)
        return [each for each in due if each.line not in older]

    # Judging -------------------------------------------------------------------------------------------------------

    def _judge(self, mapped: Mapped, found: dict[str, list[Record]], entry: Entry | None) -> Finding | None:
        records = found[mapped.external_id]
        ids = [record.crm_id for record in records]

        def finding(kind: Kind, fields: Sequence[str] = ()) -> Finding:
            return Finding(kind, mapped.external_id, mapped.key, fields, ids)

        if mapped.delete:
            return finding(Kind.WRONGLY_ALIVE) if records else None
        if not records:
            delivered = entry is not None and entry.digest not in (None, DELETED)
            return finding(Kind.WRONGLY_DELETED if delivered else Kind.MISSING)
        if len(records) > 1:
            return finding(Kind.DOUBLED)
        fields = [
            name
            for name, sent in mapped.fields.items()
            if name not in self._target.crm_owned and not self._adapter.same(name, sent, records[0].fields.get(name))
        ]
        if not fields:
            return None
        by_hand = entry is not None and entry.digest == mapped.digest
        return finding(Kind.CHANGED_BY_HAND if by_hand else Kind.STALE, fields)

    def _look_again(self, suspects: Sequence[Candidate], before: Mapping[Digest, Entry], page: Page) -> None:
        records = self._fetch([(each.mapped.key, each.mapped.external_id) for each in suspects], before)
        unchanged = set(self._lines([each.key for each in suspects]))
        entries = ledger.look(self._state, self._mark.destination_id, [each.mapped.key for each in suspects])
        delivering: bool | None = None
        for each in suspects:
            entry = entries.get(each.mapped.key)
            finding = self._judge(each.mapped, records, entry)
            if finding is not None and entry is not None and entry.digest is None and delivering is None:
                delivering = reconciliation.delivering(self._state, self._mark.destination_id)
            in_doubt = entry is not None and entry.digest is None and delivering
            if each.line not in unchanged or (finding and in_doubt):
                page.counts["pending"] += 1
            elif finding is None:
                page.counts["in_step"] += 1
            else:
                page.found(finding)

    def _is_there(self, records: Sequence[Record]) -> bool:
        """Whether the CRM shows a lead as alive; with `mode: field` a mark is all that a delete leaves."""
        delete = self._target.on_delete
        if delete.field is None:
            return bool(records)
        return any(not self._adapter.same(delete.field, delete.value, each.fields[delete.field]) for each in records)

    # Reading -------------------------------------------------------------------------------------------------------

    def _lines(self, keys: Sequence[Sequence[str]], window: Window | None = None) -> list[str]:
        return [bytes(row).decode()[:-1] for row in self._store.read(keys, window)]

    def _gone(self, rows: Sequence[tuple[Digest, str]]) -> list[tuple[Digest, str]]:
        """Those that are not in the lead store; an external id of another form is of an earlier key, and left alone."""
        keys = {external_id: split_key(external_id) for _, external_id in rows}
        fit = {external_id: key for external_id, key in keys.items() if len(key) == len(self._source.key)}
        present = self._store.present(list(fit.values()))
        return [row for row in rows if row[1] in fit and fit[row[1]] not in present]

    def _fetch(self, leads: Sequence[tuple[Digest, str]], known: Mapping[Digest, Entry]) -> dict[str, list[Record]]:
        """The records of leads (key, external id). Raises Unavailable when the CRM leaves one in the open for good."""
        if not leads:
            return {}
        entries = {external_id: known.get(key) for key, external_id in leads}
        crm_ids = {external_id: entry.crm_id if entry else None for external_id, entry in entries.items()}
        for pause in (*PAUSES, None):
            try:
                found = self._adapter.fetch_known(crm_ids)
                if found.keys() != crm_ids.keys():
                    raise self._adapter.left_out()
                return found
            except RequestFailed as error:
                log.warning("not compared", destination=self._target.name, reason=str(error), code=error.code)
                failed = error
            if pause is None or (failed.retry_after or 0) > pause:
                break
            self._sleep(pause)
        raise Unavailable(
            f"{self._target.name} can't be compared: {failed}; nothing is said of leads that it did not answer for, "
            "and the place is kept: the next try, or clearing this task, goes on there",
            failed.retry_after,
        )
