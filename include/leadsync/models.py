"""The words of the domain that several modules share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID


class Digest(bytes):
    """A hash of 16 bytes, a `uuid` in PostgreSQL: of an external id (the lead's key), or of a payload.

    Bytes and not a UUID, which is slow to make and to look up: a load does it several times for each lead.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return str(UUID(bytes=bytes(self)))

    @classmethod
    def parse(cls, text: str) -> Digest:
        """From what `str` makes of it."""
        return cls(UUID(text).bytes)


class Share(NamedTuple):
    """One of the shards of a load: the chunks of the snapshot whose place leaves the remainder `shard` by `of`."""

    shard: int
    of: int


WHOLE = Share(0, 1)


class Lead(NamedTuple):
    """One lead as a CRM is to hold it.

    `external_id` is our key, stable for ever. `fields` are the CRM's own field names with JSON values (str, int,
    float, bool, None); the external id field is not among them, the adapter adds it. `crm_id` is the CRM's id
    of the record where an earlier delivery learnt it.
    """

    external_id: str
    fields: Mapping[str, Any]
    crm_id: str | None = None


class Status(StrEnum):
    """What became of one lead in one request."""

    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"  # also when it was not there: the wish is fulfilled
    REJECTED = "rejected"  # the CRM says that the data is wrong: trying again changes nothing
    TRANSIENT = "transient"  # it failed in passing: trying again may help


class Outcome(NamedTuple):
    """What became of one lead: exactly one per lead that was handed to an adapter.

    `code` is the CRM's error code or the HTTP status (`VALIDATION_ERROR`, `429`); `field` the CRM field at fault
    where it is known; `message` the CRM's own words, which may quote personal data: it is stored encrypted
    and never logged. `sent` is False when no byte of the request can have reached the CRM (connection refused).
    `retry_after` is in seconds, as the CRM asked for.
    """

    external_id: str
    status: Status
    crm_id: str | None = None
    code: str | None = None
    field: str | None = None
    message: str | None = None
    sent: bool = True
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A record as the CRM holds it, read back."""

    external_id: str
    crm_id: str
    fields: Mapping[str, Any]
    deleted: bool = False


class Kind(StrEnum):
    """How a CRM can differ from the lead store."""

    MISSING = "missing"  # it was never delivered, and the CRM has no record
    DOUBLED = "doubled"  # more than one record: a person has to merge them
    STALE = "stale"  # the record holds another state of the lead
    WRONGLY_ALIVE = "wrongly_alive"  # deleted in the lead store, alive in the CRM
    WRONGLY_DELETED = "wrongly_deleted"  # it was delivered, and somebody deleted the record in the CRM
    CHANGED_BY_HAND = "changed_by_hand"  # exactly the present state was delivered, and the record holds something else
    HARD_DELETED = "hard_deleted"  # the row is gone from the lead store, the record is still in the CRM


@dataclass(frozen=True, slots=True)
class Finding:
    """One lead that differs; `fields` are the names of the CRM's fields that do, `crm_ids` its records."""

    kind: Kind
    external_id: str
    lead_key: Digest
    fields: Sequence[str] = ()
    crm_ids: Sequence[str] = ()
