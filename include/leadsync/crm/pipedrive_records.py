"""Pipedrive's records: what they look like, and all ways to find those that hold an external id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter

from leadsync.crm.base import batches
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.singly import unless_gone
from leadsync.models import Lead

T = TypeVar("T")
Found = dict[str, list[dict[str, Any]]]  # records by external id, the oldest first

PAGE_SIZE = 500  # the most that a list gives at once
IDS = 100  # the most persons that are read by their ids at once
FRESH = timedelta(minutes=5)  # so long a new record may be missing from the search, clocks that differ included
CONTACTS = {"email": "emails", "phone": "phones"}
LINKS = ("person_id", "organization_id")


@dataclass(frozen=True, slots=True)
class Kind:
    """What differs between the objects."""

    entity: str  # its name in the search
    path: str
    id: re.Pattern[str]
    fields: str  # where its custom fields are described
    standard: frozenset[str]  # fields that every account has
    nested: bool  # API v2: custom fields stand apart from the others, lists go by cursor


KINDS = {
    "persons": Kind(
        "person", "/api/v2/persons", re.compile(r"[1-9]\d{0,17}"), "/api/v2/personFields",
        frozenset(
            {"name", "owner_id", "org_id", "visible_to", "label_ids", "marketing_status", "job_title", *CONTACTS}
        ),
        nested=True,
    ),
    "leads": Kind(
        "lead", "/api/v1/leads", re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "/api/v2/dealFields",
        frozenset({"title", "owner_id", "label_ids", "value", "expected_close_date", "visible_to", "was_seen", *LINKS}),
        nested=False,
    ),
}  # fmt: skip


class _Pagination(BaseModel):
    more_items_in_collection: bool = False
    next_start: int | None = None


class _More(BaseModel):
    next_cursor: str | None = None
    pagination: _Pagination = _Pagination()


class _Item(BaseModel, extra="allow"):
    id: int | str


class _Hit(BaseModel):
    """What the search found; the published schema puts the record one level deeper than the answers do."""

    id: int | str | None = None
    item: _Item | None = None

    @property
    def crm_id(self) -> str | None:
        found = self.id if self.item is None else self.item.id
        return None if found is None else str(found)


class _Field(BaseModel):
    field_code: str
    field_type: str
    is_custom_field: bool = False


class _One(BaseModel):
    success: Literal[True]  # an error in a 200 is a reply that makes no sense
    data: _Item


class _Page(BaseModel, Generic[T]):
    success: Literal[True]
    data: list[T] | None = None
    additional_data: _More | None = None


ONE = TypeAdapter(_One)
ITEMS = TypeAdapter(_Page[_Item])
HITS = TypeAdapter(_Page[_Hit])
FIELDS = TypeAdapter(_Page[_Field])


@dataclass(frozen=True, slots=True)
class Records:
    """The records of one object. `key` is the field that holds the external id, `call` sends a request.

    All but `fields` raise RequestFailed when a reply leaves a record in the open (`left_out`).
    """

    kind: Kind
    key: str
    call: Callable[..., Reply]
    left_out: Callable[[], RequestFailed]

    def fields(self) -> dict[str, str]:
        """The types of the custom fields, by their keys."""
        pages = self._pages(self.kind.fields, FIELDS, {})
        return {field.field_code: field.field_type for field in pages if field.is_custom_field}

    def held(self, record: Mapping[str, Any], name: str) -> Any:
        """The value of a field, as it would be sent."""
        if name in CONTACTS and self.kind.nested:
            entries = record.get(CONTACTS[name]) or ()
            return next((entry.get("value") for entry in entries if entry.get("primary")), None)
        custom = record.get("custom_fields")
        return custom.get(name) if isinstance(custom, dict) and name in custom else record.get(name)

    def owner(self, record: Mapping[str, Any]) -> str | None:
        """The external id of a record."""
        value = self.held(record, self.key)
        return value if isinstance(value, str) else None

    def known(self, leads: Sequence[Lead]) -> Found:
        """The record of each lead whose known id still leads to one with its external id."""
        ids = {lead.crm_id: lead.external_id for lead in leads if lead.crm_id and self.kind.id.fullmatch(lead.crm_id)}
        found: Found = {}
        for record in self._read(list(ids)):
            owner = self.owner(record)
            if owner is not None and owner == ids.get(str(record["id"])):
                found[owner] = [record]
        return found

    def look_up(self, external_ids: Sequence[str]) -> Found:
        """All records of every external id that can be found without knowing their ids."""
        if not external_ids:
            return {}
        ids = [crm_id for external_id in external_ids for crm_id in self._search(external_id)]
        return self._sorted(external_ids, [*self._read(ids), *self._newest()])

    def walk(self, external_ids: Sequence[str]) -> Found:
        """The same from a list of all records."""
        if self.kind.nested:
            return self._sorted(external_ids, self._list(self.kind.path, sort_by="id", sort_direction="asc"))
        lists = (self._list(path, sort="add_time ASC") for path in (self.kind.path, f"{self.kind.path}/archived"))
        return self._sorted(external_ids, (record for records in lists for record in records))

    def _sorted(self, external_ids: Sequence[str], records: Iterable[dict[str, Any]]) -> Found:
        """Records by external id, the oldest first; what belongs to none of them is left out."""
        found: dict[str, dict[Any, dict[str, Any]]] = {external_id: {} for external_id in external_ids}
        for record in records:
            owner = self.owner(record)
            if owner in found and not record.get("is_deleted"):
                found[owner][record["id"]] = record
        return {external_id: sorted(found[external_id].values(), key=_age) for external_id in external_ids}

    def _search(self, external_id: str) -> list[str]:
        """The ids of records that hold the external id, as far as the search knows of them."""
        asked = {"entity_type": self.kind.entity, "field": self.key, "match": "exact", "term": external_id}
        ids = [hit.crm_id for hit in self._pages("/api/v2/itemSearch/field", HITS, asked)]
        if None in ids:
            raise self.left_out()
        return [crm_id for crm_id in ids if crm_id]

    def _newest(self) -> Iterator[dict[str, Any]]:
        """Records that were made in the last minutes, newest first."""
        if self.kind.nested:
            records = self._list(self.kind.path, sort_by="add_time", sort_direction="desc")
        else:
            records = self._list(self.kind.path, sort="add_time DESC")
        since = datetime.now(UTC) - FRESH
        for record in records:
            if _moment(record.get("add_time")) < since:
                return
            yield record

    def _read(self, crm_ids: Sequence[str]) -> list[dict[str, Any]]:
        """The live records with these ids. Raises RequestFailed when a list leaves one out."""
        ids = list(dict.fromkeys(crm_ids))
        if not self.kind.nested:
            return [record for crm_id in ids if (record := self._get(crm_id)) is not None]
        found: dict[str, dict[str, Any]] = {}
        for part in batches(ids, IDS):
            found |= {str(record["id"]): record for record in self._list(self.kind.path, ids=",".join(part))}
        # A list does not tell records that are gone from those that it forgot.
        if any(crm_id not in found and self._get(crm_id) is not None for crm_id in ids):
            raise self.left_out()
        return [record for record in found.values() if not record.get("is_deleted")]

    def _get(self, crm_id: str) -> dict[str, Any] | None:
        """The live record with this id."""
        reply = unless_gone(self.call, "GET", f"{self.kind.path}/{crm_id}")
        if reply is None:
            return None
        record = reply.parse(ONE).data.model_dump()
        return None if record.get("is_deleted") else record

    def _list(self, path: str, **params: str) -> Iterator[dict[str, Any]]:
        """The records of a list, page by page."""
        return (item.model_dump() for item in self._pages(path, ITEMS, params))

    def _pages(self, path: str, shape: TypeAdapter[_Page[T]], params: Mapping[str, str]) -> Iterator[T]:
        at: dict[str, str] = {}
        while True:
            page = self.call("GET", path, params={**params, **at, "limit": str(PAGE_SIZE)}).parse(shape)
            yield from page.data or ()
            more = page.additional_data or _More()
            before = at
            if more.next_cursor:
                at = {"cursor": more.next_cursor}
            elif more.pagination.more_items_in_collection and more.pagination.next_start is not None:
                at = {"start": str(more.pagination.next_start)}
            else:
                return
            if at == before:  # it would go round for ever
                raise self.left_out()


def _age(record: Mapping[str, Any]) -> tuple[str, int, str]:
    crm_id = str(record["id"])
    return str(record.get("add_time")), len(crm_id), crm_id


def _moment(text: Any) -> datetime:
    """When a record was made; now where that makes no sense, so that it is looked at."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return datetime.now(UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
