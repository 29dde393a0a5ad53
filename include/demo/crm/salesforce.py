"""Salesforce's Lead: login, sObject Collections, single records, SOQL, describe, limits, Bulk API 2.0."""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

from demo.crm.faults import FaultBox
from demo.crm.salesforce_bulk import BulkJobs
from demo.crm.salesforce_fields import FIELDS, KEY, REQUIRED, Problem, number_of, record_id
from demo.crm.salesforce_query import Queries, shown
from demo.crm.store import Row, Store
from demo.crm.vendor import Refusal, Request, Response, Route, Vendor

DATA = r"/services/data/v(?P<version>4[6-9]|5\d|6[0-6])\.0"
LEAD = rf"{DATA}/sobjects/(?P<kind>\w+)"
MAX_BATCH = 200
MAX_TARGET = 16_384
DAILY = 1_000_000
LOGIN = "/services/oauth2/token"


class Salesforce(Vendor):
    """Leads by Salesforce's id or the external id field."""

    title = "Salesforce"
    credentials = ("DEMO_CRM_CLIENT_ID", "DEMO_CRM_CLIENT_SECRET")
    login_path = LOGIN

    def __init__(self, store: Store, faults: FaultBox, *credentials: str) -> None:
        self._bulk = BulkJobs(store, faults, self._write)
        super().__init__(store, faults, *credentials)
        self._tokens: set[str] = set()
        self._queries = Queries(store)
        self._requests = 0

    def routes(self) -> list[Route]:
        return [
            ("POST", LOGIN, self._log_in),
            ("PATCH", rf"{DATA}/composite/sobjects/(?P<kind>\w+)/(?P<key>\w+)", self._upsert_many),
            ("DELETE", rf"{DATA}/composite/sobjects", self._delete_many),
            ("GET", rf"{LEAD}/describe", self._describe),
            ("GET", rf"{LEAD}/(?P<id>\w+)", self._get),
            ("DELETE", rf"{LEAD}/(?P<id>\w+)", self._delete),
            ("GET", rf"{LEAD}/(?P<key>\w+)/(?P<value>.+)", self._get),
            ("PATCH", rf"{LEAD}/(?P<key>\w+)/(?P<value>.+)", self._upsert),
            ("DELETE", rf"{LEAD}/(?P<key>\w+)/(?P<value>.+)", self._delete),
            ("GET", rf"{DATA}/(?P<all>query|queryAll)/?", self._query),
            ("GET", rf"{DATA}/(?:query|queryAll)/(?P<cursor>\w+)-(?P<first>\d+)", self._more),
            ("GET", rf"{DATA}/limits/?", self._limits),
            *((method, path, self._job(act)) for method, path, act in self._bulk.routes(rf"{DATA}/jobs/ingest")),
        ]

    def catch_up(self) -> None:
        self._bulk.catch_up()

    def admit(self, request: Request) -> None:
        if request.path == LOGIN:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme not in ("Bearer", "OAuth") or token not in self._tokens:
            raise Refusal(_error(401, "INVALID_SESSION_ID", "Session expired or invalid"))
        if len(request.target) > MAX_TARGET:
            raise Refusal(_error(414, "URI_TOO_LONG", f"The URI is longer than {MAX_TARGET} bytes"))

    def problem(self, status: int, message: str) -> Response:
        codes = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 503: "SERVER_UNAVAILABLE"}
        return _error(status, codes.get(status, "UNKNOWN_EXCEPTION"), message)

    def throttled(self) -> Response:
        # Salesforce itself knows the daily and the concurrent limit only; a 429 is a gateway's before it.
        return _error(429, "TOO_MANY_REQUESTS", "Too many requests")

    def quota_spent(self) -> Response:
        return _error(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")

    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        self._requests = requests
        return {"Sforce-Limit-Info": f"api-usage={requests}/{DAILY}"}

    def crm_id(self, number: int) -> str:
        return record_id(number)

    def expire_tokens(self) -> None:
        self._tokens.clear()
        self.faults.active.expire_tokens = None

    def _log_in(self, request: Request) -> Response:
        form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
        if form.get("grant_type") != "client_credentials":
            raise Refusal(_login_error("unsupported_grant_type", "grant type not supported"))
        client, secret = form.get("client_id", ""), form.get("client_secret", "")
        scheme, _, basic = request.headers.get("authorization", "").partition(" ")
        if scheme == "Basic":
            try:
                client, _, secret = base64.b64decode(basic).decode().partition(":")
            except ValueError:
                raise Refusal(_login_error("invalid_request", "malformed authorization header")) from None
        if client != self._credentials[0]:
            raise Refusal(_login_error("invalid_client_id", "client identifier invalid"))
        if not hmac.compare_digest(secret.encode(), self._credentials[1].encode()):
            raise Refusal(_login_error("invalid_client", "invalid client credentials"))
        token = f"00DHs0000000001!{secrets.token_urlsafe(32)}"
        self._tokens.add(token)
        instance = f"http://{request.headers['host']}"
        return Response(200, {
            "access_token": token, "signature": secrets.token_urlsafe(32), "scope": "api", "instance_url": instance,
            "id": f"{instance}/id/00DHs0000000001AAA/005Hs0000000001AAA", "token_type": "Bearer",
            "issued_at": str(time.time_ns() // 1_000_000),
        })  # fmt: skip

    def _upsert_many(self, request: Request) -> Response:
        self._check_key(request)
        records, all_or_none = self._records(request)
        times = Counter(str(record.get(KEY)) for record in records)
        results: list[dict[str, Any]] = []
        failed = False
        for record in records:
            fields = {name: value for name, value in record.items() if name not in ("attributes", KEY)}
            try:
                if record.get(KEY) in (None, ""):
                    raise Problem("MISSING_ARGUMENT", f"{KEY} not specified", KEY)
                if times[str(record[KEY])] > 1:
                    raise Problem("DUPLICATE_VALUE", f"Duplicate external id specified: {record[KEY]}", KEY)
                results.append(self._write(record[KEY], fields))
            except Problem as problem:
                if self.faults.active.whole_batch:
                    raise Refusal(_error(400, problem.code, str(problem), problem.fields)) from None
                failed = True
                results.append(_failure(problem))
        if failed and all_or_none:
            rolled_back = Problem(
                "ALL_OR_NONE_OPERATION_ROLLED_BACK",
                "Record rolled back because not all records were valid and the request was using AllOrNone header",
            )
            raise Refusal(Response(200, [_failure(rolled_back) if item["success"] else item for item in results]))
        return Response(200, results)

    def _records(self, request: Request) -> tuple[list[dict[str, Any]], bool]:
        """Records and allOrNone of a collection. Raises Refusal for what is wrong with all of it."""
        document = _object(request)
        records, all_or_none = document.get("records"), document.get("allOrNone", False)
        if unknown := document.keys() - {"records", "allOrNone"}:
            raise Refusal(_error(400, "JSON_PARSER_ERROR", f'Unrecognized field "{min(unknown)}"'))
        if not isinstance(all_or_none, bool) or not isinstance(records, list) or not records:
            raise Refusal(_error(400, "JSON_PARSER_ERROR", "records must be a list, allOrNone true or false"))
        if len(records) > MAX_BATCH:
            raise Refusal(_error(400, "INVALID_BATCH_SIZE", f"record limit reached: at most {MAX_BATCH} records"))
        for record in records:
            attributes = record.get("attributes") if isinstance(record, dict) else None
            if not isinstance(attributes, dict) or not attributes.get("type"):
                raise Refusal(_error(400, "INVALID_FIELD", "Each record needs an attributes map with its type"))
            if attributes["type"] != request.params["kind"]:
                raise Refusal(_error(400, "INVALID_TYPE", "All records must be of the type named in the URL"))
            _check_names(record)
        return records, all_or_none

    def _write(self, external_id: Any, sent: Mapping[str, Any]) -> dict[str, Any]:
        key: str = FIELDS[KEY].value(external_id)
        found = self.store.find(KEY, key)
        sent = {name: FIELDS[name].value(value) for name, value in sent.items()}
        if why := self.faults.rejects(key):
            raise Problem("FIELD_CUSTOM_VALIDATION_EXCEPTION", why)
        if self.faults.strikes("conflict"):
            raise Problem("UNABLE_TO_LOCK_ROW", "unable to obtain exclusive access to this record")
        fields = {**(found.fields if found else {}), KEY: key, **sent}
        fields = {name: value for name, value in fields.items() if value is not None}
        if missing := [name for name in REQUIRED if not fields.get(name, "").strip()]:
            raise Problem("REQUIRED_FIELD_MISSING", f"Required fields are missing: [{', '.join(missing)}]", *missing)
        noted = {KEY: key, **sent}
        if found and self.faults.strikes("double"):
            row, found = self.store.create(key, fields, {}, noted), None
        elif found:
            row = self.store.update(found, key, fields, {KEY: key}, noted)
        else:
            row = self.store.create(key, fields, {KEY: key}, noted)
        return {"id": record_id(row.number), "success": True, "errors": [], "created": found is None}

    def _upsert(self, request: Request) -> Response:
        self._check_key(request)
        fields = {name: value for name, value in _object(request).items() if name != "attributes"}
        _check_names(fields)
        if KEY in fields:
            raise Refusal(_error(400, "INVALID_FIELD", f"The {KEY} field should not be specified in the sobject data."))
        try:
            result = self._write(request.params["value"], fields)
        except Problem as problem:
            raise Refusal(_error(400, problem.code, str(problem), problem.fields)) from None
        return Response(201 if result["created"] else 200, result)

    def _delete_many(self, request: Request) -> Response:
        ids = [part for part in request.query.get("ids", "").split(",") if part]
        if not ids or len(ids) > MAX_BATCH:
            raise Refusal(_error(400, "INVALID_BATCH_SIZE", f"give 1 to {MAX_BATCH} ids"))
        results: list[dict[str, Any]] = []
        for crm_id in ids:
            try:
                row = self._by_id(crm_id)
                self.store.delete(row)
                results.append({"id": record_id(row.number), "success": True, "errors": []})
            except Problem as problem:
                results.append(_failure(problem))
        if request.query.get("allOrNone") == "true" and not all(result["success"] for result in results):
            raise Refusal(Response(200, results))
        return Response(200, results)

    def _by_id(self, crm_id: str) -> Row:
        number = number_of(crm_id)
        row = None if number is None else self.store.get(number)
        if row is None:
            raise Problem("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id")
        if row.deleted:
            raise Problem("ENTITY_IS_DELETED", "entity is deleted")
        return row

    def _one(self, request: Request) -> Row:
        """The live record that the URL names."""
        row = None
        if "key" in request.params:
            self._check_key(request)
            row = self.store.find(KEY, request.params["value"])
        else:
            _check_kind(request)
            try:
                row = self._by_id(request.params["id"])
            except Problem as problem:
                if problem.code != "INVALID_CROSS_REFERENCE_KEY":
                    raise Refusal(_error(404, problem.code, str(problem))) from None
        if row is None:
            raise Refusal(self.problem(404, "The requested resource does not exist"))
        return row

    def _get(self, request: Request) -> Response:
        row = self._one(request)
        asked = request.query.get("fields")
        names = asked.split(",") if asked else list(FIELDS)
        if unknown := [name for name in names if name not in FIELDS]:
            raise Refusal(_error(400, "INVALID_FIELD", f"No such column '{unknown[0]}' on sobject of type Lead"))
        return Response(200, shown(row, names, request.params["version"]))

    def _delete(self, request: Request) -> Response:
        self.store.delete(self._one(request))
        return Response(204)

    def _query(self, request: Request) -> Response:
        deleted = request.params["all"] == "queryAll"
        try:
            page = self._queries.first(request.query.get("q", ""), request.params["version"], deleted)
        except Problem as problem:
            raise Refusal(_error(400, problem.code, str(problem))) from None
        if page["records"] and self.faults.strikes("half_page"):
            page["records"] = page["records"][: len(page["records"]) // 2]
        return Response(200, page)

    def _more(self, request: Request) -> Response:
        cursor, first = request.params["cursor"], int(request.params["first"])
        try:
            return Response(200, self._queries.more(cursor, first, request.params["version"]))
        except Problem as problem:
            raise Refusal(_error(400, problem.code, str(problem))) from None

    def _describe(self, request: Request) -> Response:
        _check_kind(request)
        fields = [field.document() for field in FIELDS.values()]
        return Response(200, {
            "name": "Lead", "label": "Lead", "keyPrefix": "00Q", "createable": True, "updateable": True,
            "deletable": True, "queryable": True, "fields": fields,
        })  # fmt: skip

    def _job(self, act: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            try:
                return act(request)
            except Problem as problem:
                raise Refusal(_error(404 if problem.code == "NOT_FOUND" else 400, problem.code, str(problem))) from None

        return answer

    def _limits(self, _: Request) -> Response:
        return Response(200, {"DailyApiRequests": {"Max": DAILY, "Remaining": DAILY - self._requests}})

    @staticmethod
    def _check_key(request: Request) -> None:
        _check_kind(request)
        if request.params["key"] != KEY:
            message = f"Provided external ID field does not exist or is not accessible: {request.params['key']}"
            raise Refusal(_error(404, "NOT_FOUND", message))


def _check_kind(request: Request) -> None:
    if request.params["kind"] != "Lead":
        raise Refusal(_error(404, "NOT_FOUND", "The requested resource does not exist"))


def _check_names(record: Mapping[str, Any]) -> None:
    """An unknown field refuses the whole call: it is no fault of a record."""
    if any(name.lower() == "id" for name in record):
        raise Refusal(_error(400, "INVALID_FIELD", "The Id field should not be specified in the sobject data."))
    for name in record:
        if name not in FIELDS and name != "attributes":
            raise Refusal(_error(400, "INVALID_FIELD", f"No such column '{name}' on sobject of type Lead"))


def _object(request: Request) -> dict[str, Any]:
    try:
        document = request.json()
    except orjson.JSONDecodeError as error:
        raise Refusal(
            _error(400, "JSON_PARSER_ERROR", f"Unexpected input at [line:{error.lineno}, column:{error.colno}]")
        ) from None
    if not isinstance(document, dict):
        raise Refusal(_error(400, "JSON_PARSER_ERROR", "The body must be a JSON object"))
    return document


def _failure(problem: Problem) -> dict[str, Any]:
    error = {"statusCode": problem.code, "message": str(problem), "fields": problem.fields}
    return {"success": False, "errors": [error]}


def _error(status: int, code: str, message: str, fields: list[str] | None = None) -> Response:
    return Response(status, [{"message": message, "errorCode": code, **({"fields": fields} if fields else {})}])


def _login_error(error: str, description: str) -> Response:
    return Response(400, {"error": error, "error_description": description})
