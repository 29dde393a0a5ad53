"""How Odoo writes values and external ids."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote


def encoded(external_id: str) -> str:
    """The part of a record's external id that is after the module; no two external ids have the same."""
    # Odoo refuses spaces only. The rest would pass, but the first dot ends the module.
    return quote(external_id, safe=":").replace(".", "%2E")


def cell(kind: str, value: Any) -> str:
    """A value as `load` reads it: texts only, and an empty one clears."""
    if value is None:
        return ""
    if kind == "boolean":
        return {"True": "1", "False": "0", "t": "1", "f": "0"}.get(str(value), str(value))
    return _moment(value) if kind == "datetime" else str(value)


def _moment(value: Any) -> str:
    """Odoo's way of writing a time, in UTC; what is no time is left for Odoo to refuse."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return str(value)
    return (moment.astimezone(UTC) if moment.tzinfo else moment).strftime("%Y-%m-%d %H:%M:%S")


def held(kind: str, value: Any) -> Any:
    """A value that was read, with no value as None."""
    if kind == "boolean":
        return value
    if value is False or value is None:
        return None
    if kind == "many2one":
        return value[1] if isinstance(value, list) and len(value) > 1 else value
    return f"{value}+00:00" if kind == "datetime" else value
