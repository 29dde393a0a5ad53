"""Rules of the product, each broken on purpose: the suite has to notice. Applied in a worker."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from leadsync.source import Bound, LeadStore
from leadsync.state import fence, ledger


def bound_is_now() -> None:
    """The window ends at the clock instead of the safe bound."""

    def bound(self: LeadStore) -> Bound:
        return Bound(self._one("SELECT clock_timestamp()"))

    LeadStore.bound = bound  # type: ignore[method-assign]


def hash_is_kept() -> None:
    """Claiming leaves the hash, as if the lead were not in doubt."""
    ledger.CLAIM = ledger.CLAIM.replace(
        "digest = CASE WHEN d.digest = k.digest AND NOT %(resend)s THEN d.digest END", "digest = d.digest"
    )


def nothing_is_waited_out() -> None:
    """Whoever takes over from a dead sender starts at once."""
    fence.BUSY_FOR = "SELECT 0 WHERE %(destination)s IS NULL AND %(longest)s IS NULL"
    fence.IS_BUSY = "SELECT false WHERE %(destination)s = %(destination)s"


def nothing_is_fenced() -> None:
    """Loads of one destination run side by side, and nobody waits for anybody."""
    nothing_is_waited_out()

    @contextmanager
    def free(*_: Any, **__: Any) -> Any:
        yield

    fence._lock = free
    fence._join = lambda *_: True


def sequence_is_ignored() -> None:
    """A lower sequence is sent after a higher one was claimed."""
    ledger.CLAIM = ledger.CLAIM.replace("CASE WHEN d.sequence", "CASE WHEN 0")
    ledger.CLAIM = ledger.CLAIM.replace("AND d.sequence <= %(sequence)s", "")


def unchanged_keeps_its_sequence() -> None:
    """An unchanged lead's sequence is not written."""
    ledger.CLAIM = ledger.CLAIM.replace(
        "AND d.sequence <= %(sequence)s", "AND d.sequence <= %(sequence)s AND d.digest IS DISTINCT FROM k.digest"
    )
    ledger.CLAIM = ledger.CLAIM.replace("'missed', NULL, NULL\n WHERE", "'missed', NULL, NULL\n WHERE false AND")


def overtaken_by_doubt() -> None:
    """A lead counts as overtaken also when the newer state is in doubt."""
    plain = ledger.claim

    def claim(*positional: Any, **named: Any) -> ledger.Claims:
        claims = plain(*positional, **named)
        return ledger.Claims(claims.unchanged, claims.overtaken | claims.in_doubt, set(), claims.crm_ids)

    ledger.claim = claim


RULES: dict[str, Callable[[], None]] = {
    rule.__name__: rule
    for rule in (
        bound_is_now, hash_is_kept, nothing_is_waited_out, nothing_is_fenced, sequence_is_ignored,
        unchanged_keeps_its_sequence, overtaken_by_doubt,
    )
}  # fmt: skip
