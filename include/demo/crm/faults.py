"""Faults that can be switched on over HTTP, for the vendor's API only. They live in memory: a restart clears them."""

from __future__ import annotations

import random
import time
import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Chance(_Model):
    """How often: the `next` so many requests, or the share `rate` of all."""

    next: int | None = Field(None, ge=1)
    rate: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.next is None) == (self.rate is None):
            raise ValueError("give either `next` or `rate`")
        return self


class TooMany(Chance):
    retry_after: float | None = Field(None, ge=0)


class ServerError(Chance):
    status: int = Field(503, ge=500, le=599)


class FailJob(Chance):
    message: str = "InternalServerError : Refused by a fault of the simulator"


class Reject(_Model):
    external_ids: list[str] = []
    rate: float = Field(0.0, ge=0, le=1)
    message: str = "Refused by a fault of the simulator"


class RateLimit(_Model):
    requests: int = Field(190, ge=1)
    seconds: float = Field(10.0, gt=0)


def _fault(about: str, example: Any) -> Any:
    return Field(None, description=about, examples=[example])


class Faults(_Model):
    """The active faults; None is off."""

    latency: float | None = Field(None, ge=0, description="seconds before each request is handled", examples=[1.5])
    too_many: TooMany | None = _fault(
        "429, nothing is changed; `retry_after` in seconds, null for no such header", {"rate": 0.5, "retry_after": 1}
    )
    server_error: ServerError | None = _fault("5xx, nothing is changed", {"rate": 0.3, "status": 503})
    lose_reply: Chance | None = _fault(
        "the change is made, then the connection is closed without a reply; counts requests that change something",
        {"next": 1},
    )
    malformed: Chance | None = _fault(
        "the change is made, the reply is HTML; counts requests that change something", {"next": 1}
    )
    half_page: Chance | None = _fault(
        "a reading by several ids, or of a job's results, is answered with half of what was found and not a word of the"
        " rest",
        {"next": 1},
    )
    half_results: Chance | None = _fault(
        "a change of several records is made, and the reply tells of half of them; counts requests of several",
        {"next": 1},
    )
    conflict: Chance | None = _fault(
        "a record is refused in the vendor's words, for another transaction is at it; counts records, or requests where"
        " the vendor has no such words for a single one",
        {"next": 1},
    )
    proxy_page: int | None = Field(
        None, ge=200, le=599, description="a proxy answers every request with a page of this status", examples=[403]
    )
    double: Chance | None = _fault(
        "Salesforce: a second record is made although one is there, as two upserts at once do where the external id is"
        " not unique; counts records",
        {"next": 1},
    )
    slow_job: float | None = Field(
        None,
        ge=0,
        description="Salesforce: seconds that a bulk job waits before its first half, and as many before the second; "
        "counts for jobs that are closed while this is on",
        examples=[5],
    )
    fail_job: FailJob | None = _fault(
        "Salesforce: a bulk job fails after its first half", {"next": 1, "message": "TooManyLockFailure : 200"}
    )
    reject: Reject | None = _fault(
        "records are refused as invalid: those named, or a share of all (always the same ones)", {"rate": 0.05}
    )
    whole_batch: bool | None = _fault("one bad record refuses its whole batch with 400", True)
    rate_limit: RateLimit | None = _fault(
        "429 above so many requests in a rolling window", {"requests": 190, "seconds": 10}
    )
    quota_spent: bool | None = _fault("the daily limit is spent", True)
    expire_tokens: bool | None = _fault(
        "Salesforce: all tokens end now, a new login helps; HubSpot: its token is refused while this is on", True
    )
    search_lag: float | None = Field(
        None, ge=0, description="Pipedrive: seconds until the search knows of a record that was made or deleted",
        examples=[5],
    )  # fmt: skip
    down: bool | None = _fault("connections are accepted and closed at once, without a reply", True)


def half_told(document: Any) -> Any | None:
    """The document without the first half of the list that it holds; None where it holds none of several."""
    if isinstance(document, list):
        return document[len(document) // 2 :] if len(document) > 1 else None
    if isinstance(document, dict):
        for name, value in document.items():
            if (half := half_told(value)) is not None:
                return {**document, name: half}
    return None


class FaultBox:
    """The faults of one simulator. `base` is on from the start and whenever a request does not name it."""

    def __init__(self, base: Mapping[str, Any] | None = None) -> None:
        self._base = dict(base or {})
        self._random = random.Random(0)  # noqa: S311 - chance, not secrecy; seeded, so that a run can be repeated
        self._window: deque[float] = deque()
        self.set({})

    def set(self, faults: Mapping[str, Any]) -> None:
        """Replaces them. Raises pydantic.ValidationError."""
        self.active = Faults.model_validate({**self._base, **faults})
        self._random.seed(0)
        self._window.clear()

    def document(self) -> dict[str, Any]:
        """What is on, as it could be sent back."""
        active = self.active.model_dump(exclude_none=True, exclude_unset=True)
        return {name: value for name, value in active.items() if value is not False}

    def strikes(self, name: str) -> bool:
        """Whether the fault is due for this request; counts `next` down."""
        chance: Chance | None = getattr(self.active, name)
        if chance is None:
            return False
        if chance.next is None:
            return self._random.random() < (chance.rate or 0)
        chance.next -= 1
        if chance.next == 0:
            setattr(self.active, name, None)
        return True

    def admits(self) -> bool:
        """Whether the rolling window has room for this request."""
        limit = self.active.rate_limit
        if limit is None:
            return True
        if self.window_left() == 0:
            return False
        self._window.append(time.monotonic())
        return True

    def window_left(self) -> int:
        """Requests that the rolling window still takes; 0 also without a limit."""
        limit = self.active.rate_limit
        if limit is None:
            return 0
        while self._window and self._window[0] <= time.monotonic() - limit.seconds:
            self._window.popleft()
        return limit.requests - len(self._window)

    def rejects(self, external_id: str | None) -> str | None:
        """Why this record is refused, or None."""
        reject = self.active.reject
        if reject is None:
            return None
        share = zlib.crc32((external_id or "").encode()) / 2**32
        return reject.message if external_id in reject.external_ids or share < reject.rate else None
