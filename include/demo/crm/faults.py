"""Faults that can be switched on over HTTP, for the vendor's API only."""

from __future__ import annotations

import random
import threading
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Chance(_Model):
    """How often: the next so many requests, or a share of all."""

    next: int = Field(0, ge=0)
    rate: float = Field(0.0, ge=0, le=1)
    retry_after: float | None = Field(None, description="seconds, with `too_many`")
    status: int = Field(503, ge=500, le=599, description="with `server_error`")


class Reject(_Model):
    """Records that the CRM refuses as invalid."""

    external_ids: list[str] = []
    rate: float = Field(0.0, ge=0, le=1)
    message: str = "refused by a fault"


class Faults(_Model):
    """The active faults."""

    latency: float = Field(0.0, ge=0, description="seconds before each reply")
    too_many: Chance | None = Field(None, description="429, not processed")
    server_error: Chance | None = Field(None, description="5xx, not processed")
    lose_reply: Chance | None = Field(None, description="the change is made, the connection closed without a reply")
    malformed: Chance | None = Field(None, description="the change is made, the reply is no JSON")
    reject: Reject | None = Field(None, description="some records are refused")
    down: bool = Field(False, description="connections are closed at once")
    expire_tokens: bool = Field(False, description="tokens issued so far are refused (HubSpot: while this is on)")
    quota_spent: bool = Field(False, description="the daily limit is spent")
    whole_batch: bool = Field(False, description="one bad record refuses the whole batch")


class FaultBox:
    """The faults of one simulator; counts down `next`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.active = Faults.model_validate({})

    def set(self, faults: dict[str, Any]) -> None:
        """Replaces them. Raises pydantic.ValidationError for an unknown one."""
        self.active = Faults.model_validate(faults)

    def strikes(self, name: str) -> Chance | None:
        """The fault, when it is due for this request."""
        with self._lock:
            chance: Chance | None = getattr(self.active, name)
            if chance is None:
                return None
            if chance.next > 0:
                chance.next -= 1
                if chance.next == 0 and chance.rate == 0:
                    setattr(self.active, name, None)
                return chance
            return chance if random.random() < chance.rate else None  # noqa: S311

    def rejects(self, external_id: str) -> str | None:
        """Why this record is refused, or None."""
        reject = self.active.reject
        if reject and (external_id in reject.external_ids or random.random() < reject.rate):  # noqa: S311
            return reject.message
        return None

    def take_expiry(self) -> bool:
        """Whether tokens are to expire now; once."""
        with self._lock:
            due, self.active.expire_tokens = self.active.expire_tokens, False
            return due
