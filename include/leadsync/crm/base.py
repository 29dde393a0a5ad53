"""What a CRM adapter is. A new CRM is one module beside this one, and one test: see docs/adding-a-crm.md."""

from __future__ import annotations

import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from leadsync.config import Destination
from leadsync.crm.http import HTTPClient, Reply, RequestFailed
from leadsync.errors import AccessError, QuotaExceeded
from leadsync.models import Lead, Outcome, Record, Status

# Burst throttling up to so many seconds is waited out; a longer one goes back to the retry queue.
LONGEST_WAIT = 10.0
TRIES = 3
TRANSIENT_STATUS = {408, 423, 425, 429, 500, 502, 503, 504}
EXCERPT = 200


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the Airflow connection says: address without trailing slash, credentials, extra settings."""

    url: str
    login: str = ""
    password: str = field(default="", repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Settings(BaseModel):
    """`settings` of a destination that every adapter knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connect_timeout: float = Field(5.0, gt=0, description="seconds")
    read_timeout: float = Field(30.0, gt=0, description="seconds without a byte of the reply")
    requests_per_second: float | None = Field(None, gt=0, description="of one load; as the vendor publishes if empty")


class BatchRefused(Exception):
    """The CRM refused a batch as a whole because of some lead in it: `deliver` halves it until that stands alone."""

    def __init__(self, code: str, where: str | None = None, message: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.where = where
        self.message = message


class CRMAdapter(ABC):
    """One destination's CRM. Thread-safe: several batches are under way at once."""

    name: ClassVar[str]
    max_batch: ClassVar[int]
    requests_per_second: ClassVar[float] = math.inf
    delete_modes: ClassVar[frozenset[str]]
    settings_model: ClassVar[type[Settings]] = Settings

    def __init__(self, destination: Destination, endpoint: Endpoint) -> None:
        self.destination = destination
        self.endpoint = endpoint
        self.settings = self.settings_model.model_validate(destination.settings)
        # Asked before every request; raises when nothing more may be sent.
        self.before_request: Callable[[], None] = lambda: None
        self._client = HTTPClient(
            connections=destination.in_flight,
            connect_timeout=self.settings.connect_timeout,
            read_timeout=self.settings.read_timeout,
            per_second=self.settings.requests_per_second or self.requests_per_second,
        )

    # What each CRM does its own way ----------------------------------------------------------------------------

    @abstractmethod
    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        """Creates or updates at most `max_batch` leads by external id; an outcome for each, in any order."""

    @abstractmethod
    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        """Deletes (or archives) at most `max_batch` leads; one that is not there is DELETED too."""

    @abstractmethod
    def fetch(self, external_ids: Sequence[str]) -> dict[str, Record]:
        """The live records with these external ids."""

    @abstractmethod
    def check(self) -> None:
        """Raises AccessError, with the remedy, when credentials, object or a mapped field are not right."""

    @abstractmethod
    def authorization(self, refused: str | None = None) -> str | None:
        """The Authorization header; another one than `refused`, which got a 401, or None where there is none."""

    def base_url(self) -> str:
        """Where the API is."""
        return self.endpoint.url

    def spent_quota(self, reply: Reply) -> QuotaExceeded | None:
        """The error to raise when this reply says that a daily quota is spent."""
        return None

    # What all do the same way ----------------------------------------------------------------------------------

    @property
    def longest_request(self) -> float:
        """Seconds that one request may at most be under way."""
        return self._client.longest_request

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()

    @final
    def deliver(self, leads: Sequence[Lead], *, delete: bool = False) -> list[Outcome]:
        """One outcome per lead, in order; each external id at most once.

        Raises AccessError, QuotaExceeded, or what `before_request` raises. All else is an outcome.
        """
        places = {lead.external_id: place for place, lead in enumerate(leads)}
        if len(places) != len(leads):
            raise ValueError("one external id twice in one delivery")
        found: dict[str, Outcome] = {}
        for first in range(0, len(leads), self.max_batch):
            for outcome in self._batch(leads[first : first + self.max_batch], delete):
                found[outcome.external_id] = outcome
        missing = Outcome("", Status.TRANSIENT, code="missing_from_reply")
        return [found.get(lead.external_id) or replace(missing, external_id=lead.external_id) for lead in leads]

    def _batch(self, leads: Sequence[Lead], delete: bool) -> list[Outcome]:
        try:
            return self.delete(leads) if delete else self.upsert(leads)
        except BatchRefused as refusal:
            if len(leads) > 1:
                middle = len(leads) // 2
                return self._batch(leads[:middle], delete) + self._batch(leads[middle:], delete)
            why = Outcome(leads[0].external_id, Status.REJECTED, None, refusal.code, refusal.where, refusal.message)
            return [why]
        except RequestFailed as failure:
            message = masked(failure.excerpt, leads) if failure.excerpt is not None else None
            return [
                Outcome(
                    lead.external_id,
                    Status.TRANSIENT,
                    code=failure.code,
                    message=message,
                    sent=failure.sent,
                    retry_after=failure.retry_after,
                )
                for lead in leads
            ]

    @final
    def call(self, method: str, path: str, body: Any = None, params: Mapping[str, str] | None = None) -> Reply:
        """One API call with credentials. A 401 is answered by one new login; short throttling is waited out (what
        was throttled was not processed). Raises AccessError, QuotaExceeded, RequestFailed; other statuses return.
        """
        data = None if body is None else orjson.dumps(body)
        renewed, tries = False, 0
        authorization = self.authorization()
        while True:
            self.before_request()
            headers = {"Accept": "application/json", "Authorization": authorization or ""}
            if data is not None:
                headers["Content-Type"] = "application/json"
            reply = self._client.request(method, self.base_url() + path, headers=headers, params=params, body=data)
            if reply.status == 401:
                authorization = None if renewed else self.authorization(refused=authorization)
                if authorization is None:
                    raise AccessError(f"{self.destination.name}: the CRM refuses the credentials of {self.hint}")
                renewed = True
                continue
            spent = self.spent_quota(reply)
            if spent is not None:
                raise spent
            if reply.status == 429 and tries + 1 < TRIES:
                pause = reply.retry_after if reply.retry_after is not None else 0.5 * 2**tries
                if pause <= LONGEST_WAIT:
                    time.sleep(pause)
                    tries += 1
                    continue
            if reply.status in TRANSIENT_STATUS or reply.status > 504:
                raise RequestFailed(str(reply.status), retry_after=reply.retry_after)
            if reply.status == 403:
                raise AccessError(f"{self.destination.name}: the CRM forbids this to the user of {self.hint}")
            return reply

    @property
    def hint(self) -> str:
        """Where a person mends the credentials."""
        return f"connection {self.destination.conn_id}"


def masked(text: str, leads: Sequence[Lead]) -> str:
    """The beginning of a reply without what may be personal: values of these leads, e-mail addresses, numbers."""
    values = {str(value) for lead in leads for value in lead.fields.values() if value is not None}
    for value in sorted((value for value in values if len(value) >= 3), key=len, reverse=True):
        text = text.replace(value, "•••")
    text = re.sub(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", "•••", text)
    return re.sub(r"\d[\d ()/-]{2,}\d", "•••", text)[:EXCERPT]
