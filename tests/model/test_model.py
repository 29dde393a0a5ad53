"""The protocol as designed keeps its promises in random histories; without one of its rules it does not."""

from __future__ import annotations

import pytest

from tests.model.protocol import RULES
from tests.model.walk import walk

HISTORIES = 600
PART = 100
# Of each rule the seed of a history that breaks a promise without it (`python -m tests.model 8000 --without RULE`).
TELLING = {
    "safe_bound": 4, "bound_before_read": 0, "half_open": 4, "sequence_with_read": 137, "one_snapshot": 350,
    "attempt": 312, "sequence": 0, "claim_first": 29, "doubt": 15, "overtaken_if_delivered": 3, "reread_claimed": 0,
    "unchanged_sequence": 1826, "own_claim": 1532, "refused_in_doubt": 5, "resend": 4, "resend_leaves_doubt": 735,
    "resend_rereads": 535, "resend_fenced": 7, "fence": 7, "one_load": 16, "one_worker_per_shard": 9,
    "disjoint_shards": 4, "fence_checked": 0, "wait_out": 25, "wait_out_siblings": 11, "mark_per_sender": 66,
    "unanswered": 42, "all_loads": 0, "left_stays": 12, "own_upper": 0, "greatest": 10, "only_runs": 3, "park": 0,
    "sit_out": 0, "probe": 0, "parked_stays": 0, "own_lower": 0, "slice_bound": 189, "resolve_by_newer": 337,
    "renew_by_newer": 152, "unmapped_compared": 9, "unrouted_resolves": 1, "replay_rereads": 16, "recover_newest": 65,
    "recover_sequence": 7, "recover_in_doubt": 11, "skipped_reported": 211, "repair_rereads": 0,
    "ledger_compared": 287, "repair_resends": 7,
}  # fmt: skip


@pytest.mark.parametrize("first", range(0, HISTORIES, PART))
def test_no_history_breaks_a_promise(first: int) -> None:
    broken = {seed: str(violation) for seed in range(first, first + PART) if (violation := walk(seed))}
    assert broken == {}


@pytest.mark.parametrize("rule", RULES)
def test_without_the_rule_a_promise_is_broken(rule: str) -> None:
    seed = TELLING[rule]
    assert walk(seed) is None
    assert walk(seed, [rule]) is not None


def test_a_history_can_be_told_again() -> None:
    logs: list[list[str]] = [[], []]
    for log in logs:
        walk(0, [], log)
    assert logs[0] == logs[1]
    assert len(logs[0]) > 100
