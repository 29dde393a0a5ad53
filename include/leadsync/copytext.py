"""PostgreSQL's COPY text format: the form in which leads travel from the lead store through the snapshot.

A line is one row: tab between fields, backslash escapes, `\\N` for NULL. Values stay PostgreSQL's own text, so
jsonb and timestamps are never decoded on the way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_MEANING = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}


def _unescape(value: str) -> str:
    return _ESCAPED.sub(lambda match: _MEANING.get(match[1], match[1]), value)


def parse_line(line: str) -> list[str | None]:
    """The fields of one line (without its newline)."""
    fields = line.split("\t")
    if "\\" not in line:
        return fields  # type: ignore[return-value]  # no NULL without a backslash
    return [None if field == "\\N" else _unescape(field) if "\\" in field else field for field in fields]


def parse_columns(lines: Sequence[str]) -> list[Sequence[str | None]]:
    """The columns of some lines (at least one): as `parse_line` of each, for a fraction of the time."""
    width = lines[0].count("\t") + 1
    fields = "\t".join(lines).split("\t")
    if len(fields) != width * len(lines):
        raise ValueError("the lines differ in their number of fields")
    columns = [fields[place::width] for place in range(width)]
    return [
        [None if value == "\\N" else _unescape(value) if "\\" in value else value for value in column]
        if "\\" in "".join(column)
        else column
        for column in columns
    ]


def escape(value: str | None) -> str:
    """One field as COPY text writes it."""
    if value is None:
        return "\\N"
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
