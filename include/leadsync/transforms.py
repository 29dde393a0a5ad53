"""What a field of the pipeline file makes of its column: path, transforms, default, length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

import orjson

from leadsync.config import FieldMapping

Columns = Sequence[Sequence[str | None]]
TRUE = {"t", "true", "yes", "on", "1"}
FALSE = {"f", "false", "no", "off", "0", ""}


class MappingFailure(Exception):
    """One lead can't be turned into a record; `field` is the destination's field at fault."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


# The values of one field, one for each row of the columns; failures go into the dictionary, by row, unless an earlier
# field has failed there.
Rule = Callable[[Columns, dict[int, MappingFailure]], Iterable[Any]]


def compile_rule(name: str, rule: FieldMapping, places: Mapping[str, int]) -> Rule:
    """How a field's values come from the columns; `places` are the columns' numbers by name."""
    if rule.column is None:
        return lambda columns, failures: repeat(rule.constant, len(columns[0]))
    place = places[rule.column]
    plain = not (rule.transform or rule.path or rule.required or rule.max_length or rule.default is not None)
    if plain:
        return lambda columns, failures: columns[place]
    if not (rule.path or rule.required) and all(step in TEXT_STEPS for step in rule.transform):
        texts = _texts(rule)
        return lambda columns, failures: texts(columns[place])
    value = single(name, rule)
    return lambda columns, failures: _each(value, columns[place], failures)


def _texts(rule: FieldMapping) -> Callable[[Sequence[str | None]], list[Any]]:
    """As `single`, for what can't fail, and without a call of ours for each value."""
    steps, length = [TEXT_STEPS[step] for step in rule.transform], rule.max_length
    default = rule.default[:length] if isinstance(rule.default, str) else rule.default

    def values(column: Sequence[str | None]) -> list[Any]:
        found: Iterable[str] = [value or "" for value in column]  # either gives the default
        for step in steps:
            found = map(step, found)
        return [value[:length] or default for value in found]

    return values


def _each(value: Callable[[Any], Any], column: Sequence[str | None], failures: dict[int, MappingFailure]) -> list[Any]:
    try:
        return list(map(value, column))
    except MappingFailure:
        pass
    found = []
    for index, each in enumerate(column):
        try:
            found.append(value(each))
        except MappingFailure as failure:
            failures.setdefault(index, failure)
            found.append(None)
    return found


def single(name: str, rule: FieldMapping) -> Callable[[Any], Any]:
    """What one value becomes. Raises MappingFailure."""
    steps = [STEPS[step] for step in rule.transform]

    def value(found: Any) -> Any:
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
    moment = _moment(value)
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _epoch_ms(value: str) -> int:
    return round(_moment(value).timestamp() * 1000)


def _boolean(value: object) -> bool:
    text = str(value).lower()
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise _Unfit("neither true nor false")


def _number(value: object) -> float:
    number = float(str(value))
    if number != number or number in (float("inf"), float("-inf")):
        raise _Unfit("not a finite number")
    return number


STEPS: dict[str, Callable[[Any], Any]] = {
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
# Those that make a text of any text.
TEXT_STEPS: dict[str, Callable[[str], str]] = {"trim": str.strip, "lower": str.lower, "upper": str.upper}
