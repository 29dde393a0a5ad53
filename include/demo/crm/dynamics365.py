"""Dataverse's lead: login, records by id or alternate key, UpsertMultiple, $batch, queries, the table's definition."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit
from uuid import uuid4

from demo.crm.dynamics365_fields import COLUMNS, GUID, ID, KEY, SET, TABLE, Problem, check_names, definition, picklists
from demo.crm.faults import FaultBox
from demo.crm.odata import BadQuery, Filter, folded, key_of, order_of, read_batch, sortable, write_batch
from demo.crm.store import Row, Store
from demo.crm.vendor import Refusal, Request, Response, Route, Vendor

DATA = r"/api/data/v9\.[0-2]"
TENANT = "/tenant-of-the-demo"
LOGIN = f"{TENANT}/oauth2/v2.0/token"
DISCOVERY = f"{TENANT}/v2.0/.well-known/openid-configuration"
ACTION = "Microsoft.Dynamics.CRM"
MAX_BATCH = 1000
MAX_CONDITIONS = 500
MAX_TARGET = 65_536
PAGE = 5000


class Written(NamedTuple):
    """One record as it is to be: `found` is what it was, `noted` goes into the journal."""

    found: Row | None
    external_id: str | None
    fields: dict[str, Any]
    unique: dict[str, str]
    noted: dict[str, Any]


class Dynamics365(Vendor):
    """Leads by their id or the alternate key."""

    title = "Dynamics 365"
    credentials = ("DEMO_CRM_CLIENT_ID", "DEMO_CRM_CLIENT_SECRET")
    login_path = LOGIN
    addresses = {"token_url": LOGIN}

    def __init__(self, store: Store, faults: FaultBox, *credentials: str) -> None:
        super().__init__(store, faults, *credentials)
        self._tokens: set[str] = set()

    def routes(self) -> list[Route]:
        record = rf"{DATA}/(?P<set>\w+)\((?P<key>.*)\)"
        return [
            ("GET", DISCOVERY, self._discover),
            ("POST", LOGIN, self._log_in),
            ("POST", rf"{DATA}/\$batch", self._batch),
            ("GET", rf"{DATA}/EntityDefinitions", self._definitions),
            ("GET", rf"{DATA}/EntityDefinitions\(LogicalName='(?P<table>[^']*)'\)", self._definition),
            ("GET", rf"{DATA}/EntityDefinitions\(LogicalName='(?P<table>[^']*)'\)/Attributes(/.+)?", self._picklists),
            ("POST", rf"{DATA}/(?P<set>\w+)/{ACTION}\.(?P<action>(Upsert|Create|Update)Multiple)", self._write_many),
            ("GET", record, self._get),
            ("PATCH", record, self._patch),
            ("DELETE", record, self._delete),
            ("GET", rf"{DATA}/(?P<set>\w+)", self._query),
            ("POST", rf"{DATA}/(?P<set>\w+)", self._create),
        ]

    def admit(self, request: Request) -> None:
        if request.path in (DISCOVERY, LOGIN):
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self._tokens:
            challenge = f"Bearer authorization_uri=http://{request.headers['host']}{TENANT}/oauth2/authorize"
            raise Refusal(Response(401, None, {"WWW-Authenticate": challenge}))
        if request.headers.get("odata-version", "4.0") != "4.0":
            raise Refusal(_error(400, "0x80060888", "The header value for OData-Version is not supported"))

    def problem(self, status: int, message: str) -> Response:
        if status == 404:
            return _error(404, "0x8006088a", "Resource not found for the segment.")
        return _error(status, "0x80060888" if status < 500 else "", message)

    def throttled(self) -> Response:
        words = "Number of requests exceeded the limit of 6000 over time window of 300 seconds."
        return _error(429, "0x80072322", words)

    def quota_spent(self) -> Response:
        response = _error(429, "0x80072322", "The entitlement of requests in 24 hours is spent.")
        return replace(response, headers={"Retry-After": "36000"})

    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        return {"OData-Version": "4.0", "x-ms-ratelimit-burst-remaining-xrm-requests": str(left if window else 6000)}

    def crm_id(self, number: int) -> str:
        row = self.store.get(number)
        return str(row.fields[ID]) if row else ""

    def expire_tokens(self) -> None:
        self._tokens.clear()
        self.faults.active.expire_tokens = None

    @staticmethod
    def _discover(request: Request) -> Response:
        host = f"https://{request.headers['host']}"  # Microsoft's login library takes no other
        return Response(200, {
            "issuer": f"{host}{TENANT}/v2.0", "token_endpoint": f"{host}{LOGIN}",
            "authorization_endpoint": f"{host}{TENANT}/oauth2/v2.0/authorize",
        })  # fmt: skip

    def _log_in(self, request: Request) -> Response:
        form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
        if form.get("grant_type") != "client_credentials":
            raise Refusal(_login_error(400, "unsupported_grant_type", "AADSTS70003"))
        if form.get("client_id") != self._credentials[0]:
            raise Refusal(_login_error(400, "unauthorized_client", "AADSTS700016"))
        if not hmac.compare_digest(form.get("client_secret", "").encode(), self._credentials[1].encode()):
            raise Refusal(_login_error(401, "invalid_client", "AADSTS7000215"))
        if not re.fullmatch(r"https?://[\w.-]+(:\d+)?/\.default", form.get("scope", "")):
            raise Refusal(_login_error(400, "invalid_scope", "AADSTS70011"))
        token = secrets.token_urlsafe(32)
        self._tokens.add(token)
        return Response(200, {"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599,
                              "access_token": token})  # fmt: skip

    # Batches ---------------------------------------------------------------------------------------------------

    def _batch(self, request: Request) -> Response:
        try:
            inner = read_batch(request.headers.get("content-type", ""), request.body)
        except BadQuery as bad:
            raise Refusal(_error(400, "0x80060888", str(bad))) from None
        if not 0 < len(inner) <= MAX_BATCH:
            raise Refusal(_error(400, "0x80060888", f"The number of operations in a batch is at most {MAX_BATCH}"))
        goes_on = "odata.continue-on-error" in request.headers.get("prefer", "")
        answers: list[Response] = []
        for each in inner:
            query = urlsplit(each.target).query
            part = Request(each.method, each.path, dict(parse_qsl(query)), {**request.headers, **each.headers},
                           each.body, each.target)  # fmt: skip
            answers.append(self._answer_part(part))
            failed = answers[-1].status >= 400
            if failed and self.faults.active.whole_batch:
                raise Refusal(replace(answers[-1], status=400))
            if failed and not goes_on:
                break
        kind, body = write_batch([(a.status, a.headers, a.document) for a in answers])
        return Response(400 if answers[-1].status >= 400 and not goes_on else 200, body, {"Content-Type": kind})

    def _answer_part(self, part: Request) -> Response:
        if part.path.endswith("$batch") or len(part.target) > MAX_TARGET:
            return _error(400, "0x80060888", "A batch in a batch, or an address above 64 KiB")
        try:
            return self.answer(part)
        except Refusal as refused:
            return refused.response

    # Writing -----------------------------------------------------------------------------------------------------

    def _prepare(self, key: tuple[str | None, str], record: Any) -> Written:
        """What an upsert under this key comes to. Raises Problem; nothing is changed yet."""
        if not isinstance(record, dict):
            raise Problem("0x80048d19", "The body of the request is not a JSON object")
        check_names(record)
        sent = {name: COLUMNS[name].value(value) for name, value in record.items() if not name.startswith("@odata.")}
        column, value = key
        found = self._find(key)
        if column == KEY and KEY in sent and found is None:
            raise Problem("0x80040216", "An unexpected error occurred.")  # as Dataverse does, key and body agreeing
        wanted = {KEY: value} if column == KEY else {ID: value}
        fields = {**(found.fields if found else {ID: str(uuid4())}), **sent, **wanted}
        fields = {name: value for name, value in fields.items() if value is not None}
        external_id = fields.get(KEY)
        if why := self.faults.rejects(external_id):
            raise Problem("0x80040265", why)
        if self.faults.strikes("conflict"):
            raise Problem("0x80044150", "Generic SQL error.", 500)
        unique = {ID: fields[ID].lower()} | ({KEY: folded(external_id)} if external_id is not None else {})
        return Written(found, external_id, fields, unique, {**sent, **wanted})

    def _apply(self, written: Written) -> Row:
        """Raises Problem when another record has the key."""
        found, external_id, fields, unique, noted = written
        other = self.store.find(KEY, unique[KEY]) if KEY in unique else None
        if other and (found is None or other.number != found.number):
            raise Problem(
                "0x80060892",
                f"Entity Key Leadsync id violated. A record with the same value for {KEY} already exists. A duplicate"
                " record cannot be created. Select one or more unique values and try again.",
                412,
            )
        if found:
            return self.store.update(found, external_id, fields, unique, noted)
        return self.store.create(external_id, fields, unique, noted)

    def _write_many(self, request: Request) -> Response:
        _check_set(request)
        document = _json(request)
        targets = document.get("Targets") if isinstance(document, dict) else None
        if not isinstance(targets, list) or not targets:
            raise Refusal(_error(400, "0x80048d19", "Targets is a list of records"))
        rows = []
        try:
            for target in targets:
                if not isinstance(target, dict) or target.get("@odata.type", "").lstrip("#") != f"{ACTION}.{TABLE}":
                    raise Problem("0x80048d19", "Each target needs the annotation @odata.type")
                rows.append(self._apply(self._target(request.params["action"], target)))
                if len({row.number for row in rows}) < len(rows):
                    raise Problem("0x80040237", "The same record is there twice")
        except Problem as problem:  # all operations roll back
            raise Refusal(_error(problem.status, problem.code, str(problem))) from None
        if request.params["action"] == "CreateMultiple":
            return Response(200, {"Ids": [row.fields[ID] for row in rows]})
        return Response(204)

    def _target(self, action: str, target: dict[str, Any]) -> Written:
        if action == "UpdateMultiple" and ID in target:
            key, record = str(target[ID]), {name: value for name, value in target.items() if name != ID}
        else:
            found = re.fullmatch(rf"/?{SET}\((.*)\)", target.get("@odata.id", f"{SET}({uuid4()})"))
            key, record = found[1] if found else "", target
        written = self._prepare(_key(key), record)
        if action == "UpdateMultiple" and written.found is None:
            raise _absent(key)
        return written

    def _patch(self, request: Request) -> Response:
        _check_set(request)
        try:
            written = self._prepare(_key(request.params["key"]), _json(request))
            if written.found is None and request.headers.get("if-match") == "*":
                raise _absent(request.params["key"])
            if written.found is not None and request.headers.get("if-none-match") == "*":
                raise Problem("0x80040237", "A record with matching key values already exists.", 412)
            row = self._apply(written)
        except Problem as problem:
            raise Refusal(_error(problem.status, problem.code, str(problem))) from None
        if "return=representation" in request.headers.get("prefer", ""):
            return Response(201 if written.found is None else 200, self._shown(row, _select(request)))
        return Response(204, None, {"OData-EntityId": _address(request, request.params["key"])})

    def _create(self, request: Request) -> Response:
        _check_set(request)
        try:
            row = self._apply(self._prepare((None, str(uuid4())), _json(request)))
        except Problem as problem:
            raise Refusal(_error(problem.status, problem.code, str(problem))) from None
        return Response(204, None, {"OData-EntityId": _address(request, row.fields[ID])})

    def _delete(self, request: Request) -> Response:
        self.store.delete(self._one(request))
        return Response(204)

    # Reading -------------------------------------------------------------------------------------------------------

    def _find(self, key: tuple[str | None, str]) -> Row | None:
        column, value = key
        return self.store.find(column or ID, folded(value))

    def _one(self, request: Request) -> Row:
        _check_set(request)
        try:
            row = self._find(_key(request.params["key"]))
            if row is None:
                raise _absent(request.params["key"])
        except Problem as problem:
            raise Refusal(_error(problem.status, problem.code, str(problem))) from None
        return row

    def _get(self, request: Request) -> Response:
        return Response(200, self._shown(self._one(request), _select(request)))

    @staticmethod
    def _held(row: Row) -> dict[str, Any]:
        return {**row.fields, "createdon": row.created_at, "modifiedon": row.updated_at}

    def _shown(self, row: Row, names: list[str]) -> dict[str, Any]:
        held = self._held(row)
        return {"@odata.etag": f'W/"{row.number}"', ID: row.fields[ID], **{name: held.get(name) for name in names}}

    def _query(self, request: Request) -> Response:
        _check_set(request)
        names = _select(request)
        try:
            wanted = Filter(request.query["$filter"], COLUMNS) if request.query.get("$filter") else None
            order = order_of(request.query.get("$orderby", ""), COLUMNS)
        except BadQuery as bad:
            raise Refusal(_error(400, "0x0", _no_property(bad.name) if bad.name else str(bad))) from None
        if wanted and wanted.conditions > MAX_CONDITIONS:
            raise Refusal(_error(400, "0x8004430d", "Number of conditions in query exceeded maximum limit."))
        keys = wanted.values_of(KEY) if wanted else None
        if keys is None:
            found = [row for row in self.store.select() if wanted is None or wanted.matches(row.fields)]
        else:
            found = [row for key in keys if (row := self.store.find(KEY, folded(key)))]
        for name, falling in reversed(order):
            found.sort(key=lambda row: sortable(self._held(row).get(name)), reverse=falling)
        document: dict[str, Any] = {"@odata.context": f"#{SET}"}
        if request.query.get("$count") == "true":
            document["@odata.count"] = min(len(found), PAGE)
        shown = [self._shown(row, names) for row in found[: min(PAGE, int(request.query.get("$top", PAGE)))]]
        if shown and self.faults.strikes("half_page"):
            shown = shown[: len(shown) // 2]
        return Response(200, {**document, "value": shown})

    def _definitions(self, request: Request) -> Response:
        asked = {"LogicalName": "", "EntitySetName": "", "SchemaName": ""}
        wanted = Filter(request.query.get("$filter", "LogicalName ne ''"), asked)
        found = (
            [definition(_names(request.query.get("$select", "")), {})] if wanted.matches(definition(set(), {})) else []
        )
        return Response(200, {"value": found})

    def _definition(self, request: Request) -> Response:
        if request.params["table"] != TABLE:
            raise Refusal(_error(404, "0x80060888", f"Could not find an entity with name {request.params['table']}"))
        expanded = dict(re.findall(r"(Attributes|Keys)(?:\(\$select=([\w,]*)\))?", request.query.get("$expand", "")))
        inner = {name: _names(columns) for name, columns in expanded.items()}
        return Response(200, definition(_names(request.query.get("$select", "")), inner))

    def _picklists(self, request: Request) -> Response:
        return Response(200, {"value": picklists()})


def _check_set(request: Request) -> None:
    if request.params["set"] != SET:
        raise Refusal(_error(404, "0x8006088a", f"Resource not found for the segment '{request.params['set']}'."))


def _key(text: str) -> tuple[str | None, str]:
    try:
        column, value = key_of(text)
    except BadQuery as bad:
        raise Problem("0x80060888", str(bad)) from None
    column = None if column == ID else column
    if column not in (None, KEY) or (column is None and not GUID.fullmatch(value)):
        kind = f"{ACTION}.{TABLE}"
        raise Problem(
            "0x80060888",
            f"The key in the request URI is not valid for resource '{kind}'. Ensure that the names and number of key"
            f" properties match the declared or alternate key properties for the resource '{kind}'.",
        )
    return column, value


def _absent(key: str) -> Problem:
    if GUID.fullmatch(key):
        return Problem("0x80040217", f"Entity '{TABLE}' With Id = {key} Does Not Exist", 404)
    return Problem("0x80060891", f"A record with the specified key values does not exist in {TABLE} entity", 404)


def _names(text: str) -> set[str]:
    return {name for name in text.split(",") if name}


def _no_property(name: str) -> str:
    return f"Could not find a property named '{name}' on type '{ACTION}.{TABLE}'."


def _select(request: Request) -> list[str]:
    asked = request.query.get("$select", "")
    names = asked.split(",") if asked else list(COLUMNS)
    if unknown := [name for name in names if name not in COLUMNS]:
        raise Refusal(_error(400, "0x0", _no_property(unknown[0])))
    return names


def _json(request: Request) -> Any:
    try:
        return request.json()
    except ValueError:
        raise Refusal(_error(400, "0x80048d19", "The body of the request is not valid JSON")) from None


def _address(request: Request, key: str) -> str:
    return f"http://{request.headers['host']}/api/data/v9.2/{SET}({quote(key, safe='=')})"


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, {"error": {"code": code, "message": message}}, headers or {})


def _login_error(status: int, error: str, code: str) -> Response:
    words = f"{code}: the request is refused. Trace ID: 0"
    return Response(status, {"error": error, "error_description": words, "error_codes": [int(code[6:])]})
