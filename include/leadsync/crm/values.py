"""Values as CRMs write them, and whether one holds what it was sent, its own way of writing it set aside."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")


def same(sent: Any, held: Any, *, precision: timedelta = timedelta(milliseconds=1)) -> bool:
    """No value is an empty text; blanks around a text and the kind of its line ends do not count.

    Numbers are compared in as many decimals as are held, and times less than `precision` apart are the same; a number
    may be held as text, and a time that was sent in epoch milliseconds as a date.
    """
    sent, held = _plain(sent), _plain(held)
    if sent == held:
        return True
    if _is_number(sent) or _is_number(held):
        numbers = _number(sent), _number(held)
        if numbers[0] is not None and numbers[1] is not None:
            return _close(numbers[0], numbers[1])
    moments = _moment(sent), _moment(held)
    return moments[0] is not None and moments[1] is not None and abs(moments[0] - moments[1]) < precision


def text(value: Any) -> str:
    """A value as a text, for CRMs that take nothing else: numbers without an exponent, no value as an empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.replace("\r\n", "\n").replace("\r", "\n").strip() if isinstance(value, str) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _number(value: Any) -> Decimal | None:
    try:
        number = Decimal(str(value)) if isinstance(value, int | float | str) else None
    except InvalidOperation:
        return None
    return number if number is not None and number.is_finite() else None


def _close(sent: Decimal, held: Decimal) -> bool:
    exponent = held.normalize().as_tuple().exponent
    decimals = max(0, -exponent) if isinstance(exponent, int) else 0
    return abs(sent - held) <= Decimal("0.5").scaleb(-decimals) if sent % 1 else sent == held


def _moment(value: Any) -> datetime | None:
    try:
        if isinstance(value, str) and _MOMENT.match(value):
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo else None
        return datetime.fromtimestamp(value / 1000, UTC) if isinstance(value, int) else None
    except (ValueError, OverflowError, OSError):
        return None
