"""Turns rows of the lead store into what a destination is to hold: routing, fields, deletes, external id, hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson

from leadsync.config import Destination, FieldMapping, Source

Row = Sequence[str | None]
_TRUE = {"t", "true", "yes", "on", "1"}
_FALSE = {"f", "false", "no", "off", "0", ""}


class MappingFailure(Exception):
    """One lead can't be turned into a record; `field` is the destination's field at fault."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Mapped:
    """One row as one destination wants it. `fields` of a deleted lead are empty, except with `mode: field`."""

    external_id: str
    key: UUID
    fields: dict[str, Any]
    delete: bool
    digest: UUID


class Mapper:
    """The compiled mapping of one destination. `columns` are the columns of the rows, in order."""

    def __init__(self, source: Source, destination: Destination) -> None:
        place = {name: index for index, name in enumerate(source.columns)}
        self._key = [(name, place[name]) for name in source.key]
        self._deleted = place[source.deleted] if source.deleted else None
        self._route = [(place[c], frozenset(map(_text, values))) for c, values in destination.route.items()]
        self._fields = [(name, _compile(name, rule, place)) for name, rule in destination.fields.items()]
        self._on_delete = destination.on_delete

    def external_id(self, row: Row) -> str:
        """Our key of the lead: the key columns joined by `:`, with `\\` and `:` inside a column escaped by `\\`."""
        parts = []
        for name, index in self._key:
            value = row[index]
            if value is None:
                raise MappingFailure(name, "the key column is NULL, so the lead has no external id")
            parts.append(value)
        return join_key(parts)

    def routed(self, row: Row) -> bool:
        """Whether the lead belongs to this destination."""
        return all(row[index] in allowed for index, allowed in self._route)

    def deleted(self, row: Row) -> bool:
        """Whether the lead is soft-deleted in the lead store."""
        return self._deleted is not None and (row[self._deleted] or "").lower() not in _FALSE

    def map(self, row: Row) -> Mapped:
        """Raises MappingFailure for a lead that has no record in this destination."""
        external_id = self.external_id(row)
        delete = self.deleted(row)
        fields: dict[str, Any] = {}
        if not delete or self._on_delete.mode == "field":
            fields = {name: value(row) for name, value in self._fields}
            if self._on_delete.field is not None and delete:
                fields[self._on_delete.field] = self._on_delete.value
                delete = False
        try:
            body = orjson.dumps([delete, fields])
        except TypeError:
            raise MappingFailure("*", "a text is not valid Unicode") from None
        return Mapped(external_id, lead_key(external_id), fields, delete, _digest(body))


def deletion(destination: Destination, external_id: str) -> Mapped:
    """How a lead of which nothing but the external id is left is deleted in this destination."""
    mark = destination.on_delete
    fields = {} if mark.field is None else {mark.field: mark.value}
    delete = mark.field is None
    return Mapped(external_id, lead_key(external_id), fields, delete, _digest(orjson.dumps([delete, fields])))


def lead_key(external_id: str) -> UUID:
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


def _digest(data: bytes) -> UUID:
    return UUID(bytes=hashlib.blake2b(data, digest_size=16).digest())


# The hash of every lead that is deleted in the CRM, whichever it is; `mode: field` has others.
DELETED = _digest(orjson.dumps([True, {}]))


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "t" if value else "f"
    return None if value is None else str(value)


def _compile(name: str, rule: FieldMapping, place: dict[str, int]) -> Callable[[Row], Any]:
    if rule.column is None:
        return lambda row: rule.constant
    index = place[rule.column]
    steps = [_TRANSFORMS[step] for step in rule.transform]
    if not (steps or rule.path or rule.required or rule.max_length or rule.default is not None):
        return lambda row: row[index]

    def value(row: Row) -> Any:
        found: Any = row[index]
        try:
            if rule.path is not None and found is not None:
                found = _walk(found, rule.path)
            for step in steps:
                if found is not None:
                    found = step(found)
        except (ValueError, OverflowError) as error:
            raise MappingFailure(name, _reason(error)) from None
        if found is None or found == "":
            found = rule.default
        if rule.required and (found is None or found == ""):
            raise MappingFailure(name, "required, but the lead has no value")
        if rule.max_length is not None and isinstance(found, str):
            found = found[: rule.max_length]
        return found

    return value


def _reason(error: Exception) -> str:
    # The text of a ValueError quotes the value, which may be personal.
    return str(error) if isinstance(error, _Unfit) else "the value can't be converted"


class _Unfit(ValueError):
    """A value that does not fit; the text does not quote it."""


def _walk(document: str, path: str) -> Any:
    found = orjson.loads(document)
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return orjson.dumps(found).decode() if isinstance(found, dict | list) else found


def _moment(value: str) -> datetime:
    """PostgreSQL's text of a timestamp; one without zone is UTC."""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise _Unfit("not a date between the years 1 and 9999") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _iso8601(value: str) -> str:
    return _moment(value).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _epoch_ms(value: str) -> int:
    return round(_moment(value).timestamp() * 1000)


def _boolean(value: object) -> bool:
    text = str(value).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise _Unfit("neither true nor false")


def _number(value: object) -> float:
    number = float(str(value))
    if number != number or number in (float("inf"), float("-inf")):
        raise _Unfit("not a finite number")
    return number


_TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "trim": lambda value: str(value).strip(),
    "lower": lambda value: str(value).lower(),
    "upper": lambda value: str(value).upper(),
    "digits": lambda value: "".join(c for c in str(value) if c.isascii() and c.isdigit()),
    "iso8601": _iso8601,
    "epoch_ms": _epoch_ms,
    "integer": lambda value: int(str(value)),
    "number": _number,
    "boolean": _boolean,
    "json": lambda value: orjson.loads(value),
}
