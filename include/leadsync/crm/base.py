"""What an adapter is. A CRM is one file beside this one, with one subclass of `CRMAdapter`; `registry` finds it."""

from __future__ import annotations

import html
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar, TypeVar, final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leadsync.budget import Account, Budget, Limit, account_key, rate
from leadsync.config import Destination
from leadsync.crm import values
from leadsync.crm.access import Access, Credentials, StaticToken
from leadsync.crm.http import HTTPClient, Reply, RequestFailed
from leadsync.crm.login import Login
from leadsync.crm.pacing import Pacer
from leadsync.crm.tokens import SharedToken, TokenStore
from leadsync.errors import AccessError, ConfigError, FailNow, LeadsyncError
from leadsync.metering import Meter, Quota
from leadsync.models import Lead, Outcome, Record, Status

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of objects and fields: safe in an address and in a query
EXCERPT = 200  # characters of a reply that makes no sense that are kept
# E-mail addresses and runs of digits. What stands before the @ has 64 characters at most: a text without one then takes
# time by its length and not by the square of it.
PRIVATE = r"[^\s@\"'<>:,;()]{1,64}@[^\s@\"'<>:,;()]+|\d{4,}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the Airflow connection of a destination says. `url` is the base address; slashes at its end are dropped."""

    url: str
    login: str = ""
    password: str = field(default="", repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))


class Settings(BaseModel):
    """The settings that every adapter knows; an adapter's own come in a subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connect_timeout: float = Field(5, gt=0, le=60, description="seconds to wait for a connection")
    read_timeout: float = Field(30, gt=0, le=600, description="seconds to wait for an answer")
    requests_per_second: float | None = Field(None, gt=0, description="instead of the limits of up to a minute")
    requests_per_day: int | None = Field(None, gt=0, description="instead of the longer limits, in any 24 hours")
    # The account's other users (people's own tools, other integrations) count against the same limits. A twentieth
    # lets them log in and work, and is hardly missed; 0 for an account that is Leadsync's alone.
    reserve: float = Field(0.05, ge=0, lt=1, description="share of each limit that is left for others")

    def limits(self, published: Sequence[Limit]) -> list[Limit]:
        """The vendor's limits with those replaced that a setting stands for."""
        limits = list(published)
        if self.requests_per_second is not None:
            limits = [limit for limit in limits if not limit.spaced] + [Limit(self.requests_per_second, 1)]
        if self.requests_per_day is not None:
            limits = [limit for limit in limits if limit.spaced] + [Limit(self.requests_per_day, 86_400)]
        return limits


class BatchRefused(FailNow):
    """The CRM refused a batch as a whole because of data in it: `deliver` halves it until the bad lead stands alone."""

    def __init__(self, code: str, *, field: str | None = None, message: str | None = None) -> None:
        super().__init__(f"the CRM refused the request ({code})")
        self.code = code
        self.field = field
        self.message = message


class CRMAdapter(ABC):
    """One kind of CRM, made for one destination. Thread-safe.

    `upsert` and `delete` take one batch (see `batch_size`) of different leads and return at most one outcome per lead,
    for every lead that the reply speaks of; they raise BatchRefused and RequestFailed. Use `deliver`, which makes them
    whole.
    """

    name: ClassVar[str]  # as the pipeline file says in `adapter`; also the module's name
    label: ClassVar[str]  # the vendor's name
    needs_crm_id: ClassVar[bool] = False  # whether it makes use of Lead.crm_id
    max_batch: int  # leads in one request; of the class, unless the destination's settings say it
    limits: ClassVar[tuple[Limit, ...]]  # of an account, as the vendor publishes them
    delete_modes: ClassVar[frozenset[str]]
    settings_model: ClassVar[type[Settings]] = Settings
    # A destination in YAML, as a pipeline file has it, over the shipped pipeline's columns: the documentation shows
    # it, and the contract suite uses it.
    example: ClassVar[str]
    before_request: Callable[[], None]  # asked before every request; raises when nothing more may be sent

    def __init__(
        self,
        destination: Destination,
        endpoint: Endpoint,
        *,
        before_request: Callable[[], None] = lambda: None,
        budget: Budget | None = None,
        tokens: TokenStore | None = None,
    ) -> None:
        """Without a `budget` that all share, requests are paced for this adapter alone; without `tokens` it logs in by
        itself.

        Raises ConfigError when the settings or the address are wrong. Connects to nothing.
        """
        settings = validated_settings(type(self), destination)
        address = urlsplit(endpoint.url)
        if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
            raise ConfigError(f"connection {destination.conn_id}: the address must look like https://host")
        self.destination = destination
        self.endpoint = endpoint
        self.settings: Any = settings
        self.before_request = before_request
        self.who = f"{self.label} (connection {destination.conn_id})"
        self.meter = Meter(self.quota_left)
        limits = settings.limits(self.limits)
        account = None
        if budget is not None:
            key = account_key(endpoint.url, endpoint.login, endpoint.password)
            account = Account(budget, self.who, key, limits, settings.reserve, lambda: self.before_request())
        self.http = HTTPClient(
            self.who,
            pace=account or Pacer(rate(limits, settings.reserve)),
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            before_request=lambda: self.before_request(),
            explain=self.explain,
            translate=self.translate,
            observe=self.meter.request,
        )
        if account is not None:
            self.http.throttled, self.http.sleep = account.throttled, account.sleep
        self.credentials = self.make_credentials()
        if tokens is not None and isinstance(self.credentials, Login):
            # All that a login may depend on: a token of another user, or of an older password, is not this account's.
            own = settings.model_dump(mode="json", exclude=set(Settings.model_fields))
            of = [self.name, endpoint.url, endpoint.login, endpoint.password, dict(endpoint.extra), own]
            account_name = json.dumps(of, sort_keys=True, default=str)
            shared = SharedToken(tokens, self.who, account_name, lambda seconds: self.http.sleep(seconds))
            self.credentials.token = shared.get

    @property
    def longest_request(self) -> float:
        """Seconds that one request may be under way at most; see `HTTPClient.longest_request`."""
        return self.http.longest_request

    def batch_size(self, count: int, *, delete: bool) -> int:
        """Leads that `upsert` or `delete` is best handed at once when there are `count` of them to send."""
        return self.max_batch

    @property
    def at_work(self) -> bool:
        """Whether the CRM may still be at work on leads that it was handed, although no request is under way."""
        return False

    def end_work(self) -> bool:
        """Ends such work: this adapter's, or where it knows of none, what an earlier one left behind.

        Returns whether records may still change for as long as a request may take (`longest_request`); later none
        does. Raises Unavailable, AccessError or QuotaExceeded when it can't be ended now.
        """
        return False

    @abstractmethod
    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        """Creates or updates the records of at most `batch_size` leads by external id, in one request or a few."""

    @abstractmethod
    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        """Deletes the records of at most `batch_size` leads; one that is not there counts as deleted."""

    @abstractmethod
    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        """The live records of every id asked for, with `fields_read`: none where the CRM surely has none.

        Any number of different ids. More than one record where the external id is doubled and the CRM tells. Raises
        RequestFailed when the reply leaves an id in the open, Unavailable, AccessError, QuotaExceeded and BatchRefused.
        """

    def fetch_known(self, crm_ids: Mapping[str, str | None]) -> dict[str, list[Record]]:
        """As `fetch`, of external ids with the CRM's id of the record where an earlier delivery learnt it.

        For a CRM that keeps some of its records from a look-up by external id.
        """
        return self.fetch(list(crm_ids))

    @abstractmethod
    def check(self) -> None:
        """Raises AccessError when credentials, object or fields are not as the destination needs them."""

    def same(self, name: str, sent: Any, held: Any) -> bool:
        """Whether the field `name` holds what was sent, the CRM's own way of writing it set aside."""
        return values.same(sent, held)

    @property
    def fields_read(self) -> list[str]:
        """The fields that `fetch` reads back: the destination's, and the one that marks a deleted lead."""
        target = self.destination
        return list(dict.fromkeys(filter(None, [*target.fields, target.on_delete.field])))

    def left_out(self) -> RequestFailed:
        """The failure to raise when a reply does not speak of every record that was asked for."""
        return RequestFailed(f"{self.who} left records out of its reply", "missing_from_reply")

    def translate(self, reply: Reply) -> Reply:
        """The reply with the status that it deserves: override it where the vendor tells errors in a 200.

        401 then means that the token has ended, 429 that the vendor throttles; `explain` is asked as for any error.
        """
        return reply

    def explain(self, reply: Reply) -> LeadsyncError | None:
        """What an error reply means where the vendor differs from HTTP's general rules."""
        return self.missing("404", self.destination.object) if reply.status == 404 else None

    def quota_left(self, headers: Mapping[str, str]) -> Quota | None:
        """What a reply's headers (case-insensitive) tell of the account's longer limit; None where they do not."""
        return None

    def make_credentials(self) -> Credentials:
        """By default the connection's password is a token."""
        return StaticToken(self.who, Access(self.endpoint.url, self.endpoint.password))

    def close(self) -> None:
        self.http.close()

    @final
    def deliver(self, leads: Sequence[Lead], *, delete: bool = False) -> list[Outcome]:
        """Exactly one outcome per lead, in the order of the leads.

        Raises AccessError, QuotaExceeded and FenceLost; what earlier batches did is then not told, and sending
        it again does no harm. Raises ValueError when a lead is there twice.
        """
        ids = [lead.external_id for lead in leads]
        if len(set(ids)) != len(ids):
            raise ValueError("the same external id is there twice")
        outcomes: dict[str, Outcome] = {}
        for batch in self.cut(leads, delete=delete):
            outcomes.update(self.attempt(self.delete if delete else self.upsert, batch))
        return [outcomes[external_id] for external_id in ids]

    @final
    def cut(self, leads: Sequence[T], *, delete: bool, share: float = 1.0) -> Iterator[Sequence[T]]:
        """The leads in batches as this CRM takes them, or in so large a `share` of one."""
        first = 0
        while first < len(leads):
            size = max(1, int(self.batch_size(len(leads) - first, delete=delete) * share))
            yield leads[first : first + size]
            first += size

    @final
    def attempt(self, act: Callable[[Sequence[Lead]], list[Outcome]], batch: Sequence[Lead]) -> dict[str, Outcome]:
        """Exactly one outcome per lead of one batch, by external id."""
        try:
            told = act(batch)
        except BatchRefused as refused:
            if len(batch) > 1:
                middle = len(batch) // 2
                return self.attempt(act, batch[:middle]) | self.attempt(act, batch[middle:])
            told = [
                Outcome(lead.external_id, Status.REJECTED, None, refused.code, refused.field, refused.message)
                for lead in batch
            ]
        except RequestFailed as failed:
            words = None if failed.reply is None else excerpt(failed.reply, batch)
            told = [
                Outcome(
                    lead.external_id, Status.TRANSIENT, None, failed.code, None, words, failed.sent, failed.retry_after
                )
                for lead in batch
            ]
        outcomes = {outcome.external_id: outcome for outcome in told}
        if len(outcomes) < len(told):  # a reply that contradicts itself
            twice = Counter(outcome.external_id for outcome in told)
            outcomes |= {i: Outcome(i, Status.TRANSIENT, code="malformed_reply") for i, n in twice.items() if n > 1}
        missing = "missing_from_reply"
        return {
            lead.external_id: outcomes.get(lead.external_id)
            or Outcome(lead.external_id, Status.TRANSIENT, code=missing)
            for lead in batch
        }

    def named(self, words: str) -> str | None:
        """The first of the destination's fields, its external id field or object that a CRM's message names."""
        target = self.destination
        names = [target.external_id_field, *target.fields, target.on_delete.field, target.object]
        found = [name for name in names if name and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words)]
        return max(found, key=len, default=None)

    def missing(self, code: str, name: str | None) -> AccessError:
        """The error for an object or a field that the CRM does not know."""
        what = f"{name!r}" if name else "a field or the object"
        return AccessError(
            f"{self.who} does not know or open {what} of {self.destination.object!r} ({code}): create it there, "
            f"give the account the right to it, or correct destination {self.destination.name!r}"
        )


def validated_settings(adapter: type[CRMAdapter], destination: Destination) -> Settings:
    """The destination's settings as the adapter's model. Raises ConfigError that names each wrong one."""
    try:
        return adapter.settings_model.model_validate(destination.settings, context=destination)
    except ValidationError as error:
        lines = [
            f"destinations.{destination.name}.{'.'.join(map(str, ('settings', *problem['loc'])))}: {problem['msg']}; "
            f"{adapter.label} has: {', '.join(adapter.settings_model.model_fields)}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise ConfigError("\n".join(lines)) from None


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most `size`, in order."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def excerpt(text: str, leads: Sequence[Lead]) -> str:
    """The beginning of a reply with addresses, long numbers and whatever the leads hold blotted out."""
    values = {v for lead in leads for v in lead.fields.values() if isinstance(v, str) and len(v) >= 3}
    spellings = {
        spelling
        for value in values
        for spelling in (
            value,
            html.escape(value),
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
        )
    }
    # Longest first, for a value may contain another; not letter for letter, for CRMs lower e-mail addresses.
    secret = re.compile("|".join([*map(re.escape, sorted(spellings, key=len, reverse=True)), PRIVATE]), re.IGNORECASE)
    kept, end = "", 0
    for match in secret.finditer(text):
        kept += text[end : match.start()] + "•••"
        end = match.end()
        if len(kept) >= EXCERPT:
            break
    else:
        kept += text[end:]
    return kept[:EXCERPT]
