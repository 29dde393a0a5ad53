"""Where Leadsync's own stores hold traces of some leads: what an erasure looks for, and then again to be sure.

Everything is streamed, part by part and chunk by chunk: what is held at once does not grow with the stores.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
import structlog

from leadsync import changes
from leadsync.clients import Clients
from leadsync.config import Pipeline, Source
from leadsync.copytext import parse_line
from leadsync.errors import SnapshotError
from leadsync.mapping import lead_key, split_key
from leadsync.models import Digest
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore
from leadsync.state import operations

log = structlog.get_logger(__name__)

# Lines of the recovery log that are read at once.
LINES_AT_ONCE = 1000
# So many parts or snapshots between two lines of the log.
PROGRESS = 500

# What COPY may write otherwise than it is.
ESCAPED = re.compile(r"[\\\x00-\x1f]")

# Rows that know a lead by its key.
KEYED: LiteralString = """
SELECT 'dead_letter', lead_key, count(*) FROM leadsync.dead_letter
 WHERE destination_id = ANY (%(destinations)s) AND lead_key = ANY (%(leads)s) GROUP BY lead_key
 UNION ALL
SELECT 'retry_queue', lead_key, count(*) FROM leadsync.retry_queue
 WHERE destination_id = ANY (%(destinations)s) AND lead_key = ANY (%(leads)s) GROUP BY lead_key
 UNION ALL
SELECT 'delivery', lead_key, count(*) FROM leadsync.delivery
 WHERE destination_id = ANY (%(destinations)s) AND lead_key = ANY (%(leads)s)
   AND (external_id IS NOT NULL OR crm_id IS NOT NULL) GROUP BY lead_key
 UNION ALL
SELECT 'reconciliation_finding', f.lead_key, count(*)
  FROM leadsync.reconciliation_finding f JOIN leadsync.reconciliation r ON r.id = f.reconciliation_id
 WHERE r.destination_id = ANY (%(destinations)s) AND f.lead_key = ANY (%(leads)s) GROUP BY f.lead_key
"""

# The sealed records of all loads, one part after the other.
PARTS: LiteralString = """
SELECT d.operation_id, d.part, d.records
  FROM leadsync.operation_data d JOIN leadsync.operation_log l ON l.id = d.operation_id
 WHERE l.destination_id = ANY (%(destinations)s) AND (d.operation_id, d.part) > (%(load)s, %(part)s)
 ORDER BY d.operation_id, d.part LIMIT 1
"""

LINES: LiteralString = """
SELECT id, message, details FROM leadsync.recovery_log
 WHERE pipeline = %(pipeline)s AND id > %(id)s ORDER BY id LIMIT %(batch)s
"""


class Sought:
    """The leads that are looked for; `keys` are their lead keys by external id."""

    def __init__(self, external_ids: Sequence[str]) -> None:
        self.keys = {external_id: lead_key(external_id) for external_id in external_ids}
        self._values: dict[tuple[str | None, ...], Digest] = {split_key(name): key for name, key in self.keys.items()}
        # A line that lacks one of them can't be the lead's: most lines are not taken apart.
        self._needles = [[max(ESCAPED.split(v), key=len) for v in split_key(name)] for name in self.keys]
        names = "|".join(map(re.escape, sorted(self.keys, key=len, reverse=True)))
        self._named = re.compile(rf"(?<![\w:\\])(?:{names})(?![\w:\\])")

    def among(self, lines: Sequence[str], columns: Sequence[str], key: Sequence[str]) -> dict[int, Digest]:
        """Which of these COPY lines are a lead's: place → lead key."""
        places = [columns.index(name) for name in key]
        found = {}
        for index, line in enumerate(lines):
            if any(all(needle in line for needle in needles) for needles in self._needles):
                row = parse_line(line)
                lead = self._values.get(tuple(row[place] for place in places))
                if lead is not None:
                    found[index] = lead
        return found

    def hide(self, value: Any, seen: set[Digest]) -> Any:
        """A JSON value in which lead keys stand for external ids; `seen` gets those that were named."""
        if isinstance(value, str):

            def key_of(match: re.Match[str]) -> str:
                seen.add(self.keys[match[0]])
                return str(self.keys[match[0]])

            return self._named.sub(key_of, value)
        if isinstance(value, list):
            return [self.hide(item, seen) for item in value]
        if isinstance(value, dict):
            return {self.hide(name, seen): self.hide(item, seen) for name, item in value.items()}
        return value


@dataclass(slots=True)
class Traces:
    """What was found: rows, records, lines or chunks by lead and store, and where; all ids, no leads."""

    counts: dict[Digest, Counter[str]]
    parts: list[tuple[int, int]] = field(default_factory=list)  # load and part
    lines: list[int] = field(default_factory=list)  # of the recovery log
    snapshots: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(counts.total() for counts in self.counts.values())


def find(clients: Clients, pipeline: Pipeline, destinations: Sequence[int], sought: Sought) -> Traces:
    """Looks in every store, for all `destinations` that the pipeline has ever had.

    Raises SnapshotError for what is sealed with a key that is not known any more: nobody can tell what it holds.
    """
    state, traces = clients.state, Traces({key: Counter() for key in sought.keys.values()})
    values = {"destinations": list(destinations), "leads": list(sought.keys.values())}
    for store, lead, rows in state.execute(KEYED, values):
        traces.counts[Digest(lead.bytes)][store] += rows
    for load, part, records in _parts(state, clients.sealer, destinations):
        head, lines = changes.unpack(records)
        found = sought.among([line[1:] for line in lines], head["columns"], head["key"])
        for lead in found.values():
            traces.counts[lead]["operation_data"] += 1
        if found:
            traces.parts.append((load, part))
    for line, message, details in _lines(state, pipeline.name):
        seen: set[Digest] = set()
        sought.hide([message, details], seen)
        for lead in seen:
            traces.counts[lead]["recovery_log"] += 1
        if seen:
            traces.lines.append(line)
    _find_in_snapshots(clients.snapshots, pipeline.source, sought, traces)
    return traces


def _parts(
    state: psycopg.Connection[Any], sealer: Sealer, destinations: Sequence[int]
) -> Iterator[tuple[int, int, bytes]]:
    load, part = 0, -1
    for number in itertools.count(1):
        row = state.execute(PARTS, {"destinations": list(destinations), "load": load, "part": part}).fetchone()
        if row is None:
            return
        load, part, records = row
        yield load, part, sealer.open(records, operations.data_context(load))
        if number % PROGRESS == 0:
            log.info("searched", store="operation_data", parts=number)


def _lines(state: psycopg.Connection[Any], pipeline: str) -> Iterator[tuple[int, str, Any]]:
    last = 0
    while rows := state.execute(LINES, {"pipeline": pipeline, "id": last, "batch": LINES_AT_ONCE}).fetchall():
        yield from rows
        last = rows[-1][0]


def _find_in_snapshots(snapshots: SnapshotStore, source: Source, sought: Sought, traces: Traces) -> None:
    """Those that are complete: others exist for nobody."""
    complete = sorted(snapshot_id for snapshot_id, is_complete in snapshots.stored().items() if is_complete)
    for number, snapshot_id in enumerate(complete, 1):
        try:
            columns = snapshots.manifest(snapshot_id).columns
        except SnapshotError:
            if snapshots.stored().get(snapshot_id):
                raise
            continue  # expired since
        if not set(source.key) <= set(columns):
            raise SnapshotError(f"snapshot {snapshot_id} lacks the columns that the pipeline file now calls `key`")
        held = Counter[Digest]()
        for chunk in snapshots.remains(snapshot_id):
            held.update(sought.among(chunk.decode().split("\n")[:-1], columns, source.key).values())
        for lead in held:
            traces.counts[lead]["snapshot"] += 1
        if held:
            traces.snapshots.append(snapshot_id)
        if number % PROGRESS == 0:
            log.info("searched", store="snapshot", snapshots=number)
