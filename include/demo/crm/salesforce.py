"""Salesforce's Lead: login, sObject Collections, single records by external id, SOQL, describe."""

from __future__ import annotations

import math
import os
import re
import secrets
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

from demo.crm.faults import FaultBox
from demo.crm.server import Request, Response, Vendor
from demo.crm.store import Store

DATA = re.compile(r"/services/data/v(?P<version>\d+)\.0(?P<path>/.*)")
SOQL = re.compile(
    r"SELECT (?P<fields>[\w, ]+) FROM (?P<kind>\w+) WHERE (?P<key>\w+) (?:IN \((?P<in>.*)\)|= (?P<is>.*))", re.S
)
LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'", re.S)
MAX_BATCH = 200
KEY = "Leadsync_Id__c"
# name → (type, length)
FIELDS: dict[str, tuple[str, int]] = {
    "LastName": ("string", 80), "FirstName": ("string", 40), "Company": ("string", 255), "Email": ("email", 80),
    "Phone": ("phone", 40), "MobilePhone": ("phone", 40), "City": ("string", 40), "Country": ("string", 80),
    "Title": ("string", 128), "Website": ("url", 255), "Description": ("textarea", 32000), "Status": ("picklist", 255),
    "LeadSource": ("picklist", 255), KEY: ("string", 255), "Appkey__c": ("string", 255), "Uid__c": ("double", 0),
    "Updated_At__c": ("datetime", 0), "Answers__c": ("textarea", 131072), "Deleted__c": ("boolean", 0),
}  # fmt: skip
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")


def vendor(store: Store, faults: FaultBox) -> Salesforce:
    """The simulator, with the connected app that DEMO_CRM_CLIENT_ID and DEMO_CRM_CLIENT_SECRET name."""
    return Salesforce(store, faults, os.environ["DEMO_CRM_CLIENT_ID"], os.environ["DEMO_CRM_CLIENT_SECRET"])


class Refusal(Exception):
    """A whole request is refused."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Salesforce(Vendor):
    """Leads by the external id field."""

    title = "Salesforce"

    def __init__(self, store: Store, faults: FaultBox, client_id: str, client_secret: str) -> None:
        super().__init__(store, faults)
        self._client = (client_id, client_secret)
        self._tokens: set[str] = set()
        self._usage = 0
        self._lock = threading.Lock()

    def throttled(self, retry_after: float | None) -> Response:
        headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        return Response(429, [{"message": "Too many requests", "errorCode": "TOO_MANY_REQUESTS"}], headers)

    def quota_spent(self) -> Response:
        return self._error(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")

    def handle(self, request: Request) -> Response:
        with self._lock:
            self._usage += 1
        if request.path == "/services/oauth2/token":
            return self._log_in(request)
        if self.faults.take_expiry():
            self._tokens.clear()
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self._tokens:
            return self._error(401, "INVALID_SESSION_ID", "Session expired or invalid")
        found = DATA.fullmatch(request.path)
        if found is None or int(found["version"]) < 46:
            return self._error(404, "NOT_FOUND", "The requested resource does not exist")
        try:
            return self._route(request, found["path"])
        except Refusal as refusal:
            return self._error(refusal.status, refusal.code, str(refusal))

    def _log_in(self, request: Request) -> Response:
        form = {name: values[-1] for name, values in parse_qs(request.body.decode()).items()}
        if form.get("grant_type") != "client_credentials":
            return Response(400, {"error": "unsupported_grant_type", "error_description": "grant type not supported"})
        if (form.get("client_id"), form.get("client_secret")) != self._client:
            return Response(401, {"error": "invalid_client", "error_description": "invalid client credentials"})
        token = secrets.token_urlsafe(24)
        self._tokens.add(token)
        instance = f"http://{request.headers.get('Host')}"
        return Response(200, {"access_token": token, "instance_url": instance, "token_type": "Bearer"})

    def _route(self, request: Request, path: str) -> Response:
        if path in ("/query", "/query/") and request.method == "GET":
            return self._query(request.query.get("q", ""))
        if path.rstrip("/") == "/limits":
            return self._reply(200, {"DailyApiRequests": {"Max": 5000, "Remaining": 5000 - self._usage}})
        parts = path.strip("/").split("/")
        if parts == ["composite", "sobjects"] and request.method == "DELETE":
            return self._delete_many(request.query)
        if parts[:2] == ["composite", "sobjects"] and len(parts) == 4 and request.method == "PATCH":
            self._known(parts[2], parts[3])
            return self._upsert_many(request.json(), parts[2], parts[3])
        if parts[0] == "sobjects" and len(parts) >= 2:
            self._known(parts[1], parts[2] if len(parts) == 4 else KEY)
            if parts[2:] == ["describe"]:
                return self._describe()
            if len(parts) == 4:
                return self._single(request, parts[3])
        raise Refusal(404, "NOT_FOUND", "The requested resource does not exist")

    @staticmethod
    def _known(kind: str, key: str) -> None:
        if kind != "Lead":
            raise Refusal(404, "NOT_FOUND", "The requested resource does not exist")
        if key != KEY:
            raise Refusal(400, "INVALID_FIELD", f"Field name provided, {key} is not an External ID or indexed field")

    def _upsert_many(self, document: Any, kind: str, key: str) -> Response:
        records = document.get("records") if isinstance(document, dict) else None
        if not isinstance(records, list) or not records:
            raise Refusal(400, "JSON_PARSER_ERROR", "records is required")
        if len(records) > MAX_BATCH:
            raise Refusal(400, "INVALID_BATCH_SIZE", f"record limit reached: more than {MAX_BATCH}")
        for record in records:
            if (record.get("attributes") or {}).get("type") != kind or "Id" in record:
                raise Refusal(400, "INVALID_FIELD", "attributes.type must be the object, and no Id is allowed")
            self._fields_known(record)
        ids = [record.get(key) for record in records]
        return self._reply(200, [self._upsert(record, ids.count(record.get(key)) > 1)[0] for record in records])

    @staticmethod
    def _fields_known(record: Mapping[str, Any]) -> None:
        for name in record:
            if name not in FIELDS and name != "attributes":
                raise Refusal(400, "INVALID_FIELD", f"No such column '{name}' on sobject of type Lead")

    def _upsert(self, record: Mapping[str, Any], double: bool) -> tuple[dict[str, Any], bool]:
        fields = {name: value for name, value in record.items() if name != "attributes"}
        external_id = fields.get(KEY)
        problem = None
        if not external_id:
            problem = ("MISSING_ARGUMENT", f"{KEY} not specified", [KEY])
        elif double:
            problem = ("DUPLICATE_VALUE", "Duplicate external id specified", [KEY])
        elif why := self.faults.rejects(str(external_id)):
            problem = ("FIELD_CUSTOM_VALIDATION_EXCEPTION", why, [])
        found = self.store.find("external_id", str(external_id))
        merged = {**(found[1] if found else {}), **fields}
        problem = problem or _judge(merged)
        if problem:
            code, message, names = problem
            error = {"statusCode": code, "message": message, "fields": names}
            return {"success": False, "errors": [error]}, False
        merged = {name: value for name, value in merged.items() if value is not None}
        if found:
            number = found[0]
            self.store.update(number, str(external_id), merged, None)
        else:
            number = self.store.create(str(external_id), merged, None)
        return {"id": _id(number), "success": True, "errors": [], "created": found is None}, found is None

    def _delete_many(self, query: Mapping[str, str]) -> Response:
        ids = [part for part in query.get("ids", "").split(",") if part]
        if not ids or len(ids) > MAX_BATCH:
            raise Refusal(400, "INVALID_BATCH_SIZE", f"give 1 to {MAX_BATCH} ids")
        results = []
        for crm_id in ids:
            number = _number(crm_id)
            live = self.store.find("number", number)
            if live:
                self.store.delete(number)
                results.append({"id": crm_id, "success": True, "errors": []})
            else:
                code = "ENTITY_IS_DELETED" if self.store.exists(number) else "INVALID_CROSS_REFERENCE_KEY"
                error = {"statusCode": code, "message": code.replace("_", " ").lower(), "fields": []}
                results.append({"id": crm_id, "success": False, "errors": [error]})
        return self._reply(200, results)

    def _single(self, request: Request, external_id: str) -> Response:
        found = self.store.find("external_id", external_id)
        if request.method == "PATCH":
            record = {**(request.json() or {}), KEY: external_id}
            self._fields_known(record)
            result, created = self._upsert(record, double=False)
            if not result["success"]:
                error = result["errors"][0]
                return self._error(400, error["statusCode"], error["message"])
            return self._reply(201 if created else 200, result)
        if found is None:
            raise Refusal(404, "NOT_FOUND", "The requested resource does not exist")
        if request.method == "DELETE":
            self.store.delete(found[0])
            return self._reply(204, None)
        return self._reply(200, {"Id": _id(found[0]), **found[1]})

    def _query(self, query: str) -> Response:
        parts = SOQL.fullmatch(query.strip())
        if parts is None:
            raise Refusal(400, "MALFORMED_QUERY", "the simulator knows SELECT … FROM Lead WHERE key IN (…) or key = …")
        names = [name.strip() for name in parts["fields"].split(",")]
        for name in (*names, parts["key"]):
            if name != "Id" and name not in FIELDS:
                raise Refusal(400, "INVALID_FIELD", f"No such column '{name}' on entity 'Lead'")
        if parts["kind"] != "Lead":
            raise Refusal(400, "INVALID_TYPE", f"sObject type '{parts['kind']}' is not supported.")
        values = [re.sub(r"\\(.)", r"\1", value) for value in LITERAL.findall(parts["in"] or parts["is"])]
        records = []
        for value in dict.fromkeys(values):
            found = self.store.find("external_id", value)
            if found:
                record = {"attributes": {"type": "Lead"}, **{name: found[1].get(name) for name in names}}
                records.append({**record, **({"Id": _id(found[0])} if "Id" in names else {})})
        return self._reply(200, {"totalSize": len(records), "done": True, "records": records})

    def _describe(self) -> Response:
        fields = [{"name": name, "type": kind, "length": length, "externalId": name == KEY, "unique": name == KEY}
                  for name, (kind, length) in FIELDS.items()]  # fmt: skip
        return self._reply(200, {"name": "Lead", "fields": fields})

    def _reply(self, status: int, document: Any) -> Response:
        return Response(status, document, {"Sforce-Limit-Info": f"api-usage={self._usage}/5000"})

    def _error(self, status: int, code: str, message: str) -> Response:
        return self._reply(status, [{"message": message, "errorCode": code}])


def _judge(fields: Mapping[str, Any]) -> tuple[str, str, list[str]] | None:
    for name in ("LastName", "Company"):
        if not fields.get(name):
            return "REQUIRED_FIELD_MISSING", f"Required fields are missing: [{name}]", [name]
    for name, value in fields.items():
        kind, length = FIELDS[name]
        if value is None:
            continue
        if kind == "double":
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return "INVALID_TYPE_ON_FIELD_IN_RECORD", f"{name}: value not of required type", [name]
        elif kind == "boolean":
            if not isinstance(value, bool):
                return "INVALID_TYPE_ON_FIELD_IN_RECORD", f"{name}: value not of required type", [name]
        elif not isinstance(value, str):
            return "INVALID_TYPE_ON_FIELD_IN_RECORD", f"{name}: value not of required type", [name]
        elif kind == "datetime":
            try:
                datetime.fromisoformat(value)
            except ValueError:
                return "INVALID_TYPE_ON_FIELD_IN_RECORD", f"{name}: not a datetime", [name]
        elif len(value) > length:
            return "STRING_TOO_LONG", f"{name}: data value too large (max length={length})", [name]
        elif kind == "email" and value and not EMAIL.fullmatch(value):
            return "INVALID_EMAIL_ADDRESS", f"{name}: invalid email address", [name]
    return None


def _id(number: int) -> str:
    return f"00Q{number:012d}AAA"


def _number(crm_id: str) -> int:
    return int(crm_id[3:15]) if re.fullmatch(r"00Q\d{12}(AAA)?", crm_id) else 0
