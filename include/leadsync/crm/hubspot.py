"""HubSpot: batch upsert by a unique property, batch archive. Connection: host and password (private-app token)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import orjson
from pydantic import Field

from leadsync.crm.base import BatchRefused, CRMAdapter, Settings
from leadsync.crm.http import Reply
from leadsync.errors import AccessError, QuotaExceeded
from leadsync.models import Lead, Outcome, Record, Status

TRANSIENT_CATEGORIES = {"RATE_LIMITS", "INTERNAL_ERROR", "LOCKED"}
# Codes that speak of the property itself and not of a lead's value.
SETUP_CODES = {"PROPERTY_DOESNT_EXIST", "PROPERTY_NOT_UNIQUE", "INVALID_OBJECT_TYPE"}


class HubSpotSettings(Settings):
    """`settings` of a HubSpot destination."""

    api_version: str = Field("v3", pattern=r"^(v3|\d{4}-\d{2})$", description="v3, or a dated version: 2026-03")


class HubSpot(CRMAdapter):
    """Contacts, or any object with a property of unique values."""

    name: ClassVar[str] = "hubspot"
    max_batch: ClassVar[int] = 100
    requests_per_second: ClassVar[float] = 19.0  # 190 in 10 s (Professional, Enterprise)
    delete_modes: ClassVar[frozenset[str]] = frozenset({"archive", "field"})
    settings_model: ClassVar[type[Settings]] = HubSpotSettings

    def authorization(self, refused: str | None = None) -> str | None:
        return None if refused else f"Bearer {self.endpoint.password}"

    def spent_quota(self, reply: Reply) -> QuotaExceeded | None:
        if reply.status != 429 or reply.json().get("policyName") != "DAILY":
            return None
        # HubSpot's day ends at midnight in the account's time zone, which the reply does not tell.
        until = datetime.now(UTC) + timedelta(seconds=reply.retry_after) if reply.retry_after else None
        return QuotaExceeded(
            f"{self.destination.name}: HubSpot's daily limit is spent; it resets at midnight, account time",
            until,
        )

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        key = self.destination.external_id_field
        inputs = [
            {
                "id": lead.external_id,
                "idProperty": key,
                "objectWriteTraceId": str(place),
                "properties": {key: lead.external_id} | {name: _text(value) for name, value in lead.fields.items()},
            }
            for place, lead in enumerate(leads)
        ]
        reply = self.call("POST", self._path("batch/upsert"), {"inputs": inputs})
        document = self._accepted(reply)
        outcomes = []
        for result in document.get("results", ()):
            external_id = (result.get("properties") or {}).get(key)
            if external_id:
                status = Status.CREATED if result.get("new") else Status.UPDATED
                outcomes.append(Outcome(external_id, status, crm_id=result["id"]))
        for error in document.get("errors", ()):
            context = error.get("context") or {}
            for trace in context.get("objectWriteTraceId", ()):
                if trace.isdigit() and int(trace) < len(leads):
                    outcomes.append(_refused(leads[int(trace)].external_id, error))
        return outcomes

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        # HubSpot archives by its own ids only. They are looked up each time: one that an earlier delivery learnt may
        # be that of a record archived since, beside a live one with the same external id.
        records = self.fetch([lead.external_id for lead in leads])
        if records:
            inputs = [{"id": record.crm_id} for record in records.values()]
            reply = self.call("POST", self._path("batch/archive"), {"inputs": inputs})
            if reply.status != 204:
                self._accepted(reply)
        return [Outcome(lead.external_id, Status.DELETED) for lead in leads]

    def fetch(self, external_ids: Sequence[str]) -> dict[str, Record]:
        found = {}
        key = self.destination.external_id_field
        for first in range(0, len(external_ids), self.max_batch):
            body = {
                "idProperty": key,
                "properties": [key, *self.destination.fields],
                "inputs": [{"id": external_id} for external_id in external_ids[first : first + self.max_batch]],
            }
            for result in self._accepted(self.call("POST", self._path("batch/read"), body))["results"]:
                fields = dict(result["properties"])
                external_id = fields.pop(key)
                found[external_id] = Record(external_id, result["id"], fields)
        return found

    def check(self) -> None:
        reply = self.call("GET", f"/crm/v3/properties/{self.destination.object}")
        if reply.status != 200:
            raise AccessError(f"{self.destination.name}: HubSpot has no object {self.destination.object!r}")
        properties = {item["name"]: item for item in reply.json()["results"]}
        key = self.destination.external_id_field
        for name in (key, *self.destination.fields):
            if name not in properties:
                raise AccessError(
                    f"{self.destination.name}: HubSpot's {self.destination.object} have no property {name!r}; create it"
                )
        if not properties[key].get("hasUniqueValue"):
            raise AccessError(
                f"{self.destination.name}: HubSpot's property {key!r} is not one of unique values; create one that is"
            )

    def _path(self, action: str) -> str:
        version = getattr(self.settings, "api_version", "v3")
        kind = self.destination.object
        return f"/crm/v3/objects/{kind}/{action}" if version == "v3" else f"/crm/objects/{version}/{kind}/{action}"

    def _accepted(self, reply: Reply) -> dict[str, Any]:
        """The document of a reply that speaks of single records; raises for one that refuses the whole batch."""
        document = reply.json()
        if not isinstance(document, dict):
            raise reply.nonsense()
        if reply.status in (200, 201, 207):
            if not isinstance(document.get("results"), list):
                raise reply.nonsense()
            return document
        errors = document.get("errors") or [{}]
        code, where = errors[0].get("code"), _property(errors[0])
        if code in SETUP_CODES or reply.status == 404:
            raise AccessError(
                f"{self.destination.name}: HubSpot refuses the set-up: {code or reply.status} {where or ''}".rstrip()
                + "; mend the field mapping or create the property, then clear this task"
            )
        raise BatchRefused(code or document.get("category") or str(reply.status), where, document.get("message"))


def _text(value: Any) -> str:
    """HubSpot takes every value as text; the empty one clears a property."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _property(error: dict[str, Any]) -> str | None:
    names = (error.get("context") or {}).get("propertyName")
    return names[0] if names else None


def _refused(external_id: str, error: dict[str, Any]) -> Outcome:
    details = (error.get("errors") or [{}])[0]
    category = error.get("category")
    status = Status.TRANSIENT if category in TRANSIENT_CATEGORIES else Status.REJECTED
    where = _property(error) or _property(details)
    return Outcome(external_id, status, None, details.get("code") or category, where, error.get("message"))
