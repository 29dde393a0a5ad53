"""How old a change is when a CRM has accepted it.

Measured from the row's watermark column, as the lead store stamped it, to the CRM's reply by this process's clock. With
`now()` as the stamp that is the start of the transaction that made the change: what it took to commit is part of it. A
lead that changed twice before it was read counts once, from its last change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from math import isfinite
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from leadsync.config import Source
from leadsync.metering import Meter
from leadsync.models import Outcome, Status

# Of larger batches every n-th lead stands for its neighbours: they were accepted at once, and were read together.
MOST_MEASURED = 5
ACCEPTED = frozenset({Status.CREATED, Status.UPDATED, Status.DELETED})


class Freshness:
    """Measures for one load."""

    def __init__(self, source: Source, meter: Meter) -> None:
        self._column = source.columns.index(source.watermark)
        self._moment = _reader(source)
        self._meter = meter

    def accepted(self, line: Callable[[int], str], outcomes: Sequence[Outcome], at: float) -> None:
        """The CRM has answered for a batch of leads, whose COPY lines `line` gives by their place, at this time (in
        seconds since 1970).
        """
        step = max(1, -(-len(outcomes) // MOST_MEASURED))
        for first in range(0, len(outcomes), step):
            if outcomes[first].status not in ACCEPTED:
                continue
            # Nothing in a time has to be escaped, so a tab is always the end of a field.
            changed = self._moment(line(first).split("\t", self._column + 1)[self._column])
            if changed is not None and isfinite(changed):
                self._meter.observe("freshness", max(0.0, at - changed), min(step, len(outcomes) - first))


def _reader(source: Source) -> Callable[[str], float | None]:
    """Reads a value of the watermark column, as COPY writes it, as seconds since 1970; None for what is no time."""
    kind = source.watermark_kind

    def read(text: str) -> float | None:
        try:
            if kind in ("epoch_s", "epoch_ms"):
                return float(text) / (1000 if kind == "epoch_ms" else 1)
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(source.timezone))).timestamp()
        # NULL, infinity, a year of six digits; a zone that only PostgreSQL knows by this name.
        except (ValueError, OverflowError, ZoneInfoNotFoundError):
            return None

    return read
