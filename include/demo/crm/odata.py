"""OData as Dataverse speaks it: filters, orders, keys in an address, and multipart batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import orjson

TOKEN = re.compile(r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<word>[\w.:+-]+)|(?P<mark>[()]))")
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: bool(a == b), "ne": lambda a, b: bool(a != b),
    "gt": lambda a, b: bool(a > b), "ge": lambda a, b: bool(a >= b),
    "lt": lambda a, b: bool(a < b), "le": lambda a, b: bool(a <= b),
}  # fmt: skip
LITERALS = {"null": None, "true": True, "false": False}
RESERVED = set("/<>*%&:\\?+")  # what Dataverse does not take in an alternate key that addresses a record
Row = Mapping[str, Any]


class BadQuery(Exception):
    """The text does not follow the grammar, or names a property that is not there (`name`)."""

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class Filter:
    """`$filter`: comparisons joined by `and`, `or` and brackets. Texts are compared without regard to case."""

    def __init__(self, text: str, names: Mapping[str, Any]) -> None:
        self._names = names
        self._tokens = self._scan(text)
        self._at = 0
        self.conditions = 0
        self.matches = self._any()
        if self._at < len(self._tokens):
            raise BadQuery(f"Syntax error at position {self._at} in the filter")

    def values_of(self, name: str) -> list[Any] | None:
        """The values when it is nothing but `name eq value or …`, so that an index can be used."""
        names, comparisons, texts, joints = (set(self._tokens[start::4]) for start in range(4))
        if names != {name} or comparisons != {"eq"} or not joints <= {"or"}:
            return None
        return [literal(text) for text in texts]

    @staticmethod
    def _scan(text: str) -> list[str]:
        tokens, end = [], 0
        while text[end:].strip():
            found = TOKEN.match(text, end)
            if found is None:
                raise BadQuery(f"Syntax error: character '{text[end:].strip()[0]}' is not valid at position {end}")
            tokens.append(found[0].strip())
            end = found.end()
        return tokens

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise BadQuery("Expression expected at the end of the filter")
        self._at += 1
        return self._tokens[self._at - 1]

    def _joined(self, word: str, inner: Callable[[], Callable[[Row], bool]], how: Any) -> Callable[[Row], bool]:
        parts = [inner()]
        while self._tokens[self._at : self._at + 1] == [word]:
            self._at += 1
            parts.append(inner())
        return lambda row: how(part(row) for part in parts)

    def _any(self) -> Callable[[Row], bool]:
        return self._joined("or", self._all, any)

    def _all(self) -> Callable[[Row], bool]:
        return self._joined("and", self._one, all)

    def _one(self) -> Callable[[Row], bool]:
        name = self._next()
        if name == "(":
            inner = self._any()
            if self._next() != ")":
                raise BadQuery("Closing bracket expected in the filter")
            return inner
        comparison = COMPARISONS.get(self._next())
        if comparison is None:
            raise BadQuery("A comparison is expected in the filter")
        if name not in self._names:
            raise BadQuery("unknown", name)
        wanted = folded(literal(self._next()))
        self.conditions += 1

        def matches(row: Row) -> bool:
            held = folded(row.get(name))
            if held is None or wanted is None:
                return comparison is COMPARISONS["ne"] if held is not wanted else comparison is COMPARISONS["eq"]
            return type(held) is type(wanted) and comparison(held, wanted)

        return matches


def folded(value: Any) -> Any:
    """As the database compares it: neither case nor blanks at the end count."""
    return value.rstrip(" ").casefold() if isinstance(value, str) else value


def order_of(text: str, names: Container[str]) -> list[tuple[str, bool]]:
    """`$orderby`: columns, each with whether its values fall. Raises BadQuery."""
    order = []
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"\s*(\w+)(?:\s+(asc|desc))?\s*", part)
        if found is None:
            raise BadQuery("Syntax error in the order")
        if found[1] not in names:
            raise BadQuery("unknown", found[1])
        order.append((found[1], found[2] == "desc"))
    return order


def sortable(value: Any) -> tuple[bool, Any]:
    """A key to sort a column's values by: the database puts what has no value first."""
    return value is not None, folded(value)


def literal(text: str) -> Any:
    """A value of a query or a key. Raises BadQuery."""
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    if text in LITERALS:
        return LITERALS[text]
    try:
        return int(text)
    except ValueError:
        return text  # a date, or an id


def key_of(text: str) -> tuple[str | None, str]:
    """Column and value of the key in an address, the column None for the primary key. Raises BadQuery."""
    found = re.fullmatch(r"(?:(\w+)=)?('(?:[^']|'')*'|[\w-]+)", text)
    if found is None or any(mark in RESERVED for mark in text):
        raise BadQuery("Bad Request - Error in query syntax.")
    return found[1], str(literal(found[2]))


@dataclass(frozen=True, slots=True)
class Inner:
    """A request in a batch; header names are lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)


def read_batch(content_type: str, body: bytes) -> list[Inner]:
    """The requests of a batch. Raises BadQuery; change sets are not known here."""
    if not re.match(r"multipart/mixed;\s*boundary=", content_type, re.I):
        raise BadQuery("Unsupported content type for $batch: multipart/mixed with a boundary is expected")
    batch = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    if batch.defects or not batch.is_multipart():
        raise BadQuery("The batch has no end, or no parts")
    return [_inner(part) for part in batch.walk() if part is not batch]


def _inner(part: Any) -> Inner:
    if part.get_content_type() != "application/http" or part["Content-Transfer-Encoding"] != "binary":
        raise BadQuery("Each part of a batch is application/http with a binary Content-Transfer-Encoding")
    line, _, rest = bytes(part.get_payload(decode=True)).replace(b"\r\n", b"\n").partition(b"\n")
    try:
        method, target, version = line.decode("ascii").split(" ")
    except ValueError:
        raise BadQuery("The request line of a part is invalid") from None
    if version != "HTTP/1.1":
        raise BadQuery("The request line of a part is invalid")
    head, _, body = rest.partition(b"\n\n")
    headers = {name.lower(): str(value) for name, value in message_from_bytes(head).items()}
    return Inner(method, target, headers, body.strip())


def write_batch(replies: list[tuple[int, Mapping[str, str], Any]]) -> tuple[str, bytes]:
    """Content-Type and body of the answers: status, headers, document or None."""
    boundary = f"batchresponse_{uuid4()}"
    parts = []
    for status, headers, document in replies:
        lines = [f"HTTP/1.1 {status} {'OK' if status < 400 else 'Error'}", "OData-Version: 4.0"]
        if document is not None:
            lines.append("Content-Type: application/json; odata.metadata=minimal")
        lines += [f"{name}: {value}" for name, value in headers.items() if name != "OData-Version"]
        body = b"" if document is None else orjson.dumps(document)
        opening = f"--{boundary}\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        parts.append(opening.encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + body + b"\r\n")
    return f"multipart/mixed; boundary={boundary}", b"".join(parts) + f"--{boundary}--\r\n".encode()
