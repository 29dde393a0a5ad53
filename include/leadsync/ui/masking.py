"""What of a lead is shown to those who may not see it: names of fields, never their values."""

from __future__ import annotations

from typing import Any

import orjson

from leadsync.config import Source
from leadsync.copytext import parse_line
from leadsync.crm.base import excerpt
from leadsync.models import Lead

HIDDEN = "•••"


def fields_of(payload: bytes | None, source: Source | None) -> tuple[dict[str, Any], bool]:
    """The fields of a dead letter's payload, and whether it was to be deleted. A row that could not be mapped has the
    lead store's columns."""
    if payload is None:
        return {}, False
    content: dict[str, Any] = orjson.loads(payload)
    if "row" not in content:
        return dict(content.get("fields") or {}), bool(content.get("delete"))
    values = parse_line(content["row"])
    columns = source.columns if source and len(source.columns) == len(values) else ()
    names = columns or [f"column {number}" for number in range(1, len(values) + 1)]
    return dict(zip(names, values, strict=True)), False


def masked(fields: dict[str, Any]) -> dict[str, Any]:
    """Empty values stay to be seen as such: they are what is wrong, more often than not."""
    return {name: value if value in (None, "") else HIDDEN for name, value in fields.items()}


def masked_message(message: bytes | None, fields: dict[str, Any]) -> str | None:
    """A CRM's words without what the lead holds, addresses and long numbers."""
    if message is None:
        return None
    return excerpt(message.decode(errors="replace"), [Lead("", {name: _text(value) for name, value in fields.items()})])


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
