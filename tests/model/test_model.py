"""The protocol as designed keeps its promises in random histories; without one of its rules it does not."""

from __future__ import annotations

import pytest

from tests.model.walk import walk

HISTORIES = 600
PART = 100
# Rules without which one of the first histories breaks a promise. The others take thousands: `python -m tests.model`.
TELLING = (
    "safe_bound", "half_open", "bound_before_read", "claim_first", "overtaken_if_delivered", "sequence", "doubt",
    "reread_claimed",
)  # fmt: skip


@pytest.mark.parametrize("first", range(0, HISTORIES, PART))
def test_no_history_breaks_a_promise(first: int) -> None:
    broken = {seed: str(violation) for seed in range(first, first + PART) if (violation := walk(seed))}
    assert broken == {}


@pytest.mark.parametrize("rule", TELLING)
def test_without_the_rule_a_promise_is_broken(rule: str) -> None:
    assert any(walk(seed, [rule]) for seed in range(120))


def test_a_history_can_be_told_again() -> None:
    logs: list[list[str]] = [[], []]
    for log in logs:
        walk(0, [], log)
    assert logs[0] == logs[1]
    assert len(logs[0]) > 100
