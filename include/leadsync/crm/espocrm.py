"""EspoCRM 8.2 or newer: any entity type with a Varchar field for the external id, through its REST API.

The connection's address is the site's; its password is the API key of an API user (Administration > API Users). The
user's role must create, and read, edit and delete the records of all: with less, a look-up would not find what
others own, and double it, so `check` refuses that. A delete is EspoCRM's own: the record is gone for all, and removed
by its clean-up job later.

EspoCRM takes one record a call, and neither makes a field unique nor takes an id from outside: records are looked up
by the external id field before they are written. Give that field an index (`indexes` in `entityDefs`), or each
look-up reads the whole table. Doubles that are there already are updated and deleted together.

Fields made in the Entity Manager have the prefix `c`: `leadsyncId` becomes `cLeadsyncId`. The field `phoneNumber`
takes nothing but international numbers (+4917012345678) unless the settings of EspoCRM say otherwise.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter

from leadsync.budget import Limit
from leadsync.crm import values
from leadsync.crm.access import Access, Credentials, StaticToken
from leadsync.crm.base import CRMAdapter, batches
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.singly import one_by_one, unfit_id, unless_gone
from leadsync.errors import AccessError, LeadsyncError
from leadsync.models import Lead, Outcome, Record, Status

REASON = "X-Status-Reason"  # what every error of EspoCRM's own carries, and no proxy's
PAGE_SIZE = 200  # the most that a list gives at once
QUERY_LENGTH = 5_000  # characters of external ids in an address: web servers take 8 KiB
MORE, NO_MORE = -1, -2  # the total of an entity type whose records are not counted
LISTED = 10_000  # characters of a text that a list shows
MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")  # in UTC
# Fields that are written through attributes of other names; all other types through one of their own name.
ATTRIBUTES = {
    "link": ("Id",),
    "linkOne": ("Id",),
    "file": ("Id",),
    "image": ("Id",),
    "linkParent": ("Id", "Type"),
    "linkMultiple": ("Ids",),
    "attachmentMultiple": ("Ids",),
    "currency": ("", "Currency"),
    "email": ("", "IsOptedOut", "IsInvalid"),
    "phone": ("", "IsOptedOut", "IsInvalid"),
    "personName": (),
    "address": (),
}


class _Field(BaseModel):
    type: str = ""
    readOnly: bool | None = None
    readOnlyAfterCreate: bool | None = None
    disabled: bool | None = None
    directAccessDisabled: bool | None = None

    @property
    def closed(self) -> bool:
        return bool(self.readOnly or self.readOnlyAfterCreate or self.disabled or self.directAccessDisabled)


class _Rights(BaseModel):
    table: dict[str, Any]
    fieldTable: Any = None


class _User(BaseModel):
    acl: _Rights


class _Page(BaseModel):
    total: int
    list: list[dict[str, Any]]


class _Made(BaseModel):
    id: str


class _Translation(BaseModel):
    data: dict[str, Any] = {}


class _Problem(BaseModel):
    messageTranslation: _Translation = _Translation()


FIELDS = TypeAdapter(dict[str, _Field] | None)
USER = TypeAdapter(_User)
PAGE = TypeAdapter(_Page)
MADE = TypeAdapter(_Made)
PROBLEM = TypeAdapter(_Problem)
DONE = TypeAdapter(bool)


class EspoCRM(CRMAdapter):
    name = "espocrm"
    label = "EspoCRM"
    max_batch = 20
    # EspoCRM has no limit of its own; ours keeps us a good neighbour.
    limits = (Limit(20, 1),)
    delete_modes = frozenset({"delete", "field"})
    example = """
adapter: espocrm
object: Lead
external_id_field: cLeadsyncId
on_delete: delete
fields:
  lastName: {column: name, transform: trim, default: Unknown, max_length: 100}
  emailAddress: {column: email, transform: [trim, lower]}
  phoneNumber: {column: phone, transform: trim, max_length: 36}
  addressCity: {column: city, max_length: 100}
  source: {constant: Web Site}
  cAppkey: {column: appkey, max_length: 100}
  cUid: {column: uid, transform: integer}
  cAnswers: answers
  cChangedAt: update_time
"""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lock = threading.Lock()
        self._types: dict[str, str] | None = None

    def make_credentials(self) -> Credentials:
        # EspoCRM's own check for duplicates goes by name and address, and two leads may share these.
        headers = {"X-Api-Key": self.endpoint.password, "X-Skip-Duplicate-Check": "true"}
        return StaticToken(self.who, Access(self.endpoint.url, self.endpoint.password, headers))

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        self._require(name for lead in leads for name in lead.fields)
        there = self._find([lead.external_id for lead in leads])
        return one_by_one(self, leads, lambda lead: self._write(lead, there[lead.external_id]))

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        self._require()
        there = self._find([lead.external_id for lead in leads])
        return one_by_one(self, leads, lambda lead: self._remove(lead, there[lead.external_id]))

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        names = self.fields_read
        self._require(names)  # a list leaves unknown fields out without a word
        return {
            external_id: [
                Record(external_id, record["id"], {name: record.get(name) for name in names}) for record in records
            ]
            for external_id, records in self._find(external_ids, names).items()
        }

    def check(self) -> None:
        self._require(self.fields_read)

    def same(self, name: str, sent: Any, held: Any) -> bool:
        if held is False and sent in (None, ""):
            return True  # a checkbox is never empty
        if isinstance(sent, str) and isinstance(held, str):
            if "@" in sent and sent.lower() == held.lower():
                return True  # records share an address, in the letters in which it was written first
            if held.startswith("+") and re.sub(r"[^+\d]", "", sent) == held:
                return True  # a phone number without its blanks
            if len(held) == LISTED and sent.startswith(held):
                return True
            if MOMENT.fullmatch(held) and values.same(sent, f"{held}+00:00", precision=timedelta(seconds=1)):
                return True
        return values.same(sent, held)

    def explain(self, reply: Reply) -> LeadsyncError | None:
        own = REASON in reply.headers or not reply.body
        if reply.status == 404 and own and self._types is not None:  # the entity type is there, so it is the record
            return RequestFailed(f"{self.who} has the record no more (404)", "404")
        return None

    def _write(self, lead: Lead, records: Sequence[Mapping[str, Any]]) -> Outcome:
        key = self.destination.external_id_field
        unfit = unfit_id(lead, key)
        if unfit:
            return unfit
        body = {**{name: self._value(name, value) for name, value in lead.fields.items()}, key: lead.external_id}
        if not records:
            reply = self._call("POST", self.destination.object, json=body)
            if reply.status >= 400:
                return self._refused(lead, reply)
            return Outcome(lead.external_id, Status.CREATED, reply.parse(MADE).id)
        for record in records:
            changed = unless_gone(self._call, "PATCH", self._path(record), json=body)
            if changed is None:  # deleted since it was found
                return Outcome(lead.external_id, Status.TRANSIENT, code="not_found")
            if changed.status >= 400:
                return self._refused(lead, changed)
            changed.parse(MADE)
        return Outcome(lead.external_id, Status.UPDATED, records[0]["id"])

    def _remove(self, lead: Lead, records: Sequence[Mapping[str, Any]]) -> Outcome:
        for record in records:
            reply = unless_gone(self._call, "DELETE", self._path(record))
            if reply is None:
                continue
            if reply.status >= 400:
                return self._refused(lead, reply)
            if not reply.parse(DONE):
                raise reply.malformed()
        return Outcome(lead.external_id, Status.DELETED, records[0]["id"] if records else None)

    def _find(self, external_ids: Sequence[str], names: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
        """The records of every external id, each with `id` and the named fields; more than one when it is doubled."""
        key = self.destination.external_id_field
        found: dict[str, list[dict[str, Any]]] = {external_id: [] for external_id in external_ids}
        length = max((len(quote(external_id, safe="")) for external_id in external_ids), default=0)
        for part in batches(external_ids, min(PAGE_SIZE, max(1, QUERY_LENGTH // (length + 40)))):
            query = {
                "select": ",".join(dict.fromkeys(["id", key, *names])),
                "orderBy": "id",
                "maxSize": str(PAGE_SIZE),
                "where[0][type]": "in",
                "where[0][attribute]": key,
                **{f"where[0][value][{number}]": external_id for number, external_id in enumerate(part)},
            }
            records: list[dict[str, Any]] = []
            while True:
                reply = self._call("GET", self.destination.object, params={**query, "offset": str(len(records))})
                if reply.status >= 400:
                    raise reply.malformed() if REASON not in reply.headers else self.missing(str(reply.status), key)
                page = reply.parse(PAGE)
                records += page.list
                if page.total in (len(records), NO_MORE):
                    break
                if len(page.list) < PAGE_SIZE and page.total != MORE or not page.list:
                    raise self.left_out()
            for record in records:
                owner = record.get(key)
                # MySQL compares without regard to case.
                if isinstance(owner, str) and owner in found and isinstance(record.get("id"), str):
                    found[owner].append(record)
        return found

    def _require(self, names: Iterable[str] = ()) -> None:
        """Raises AccessError for the first field that EspoCRM would drop without a word, now or in a write."""
        with self._lock:
            if self._types is None:
                self._types = self._read_types()
        for name in names:
            if name not in self._types:
                raise self.missing("no such field", name)

    def _read_types(self) -> dict[str, str]:
        """The types of the attributes that may be written, by name. Raises AccessError when the rights do not do."""
        target, key = self.destination, self.destination.external_id_field
        params = {"key": f"entityDefs.{target.object}.fields"}
        fields = self._call("GET", "Metadata", params=params).parse(FIELDS)
        rights = self._call("GET", "App/user").parse(USER).acl
        levels = rights.table.get(target.object)
        if fields is None or not isinstance(levels, dict):
            raise self.missing("no such entity type", target.object)
        wanted = {"create": "yes", "read": "all", "edit": "all"}
        if target.on_delete.mode == "delete":
            wanted["delete"] = "all"
        for action, level in wanted.items():
            if levels.get(action) != level:
                raise AccessError(
                    f"{self.who}: the role of the API user has {action!r} of {target.object!r} on "
                    f"{levels.get(action)!r}, and it must be {level!r}, or leads would be lost or doubled"
                )
        if key in fields and fields[key].type != "varchar":
            raise AccessError(
                f"{self.who}: the field {key!r} of {target.object!r} is no Varchar, which an external id needs to be "
                "found: make another"
            )
        of_fields = rights.fieldTable.get(target.object) if isinstance(rights.fieldTable, dict) else None
        closed = {
            name
            for name, actions in (of_fields.items() if isinstance(of_fields, dict) else ())
            if isinstance(actions, dict) and "no" in (actions.get("read"), actions.get("edit"))
        }
        types = {
            name + suffix: field.type
            for name, field in fields.items()
            if name not in closed and not field.closed
            for suffix in ATTRIBUTES.get(field.type, ("",))
        }
        if key not in types:
            raise self.missing("no such field", key)
        return types

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, str) and (self._types or {}).get(name) in ("datetime", "datetimeOptional"):
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                return value
            return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if moment.tzinfo else value
        return value

    def _path(self, record: Mapping[str, Any]) -> str:
        return f"{self.destination.object}/{quote(record['id'], safe='')}"

    def _call(self, method: str, path: str, **content: Any) -> Reply:
        return self.http.request(method, f"/api/v1/{path}", self.credentials, **content)

    def _refused(self, lead: Lead, reply: Reply) -> Outcome:
        """What a refusal means for one lead."""
        reason = reply.headers.get(REASON)
        if reason is None and reply.status != 413:
            raise reply.malformed()
        try:
            told = reply.parse(PROBLEM).messageTranslation.data
        except RequestFailed:  # most errors have an empty body, and that of a duplicate holds other people's records
            told = {}
        field, kind = told.get("field"), told.get("type")
        passing = reply.status == 409 and reason != "duplicate"  # somebody else changed the record meanwhile
        return Outcome(
            lead.external_id,
            Status.TRANSIENT if passing else Status.REJECTED,
            None,
            kind if isinstance(kind, str) else str(reply.status),
            field if isinstance(field, str) else self.named(reason or ""),
            reason,
        )
