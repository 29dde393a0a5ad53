"""纷享销客 (Fxiaoke, ShareCRM): any object with a unique text field for the external id, through its OpenAPI v2.

The connection's address is that of the company's cloud (`https://open.fxiaoke.com`, `https://open-hwcloud.fxiaoke.com`,
…), its login the appId and its password the appSecret of a self-built app in developer mode that knows the address of
the senders; its extra holds the app's permanent code: `{"permanent_code": "…"}`. All is done in the name of the
employee `user_id`, who needs the right to list, create, edit and invalidate the object's records of all.

Fxiaoke takes one record a call and has no upsert: records are looked up by the external id field before they are
written, so that field must not allow duplicates. Doubles that are there already are updated and deleted together.
Approval flows and workflows are not set off. A delete makes the record invalid (作废), from where it can be recovered;
the final delete is not offered here.

Numbers go as texts, dates and times as milliseconds (`transform: epoch_ms`), as the description of the object says
that is read once. Fields of lists, such as `owner`, can't be mapped: the setting `owner` is who owns new records.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

from leadsync.budget import Limit
from leadsync.config import Destination
from leadsync.crm import values
from leadsync.crm.access import Credentials
from leadsync.crm.base import BatchRefused, CRMAdapter, Endpoint, Settings, batches
from leadsync.crm.fxiaoke_api import ANSWER, DENIED, NOT_BOUGHT, SPENT, Answer, AppLogin, code_of, told, traced
from leadsync.crm.http import Reply
from leadsync.crm.singly import one_by_one
from leadsync.errors import AccessError, LeadsyncError, QuotaExceeded
from leadsync.models import Lead, Outcome, Record, Status

T = TypeVar("T")

CHINA = timezone(timedelta(hours=8))  # where the day of a quota begins
PAGE = 100  # records, the most that a query lists
NUMBERS = frozenset({"number", "currency", "percentile"})
TIMES = frozenset({"date", "date_time", "time"})
COMPUTED = frozenset({"formula", "count", "quote", "auto_number"})


class _Created(Answer):
    dataId: str


class _List(BaseModel):
    dataList: list[dict[str, Any]]
    total: int | None = None


class _Page(Answer):
    data: _List


class _Field(BaseModel):
    type: str
    is_unique: bool = False
    is_active: bool = True


class _Object(BaseModel):
    fields: dict[str, _Field]


class _Description(BaseModel):
    describe: _Object


class _Described(Answer):
    data: _Description


CREATED = TypeAdapter(_Created)
FOUND = TypeAdapter(_Page)
DESCRIBED = TypeAdapter(_Described)


class FxiaokeSettings(Settings):
    user_id: str = Field("1000", pattern=r"^\w+$", description="employee in whose name, and with whose rights")
    owner: str | None = Field(None, pattern=r"^\w+$", description="employee who owns new records; without it nobody")


class Fxiaoke(CRMAdapter):
    name = "fxiaoke"
    label = "纷享销客 (Fxiaoke)"
    max_batch = 50  # looked up together: half a page, so that doubles fit too
    # The first is that of each interface, and nearly all requests of a load are of one; the second is what one
    # package of the quota holds, and companies buy several.
    limits = (Limit(100, 20), Limit(100_000, 86_400))
    delete_modes = frozenset({"archive", "field"})
    settings_model: ClassVar[type[Settings]] = FxiaokeSettings
    example = """
adapter: fxiaoke
object: LeadsObj
external_id_field: leadsync_id__c
on_delete: archive
fields:
  name: {column: name, transform: trim, default: Unknown, max_length: 100}
  tel: {column: phone, transform: trim}
  email: {column: email, transform: [trim, lower]}
  company: appkey
  city__c: city
  uid__c: {column: uid, transform: integer}
  updated_at__c: {column: update_time, transform: epoch_ms}
  answers__c: answers
"""

    def __init__(self, destination: Destination, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(destination, endpoint, **options)
        self._fields: Mapping[str, _Field] | None = None
        self._describing = threading.Lock()

    def make_credentials(self) -> Credentials:
        return AppLogin(self.who, self.endpoint, self.http, self.settings.user_id)

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        with self._describing:
            fields = self._fields if self._fields is not None else self._describe()
        # Whether Fxiaoke refuses a field that it does not know, or drops it without a word, it does not say.
        for name in {name for lead in leads for name in lead.fields}:
            if name not in fields:
                raise self.missing("unknown field", name)
        there = self._find([lead.external_id for lead in leads], [])

        def write(lead: Lead) -> Outcome:
            data = {name: _written(value, fields[name].type) for name, value in lead.fields.items()}
            return self._write(lead.external_id, data, there[lead.external_id])

        return one_by_one(self, leads, write)

    def _write(self, external_id: str, data: Mapping[str, Any], there: Sequence[Mapping[str, Any]]) -> Outcome:
        target, owner = self.destination, self.settings.owner
        data = {"dataObjectApiName": target.object, target.external_id_field: external_id, **data}
        try:
            if not there:
                try:
                    made = self._save("create", {**data, **({"owner": [owner]} if owner else {})}, CREATED)
                    return Outcome(external_id, Status.CREATED, made.dataId)
                except BatchRefused:
                    # Another sender may have been quicker; which code says so is not published.
                    there = self._find([external_id], [])[external_id]
                    if not there:
                        raise
            for record in there:
                self._save("update", {**data, "_id": record["_id"]}, ANSWER)
        except BatchRefused as refused:
            return Outcome(external_id, Status.REJECTED, None, refused.code, refused.field, refused.message)
        return Outcome(external_id, Status.UPDATED, there[0]["_id"])

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        there = self._find([lead.external_id for lead in leads], [])
        return one_by_one(self, leads, lambda lead: self._remove(lead.external_id, there[lead.external_id]))

    def _remove(self, external_id: str, there: Sequence[Mapping[str, Any]]) -> Outcome:
        target = self.destination
        try:
            for record in there:
                body = {"data": {"object_data_id": record["_id"], "dataObjectApiName": target.object}}
                self._call(self._path("invalid"), body, ANSWER)
        except BatchRefused as refused:  # also for one that is invalid already
            if self._find([external_id], [])[external_id]:
                return Outcome(external_id, Status.REJECTED, None, refused.code, refused.field, refused.message)
        return Outcome(external_id, Status.DELETED, there[0]["_id"] if there else None)

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        names = self.fields_read
        return {
            external_id: [
                Record(external_id, record["_id"], {name: record.get(name) for name in names}) for record in records
            ]
            for external_id, records in self._find(external_ids, names).items()
        }

    def check(self) -> None:
        target, fields = self.destination, self._describe()
        for name in (target.external_id_field, *target.fields, target.on_delete.field):
            if name is not None and name not in fields:
                raise self.missing("unknown field", name)
        if not fields[target.external_id_field].is_unique:
            raise AccessError(
                f"{self.who}: the field {target.external_id_field!r} of {target.object!r} allows duplicates: make it "
                "unique there"
            )

    def translate(self, reply: Reply) -> Reply:
        return told(reply)

    def explain(self, reply: Reply) -> LeadsyncError | None:
        code = code_of(reply)
        if code == SPENT:
            midnight = datetime.now(CHINA).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
            return QuotaExceeded(f"{self.who}: the quota of requests of the day is spent", midnight.astimezone(UTC))
        if code == NOT_BOUGHT:
            return QuotaExceeded(f"{self.who}: the company has bought no quota of API requests")
        if reply.status == DENIED and code is not None:
            return AccessError(
                f"{self.who} denies access ({code}): let the company authorise the app, correct the setting `user_id`, "
                "and give that employee the rights to the object"
            )
        return super().explain(reply)

    def _path(self, verb: str) -> str:
        custom = "/custom" if self.destination.object.endswith("__c") else ""
        return f"/cgi/crm{custom}/v2/data/{verb}"

    def _save(self, verb: str, data: Mapping[str, Any], shape: TypeAdapter[T]) -> T:
        body = {"triggerApprovalFlow": False, "triggerWorkFlow": False, "data": {"object_data": data}}
        return self._call(self._path(verb), body, shape)

    def _call(self, path: str, body: object, shape: TypeAdapter[T]) -> T:
        """Raises BatchRefused for what Fxiaoke says of the data."""
        reply = self.http.request("POST", path, self.credentials, json=body, params=traced())
        if reply.status < 400:
            return reply.parse(shape)
        error = reply.parse(ANSWER)
        raise BatchRefused(str(error.errorCode), field=self.named(error.errorMessage), message=error.errorMessage)

    def _find(self, external_ids: Sequence[str], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The live records of every external id, each with `_id` and the named fields."""
        key = self.destination.external_id_field
        found: dict[str, list[dict[str, Any]]] = {external_id: [] for external_id in external_ids}
        for ids in batches(external_ids, self.max_batch):
            last: str | None = ""
            while last is not None:
                records, last = self._page(ids, last, ["_id", key, "life_status", *names])
                for record in records:
                    owner = record.get(key)
                    if isinstance(owner, str) and owner in found and record.get("life_status") != "invalid":
                        found[owner].append(record)
        return found

    def _page(self, ids: Sequence[str], after: str, names: list[str]) -> tuple[list[dict[str, Any]], str | None]:
        """The records behind this `_id`, and the last one's where there may be more."""
        filters = [{"field_name": self.destination.external_id_field, "field_values": ids, "operator": "IN"}]
        if after:
            filters.append({"field_name": "_id", "field_values": [after], "operator": "GT"})
        # The documentation names the switch for the total differently from page to page.
        body = {
            "returnTotalNum": 1,
            "data": {
                "dataObjectApiName": self.destination.object,
                "find_explicit_total_num": True,
                "search_query_info": {
                    "limit": PAGE,
                    "offset": 0,
                    "filters": filters,
                    "orders": [{"fieldName": "_id", "isAsc": True}],
                    "fieldProjection": names,
                },
            },
        }
        try:
            data = self._call(self._path("query"), body, FOUND).data
        except BatchRefused as refused:  # a look-up holds nothing of a lead's but its key
            raise AccessError(
                f"{self.who} refuses to list {self.destination.object!r} ({refused.code}): give the employee of the "
                "setting `user_id` the right to it, or correct the destination's `external_id_field`"
            ) from None
        records = data.dataList
        if not all(isinstance(record.get("_id"), str) for record in records):
            raise self.left_out()
        if len(records) >= PAGE:
            return records, records[-1]["_id"]
        if (data.total or 0) > len(records):  # 0 where it is not counted
            raise self.left_out()
        return records, None

    def _describe(self) -> Mapping[str, _Field]:
        """The object's fields that can be written."""
        body = {"includeDetail": False, "data": {"apiName": self.destination.object}}
        try:
            described = self._call("/cgi/crm/v2/object/describe", body, DESCRIBED)
        except BatchRefused as refused:
            raise self.missing(refused.code, self.destination.object) from None
        fields = described.data.describe.fields
        self._fields = {name: field for name, field in fields.items() if field.is_active and field.type not in COMPUTED}
        return self._fields


def _written(value: Any, kind: str) -> Any:
    """A value as a field of this type takes it."""
    if kind in TIMES or kind == "true_or_false" or (value is None and kind in NUMBERS):
        return value
    return values.text(value)  # an empty text clears
