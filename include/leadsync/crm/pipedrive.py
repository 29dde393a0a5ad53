"""Pipedrive: persons (API v2) or leads (API v1), by a custom field of type Text that holds the external id.

The connection's address is https://COMPANY.pipedrive.com; its password is the personal API token of a user who sees
all records, as an administrator does: what that user does not see would be doubled. Custom fields are named by their
40-character keys (Company settings > Data fields > Copy API key). `email` and `phone` of a person are its primary
ones; others that people added stay. A lead needs a `title`, and a `person_id` or `organization_id`. Leads have the
custom fields of deals; one that was converted into a deal is gone, and made anew when it changes again.

Pipedrive has neither batches nor an upsert, its fields are not unique, and its search shows a record some time after
it was made. So a record is taken by the id that the ledger knows, if it still holds the external id; else it is
searched, and looked for among those made in the last minutes. A delete looks for all of them, doubles too.

The account's daily tokens bound how much can be done: a new lead costs 25 (a search 20, a person 5), a change about
6. What `reserve` leaves to others is kept of them, too, where Pipedrive says how many are left.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from leadsync.budget import Limit
from leadsync.crm.access import Access, Credentials, StaticToken
from leadsync.crm.base import CRMAdapter
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.pipedrive_records import CONTACTS, KINDS, LINKS, ONE, Kind, Records
from leadsync.crm.singly import one_by_one, unfit_id, unless_gone
from leadsync.errors import AccessError, LeadsyncError, QuotaExceeded
from leadsync.metering import Quota
from leadsync.models import Lead, Outcome, Record, Status

WALK = 100  # for more external ids than these a search for each costs more tokens than a list of all records
BLOCKED = 300.0  # seconds until a token that was blocked for too many requests is worth another try
ASK_AGAIN = 3600.0  # seconds; the tokens come back at midnight, but Pipedrive does not say where
TEXTS = frozenset({"varchar", "varchar_auto", "text", "phone"})
INVALID = re.compile(r"Validation failed: (?:custom_fields\.)?(\w+)")
# From the start and twice the same name: a message may quote what a visitor typed.
NOT_ALLOWED = re.compile(
    r"Validation failed: ((?:custom_fields\.)?(\w+)): Parameter '\1' is not allowed for this request"
)


class _Error(BaseModel):
    success: Literal[False]
    error: str = ""
    code: str | None = None


ERROR = TypeAdapter(_Error)


class Pipedrive(CRMAdapter):
    name = "pipedrive"
    label = "Pipedrive"
    needs_crm_id = True
    max_batch = 20
    # Of the search, on every plan; the rest of the API takes 20 in 2 s and more, and tokens by the day.
    limits = (Limit(10, 2),)
    delete_modes = frozenset({"delete", "field"})
    example = """
adapter: pipedrive
object: persons
external_id_field: 3339fe67e9a9406d52bbdf177157fc4aa07d3d69
on_delete: delete
fields:
  name: {column: name, transform: trim, default: Unknown, max_length: 255}
  email: {column: email, transform: [trim, lower]}
  phone: {column: phone, transform: trim}
  852356669e0270244002c417b8d6fd91e363368f: {column: city, max_length: 255}
  74f9ca01f4a9298b4b1d395cae9fc6a531c6b82b: {column: appkey, max_length: 255}
  bb9ae376a71e137729aafb209b28c274c62449ad: {column: uid, transform: integer}
  9618b4aad79491791d2acfbcd66991c6d4245fd7: answers
  31df3b95cee88c2a4338f61fcb97a71506972794: update_time
"""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lock = threading.Lock()
        self._types: dict[str, str] | None = None

    def make_credentials(self) -> Credentials:
        headers = {"x-api-token": self.endpoint.password}
        return StaticToken(self.who, Access(self.endpoint.url, self.endpoint.password, headers))

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        self._require(name for lead in leads for name in lead.fields)
        there = self._records.known(leads)
        there |= self._records.look_up([lead.external_id for lead in leads if lead.external_id not in there])
        return one_by_one(self, leads, lambda lead: self._write(lead, there[lead.external_id]))

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        self._require()
        there = self._records.look_up([lead.external_id for lead in leads])
        for external_id, records in self._records.known(leads).items():
            there[external_id] = list({each["id"]: each for each in [*there[external_id], *records]}.values())
        return one_by_one(self, leads, lambda lead: self._remove(lead, there[lead.external_id]))

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        names = self.fields_read
        self._require(names)
        many = len(external_ids) > WALK
        there = self._records.walk(external_ids) if many else self._records.look_up(external_ids)
        return {
            external_id: [
                Record(external_id, str(record["id"]), {name: self._records.held(record, name) for name in names})
                for record in records
            ]
            for external_id, records in there.items()
        }

    def check(self) -> None:
        self._require(self.fields_read)
        target = self.destination
        if target.object == "leads" and not set(LINKS) & set(target.fields):
            raise AccessError(
                f"{self.who}: every lead of Pipedrive belongs to a person or an organisation: map {' or '.join(LINKS)} "
                f"in destination {target.name!r}"
            )

    def quota_left(self, headers: Mapping[str, str]) -> Quota | None:
        left, limit = _tokens(headers)
        return None if left is None else Quota(left, limit)

    def explain(self, reply: Reply) -> LeadsyncError | None:
        status, error = reply.status, _error(reply)
        if status == 429 and _tokens(reply.headers)[0] == 0:
            self.http.throttled(ASK_AGAIN, True)
            return QuotaExceeded(f"{self.who}: the account's tokens for today are spent")
        if status == 402:
            return AccessError(f"{self.who}: the account is not open (402): is it paid for?")
        if status == 403 and error is None:  # the page of the gateway that blocks whoever went on after many a 429
            return RequestFailed(f"{self.who} blocks the token for a while (403)", "403", retry_after=BLOCKED)
        if status == 403 and error and (error.code or "").startswith("feature_capping"):
            return QuotaExceeded(f"{self.who}: a limit of the account's plan is reached ({error.code})")
        if status == 404 and error and self._types is not None:  # the object is there, so it is the record
            return RequestFailed(f"{self.who} has the record no more (404)", "404")
        return None

    # Writing -------------------------------------------------------------------------------------------------------

    def _write(self, lead: Lead, records: Sequence[Mapping[str, Any]]) -> Outcome:
        key = self.destination.external_id_field
        unfit = unfit_id(lead, key)
        if unfit:
            return unfit
        if not records:
            reply = self._call("POST", self._kind.path, json=self._body(lead, {}))
            if reply.status >= 400:
                return self._refused(lead, reply)
            made = reply.parse(ONE).data.model_dump()
            if self._records.owner(made) != lead.external_id:  # it would be made again and again
                raise AccessError(f"{self.who} does not keep the external id in {key!r}: is it a field of type Text?")
            return Outcome(lead.external_id, Status.CREATED, str(made["id"]))
        for record in records:
            changed = unless_gone(
                self._call, "PATCH", f"{self._kind.path}/{record['id']}", json=self._body(lead, record)
            )
            if changed is None:  # deleted since it was found
                return Outcome(lead.external_id, Status.TRANSIENT, code="not_found")
            if changed.status >= 400:
                return self._refused(lead, changed)
            changed.parse(ONE)
        return Outcome(lead.external_id, Status.UPDATED, str(records[0]["id"]))

    def _remove(self, lead: Lead, records: Sequence[Mapping[str, Any]]) -> Outcome:
        for record in records:
            reply = unless_gone(self._call, "DELETE", f"{self._kind.path}/{record['id']}")
            if reply is None:
                continue
            if reply.status >= 400:
                return self._refused(lead, reply)
            reply.parse(ONE)
        return Outcome(lead.external_id, Status.DELETED, str(records[0]["id"]) if records else None)

    def _body(self, lead: Lead, record: Mapping[str, Any]) -> dict[str, Any]:
        """What is written; `record` is what is there."""
        types = self._types or {}
        standard: dict[str, Any] = {}
        custom: dict[str, Any] = {self.destination.external_id_field: lead.external_id}
        for name, value in lead.fields.items():
            if name in types:
                custom[name] = _text(value) if types[name] in TEXTS else value
            elif name in CONTACTS:
                standard[CONTACTS[name]] = _contacts(value, record.get(CONTACTS[name]) or ())
            else:
                standard[name] = value
        return {**standard, "custom_fields": custom} if self._kind.nested else {**standard, **custom}

    # Fields --------------------------------------------------------------------------------------------------------

    @property
    def _kind(self) -> Kind:
        try:
            return KINDS[self.destination.object]
        except KeyError:
            raise self.missing(f"use one of: {', '.join(KINDS)}", self.destination.object) from None

    @property
    def _records(self) -> Records:
        return Records(self._kind, self.destination.external_id_field, self._call, self.left_out)

    def _require(self, names: Iterable[str] = ()) -> None:
        """Raises AccessError for the first field that the account does not have."""
        kind, key = self._kind, self.destination.external_id_field
        with self._lock:
            if self._types is None:
                self._types = self._records.fields()
        for name in (key, *names):
            if name not in self._types and (name not in kind.standard or name == key):
                raise self.missing("no such field", name)
        if self._types[key] not in ("varchar", "varchar_auto"):
            raise AccessError(
                f"{self.who}: the field {key!r} is of type {self._types[key]!r}, and an external id needs one of type "
                "Text: make another"
            )

    def _call(self, method: str, path: str, **content: Any) -> Reply:
        reply = self.http.request(method, path, self.credentials, **content)
        left, limit = _tokens(reply.headers)
        if left is not None and limit and left < limit * self.settings.reserve:
            self.http.throttled(ASK_AGAIN, True)
        return reply

    def _refused(self, lead: Lead, reply: Reply) -> Outcome:
        """What a refusal means for one lead. Raises AccessError when it is not about the lead."""
        error = _error(reply)
        if error is None and reply.status != 413:
            raise reply.malformed()
        words = error.error if error else ""
        unknown = NOT_ALLOWED.match(words)
        if unknown:
            raise self.missing(str(reply.status), unknown[2])
        invalid = INVALID.match(words)
        field = invalid and {sent: name for name, sent in CONTACTS.items()}.get(invalid[1], invalid[1])
        code = error.code if error else None
        return Outcome(lead.external_id, Status.REJECTED, None, code or str(reply.status), field, words)


def _contacts(value: Any, held: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Addresses or numbers with `value` as the primary one in place of that which is."""
    primary = next((entry for entry in held if entry.get("primary")), {})
    others = [dict(entry) for entry in held if not entry.get("primary") and entry.get("value") != value]
    return [{**primary, "value": value, "primary": True}, *others] if value not in (None, "") else others


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _tokens(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Of the account's tokens for today: those left, and all."""
    left, limit = (headers.get(f"x-daily-ratelimit-token-{what}", "") for what in ("remaining", "limit"))
    return int(left) if left.isdecimal() else None, int(limit) if limit.isdecimal() else None


def _error(reply: Reply) -> _Error | None:
    try:
        return reply.parse(ERROR)
    except RequestFailed:  # a gateway's page
        return None
