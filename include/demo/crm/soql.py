"""A small, strict part of SOQL: SELECT fields FROM one object WHERE conditions joined by AND, ORDER BY, LIMIT."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

TOKEN = re.compile(r"\s*('(?:[^'\\]|\\.)*'|[(),]|[<>!]=?|=|[^\s'(),<>!=]+)", re.S)
NUMBER = re.compile(r"-?\d+(\.\d+)?")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:?\d\d)")
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "'": "'", '"': '"', "\\": "\\"}
ORDERED: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class MalformedQuery(ValueError):
    """The text is no query of the part of SOQL that is understood."""


@dataclass(frozen=True, slots=True)
class Condition:
    """`field operator values`; IN and NOT IN have any number of values, the others one."""

    field: str
    operator: str
    values: tuple[Any, ...]

    def holds(self, value: Any, *, case_sensitive: bool) -> bool:
        """Whether a record with this value of the field meets it."""
        if self.operator in ORDERED:
            wanted = self.values[0]
            return value is not None and wanted is not None and ORDERED[self.operator](_plain(value), _plain(wanted))
        fold = _plain if case_sensitive else _folded
        found = fold(value) in [fold(wanted) for wanted in self.values]
        return found == (self.operator in ("=", "IN"))


@dataclass(frozen=True, slots=True)
class Query:
    fields: tuple[str, ...]
    object: str
    conditions: tuple[Condition, ...]
    order: tuple[str, bool] | None  # field, descending
    limit: int | None


def parse(text: str) -> Query:
    """Raises MalformedQuery."""
    return _Parser(text).query()


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        text, place = text.strip(), 0
        while place < len(text):
            found = TOKEN.match(text, place)
            if found is None:
                raise MalformedQuery(f"unexpected token at position {place}")
            self._tokens.append(found[1])
            place = found.end()
        self._tokens.reverse()

    def query(self) -> Query:
        self._expect("SELECT")
        fields = [self._name()]
        while self._accept(","):
            fields.append(self._name())
        self._expect("FROM")
        kind = self._name()
        conditions = []
        if self._accept("WHERE"):
            conditions.append(self._condition())
            while self._accept("AND"):
                conditions.append(self._condition())
        order = limit = None
        if self._accept("ORDER"):
            self._expect("BY")
            name = self._name()
            descending = self._accept("DESC")
            order = (name, descending)
            if not descending:
                self._accept("ASC")
        if self._accept("LIMIT"):
            number = self._next()
            if not number.isdecimal():
                raise MalformedQuery(f"unexpected token: {number}")
            limit = int(number)
        if self._tokens:
            raise MalformedQuery(f"unexpected token: {self._tokens[-1]}")
        return Query(tuple(fields), kind, tuple(conditions), order, limit)

    def _condition(self) -> Condition:
        name = self._name()
        negated = self._accept("NOT")
        if negated or self._tokens[-1:] and self._tokens[-1].upper() == "IN":
            self._expect("IN")
            self._expect("(")
            values = [self._value()]
            while self._accept(","):
                values.append(self._value())
            self._expect(")")
            return Condition(name, "NOT IN" if negated else "IN", tuple(values))
        symbol = self._next()
        if symbol not in ("=", "!=", *ORDERED):
            raise MalformedQuery(f"unexpected token: {symbol}")
        return Condition(name, symbol, (self._value(),))

    def _value(self) -> Any:
        token = self._next()
        if token.startswith("'"):
            return re.sub(r"\\(.)", _unescaped, token[1:-1], flags=re.S)
        if token.lower() in ("true", "false", "null"):
            return {"true": True, "false": False, "null": None}[token.lower()]
        if NUMBER.fullmatch(token):
            return float(token) if "." in token else int(token)
        if MOMENT.fullmatch(token):
            return datetime.fromisoformat(token)
        raise MalformedQuery(f"unexpected token: {token}")

    def _name(self) -> str:
        token = self._next()
        if not re.fullmatch(r"[A-Za-z]\w*", token):
            raise MalformedQuery(f"unexpected token: {token}")
        return token

    def _next(self) -> str:
        if not self._tokens:
            raise MalformedQuery("unexpected token: <EOF>")
        return self._tokens.pop()

    def _accept(self, word: str) -> bool:
        if self._tokens and self._tokens[-1].upper() == word:
            self._tokens.pop()
            return True
        return False

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            raise MalformedQuery(f"expecting {word}, found: {self._tokens[-1] if self._tokens else '<EOF>'}")


def _unescaped(found: re.Match[str]) -> str:
    if found[1] not in ESCAPES:
        raise MalformedQuery(f"invalid escape: \\{found[1]}")
    return ESCAPES[found[1]]


def _plain(value: Any) -> Any:
    """Datetimes are compared as such, also where one is a text."""
    if isinstance(value, str) and MOMENT.fullmatch(value):
        return datetime.fromisoformat(value)
    return value


def _folded(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else _plain(value)
