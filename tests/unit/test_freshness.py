"""Freshness: what counts as the time of a change, how large batches are measured, and that no value upsets a load."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.world import SHIPPED

from leadsync import metering
from leadsync.config import Source
from leadsync.freshness import Freshness
from leadsync.metering import Meter
from leadsync.models import Outcome, Status

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


class Counted(Meter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float, int]] = []

    def observe(self, what: str, seconds: float, many: int = 1) -> None:
        assert what in metering.BOUNDS
        self.told.append((seconds, many))


def measure(*values: str, status: Status = Status.UPDATED, **source: Any) -> list[tuple[float, int]]:
    meter = Counted()
    changed: Source = SHIPPED.source.model_copy(update=source)
    place = changed.columns.index(changed.watermark)
    lines = ["\t".join(["\\N"] * place + [value] + ["f"] * (len(changed.columns) - place - 1)) for value in values]
    outcomes = [Outcome(str(number), status) for number, _ in enumerate(values)]
    Freshness(changed, meter).accepted(lines.__getitem__, outcomes, AT)
    return meter.told


@pytest.mark.parametrize(
    ("value", "source", "seconds"),
    [
        ("2026-01-02 03:04:02.5+00", {}, 2.5),
        ("2026-01-02 03:04:02+00", {}, 3),
        ("2026-01-02 08:34:04+05:30", {}, 1),
        ("2026-01-02 03:04:06+00", {}, 0),  # the lead store's clock is ahead
        ("2026-01-02 11:04:00", {"watermark_kind": "timestamp", "timezone": "Asia/Shanghai"}, 5),
        (str(int(AT) - 7), {"watermark_kind": "epoch_s"}, 7),
        (str(int(AT * 1000) - 250), {"watermark_kind": "epoch_ms"}, 0.25),
    ],
)
def test_the_age_of_a_change(value: str, source: dict[str, Any], seconds: float) -> None:
    assert measure(value, **source) == [(pytest.approx(seconds), 1)]


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ("\\N", {}),
        ("infinity", {}),
        ("120000-01-01 00:00:00+00", {}),
        ("0044-03-15 00:00:00+00 BC", {}),
        ("Infinity", {"watermark_kind": "epoch_s"}),
        ("NaN", {"watermark_kind": "epoch_s"}),
        ("2026-01-02 11:04:00", {"watermark_kind": "timestamp", "timezone": "CST6CDT_OF_OURS"}),
    ],
)
def test_what_is_no_time_is_not_measured(value: str, source: dict[str, Any]) -> None:
    assert measure(value, **source) == []


@pytest.mark.parametrize("status", [Status.REJECTED, Status.TRANSIENT])
def test_what_was_not_accepted_is_not_measured(status: Status) -> None:
    assert measure("2026-01-02 03:04:02+00", status=status) == []


@pytest.mark.parametrize("count", [1, 4, 5, 6, 9, 100, 10_000])
def test_of_a_large_batch_some_stand_for_all(count: int) -> None:
    told = measure(*["2026-01-02 03:04:02+00"] * count)
    assert sum(many for _, many in told) == count
    assert len(told) <= 5
