"""What alerts say of times and limits."""

from __future__ import annotations

import pytest

from leadsync import conditions
from leadsync.conditions import Stands


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (89, "89 s"), (90, "2 min"), (7_140, "119 min"), (7_199, "2 h 0 min"), (9_000, "2 h 30 min"),
        (172_700, "47 h 58 min"), (172_799, "2 d 0 h"), (100 * 86_400 + 7_200, "100 d 2 h"),
    ],
)  # fmt: skip
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert conditions.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "stands"),
    [(10, Stands.WRONG), (9.9, Stands.BETWEEN), (8, Stands.BETWEEN), (7.9, Stands.WELL), (0, Stands.WELL)],
)
def test_a_number_is_well_only_by_a_fifth(value: float, stands: Stands) -> None:
    assert conditions._above(value, 10) is stands


@pytest.mark.parametrize(
    ("quotas", "stands"),
    [
        ([(9, 100)], Stands.WRONG), ([(10, 100)], Stands.BETWEEN), ([(12, 100)], Stands.BETWEEN),
        ([(13, 100)], Stands.WELL), ([(90, 100), (-1, 100)], Stands.WRONG), ([], Stands.UNKNOWN),
    ],
)  # fmt: skip
def test_the_scarcest_quota_counts(quotas: list[tuple[int, int]], stands: Stands) -> None:
    assert conditions._quota(quotas, 0.1)[0] is stands
