"""CSV for spreadsheets, in which no cell is taken for a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# A cell that begins with one of these may be run as a formula; so may one behind white space.
DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "＝", "＋", "－", "＠")
BOM = "\ufeff"  # spreadsheets then read UTF-8
ROWS_AT_ONCE = 500


def cell(value: Any) -> Any:
    """The value as it may stand in a cell: text that looks like a formula gets an apostrophe before it."""
    if isinstance(value, str) and (value.startswith(DANGEROUS) or value.lstrip().startswith(DANGEROUS)):
        return f"'{value}"
    return value


def lines(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """The file in pieces."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    buffer.write(BOM)
    writer.writerow(head)
    for number, row in enumerate(rows, 1):
        writer.writerow([cell(value) for value in row])
        if number % ROWS_AT_ONCE == 0:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()
