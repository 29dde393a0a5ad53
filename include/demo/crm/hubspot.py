"""HubSpot's contacts: batch upsert, archive and read, properties. Strict as the published API."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from demo.crm.faults import FaultBox
from demo.crm.server import Request, Response, Vendor
from demo.crm.store import Store

PATH = re.compile(
    r"/crm/(?:v3/objects|objects/(?:2025-09|2026-03|2026-09))/(?P<kind>[^/]+)/batch/(?P<action>upsert|archive|read)"
)
PROPERTIES = re.compile(r"/crm/v3/properties/(?P<kind>[^/]+)(?:/(?P<name>[^/]+))?")
UNIQUE = {"email", "leadsync_external_id"}
KEY = "leadsync_external_id"
NAMES = [
    "email", "firstname", "lastname", "phone", "mobilephone", "company", "city", "state", "country", "zip", "address",
    "jobtitle", "website", "lifecyclestage", "hs_lead_status", KEY, "leadsync_appkey", "leadsync_uid",
    "leadsync_answers", "leadsync_updated_at", "leadsync_source", "leadsync_deleted",
]  # fmt: skip
MAX_BATCH = 100
MAX_TEXT = 65_536
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")


def vendor(store: Store, faults: FaultBox) -> HubSpot:
    """The simulator, with the token that DEMO_CRM_TOKEN says."""
    return HubSpot(store, faults, os.environ["DEMO_CRM_TOKEN"])


class Problem(Exception):
    """What is wrong with one input or with the whole request."""

    def __init__(self, code: str, message: str, name: str | None = None, category: str = "VALIDATION_ERROR") -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.category = category


class HubSpot(Vendor):
    """Contacts by a property of unique values."""

    title = "HubSpot"

    def __init__(self, store: Store, faults: FaultBox, token: str) -> None:
        super().__init__(store, faults)
        self._token = token

    def throttled(self, retry_after: float | None) -> Response:
        headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        return self._error(429, "RATE_LIMITS", "You have reached your ten_secondly_rolling limit.", headers=headers,
                           policyName="TEN_SECONDLY_ROLLING")  # fmt: skip

    def quota_spent(self) -> Response:
        return self._error(429, "RATE_LIMITS", "You have reached your daily limit.", policyName="DAILY")

    def handle(self, request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {self._token}" or self.faults.active.expire_tokens:
            return self._error(401, "INVALID_AUTHENTICATION", "Authentication credentials not found or invalid.")
        if found := PROPERTIES.fullmatch(request.path):
            return self._properties(found["kind"], found["name"])
        found = PATH.fullmatch(request.path)
        if found is None:
            return self._error(404, "OBJECT_NOT_FOUND", "resource not found")
        if found["kind"] not in ("contacts", "0-1"):
            return self._error(404, "OBJECT_NOT_FOUND", f"Unable to infer object type from: {found['kind']}")
        if request.method != "POST":
            return self._error(405, "VALIDATION_ERROR", "method not allowed")
        document = request.json()
        inputs = document.get("inputs") if isinstance(document, dict) else None
        if not isinstance(inputs, list) or not all(isinstance(item, dict) and item.get("id") for item in inputs):
            return self._error(400, "VALIDATION_ERROR", "Invalid input JSON: inputs with an id each are required")
        if len(inputs) > MAX_BATCH:
            return self._error(400, "VALIDATION_ERROR", f"The batch exceeds the limit of {MAX_BATCH}")
        if len({item["id"] for item in inputs}) < len(inputs):
            return self._error(400, "VALIDATION_ERROR", "Duplicate IDs found in batch input")
        try:
            if found["action"] == "upsert":
                return self._upsert(inputs)
            return self._read(document) if found["action"] == "read" else self._archive(inputs)
        except Problem as problem:
            return self._refuse(problem)

    def _upsert(self, inputs: list[dict[str, Any]]) -> Response:
        for item in inputs:
            if item.get("idProperty") not in UNIQUE:
                raise Problem("PROPERTY_NOT_UNIQUE", "idProperty must be a unique property", item.get("idProperty"))
            for name in item.get("properties") or {}:
                if name not in NAMES:
                    raise Problem("PROPERTY_DOESNT_EXIST", f'Property "{name}" does not exist', name)
        results, errors = [], []
        whole = self.faults.active.whole_batch or any("objectWriteTraceId" not in item for item in inputs)
        problems = {item["id"]: self._judge(item) for item in inputs}
        if whole and (first := next(filter(None, problems.values()), None)):
            raise first
        for item in inputs:
            problem = problems[item["id"]]
            if problem is None:
                results.append(self._write(item))
            else:
                context = {"objectWriteTraceId": [item["objectWriteTraceId"]]}
                if problem.name:
                    context["propertyName"] = [problem.name]
                detail = {"message": str(problem), "code": problem.code, "context": context}
                errors.append({"status": "error", "category": problem.category, "message": str(problem),
                               "context": context, "errors": [detail]})  # fmt: skip
        return self._batch(results, errors)

    def _judge(self, item: Mapping[str, Any]) -> Problem | None:
        properties = item.get("properties") or {}
        for name, value in properties.items():
            if not isinstance(value, str):
                return Problem("INVALID_TYPE", f"{name} must be a string", name)
            if len(value) > MAX_TEXT:
                return Problem("PROPERTY_VALUE_TOO_LONG", f"{name} was too long", name)
        email = properties.get("email")
        if email and not EMAIL.fullmatch(email):
            return Problem("INVALID_EMAIL", f"Email address {email} is invalid", "email")
        if why := self.faults.rejects(item["id"]):
            return Problem("REJECTED", why)
        mine, other = self.store.find("external_id", item["id"]), self.store.find("email", email) if email else None
        if other and (mine is None or mine[0] != other[0]):
            return Problem("CONFLICT", "Contact already exists", "email", "CONFLICT")
        return None

    def _write(self, item: Mapping[str, Any]) -> dict[str, Any]:
        found = self.store.find("external_id", item["id"]) if item["idProperty"] == KEY else None
        fields = {**(found[1] if found else {}), **item["properties"], item["idProperty"]: item["id"]}
        fields = {name: value for name, value in fields.items() if value != ""}
        email = fields.get("email")
        if found:
            number = found[0]
            self.store.update(number, fields.get(KEY), fields, email)
        else:
            number = self.store.create(fields.get(KEY), fields, email)
        return {**self._document(number, fields), "new": found is None}

    def _read(self, document: Mapping[str, Any]) -> Response:
        column = {KEY: "external_id", "email": "email", None: "number"}.get(document.get("idProperty"), "")
        if not column:
            raise Problem("PROPERTY_NOT_UNIQUE", "idProperty must be a unique property", document.get("idProperty"))
        wanted = set(document.get("properties") or ()) | {document.get("idProperty")}
        results, missing = [], []
        for item in document["inputs"]:
            found = self.store.find(column, item["id"])
            if found:
                results.append(self._document(found[0], {k: v for k, v in found[1].items() if k in wanted}))
            else:
                missing.append(item["id"])
        errors = [{"status": "error", "category": "OBJECT_NOT_FOUND", "message": "Could not get some objects",
                   "context": {"ids": missing}, "errors": []}] if missing else []  # fmt: skip
        return self._batch(results, errors)

    def _archive(self, inputs: list[dict[str, Any]]) -> Response:
        for item in inputs:
            if not str(item["id"]).isdigit():
                raise Problem("INVALID_OBJECT_ID", f"{item['id']} is not a HubSpot id")
            self.store.delete(int(item["id"]))
        return Response(204)

    def _properties(self, kind: str, name: str | None) -> Response:
        known = {item: {"name": item, "label": item, "type": "string", "fieldType": "text",
                        "hasUniqueValue": item in UNIQUE} for item in NAMES}  # fmt: skip
        if kind not in ("contacts", "0-1") or (name is not None and name not in known):
            return self._error(404, "OBJECT_NOT_FOUND", "resource not found")
        return Response(200, known[name] if name else {"results": list(known.values())}, self._headers())

    @staticmethod
    def _document(number: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"id": str(number), "properties": fields, "createdAt": now, "updatedAt": now, "archived": False}

    def _batch(self, results: list[Any], errors: list[Any]) -> Response:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        document: dict[str, Any] = {"status": "COMPLETE", "startedAt": now, "completedAt": now, "results": results}
        if errors:
            document |= {"numErrors": len(errors), "errors": errors}
        return Response(207 if errors else 200, document, self._headers())

    def _refuse(self, problem: Problem) -> Response:
        context = {"propertyName": [problem.name]} if problem.name else {}
        details = [{"message": str(problem), "code": problem.code, "context": context}]
        status = 409 if problem.category == "CONFLICT" else 400
        return self._error(status, problem.category, str(problem), errors=details)

    def _error(
        self, status: int, category: str, message: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> Response:
        document = {"status": "error", "message": message, "correlationId": "0", "category": category, **more}
        return Response(status, document, {**self._headers(), **(headers or {})})

    @staticmethod
    def _headers() -> dict[str, str]:
        return {"X-HubSpot-RateLimit-Max": "190", "X-HubSpot-RateLimit-Interval-Milliseconds": "10000"}
