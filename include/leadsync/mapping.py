"""Turns rows of the lead store into what a destination is to hold: routing, fields, deletes, external id, hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import orjson

from leadsync.config import Destination, Source
from leadsync.models import Digest
from leadsync.transforms import FALSE, Columns, MappingFailure, compile_rule

Row = Sequence[str | None]


class Mapped(NamedTuple):
    """One row as one destination wants it. `fields` of a deleted lead are empty, except with `mode: field`."""

    external_id: str
    key: Digest
    fields: dict[str, Any]
    delete: bool
    digest: Digest


class Mapper:
    """The compiled mapping of one destination. `columns` are the columns of the rows, in order."""

    def __init__(self, source: Source, destination: Destination) -> None:
        place = {name: index for index, name in enumerate(source.columns)}
        self._key = [(name, place[name]) for name in source.key]
        self._deleted = place[source.deleted] if source.deleted else None
        self._route = [(place[c], frozenset(map(_text, values))) for c, values in destination.route.items()]
        self._fields = list(destination.fields)
        self._rules = [compile_rule(name, rule, place) for name, rule in destination.fields.items()]
        self._on_delete = destination.on_delete

    def external_id(self, row: Row) -> str:
        """Our key of the lead: the key columns joined by `:`, with `\\` and `:` inside a column escaped by `\\`."""
        return self._joined([row[index] for _, index in self._key])

    def routed(self, row: Row) -> bool:
        """Whether the lead belongs to this destination."""
        return all(row[index] in allowed for index, allowed in self._route)

    def deleted(self, row: Row) -> bool:
        """Whether the lead is soft-deleted in the lead store."""
        return bool(self._deleted_among([(value,) for value in row]))

    def routed_among(self, columns: Columns) -> list[bool] | None:
        """Which of many rows belong to this destination; None: all of them."""
        if not self._route:
            return None
        places = [(columns[index], allowed) for index, allowed in self._route]
        return [
            all(value in allowed for value, (_, allowed) in zip(values, places, strict=True))
            for values in zip(*(column for column, _ in places), strict=True)
        ]

    def map(self, row: Row) -> Mapped:
        """Raises MappingFailure for a lead that has no record in this destination."""
        (found,) = self.map_columns([(value,) for value in row])
        if isinstance(found, MappingFailure):
            raise found
        return found

    def map_columns(self, columns: Columns) -> list[Mapped | MappingFailure]:
        """Maps many rows, given as their columns: per row what became of it.

        Column by column, for a call per value and field would cost several times as much as all the rest.
        """
        failures: dict[int, MappingFailure] = {}
        ids = self._external_ids(columns, failures)
        gone = self._deleted_among(columns)
        if self._on_delete.mode == "field":
            fields = self._field_values(columns, failures)
            for index in gone:
                fields[index][self._on_delete.field or ""] = self._on_delete.value
            deletes: Set[int] = frozenset()
        else:
            deletes = gone
            failed: dict[int, MappingFailure] = {}
            fields = self._field_values(columns, failed)
            for index, failure in failed.items():
                if index not in gone:
                    failures.setdefault(index, failure)
            for index in gone:
                fields[index] = {}
        found: list[Mapped | MappingFailure] = []
        for index, (external_id, values) in enumerate(zip(ids, fields, strict=True)):
            if index in failures:
                found.append(failures[index])
                continue
            delete = index in deletes
            try:
                digest = _digest(orjson.dumps((delete, values)))
            except TypeError:
                found.append(MappingFailure("*", "a text is not valid Unicode"))
            else:
                found.append(Mapped(external_id, lead_key(external_id), values, delete, digest))
        return found

    def _external_ids(self, columns: Columns, failures: dict[int, MappingFailure]) -> list[str]:
        keys = [columns[index] for _, index in self._key]
        try:
            if not any(mark in "".join(key) for key in keys for mark in "\\:"):  # type: ignore[arg-type]
                return list(map(":".join, zip(*keys, strict=True)))
        except TypeError:
            pass  # there is a NULL
        ids = []
        for index, values in enumerate(zip(*keys, strict=True)):
            try:
                ids.append(self._joined(values))
            except MappingFailure as failure:
                failures[index] = failure
                ids.append("")
        return ids

    def _joined(self, values: Sequence[str | None]) -> str:
        for (name, _), value in zip(self._key, values, strict=True):
            if value is None:
                raise MappingFailure(name, "the key column is NULL, so the lead has no external id")
        return join_key(values)  # type: ignore[arg-type]

    def _deleted_among(self, columns: Columns) -> frozenset[int]:
        if self._deleted is None:
            return frozenset()
        flags = columns[self._deleted]
        if all(flag == "f" for flag in set(flags)):
            return frozenset()
        return frozenset(index for index, flag in enumerate(flags) if (flag or "").lower() not in FALSE)

    def _field_values(self, columns: Columns, failures: dict[int, MappingFailure]) -> list[dict[str, Any]]:
        count = len(columns[0])
        if not self._fields:
            return [{} for _ in range(count)]
        values = [rule(columns, failures) for rule in self._rules]
        return [dict(zip(self._fields, each, strict=True)) for each in zip(*values, strict=True)]


def deletion(destination: Destination, external_id: str) -> Mapped:
    """How a lead of which nothing but the external id is left is deleted in this destination."""
    mark = destination.on_delete
    fields = {} if mark.field is None else {mark.field: mark.value}
    delete = mark.field is None
    return Mapped(external_id, lead_key(external_id), fields, delete, _digest(orjson.dumps([delete, fields])))


def lead_key(external_id: str) -> Digest:
    """The 16-byte key under which ledger and dead letters know a lead."""
    return _digest(external_id.encode("utf-8", "surrogatepass"))


def join_key(values: Sequence[str]) -> str:
    """The external id that the values of the key columns make."""
    return ":".join([v.replace("\\", "\\\\").replace(":", "\\:") if "\\" in v or ":" in v else v for v in values])


def split_key(external_id: str) -> tuple[str, ...]:
    """The values of the key columns that made an external id."""
    parts = [""]
    characters = iter(external_id)
    for character in characters:
        if character == ":":
            parts.append("")
        else:
            parts[-1] += next(characters, "") if character == "\\" else character
    return tuple(parts)


_EMPTY = hashlib.blake2b(digest_size=16)


def _digest(data: bytes) -> Digest:
    hashing = _EMPTY.copy()  # a copy is made faster than one anew
    hashing.update(data)
    return Digest(hashing.digest())


# The hash of every lead that is deleted in the CRM, whichever it is; `mode: field` has others.
DELETED = _digest(orjson.dumps([True, {}]))


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "t" if value else "f"
    return None if value is None else str(value)
