"""The leads that a load has in hand: read from the snapshot, routed and mapped, a group of chunks at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import compress

from leadsync.copytext import parse_columns, parse_line
from leadsync.mapping import Mapped, Mapper, Row, lead_key
from leadsync.models import WHOLE, Digest, Outcome, Share
from leadsync.snapshot import SnapshotStore
from leadsync.state.dead_letters import NAMELESS, DeadLetter
from leadsync.transforms import MappingFailure

# Rows that are claimed, and settled, in one transaction.
GROUP_ROWS = 10_000


@dataclass(slots=True)
class Item:
    """One lead on its way; `attempts` are its failures so far."""

    mapped: Mapped
    line: str
    chunk: int
    sequence: int
    attempts: int
    crm_id: str | None = None

    @property
    def key(self) -> Digest:
        return self.mapped.key

    @property
    def external_id(self) -> str:
        return self.mapped.external_id


@dataclass(frozen=True, slots=True)
class Aside:
    """One lead that has nothing to send in this state: it is not routed, or can't be mapped (`failure`)."""

    key: Digest
    external_id: str
    line: str
    chunk: int
    failure: MappingFailure | None = None
    attempts: int = 0


@dataclass(slots=True)
class Group:
    """Some chunks, or of one chunk the leads that wait to be tried again (`read` is 0 then)."""

    next_chunk: int
    read: int = 0
    not_routed: int = 0
    items: list[Item] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)
    unchanged: list[Digest] = field(default_factory=list)
    overtaken: list[Digest] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    nothing_due: dict[int, list[Digest]] = field(default_factory=dict)  # sequence → leads that are not routed under it
    batches: list[tuple[Sequence[Item], Future[list[Outcome]]]] = field(default_factory=list)


class Reader:
    """Reads the snapshot of a sync operation, or a shard's share of it, for one destination.

    `follows`: leads that are not routed are wanted one by one (as Aside), not only their number.
    """

    def __init__(
        self, snapshots: SnapshotStore, snapshot_id: str, mapper: Mapper, *, follows: bool, share: Share = WHOLE
    ) -> None:
        self._share = share
        self._snapshots = snapshots
        self._snapshot_id = snapshot_id
        self._mapper = mapper
        self._follows = follows

    def groups(self, next_chunk: int, sequence: int, waiting: Mapping[int, Mapping[Digest, int]]) -> Iterator[Group]:
        """First the leads that wait to be tried again (chunk → key → failures), then the chunks from `next_chunk`."""
        for chunk in sorted(chunk for chunk in waiting if chunk < next_chunk):
            group = Group(next_chunk)
            lines = _lines(self._snapshots.chunk(self._snapshot_id, chunk))
            self.read(group, lines, chunk, sequence, waiting[chunk], only=waiting[chunk])
            yield group
        group = Group(next_chunk)
        for chunk, text in self._snapshots.chunks(self._snapshot_id, next_chunk, self._share):
            lines = _lines(text)
            self.read(group, lines, chunk, sequence, waiting.get(chunk, {}))
            group.read += len(lines)
            group.next_chunk = chunk + 1
            if group.read >= GROUP_ROWS:
                yield group
                group = Group(chunk + 1)
        if group.read:
            yield group

    def read(
        self,
        group: Group,
        lines: Sequence[str],
        chunk: int,
        sequence: int,
        attempts: Mapping[Digest, int],
        *,
        only: Collection[Digest] | None = None,
    ) -> None:
        """Routes and maps COPY lines; `only` some leads' when it is given."""
        if only is not None:
            lines = [line for line in lines if lead_key(self.external_id(parse_line(line), line)) in only]
        if not lines:
            return
        columns = parse_columns(lines)
        routed = self._mapper.routed_among(columns)
        if routed is not None and not all(routed):
            elsewhere = [line for line, here in zip(lines, routed, strict=True) if not here]
            if self._follows:
                group.aside += [self._aside(line, chunk, None) for line in elsewhere]
            else:
                group.not_routed += len(elsewhere)
            lines = list(compress(lines, routed))
            columns = [list(compress(column, routed)) for column in columns]
        for line, mapped in zip(lines, self._mapper.map_columns(columns), strict=True):
            if isinstance(mapped, MappingFailure):
                group.aside.append(self._aside(line, chunk, mapped))
            else:
                failures = attempts.get(mapped.key, 0) if attempts else 0
                group.items.append(Item(mapped, line, chunk, sequence, failures))

    def external_id(self, row: Row, line: str) -> str:
        """Also for a row that has none."""
        try:
            return self._mapper.external_id(row)
        except MappingFailure:
            return f"{NAMELESS}{lead_key(line)}"

    def _aside(self, line: str, chunk: int, failure: MappingFailure | None) -> Aside:
        external_id = self.external_id(parse_line(line), line)
        return Aside(lead_key(external_id), external_id, line, chunk, failure)


def _lines(text: bytes) -> list[str]:
    return text.decode().split("\n")[:-1]
