"""Decides what of a group is sent, by the ledger, and claims it before a request leaves.

What a newer snapshot has claimed is left to it, as long as its state is known to be delivered. In doubt the lead is
read anew from the lead store, under a new sequence, and its present state goes out. So it is with all that a resend
finds overtaken: it was called for since the CRM may have lost what the ledger shows as delivered, and what overtook it
may have been taken for unchanged by that very ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from leadsync.config import Source
from leadsync.copytext import parse_line
from leadsync.groups import Aside, Group, Item, Reader
from leadsync.letters import Letters
from leadsync.mapping import lead_key
from leadsync.models import Digest
from leadsync.state import ledger, redeliveries
from leadsync.state.fence import Fence
from leadsync.state.operations import Operation

# Reads leads (by their key columns' values) anew from the lead store, under the pipeline's lock and so under a new
# sequence: (sequence, COPY lines).
Reread = Callable[[Sequence[Sequence[str]]], tuple[int, list[str]]]


class Claiming:
    """Claims for one load. Without `reread` (a recovery) the lead store is left alone; `ids`: see `ledger.claim`."""

    def __init__(
        self,
        state: psycopg.Connection[Any],
        source: Source,
        operation: Operation,
        destination_id: int,
        fence: Fence,
        reader: Reader,
        letters: Letters,
        reread: Reread | None,
        *,
        ids: bool,
    ) -> None:
        self._ids = ids
        self._state = state
        self._source = source
        self._operation = operation
        self._id = destination_id
        self._fence = fence
        self._reader = reader
        self._letters = letters
        self._reread = reread
        self._taken_up = redeliveries.taken_up(state, operation.sync_id) if operation.kind == "recover" else set()

    def claim(self, group: Group) -> None:
        """Leaves in `items` what is to be sent; everything else of the group has ended."""
        sequence, resend = self._operation.sequence or 0, self._operation.resend
        items, aside = group.items, group.aside
        leads: list[Item | Aside] = [*items, *aside]
        group.items, group.aside = [], []
        claims = self._claim(group, sequence, items, aside)
        # Without a resend it does not matter to a lead that is not routed what a newer snapshot has claimed.
        concerned = [each for each in aside if resend or each.failure is not None]
        keys = [*(each.key for each in concerned), *(claims.overtaken if resend else ())]
        newer = ledger.newer(self._state, self._id, sequence, keys)
        delivered = claims.overtaken | {key for key, (_, settled) in newer.items() if settled}
        doubtful = claims.in_doubt | {key for key, (_, settled) in newer.items() if not settled}
        self._end(group, sequence, [each for each in aside if each.key not in delivered | doubtful])
        if self._reread is None:
            # Whoever claimed the newer state answers for it.
            group.overtaken += delivered | doubtful
            if resend:
                self._pass_over(group, newer, leads)
            return
        anew = delivered | doubtful if resend else doubtful
        group.overtaken += delivered - anew
        if anew:
            stale = [each for each in leads if each.key in anew]
            for each in self._refresh(group, self._reread, stale):
                self._gone(group, each, known=each.key in delivered)

    def _claim(self, group: Group, sequence: int, items: Sequence[Item], aside: Sequence[Aside]) -> ledger.Claims:
        leads = [(item.mapped.key, item.mapped.digest, item.mapped.external_id) for item in items]
        resend = self._operation.resend
        with self._state.transaction():
            self._fence.busy()
            claims = ledger.claim(self._state, self._id, sequence, leads, resend=resend, ids=self._ids)
            if resend:
                ledger.distrust(self._state, self._id, dict.fromkeys((each.key for each in aside), sequence))
        group.unchanged += claims.unchanged
        kept = claims.kept
        to_send = [item for item in items if item.mapped.key not in kept] if kept else items
        for item in to_send if claims.crm_ids else ():
            item.crm_id = claims.crm_ids.get(item.key)
        group.items += to_send
        return claims

    def _end(self, group: Group, sequence: int, aside: Sequence[Aside]) -> None:
        """Leads that have nothing to send, and of which nothing newer is known."""
        for each in aside:
            if each.failure is not None:
                group.letters.append(self._letters.unmapped(each.external_id, each.line, each.failure, sequence))
            else:
                group.not_routed += 1
                group.nothing_due.setdefault(sequence, []).append(each.key)

    def _pass_over(self, group: Group, newer: dict[Digest, tuple[int, bool]], leads: Sequence[Item | Aside]) -> None:
        """What a recovery leaves out is named when the newer state is in none of its snapshots: the CRM may have lost
        that one."""
        names = {each.key: each.external_id for each in leads}
        lost = [key for key, (sequence, settled) in newer.items() if settled and sequence not in self._taken_up]
        group.passed_over = [names[key] for key in lost]

    def _refresh(self, group: Group, reread: Reread, stale: Sequence[Item | Aside]) -> list[Item | Aside]:
        """Reads leads anew and claims their present state; returns those that are gone."""
        places = [self._source.columns.index(name) for name in self._source.key]
        rows = [parse_line(each.line) for each in stale]
        sequence, lines = reread([[row[place] or "" for place in places] for row in rows])
        fresh = Group(group.next_chunk)
        self._reader.read(fresh, lines, 0, sequence, {each.key: each.attempts for each in stale})
        chunks = {each.key: each.chunk for each in stale}
        for item in fresh.items:
            item.chunk = chunks[item.key]  # where its next try looks for it
        self._claim(group, sequence, fresh.items, fresh.aside)
        self._end(group, sequence, fresh.aside)
        group.not_routed += fresh.not_routed
        present = {lead_key(self._reader.external_id(parse_line(line), line)) for line in lines}
        return [each for each in stale if each.key not in present]

    def _gone(self, group: Group, lead: Item | Aside, *, known: bool) -> None:
        """Ends a lead that is in the lead store no more; `known`: its newest state is known to be delivered."""
        if known or isinstance(lead, Aside):
            group.overtaken.append(lead.key)
        else:
            sequence, why = self._operation.sequence or 0, ("failed", 1, "gone_from_lead_store", None, None)
            group.letters.append(self._letters.undelivered(lead.mapped, sequence, *why))
