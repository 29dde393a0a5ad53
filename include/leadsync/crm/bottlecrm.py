"""BottleCRM 1.35 (`django-crm`): leads, by a custom field of type Text for the external id, through its REST API.

The connection's address is the API's; its password is a personal access token (`bcrm_pat_…`) of an administrator: who
is none sees only leads of their own, and would double the others', so that is refused. A token with scopes needs
leads:read, leads:write, custom-fields:read and profile:read.

A field is named as the API names it, or by the key of a custom field of Lead, as the external id's is. BottleCRM has
neither an upsert nor unique custom fields, and takes and finds one lead a call: each is looked up by that field, and
then written. Without an index a look-up reads the whole table: `CREATE INDEX ON lead USING gin (custom_fields
jsonb_path_ops)`. Doubles that are there already are updated and deleted together.

No two leads may have one e-mail address, in whatever letters: the second one becomes a dead letter
(`duplicate_email`). Where visitors come more than once, map the address to a custom field instead. A new lead
without a status is on no board, so it gets `assigned` where `status` is not mapped; later it is people's.

A lead that people converted is in no list, and no look-up finds it: it is known by the id that the ledger keeps, and is
compared, updated and deleted by that. A ledger that lost it would make a second lead, unless the first one has the
address. What is no longer open to change there, its `status`, makes a dead letter. An `archive` takes a lead off the
board; the list still has it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from pydantic import BaseModel, TypeAdapter

from leadsync.budget import Limit
from leadsync.crm import values
from leadsync.crm.base import CRMAdapter
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.singly import one_by_one, unless_gone
from leadsync.errors import AccessError, LeadsyncError
from leadsync.models import Lead, Outcome, Record, Status

OBJECT = "Lead"
PAGE_SIZE = 100
NEW = "assigned"  # the status that BottleCRM itself gives to a lead from a form
NOBODY = UUID(int=0)
# The fields that its serializer takes; it drops all others without a word, and no metadata tells which they are.
STANDARD = frozenset(
    {
        "title", "salutation", "first_name", "last_name", "email", "phone", "job_title", "website", "linkedin_url",
        "status", "source", "source_detail", "source_ref", "industry", "rating", "opportunity_amount", "currency",
        "probability", "close_date", "address_line", "city", "state", "postcode", "country", "last_contacted",
        "next_follow_up", "description", "company_name", "is_active",
    }
)  # fmt: skip
NEVER_NULL = frozenset({"source_detail", "source_ref"})
LARGEST = 2**53  # of the whole numbers that a number field keeps exactly
SCOPE = re.compile(r"needs the ([a-z-]+:[a-z]+) scope")
TEXTS = frozenset({"text", "textarea", "dropdown"})


class _Held(BaseModel, extra="allow"):
    id: str
    is_active: bool
    custom_fields: dict[str, Any]

    def value(self, name: str) -> Any:
        return getattr(self, name, None) if name in STANDARD else self.custom_fields.get(name)


class _Open(BaseModel):
    leads_count: int
    open_leads: list[_Held]


class _Closed(BaseModel):
    leads_count: int
    close_leads: list[_Held]


class _Page(BaseModel):
    open_leads: _Open
    close_leads: _Closed


class _Detail(BaseModel):
    lead_obj: _Held


class _Definition(BaseModel):
    key: str
    field_type: str
    is_required: bool


class _Definitions(BaseModel):
    definitions: list[_Definition]


class _Profile(BaseModel):
    role: str


class _Me(BaseModel):
    user_obj: _Profile


class _Made(BaseModel):
    id: str


class _Done(BaseModel):
    message: str


class _Problem(BaseModel):
    errors: dict[str, Any] | str


class _Denial(BaseModel):
    detail: str


PAGE = TypeAdapter(_Page)
DETAIL = TypeAdapter(_Detail)
DEFINITIONS = TypeAdapter(_Definitions)
ME = TypeAdapter(_Me)
MADE = TypeAdapter(_Made)
DONE = TypeAdapter(_Done)
PROBLEM = TypeAdapter(_Problem)
DENIAL = TypeAdapter(_Denial)


class BottleCRM(CRMAdapter):
    name = "bottlecrm"
    label = "BottleCRM"
    needs_crm_id = True
    max_batch = 10
    # BottleCRM has no limit of its own; ours keeps us a good neighbour: a process answers some ten requests a second.
    limits = (Limit(10, 1),)
    delete_modes = frozenset({"archive", "delete", "field"})
    example = """
adapter: bottlecrm
object: Lead
external_id_field: leadsync_id
on_delete: delete
fields:
  last_name: {column: name, transform: trim, default: Unknown, max_length: 255}
  email: {column: email, transform: [trim, lower]}
  phone: {column: phone, transform: trim, max_length: 25}
  city: {column: city, max_length: 255}
  source: {constant: campaign}
  leadsync_appkey: appkey
  leadsync_uid: {column: uid, transform: integer}
  leadsync_answers: answers
  leadsync_updated_at: update_time
"""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lock = threading.Lock()
        self._custom: dict[str, _Definition] | None = None

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        self._require(name for lead in leads for name in lead.fields)
        return one_by_one(self, leads, self._write)

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        self._require()
        return one_by_one(self, leads, self._remove)

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        return self.fetch_known(dict.fromkeys(external_ids))

    def fetch_known(self, crm_ids: Mapping[str, str | None]) -> dict[str, list[Record]]:
        names = self.fields_read
        self._require(names)
        return {
            external_id: [
                Record(external_id, held.id, {name: held.value(name) for name in names})
                for held in self._held(external_id, crm_id)
                if held.is_active or not self._archives
            ]
            for external_id, crm_id in crm_ids.items()
        }

    def same(self, name: str, sent: Any, held: Any) -> bool:
        if held is False and sent in (None, ""):
            return name == "is_active"
        return values.same(sent, held)

    def check(self) -> None:
        self._require(self.fields_read)
        target = self.destination
        for name, definition in (self._custom or {}).items():
            if definition.is_required and name not in (target.external_id_field, *target.fields):
                raise AccessError(
                    f"{self.who} wants a value for the custom field {name!r} of every lead: map it in destination "
                    f"{target.name!r}, or let it be optional"
                )
        # No lead has this id: whoever may write is told so (404), and whoever may not is refused (403).
        unless_gone(self._call, "PATCH", f"leads/{NOBODY}/", json={})

    def translate(self, reply: Reply) -> Reply:
        # It knows no 401: whose token it does not take has no organisation.
        if reply.status == 403 and _denial(reply).startswith("Organization context"):
            return replace(reply, status=401)
        return reply

    def explain(self, reply: Reply) -> LeadsyncError | None:
        if reply.status == 404 and _denial(reply).startswith("No Lead matches"):
            return RequestFailed(f"{self.who} has the record no more (404)", "404")
        scope = SCOPE.search(_denial(reply)) if reply.status == 403 else None
        if scope:
            return AccessError(f"{self.who}: the token needs the scope {scope[1]}: make one that has it, or has none")
        return super().explain(reply)

    # Writing -------------------------------------------------------------------------------------------------------

    def _write(self, lead: Lead) -> Outcome:
        body = self._encode(lead)
        if isinstance(body, Outcome):
            return body
        held = self._held(lead.external_id, lead.crm_id)
        if not held:
            reply = self._call("POST", "leads/", json={"status": NEW, **body})
            if reply.status >= 400:
                return self._refused(lead, reply)
            return Outcome(lead.external_id, Status.CREATED, reply.parse(MADE).id)
        refused = self._each(lead, held, "PATCH", body)
        back = self._archives and not held[0].is_active
        return refused or Outcome(lead.external_id, Status.CREATED if back else Status.UPDATED, held[0].id)

    def _remove(self, lead: Lead) -> Outcome:
        held = self._held(lead.external_id, lead.crm_id)
        if self._archives:
            refused = self._each(lead, [each for each in held if each.is_active], "PATCH", {"is_active": False})
        else:
            refused = self._each(lead, held, "DELETE", None)
        return refused or Outcome(lead.external_id, Status.DELETED, held[0].id if held else None)

    def _each(self, lead: Lead, held: Sequence[_Held], method: str, body: Mapping[str, Any] | None) -> Outcome | None:
        """Sends the same for every record; returns what keeps the lead from being done, None when it is."""
        for record in held:
            reply = unless_gone(self._call, method, f"leads/{record.id}/", json=body)
            if reply is None:
                if method == "PATCH":  # deleted since it was found
                    return Outcome(lead.external_id, Status.TRANSIENT, code="not_found")
            elif reply.status >= 400:
                return self._refused(lead, reply)
            else:
                reply.parse(DONE)
        return None

    def _encode(self, lead: Lead) -> dict[str, Any] | Outcome:
        custom: dict[str, Any] = {}
        body: dict[str, Any] = {"is_active": True} if self._archives else {}
        for name, value in lead.fields.items():
            if name in STANDARD:
                blank = value is None or (isinstance(value, str) and not value.strip())
                body[name] = ("" if name in NEVER_NULL else None) if blank else value
            elif self._kind(name) in TEXTS:
                custom[name] = values.text(value)
            elif self._kind(name) == "number" and isinstance(value, int) and abs(value) > LARGEST:
                return Outcome(lead.external_id, Status.REJECTED, None, "invalid_value", name)
            else:
                custom[name] = value
        return {**body, "custom_fields": {**custom, self.destination.external_id_field: lead.external_id}}

    def _refused(self, lead: Lead, reply: Reply) -> Outcome:
        """What a refusal means for one lead: `errors` has words for each field, nested for custom ones."""
        if reply.status == 413:
            return Outcome(lead.external_id, Status.REJECTED, None, "413")
        errors: Any = reply.parse(PROBLEM).errors
        field: str | None = None
        while isinstance(errors, dict) and errors:
            field, errors = next(iter(errors.items()))
        words = " ".join(map(str, errors)) if isinstance(errors, list) else str(errors)
        code = "duplicate_email" if field == "email" and "already" in words else "invalid_value"
        return Outcome(lead.external_id, Status.REJECTED, None, code, field, words)

    # Looking up ----------------------------------------------------------------------------------------------------

    def _held(self, external_id: str, crm_id: str | None) -> list[_Held]:
        """The records of a lead, a converted one too where its id is known."""
        found = self._find(external_id)
        if found or crm_id is None:
            return found
        try:
            reply = unless_gone(self._call, "GET", f"leads/{UUID(crm_id)}/")
        except ValueError:  # an id of another CRM
            return []
        held = [reply.parse(DETAIL).lead_obj] if reply else []
        return [each for each in held if each.custom_fields.get(self.destination.external_id_field) == external_id]

    def _find(self, external_id: str) -> list[_Held]:
        """The records with this external id, but for converted ones, which are in no list."""
        key = self.destination.external_id_field
        found: list[_Held] = []
        offset, count = 0, 1
        while offset < count:
            params = {f"cf_{key}": external_id, "limit": str(PAGE_SIZE), "offset": str(offset)}
            page = self._call("GET", "leads/", params=params).parse(PAGE)
            halves = [
                (page.open_leads.leads_count, page.open_leads.open_leads),
                (page.close_leads.leads_count, page.close_leads.close_leads),
            ]
            for total, leads in halves:
                if len(leads) != min(PAGE_SIZE, max(0, total - offset)):
                    raise self.left_out()
                found += leads
            offset, count = offset + PAGE_SIZE, max(total for total, _ in halves)
        if any(each.custom_fields.get(key) != external_id for each in found):
            raise self.left_out()
        return found

    # Fields --------------------------------------------------------------------------------------------------------

    @property
    def _archives(self) -> bool:
        return self.destination.on_delete.mode == "archive"

    def _kind(self, name: str) -> str | None:
        definition = (self._custom or {}).get(name)
        return definition.field_type if definition else None

    def _require(self, names: Iterable[str] = ()) -> None:
        """Raises AccessError for the first field that BottleCRM would drop without a word."""
        key = self.destination.external_id_field
        with self._lock:
            if self._custom is None:
                self._custom = self._read()
        for name in names:
            if name not in STANDARD and name not in self._custom:
                raise self.missing("no such field", name)
        if key not in self._custom:
            raise self.missing("no such custom field", key)
        if self._kind(key) != "text":
            raise AccessError(
                f"{self.who}: the field {key!r} is of type {self._kind(key)!r}, and an external id needs one of type "
                "'text': make another"
            )

    def _read(self) -> dict[str, _Definition]:
        """The custom fields by their keys. Raises AccessError when the token's owner does not see every lead."""
        if self.destination.object != OBJECT:
            raise self.missing(f"use {OBJECT}", self.destination.object)
        role = self._call("GET", "profile/").parse(ME).user_obj.role
        if role != "ADMIN":
            raise AccessError(
                f"{self.who}: the token's owner is {role!r}, who sees only leads of their own, and must be an 'ADMIN', "
                "or leads would be doubled"
            )
        params = {"target_model": OBJECT, "active_only": "true", "include_counts": "false"}
        definitions = self._call("GET", "custom-fields/", params=params).parse(DEFINITIONS).definitions
        return {definition.key: definition for definition in definitions}

    def _call(self, method: str, path: str, **content: Any) -> Reply:
        return self.http.request(method, f"/api/{path}", self.credentials, **content)


def _denial(reply: Reply) -> str:
    try:
        return reply.parse(DENIAL).detail
    except RequestFailed:  # a proxy's page
        return ""
