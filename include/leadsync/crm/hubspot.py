"""HubSpot: any CRM object with a unique property, through the batch endpoints of its CRM API.

The connection's password is a private app's access token. Leads are found by the external id property, which must
have "require unique values". A delete archives: HubSpot's GDPR delete is for ever and not offered here.

A delete looks the record up by external id even where its HubSpot id is known: a known id may be stale. Archiving an
id twice succeeds, so a record that was archived and created again would survive; and the id of a contact that was
merged leads to the other contact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from pydantic import BaseModel, Field, TypeAdapter

from leadsync.budget import Limit
from leadsync.crm import values
from leadsync.crm.base import BatchRefused, CRMAdapter, Settings, batches
from leadsync.crm.http import Reply, RequestFailed
from leadsync.errors import AccessError, LeadsyncError, QuotaExceeded
from leadsync.metering import Quota
from leadsync.models import Lead, Outcome, Record, Status

# Categories of an error that say nothing about the data.
PASSING = frozenset({"INTERNAL_ERROR", "RATE_LIMITS", "TIMEOUT", "SERVICE_UNAVAILABLE", "MIGRATION_IN_PROGRESS"})
NOT_FOUND = "OBJECT_NOT_FOUND"
SETUP = frozenset({"PROPERTY_DOESNT_EXIST", "PROPERTY_NOT_UNIQUE", "INVALID_OBJECT_TYPE"})
# Whole messages, anchored: a message may quote what a visitor typed.
SETUP_MESSAGE = re.compile(
    r"(Property|idProperty) ['\"]?[\w-]+['\"]? (does not exist|is not (a )?unique)|Unable to infer object type", re.I
)
DETAIL_CODE = re.compile(r'"error":"([A-Z_]+)","name":"([\w-]+)"')


class _Object(BaseModel):
    id: str
    new: bool = False
    properties: dict[str, str | None] = {}
    objectWriteTraceId: str | None = None


class _Detail(BaseModel):
    message: str = ""
    code: str | None = None
    context: dict[str, list[str]] = {}


class _Error(BaseModel):
    category: str = ""
    message: str
    context: dict[str, list[str]] = {}
    errors: list[_Detail] = []
    policyName: str | None = None


class _Batch(BaseModel):
    results: list[_Object]
    errors: list[_Error] = []


class _Property(BaseModel):
    name: str
    hasUniqueValue: bool = False


class _Properties(BaseModel):
    results: list[_Property]


BATCH = TypeAdapter(_Batch)
ERROR = TypeAdapter(_Error)
PROPERTIES = TypeAdapter(_Properties)


class HubSpotSettings(Settings):
    api_version: str = Field("v3", pattern=r"^(v3|20\d\d-\d\d)$", description="v3, or a date version such as 2026-03")


class HubSpot(CRMAdapter):
    name = "hubspot"
    label = "HubSpot"
    max_batch = 100
    # Free and Starter; Professional and Enterprise take 190 in 10 s and 650,000 or 1,000,000 a day.
    limits = (Limit(100, 10), Limit(250_000, 86_400))
    delete_modes = frozenset({"archive", "field"})
    settings_model: ClassVar[type[Settings]] = HubSpotSettings
    example = """
adapter: hubspot
object: contacts
external_id_field: leadsync_external_id
on_delete: archive
fields:
  email: {column: email, transform: [trim, lower]}
  firstname: {column: name, transform: trim}
  phone: phone
  city: city
  leadsync_appkey: appkey
  leadsync_uid: uid
  leadsync_answers: answers
  leadsync_updated_at: update_time
  leadsync_source: {constant: landing page}
"""

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        key = self.destination.external_id_field
        traced = {str(number): lead for number, lead in enumerate(leads)}
        inputs = [
            {
                "id": lead.external_id,
                "idProperty": key,
                "objectWriteTraceId": trace,
                # Most values are texts already, and a call for each would cost more than the rest of the body.
                "properties": {
                    **{
                        name: value if type(value) is str else values.text(value) for name, value in lead.fields.items()
                    },
                    key: lead.external_id,
                },
            }
            for trace, lead in traced.items()
        ]
        batch = self._post("upsert", {"inputs": inputs}).parse(BATCH)
        # By key, never by position, and a 207 may be without errors and without results: the rest is missing.
        outcomes = []
        for result in batch.results:
            traces = traced.get(result.objectWriteTraceId or "")
            owner = result.properties.get(key) or (traces.external_id if traces else None)
            if owner:
                outcomes.append(Outcome(owner, Status.CREATED if result.new else Status.UPDATED, result.id))
        for error in batch.errors:
            for trace in error.context.get("objectWriteTraceId", []):
                if trace in traced:
                    outcomes.append(self._refused(traced[trace].external_id, error))
        return outcomes

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        there, absent = self._read([lead.external_id for lead in leads], [])
        if there:
            reply = self._post("archive", {"inputs": [{"id": found.id} for found in there.values()]})
            if reply.status != 204:
                raise reply.malformed()
        gone = [Outcome(external_id, Status.DELETED, found.id) for external_id, found in there.items()]
        return gone + [Outcome(external_id, Status.DELETED) for external_id in absent]

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        names = self.fields_read
        records: dict[str, list[Record]] = {}
        for ids in batches(external_ids, self.max_batch):
            there, absent = self._read(ids, names)
            if len(there) + len(absent) < len(ids):
                raise self.left_out()
            records |= {external_id: [] for external_id in absent}
            for external_id, found in there.items():
                fields = {name: found.properties.get(name) for name in names}
                records[external_id] = [Record(external_id, found.id, fields)]  # a unique property has no doubles
        return records

    def same(self, name: str, sent: Any, held: Any) -> bool:
        if name == "email" and isinstance(sent, str) and isinstance(held, str):
            sent, held = sent.lower(), held.lower()  # HubSpot keeps addresses in lower case
        return super().same(name, sent, held)

    def check(self) -> None:
        reply = self.http.request("GET", self._path("properties"), self.credentials)
        if reply.status >= 400:
            raise self.missing(str(reply.status), self.destination.object)
        properties = {found.name: found for found in reply.parse(PROPERTIES).results}
        target = self.destination
        for name in (target.external_id_field, *target.fields, target.on_delete.field):
            if name is not None and name not in properties:
                raise self.missing("PROPERTY_DOESNT_EXIST", name)
        if not properties[target.external_id_field].hasUniqueValue:
            raise self._not_unique()

    def explain(self, reply: Reply) -> LeadsyncError | None:
        status, wait = reply.status, reply.retry_after
        if status == 429:
            policy = _policy(reply)
            if policy == "DAILY":
                resets_at = None if wait is None else datetime.now(UTC) + timedelta(seconds=wait)
                return QuotaExceeded(f"{self.who}: the daily limit of requests is spent", resets_at)
            return RequestFailed(f"{self.who} throttles requests (429)", "429", retry_after=wait)
        if status == 423:  # locked: HubSpot asks for two seconds at least
            return RequestFailed(f"{self.who} has the records locked (423)", "423", retry_after=max(2.0, wait or 0))
        if status == 477:  # the account is being moved, for up to a day
            return RequestFailed(f"{self.who} is moving the account (477)", "477", retry_after=wait)
        return super().explain(reply)

    def quota_left(self, headers: Mapping[str, str]) -> Quota | None:
        left, limit = (headers.get(f"X-HubSpot-RateLimit-Daily{what}", "") for what in ("-Remaining", ""))
        return Quota(int(left), int(limit) if limit.isdecimal() else None) if left.isdecimal() else None

    def _path(self, what: str) -> str:
        version, name = self.settings.api_version, self.destination.object
        if version == "v3":
            return f"/crm/v3/{what}/{name}"
        return f"/crm/{what}/{version}/{name}"

    def _post(self, verb: str, body: object) -> Reply:
        """The reply of a batch endpoint when it is a success. Raises BatchRefused and AccessError for the rest."""
        reply = self.http.request("POST", f"{self._path('objects')}/batch/{verb}", self.credentials, json=body)
        if reply.status < 400:
            return reply
        refused = self._refused("", reply.parse(ERROR))
        if refused.status is Status.TRANSIENT:
            raise RequestFailed(f"{self.who} answered {refused.code}", str(reply.status), retry_after=reply.retry_after)
        raise BatchRefused(refused.code or str(reply.status), field=refused.field, message=refused.message)

    def _read(self, external_ids: Sequence[str], names: Sequence[str]) -> tuple[dict[str, _Object], list[str]]:
        """What is there, by external id, and the ids that are not there: HubSpot names each of them."""
        key = self.destination.external_id_field
        body = {
            "idProperty": key,
            "inputs": [{"id": external_id} for external_id in external_ids],
            "properties": [key, *names],
            "propertiesWithHistory": [],
        }
        batch = self._post("read", body).parse(BATCH)
        asked = set(external_ids)
        there = {owner: found for found in batch.results if (owner := found.properties.get(key)) in asked}
        lost = {i for error in batch.errors if error.category == NOT_FOUND for i in error.context.get("ids", [])}
        absent = [i for i in external_ids if i not in there and i in lost]
        return there, absent

    def _refused(self, external_id: str, error: _Error) -> Outcome:
        """What an error means for one lead. Raises AccessError when it is not about the lead."""
        found = [(detail.code, next(iter(detail.context.get("propertyName", [])), None)) for detail in error.errors]
        found += DETAIL_CODE.findall(error.message)
        for code, name in found:
            if code in SETUP:
                raise self.missing(code, name or self.named(error.message))
        if SETUP_MESSAGE.match(error.message):
            raise self.missing(error.category, self.named(error.message))
        status = Status.TRANSIENT if error.category in PASSING else Status.REJECTED
        code, name = next(((code, name) for code, name in found if code), (None, None))
        return Outcome(
            external_id, status, None, code or error.category or None, name or self.named(error.message), error.message
        )

    def _not_unique(self) -> AccessError:
        return AccessError(
            f"{self.who}: the property {self.destination.external_id_field!r} of {self.destination.object!r} is not "
            "unique: make it anew with `require unique values`"
        )


def _policy(reply: Reply) -> str | None:
    try:
        return reply.parse(ERROR).policyName
    except RequestFailed:  # a proxy's own 429
        return None
