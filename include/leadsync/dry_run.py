"""The dry run: what a load would create, update, delete, skip and reject. Sends nothing, keeps nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import psycopg
import structlog

from leadsync.config import Pipeline
from leadsync.copytext import parse_line
from leadsync.groups import GROUP_ROWS
from leadsync.mapping import Mapped, Mapper
from leadsync.source import LeadStore, Window
from leadsync.state import ledger, watermark
from leadsync.transforms import MappingFailure

log = structlog.get_logger(__name__)

OUTCOMES = ("created", "updated", "deleted", "unchanged", "not_routed", "rejected")


def dry_run(
    state: psycopg.Connection[Any],
    store: LeadStore,
    pipeline: Pipeline,
    destination: str,
    window: Window,
    *,
    resend: bool,
) -> dict[str, Any]:
    """Reads the window from the lead store and compares it with the ledger.

    Returns `read` and a count per outcome; `rejected_fields` counts, per CRM field, the leads that the mapping
    refuses.
    """
    target = next(target for target in pipeline.destinations if target.name == destination)
    mapper = Mapper(pipeline.source, target)
    mark = watermark.read(state, pipeline.name, [destination]).get(destination)
    counts, fields = Counter({name: 0 for name in ("read", *OUTCOMES)}), Counter[str]()
    for rows in _groups(store.stream(window)):
        counts["read"] += len(rows)
        mapped: list[Mapped] = []
        for line in rows:
            row = parse_line(line)
            if not mapper.routed(row):
                counts["not_routed"] += 1
                continue
            try:
                mapped.append(mapper.map(row))
            except MappingFailure as failure:
                counts["rejected"] += 1
                fields[failure.field] += 1
        leads = [(lead.key, lead.digest, lead.external_id) for lead in mapped]
        with state.transaction():
            # A destination that has never run has no number yet, and nothing in the ledger: 0 is nobody's.
            number = mark.destination_id if mark else 0
            claims = ledger.claim(state, number, 2**62, leads, resend=resend, ids=True, dry_run=True)
        counts["unchanged"] += len(claims.unchanged)
        for lead in mapped:
            if lead.key not in claims.kept:
                known = claims.crm_ids.get(lead.key) is not None
                counts["deleted" if lead.delete else "updated" if known else "created"] += 1
        log.info("dry run", destination=destination, **counts)
    return {**counts, "rejected_fields": dict(fields)}


def _groups(rows: Iterable[bytes | bytearray | memoryview]) -> Iterator[list[str]]:
    lines = (bytes(row).decode()[:-1] for row in rows)
    while group := list(islice(lines, GROUP_ROWS)):
        yield group
