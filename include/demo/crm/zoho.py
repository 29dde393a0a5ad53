"""Zoho CRM's Leads: login by refresh token, upsert, insert, delete, COQL, one record, the fields' definitions."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from demo.crm.faults import FaultBox
from demo.crm.store import Row, Store
from demo.crm.vendor import Refusal, Request, Response, Route, Vendor
from demo.crm.zoho_fields import FIELDS, KEY, MODULE, REQUIRED, Problem, known

LOGIN = "/oauth/v2/token"
API = "/crm/v8"
MAX_BATCH = 100
MAX_VALUES = 50
CREDITS = 50_000
PREFIX = 365_239_000_000_000_000
QUERY = re.compile(
    r"\s*select\s+(?P<columns>[\w\s,]+?)\s+from\s+(?P<module>\w+)\s+where\s+\(?\s*(?P<field>\w+)\s+in\s+"
    r"\((?P<values>\s*'(?:[^']|'')*'\s*(?:,\s*'(?:[^']|'')*'\s*)*)\)\s*\)?(?:\s+limit\s+(?P<limit>\d+))?\s*",
    re.I,
)


class Zoho(Vendor):
    """Leads by Zoho's id or the unique external field."""

    title = "Zoho CRM"
    credentials = ("DEMO_CRM_CLIENT_ID", "DEMO_CRM_CLIENT_SECRET", "DEMO_CRM_TOKEN")
    login_path = LOGIN
    addresses = {"accounts_url": ""}

    def __init__(self, store: Store, faults: FaultBox, *credentials: str) -> None:
        super().__init__(store, faults, *credentials)
        self._tokens: set[str] = set()

    def routes(self) -> list[Route]:
        return [
            ("POST", LOGIN, self._log_in),
            ("GET", f"{API}/settings/fields", self._fields),
            ("POST", f"{API}/coql", self._coql),
            ("POST", rf"{API}/(?P<module>\w+)/upsert", self._upsert),
            ("POST", rf"{API}/(?P<module>\w+)", self._insert),
            ("DELETE", rf"{API}/(?P<module>\w+)", self._delete_many),
            ("GET", rf"{API}/(?P<module>\w+)/(?P<id>.+)", self._get),
            ("DELETE", rf"{API}/(?P<module>\w+)/(?P<id>.+)", self._delete),
        ]

    def admit(self, request: Request) -> None:
        if request.path == LOGIN:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Zoho-oauthtoken" or token not in self._tokens:
            raise Refusal(_error(401, "INVALID_TOKEN", "invalid oauth token"))

    def problem(self, status: int, message: str) -> Response:
        codes = {404: "INVALID_URL_PATTERN", 405: "INVALID_REQUEST_METHOD"}
        return _error(status, codes.get(status, "INTERNAL_ERROR"), message)

    def throttled(self) -> Response:
        return _error(429, "TOO_MANY_REQUESTS", "You have crossed the limit of calls at once")

    def quota_spent(self) -> Response:
        response = _error(429, "LIMIT_EXCEEDED", "The credits of 24 hours are used up")
        return Response(response.status, response.document, {"X-API-CREDITS-REMAINING": "0"})

    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        # Only once half of them are used.
        return {"X-API-CREDITS-REMAINING": str(max(1_000, CREDITS - requests))} if requests > CREDITS / 2 else {}

    def crm_id(self, number: int) -> str:
        return str(PREFIX + number)

    def expire_tokens(self) -> None:
        self._tokens.clear()
        self.faults.active.expire_tokens = None

    def _log_in(self, request: Request) -> Response:
        form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True)) | dict(request.query)
        client, secret, refresh = self._credentials
        if form.get("grant_type") != "refresh_token":
            return Response(200, {"error": "unsupported_grant_type"})
        if form.get("client_id") != client or not _equal(form.get("client_secret"), secret):
            return Response(200, {"error": "invalid_client"})
        if not _equal(form.get("refresh_token"), refresh):
            return Response(200, {"error": "invalid_code"})
        token = f"1000.{secrets.token_hex(16)}.{secrets.token_hex(16)}"
        self._tokens.add(token)
        return Response(200, {"access_token": token, "scope": "ZohoCRM.modules.ALL", "token_type": "Bearer",
                              "api_domain": f"http://{request.headers['host']}", "expires_in": 3600})  # fmt: skip

    # Writing -----------------------------------------------------------------------------------------------------

    def _upsert(self, request: Request) -> Response:
        document = _document(request)
        checked = document.get("duplicate_check_fields", ["Email", KEY])
        if not isinstance(checked, list) or not checked or set(checked) - {"Email", KEY}:
            raise Refusal(_error(400, "INVALID_DATA", "invalid data", api_name="duplicate_check_fields"))
        return self._write_many(request, document, checked)

    def _insert(self, request: Request) -> Response:
        return self._write_many(request, _document(request), [])

    def _write_many(self, request: Request, document: Mapping[str, Any], checked: list[str]) -> Response:
        _check_module(request.params["module"])
        _check_external(request)
        records = document.get("data")
        if not isinstance(records, list) or not records:
            raise Refusal(_error(400, "MANDATORY_NOT_FOUND", "required field not found", api_name="data"))
        if len(records) > MAX_BATCH:
            raise Refusal(_error(400, "LIMIT_EXCEEDED", "the limit is exceeded", limit=MAX_BATCH))
        if not isinstance(document.get("trigger", []), list):
            raise Refusal(
                _error(400, "INVALID_DATA", "invalid data", api_name="trigger", expected_data_type="jsonarray")
            )
        results: list[dict[str, Any]] = []
        for record in records:
            try:
                results.append(self._write(record, checked))
            except Problem as problem:
                if self.faults.active.whole_batch:
                    raise Refusal(Response(400, problem.document())) from None
                results.append(problem.document())
        good = sum(result["status"] == "success" for result in results)
        status = (201 if not checked else 200) if good == len(results) else 207 if good else 202
        return Response(status, {"data": results})

    def _write(self, record: Any, checked: list[str]) -> dict[str, Any]:
        if not isinstance(record, dict):
            raise Problem("INVALID_DATA", "invalid data", expected_data_type="jsonobject")
        sent = known(record)
        if why := self.faults.rejects(sent.get(KEY)):
            raise Problem("CANNOT_PROCESS", why)
        if self.faults.strikes("conflict"):
            raise Problem("RECORD_LOCKED", "the record is being changed")
        found, by = self._match(sent, checked)
        fields = {**(found.fields if found else {}), **sent}
        fields = {name: value for name, value in fields.items() if value is not None}
        for name in REQUIRED:
            if not str(fields.get(name, "")).strip():
                raise Problem("MANDATORY_NOT_FOUND", "required field not found", api_name=name)
        external_id = fields.get(KEY)
        other = self.store.find(KEY, external_id) if external_id else None
        if other and (found is None or other.number != found.number):
            raise Problem("DUPLICATE_DATA", "duplicate data", api_name=KEY, id=self.crm_id(other.number))
        unique = {KEY: external_id} if external_id else {}
        if found:
            row = self.store.update(found, external_id, fields, unique, sent)
        else:
            row = self.store.create(external_id, fields, unique, sent)
        details = {"id": self.crm_id(row.number), "Created_Time": row.created_at, "Modified_Time": row.updated_at}
        return {"code": "SUCCESS", "duplicate_field": by, "action": "update" if found else "insert",
                "details": details, "message": "record updated" if found else "record added",
                "status": "success"}  # fmt: skip

    def _match(self, sent: Mapping[str, Any], checked: list[str]) -> tuple[Row | None, str | None]:
        """The record that an upsert updates, and by which field it was found."""
        for name in checked:
            value = sent.get(name)
            if not value:
                continue
            if name == KEY:
                found = self.store.find(KEY, value)
            else:
                found = next((row for row in self.store.select() if row.fields.get(name) == value), None)
            if found:
                return found, name
        return None, None

    def _delete_many(self, request: Request) -> Response:
        _check_module(request.params["module"])
        ids = [part for part in request.query.get("ids", "").split(",") if part]
        if not 0 < len(ids) <= MAX_BATCH:
            raise Refusal(
                _error(400, "REQUIRED_PARAM_MISSING", "One of the expected parameters is missing", param="ids")
            )
        is_external = _check_external(request)
        return Response(200, {"data": [self._remove(value, is_external) for value in ids]})

    def _delete(self, request: Request) -> Response:
        _check_module(request.params["module"])
        return Response(200, {"data": [self._remove(request.params["id"], _check_external(request))]})

    def _remove(self, value: str, is_external: bool) -> dict[str, Any]:
        row = self._row(value, is_external)
        if row is None:
            return Problem("INVALID_DATA", "the id given seems to be invalid", id=value).document()
        self.store.delete(row)
        details = {"id": self.crm_id(row.number)}
        return {"code": "SUCCESS", "details": details, "message": "record deleted", "status": "success"}

    # Reading -------------------------------------------------------------------------------------------------------

    def _row(self, value: str, is_external: bool) -> Row | None:
        if is_external:
            return self.store.find(KEY, value)
        row = self.store.get(int(value) - PREFIX) if value.isascii() and value.isdigit() else None
        return None if row is None or row.deleted else row

    def _shown(self, row: Row, names: list[str]) -> dict[str, Any]:
        held = {**row.fields, "Created_Time": row.created_at, "Modified_Time": row.updated_at}
        empty = {name: False for name in names if FIELDS[name].type == "boolean"}
        return {
            "id": self.crm_id(row.number),
            **{name: held.get(name, empty.get(name)) for name in names if name != "id"},
        }

    def _get(self, request: Request) -> Response:
        _check_module(request.params["module"])
        row = self._row(request.params["id"], _check_external(request))
        if row is None:
            return Response(204)
        return Response(200, {"data": [self._shown(row, list(FIELDS))]})

    def _coql(self, request: Request) -> Response:
        query = _document(request).get("select_query")
        found = QUERY.fullmatch(query) if isinstance(query, str) else None
        if found is None:
            raise Refusal(_error(400, "SYNTAX_ERROR", "error occurred while parsing the query"))
        names = [name.strip() for name in found["columns"].split(",")]
        if found["module"] != MODULE:
            raise Refusal(_error(400, "INVALID_QUERY", "invalid query formed", module=found["module"]))
        for name in (*names, found["field"]):
            if name not in FIELDS:
                raise Refusal(
                    _error(400, "INVALID_QUERY", f"column given seems to be invalid: {name}", column_name=name)
                )
        values = [text[1:-1].replace("''", "'") for text in re.findall(r"'(?:[^']|'')*'", found["values"])]
        if len(values) > MAX_VALUES or int(found["limit"] or 200) > 2_000:
            raise Refusal(_error(400, "LIMIT_EXCEEDED", "too many values in the query", limit=MAX_VALUES))
        if found["field"] == KEY:
            rows = list(self.store.select(external_ids=values))
        else:
            rows = [row for row in self.store.select() if row.fields.get(found["field"]) in values]
        limit = int(found["limit"] or 200)
        shown = [self._shown(row, names) for row in rows[:limit]]
        if not shown:
            return Response(204)
        info = {"count": len(shown), "more_records": len(rows) > limit}
        if self.faults.strikes("half_page"):
            shown = shown[: len(shown) // 2]
        return Response(200, {"data": shown, "info": info})

    def _fields(self, request: Request) -> Response:
        _check_module(request.query.get("module", ""))
        return Response(200, {"fields": [field.document() for field in FIELDS.values()]})


def _equal(given: str | None, kept: str) -> bool:
    return hmac.compare_digest((given or "").encode(), kept.encode())


def _check_module(name: str) -> None:
    if name != MODULE:
        raise Refusal(_error(400, "INVALID_MODULE", "the module name given seems to be invalid", api_name=name))


def _check_external(request: Request) -> bool:
    """Whether ids are those of the external field."""
    header = request.headers.get("x-external")
    if header is None:
        return False
    if header != f"{MODULE}.{KEY}":
        raise Refusal(_error(400, "INVALID_DATA", "The external field is invalid", header="X-EXTERNAL"))
    return True


def _document(request: Request) -> dict[str, Any]:
    try:
        document = request.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Refusal(_error(400, "INVALID_DATA", "body", expected_data_type="jsonobject"))
    return document


def _error(status: int, code: str, message: str, **details: Any) -> Response:
    return Response(status, Problem(code, message, **details).document())
