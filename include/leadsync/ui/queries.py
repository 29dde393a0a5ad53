"""What several views share: bounded counts, pages, and where Airflow shows a run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import HTTPException, Query

from leadsync.figures import BOUND

Limit = Annotated[int, Query(ge=1, le=200)]
Id = Annotated[int, Query(ge=1, le=2**63 - 1)]

# Which DAG makes operations of a kind; the others are the pipeline's own.
DAGS = {"replay": "leadsync_replay", "recover": "leadsync_recover", "repair": "leadsync_reconcile"}


def dag_of(kind: str, pipeline: str) -> str:
    """The DAG whose run opened an operation."""
    return DAGS.get(kind, f"{pipeline}_sync")


def count(number: int) -> dict[str, Any]:
    """A bounded count; `more` says that there are more than it tells."""
    return {"count": min(number, BOUND), "more": number > BOUND}


def mark(*parts: Any) -> str:
    """The place after which the next page begins."""
    return "~".join(part.isoformat() if isinstance(part, datetime) else str(part) for part in parts)


def place(text: str | None, kinds: Sequence[type]) -> list[Any] | None:
    """What `mark` made; 422 for anything else."""
    if text is None:
        return None
    parts = text.split("~")
    try:
        if len(parts) != len(kinds):
            raise ValueError
        found = [
            datetime.fromisoformat(part) if kind is datetime else kind(part)
            for part, kind in zip(parts, kinds, strict=True)
        ]
        if any(isinstance(part, datetime) and part.tzinfo is None for part in found):
            raise ValueError
        if any(isinstance(part, int) and not 0 <= part < 2**63 for part in found):
            raise ValueError
    except ValueError:
        raise HTTPException(422, "before: not a place that a page was left at") from None
    return found
