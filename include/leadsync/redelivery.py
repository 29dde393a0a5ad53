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
    """An operation whose snapshot is taken: load it with `operations.load`. `gone` are no more in the lead store."""

    operation: Operation
    gone: list[str]


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
    with clients.open_store() as store:
        store.check()
        state_operations.open_operation(clients.state, operation, run_id)
        external_id = Mapper(pipeline.source, target).external_id
        operations.keep_rows(clients, pipeline, operation, _reader(store, keys, external_id, seen))
    return Redelivery(operation, [each for each in external_ids if each not in seen])


def _reader(
    store: LeadStore, keys: Sequence[Sequence[str]], external_id: Callable[..., str], seen: set[str]
) -> Callable[[], Iterable[Buffer]]:
    def read() -> Iterator[Buffer]:
        for some in batches(keys, KEYS_PER_QUERY):
            try:
                for row in store.read(some):
                    seen.add(external_id(parse_line(bytes(row).decode()[:-1])))
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
