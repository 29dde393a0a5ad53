"""The changes that a load sent, as the operation log keeps them: a head line, then COPY lines with a letter before.

Packed while loading, when every microsecond counts; rendered as SQL statements only when somebody reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from leadsync.config import Source
from leadsync.copytext import parse_line
from leadsync.models import Status

LETTERS = {Status.CREATED: "i", Status.UPDATED: "u", Status.DELETED: "d"}

_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")


def pack(source: Source, records: Sequence[str]) -> bytes:
    """One part: the head says what the lines mean, so that it can be read after the pipeline file has changed."""
    head = orjson.dumps({"table": source.table, "key": source.key, "columns": source.columns})
    return b"".join((head, b"\n", "".join(records).encode()))


def record(status: Status, line: str) -> str:
    """One change: what the CRM did, and the lead's COPY line without its newline."""
    return f"{LETTERS[status]}{line}\n"


def unpack(part: bytes) -> tuple[dict[str, Any], list[str]]:
    """The head of a part (`table`, `key`, `columns`) and its records, without their newlines."""
    head, _, text = part.partition(b"\n")
    return orjson.loads(head), text.decode().split("\n")[:-1]


def repack(head: Mapping[str, Any], records: Sequence[str]) -> bytes:
    """The part that `unpack` takes apart."""
    return b"".join((orjson.dumps(head), b"\n", "".join(f"{record}\n" for record in records).encode()))


def statements(part: bytes) -> Iterator[str]:
    """The changes of one part as SQL for people to read (nothing executes it), in the order of their settling."""
    meaning, records = unpack(part)
    table, columns = meaning["table"], meaning["columns"]
    places = [columns.index(name) for name in meaning["key"]]
    for line in records:
        values = [_literal(value) for value in parse_line(line[1:])]
        pairs = [f"{name}={value}" for name, value in zip(columns, values, strict=True)]
        where = " and ".join(pairs[place] for place in places)
        if line[0] == "i":
            yield f"insert into {table} ({','.join(columns)}) values ({','.join(values)})"  # noqa: S608
        elif line[0] == "u":
            rest = ",".join(pair for place, pair in enumerate(pairs) if place not in places)
            yield f"update {table} set {rest} where {where}"  # noqa: S608
        else:
            yield f"delete from {table} where {where}"  # noqa: S608


def _literal(value: str | None) -> str:
    if value is None:
        return "NULL"
    return value if _WHOLE_NUMBER.fullmatch(value) else "'" + value.replace("'", "''") + "'"
