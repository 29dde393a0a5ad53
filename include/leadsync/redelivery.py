"""Delivers chosen leads anew: for a replay of dead letters and for repairs.

They are read from the lead store under the pipeline's lock, so under a new sequence, into a snapshot of their own, that
then goes the way of every other through the ordinary load. No watermark moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import psycopg

from leadsync import operations
from leadsync.clients import Clients
from leadsync.config import Pipeline
from leadsync.copytext import parse_line
from leadsync.crm.base import batches
from leadsync.errors import ConfigError
from leadsync.mapping import Mapper, split_external_id
from leadsync.source import Buffer, LeadStore
from leadsync.state import operations as state_operations
from leadsync.state.operations import Operation

# Leads that are read in one query.
KEYS_PER_QUERY = 1000


@dataclass(frozen=True, slots=True)
class Redelivery:
    """An operation whose snapshot is taken: load it with `operations.load`.

    `gone` are no more in the lead store, and `elsewhere` are not routed to the destination (any more).
    """

    operation: Operation
    gone: list[str]
    elsewhere: list[str]


def prepare(
    clients: Clients,
    pipeline: Pipeline,
    run_id: str,
    kind: str,
    destination: str,
    external_ids: Sequence[str],
    *,
    resend: bool = False,
) -> Redelivery:
    """Reads the present rows of leads into a snapshot for one destination. `kind` is replay or repair.

    Raises ConfigError for an external id that can't be of this pipeline.
    """
    keys = [_key(pipeline, external_id) for external_id in external_ids]
    sync_id = str(uuid4())
    operation = Operation(
        sync_id=sync_id,
        snapshot_id=sync_id,
        pipeline=pipeline.name,
        kind=kind,
        lower=None,
        upper=datetime.now(UTC),
        destinations=[destination],
        resend=resend,
        sequence=None,
        rows=None,
    )
    target = next(target for target in pipeline.destinations if target.name == destination)
    seen: set[str] = set()
    elsewhere: list[str] = []
    with clients.open_store() as store:
        store.check()
        state_operations.open_operation(clients.state, operation, run_id)
        reader = _reader(store, keys, Mapper(pipeline.source, target), seen, elsewhere)
        operations.keep_rows(clients, pipeline, operation, reader)
    return Redelivery(operation, [each for each in external_ids if each not in seen], elsewhere)


def _reader(
    store: LeadStore, keys: Sequence[Sequence[str]], mapper: Mapper, seen: set[str], elsewhere: list[str]
) -> Callable[[], Iterable[Buffer]]:
    def read() -> Iterator[Buffer]:
        for some in batches(keys, KEYS_PER_QUERY):
            try:
                for row in store.read(some):
                    line = parse_line(bytes(row).decode()[:-1])
                    seen.add(mapper.external_id(line))
                    if not mapper.routed(line):
                        elsewhere.append(mapper.external_id(line))
                    yield row
            except psycopg.errors.InvalidTextRepresentation:
                # The text of the error quotes the value.
                raise ConfigError("an external id does not fit the types of the key columns") from None

    return read


def _key(pipeline: Pipeline, external_id: str) -> list[str]:
    values = split_external_id(external_id)
    columns = pipeline.source.key
    if len(values) != len(columns):
        raise ConfigError(f"{external_id!r} is no external id of {pipeline.name}: it has the form {':'.join(columns)}")
    return values
