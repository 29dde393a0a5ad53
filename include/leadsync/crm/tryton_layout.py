"""Fields in Tryton: where each is kept, in the record or in one that belongs to it, and how values are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, TypeAdapter

BREAKS = re.compile(r"[\t\n\r\v\f]+")  # a text of one line must not have them
TELEPHONES = frozenset({"phone", "mobile", "fax"})
CONTACTS = "contact_mechanisms"  # of a party: e-mail addresses, telephone numbers and others, each with its type


class Description(BaseModel):
    """What `fields_get` says of a field; `string` is its label."""

    type: str
    string: str = ""
    readonly: bool = False
    relation: str | None = None
    selection: Any = None


FIELDS = TypeAdapter(dict[str, Description])


class Place(NamedTuple):
    """Where one field is kept: `field` of the record, or of the first record of a one-to-many `relation` that has this
    contact `type`. `kind` is the type of the field, `label` what messages call it.
    """

    field: str
    kind: str
    label: str
    relation: str | None = None
    type: str | None = None


class Layout:
    """The fields of one model, and of those of its one-to-many relations that `names` use.

    `read` gives the fields of a model.
    """

    def __init__(self, model: str, names: Iterable[str], read: Callable[[str], Mapping[str, Description]]) -> None:
        self.fields = read(model)
        used = {name.partition(".")[0] for name in names if "." in name} | {CONTACTS}
        self._related = {
            name: read(field.relation)
            for name in sorted(used)
            if (field := self.fields.get(name)) and field.type == "one2many" and field.relation
        }
        types = self._related[CONTACTS]["type"].selection if CONTACTS in self._related else []
        self._contacts = {name for name, _ in types if name}
        self.can_archive = "active" in self.fields

    def place(self, name: str) -> Place | None:
        """None for a field that there is not, that a lead can't fill, or that the user may not write."""
        relation, _, field = name.rpartition(".")
        if name in self._contacts:
            relation, field, type_ = CONTACTS, "value", name
        else:
            type_ = None
        found = (self._related.get(relation, {}) if relation else self.fields).get(field)
        if found is None or found.readonly or found.type not in ENCODERS:
            return None
        return Place(field, found.type, found.string, relation or None, type_)


def reads(places: Iterable[Place]) -> list[str]:
    """The names that `search_read` is to be asked for, so that `value` and `commands` find what they need."""
    names: dict[str, None] = {}
    for place in places:
        if place.relation is None:
            names[place.field] = None
        else:
            names |= dict.fromkeys([f"{place.relation}.{place.field}"] + [f"{place.relation}.type"] * bool(place.type))
    return list(names)


def value(place: Place, held: Mapping[str, Any]) -> Any:
    """What a record that was read holds there."""
    owner = held if place.relation is None else _first(place, held) or {}
    return decode(place.kind, owner.get(place.field))


def same_contact(type_: str, sent: str, held: str) -> bool:
    """Whether Tryton may have made one of the other.

    With its optional packages it writes addresses in lower case, and telephone numbers as from abroad.
    """
    if type_ == "email":
        return sent.lower() == held.lower()
    digits, kept = ("".join(filter(str.isdigit, text)) for text in (sent, held))
    return type_ in TELEPHONES and len(digits) >= 6 and kept.endswith(digits.lstrip("0"))


def arrange(values: Mapping[Place, Any], held: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values as `create` takes them, or as `write` does for the record `held`."""
    arranged: dict[str, Any] = {}
    related: dict[tuple[str, str | None], dict[str, Any]] = {}
    owners: dict[tuple[str, str | None], Mapping[str, Any] | None] = {}
    for place, content in values.items():
        if place.relation is None:
            arranged[place.field] = content
        else:
            owner = place.relation, place.type
            related.setdefault(owner, {})[place.field] = content
            owners[owner] = _first(place, held or {})
    for (relation, type_), content in related.items():
        arranged.setdefault(relation, []).extend(_commands(owners[relation, type_], type_, content))
    return arranged


def _first(place: Place, held: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The related record, in Tryton's order: what it shows as the party's e-mail address is the first of that type."""
    records: Sequence[Mapping[str, Any]] = held.get(f"{place.relation}.", [])
    return next((record for record in records if place.type in (None, record.get("type"))), None)


def _commands(held: Mapping[str, Any] | None, type_: str | None, content: dict[str, Any]) -> list[list[Any]]:
    empty = all(each is None for each in content.values())
    if held is None:
        return [] if empty else [["create", [content if type_ is None else {**content, "type": type_}]]]
    if empty and type_ is not None:
        return [["delete", [held["id"]]]]  # a contact can't be without a value
    return [["write", [held["id"]], content]]


def encode(kind: str, value: Any) -> Any:
    """A value of a lead as a field of this type takes it; no value, or only blanks, is None. Raises ValueError."""
    convert = ENCODERS[kind]
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return convert(value)
    except (InvalidOperation, OverflowError, TypeError) as error:
        raise ValueError(str(error)) from None


def decode(kind: str, held: Any) -> Any:
    """What a field of this type holds, as a JSON scalar; times are RFC 3339 in UTC."""
    if kind == "boolean":
        return bool(held)  # SQLite has numbers
    if not isinstance(held, Mapping):
        return held
    parts = {name: part for name, part in held.items() if name != "__class__"}
    match held.get("__class__"):
        case "Decimal":
            return held["decimal"]
        case "date":
            return date(**parts).isoformat()
        case "datetime":
            return datetime(**parts, tzinfo=UTC).isoformat()
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _line(value: Any) -> str:
    return BREAKS.sub(" ", _text(value))


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("neither true nor false")


def _integer(value: Any) -> int:
    number = int(value)
    # Tryton's database fails on larger ones, and with it the whole request.
    if number != value and isinstance(value, float) or not -(2**63) <= number < 2**63:
        raise ValueError("no whole number, or too large")
    return number


def _float(value: Any) -> float:
    number = float(value)
    if not isfinite(number):
        raise ValueError("not a finite number")
    return number


def _decimal(value: Any) -> dict[str, Any]:
    number = Decimal(str(value))
    if not number.is_finite():
        raise ValueError("not a finite number")
    return {"__class__": "Decimal", "decimal": str(number)}


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    return moment.astimezone(UTC) if moment.tzinfo else moment


def _date(value: Any) -> dict[str, Any]:
    day = _moment(value)
    return {"__class__": "date", "year": day.year, "month": day.month, "day": day.day}


def _timestamp(value: Any) -> dict[str, Any]:
    moment = _moment(value)
    names = ("year", "month", "day", "hour", "minute", "second", "microsecond")
    return {"__class__": "datetime", **{name: getattr(moment, name) for name in names}}


ENCODERS: dict[str, Callable[[Any], Any]] = {
    "char": _line,
    "text": _text,
    "selection": _text,
    "boolean": _boolean,
    "integer": _integer,
    "float": _float,
    "numeric": _decimal,
    "date": _date,
    "datetime": lambda value: {**_timestamp(value), "microsecond": 0},  # as Tryton keeps it
    "timestamp": _timestamp,
    "many2one": _integer,  # the id of the other record
}
