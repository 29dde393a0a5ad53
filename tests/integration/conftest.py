"""What all integration tests share."""

from __future__ import annotations

import pytest

from leadsync.state import fence


@pytest.fixture(autouse=True)
def _dead_senders_are_not_waited_out_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes over from a sender that died waits for as long as that one may have relied on its lock."""
    monkeypatch.setattr(fence, "CHECK_SECONDS", 0.5)
