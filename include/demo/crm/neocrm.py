"""Neocrm's (销售易) leads, one a call, and XOQL as far as a look-up needs it. Errors come as HTTP 200."""

from __future__ import annotations

import hmac
import re
import secrets
from typing import Any
from urllib.parse import parse_qsl, unquote

from demo.crm.faults import FaultBox
from demo.crm.neocrm_fields import FIELDS, KEY, REQUIRED, Problem
from demo.crm.store import Row, Store
from demo.crm.vendor import Refusal, Request, Response, Route, Vendor

LOGIN = "/auc/oauth2/token"
CLIENT = "demo"
OBJECTS = r"/rest/data/v2\.0/xobjects/(?P<kind>\w+)"
MAX_PAGE = 3000
TEXT = r"'[^'\\]*'"
# How a quote is written inside a text is not documented, so here none is understood.
QUERY = re.compile(
    r"select (?P<columns>\w+(?:,\w+)*) from (?P<kind>\w+)"  # noqa: S608 - it reads queries
    rf" where (?P<key>\w+) in \((?P<texts>{TEXT}(?:,{TEXT})*)\) limit (?P<first>\d+),(?P<size>\d+)"
)


class Neocrm(Vendor):
    """Leads by Neocrm's id, or by any text field through a query."""

    title = "Neocrm"
    credentials = ("DEMO_CRM_CLIENT_ID", "DEMO_CRM_CLIENT_SECRET", "DEMO_CRM_TOKEN")
    token_name = "client_secret"  # noqa: S105
    login_path = LOGIN

    def __init__(self, store: Store, faults: FaultBox, *credentials: str) -> None:
        super().__init__(store, faults, *credentials)
        self._tokens: set[str] = set()

    def routes(self) -> list[Route]:
        return [
            ("POST", LOGIN, self._log_in),
            ("GET", rf"{OBJECTS}/description", self._describe),
            ("POST", OBJECTS, self._create),
            ("GET", rf"{OBJECTS}/(?P<id>\d+)", self._get),
            ("PATCH", rf"{OBJECTS}/(?P<id>\d+)", self._update),
            ("DELETE", rf"{OBJECTS}/(?P<id>\d+)", self._delete),
            ("POST", r"/rest/data/v2\.0/query/xoql", self._query),
        ]

    def admit(self, request: Request) -> None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if request.path != LOGIN and token not in self._tokens:
            raise Refusal(Response(401, _envelope(1010005, "invalid token")))

    def answer(self, request: Request) -> Response:
        try:
            return super().answer(request)
        except Problem as problem:
            raise Refusal(Response(200, _envelope(problem.code, str(problem)))) from None

    def problem(self, status: int, message: str) -> Response:
        return Response(status, _envelope(status, message))

    def throttled(self) -> Response:
        return Response(200, _envelope("1020025", "用户访问频率超出限制"))

    def quota_spent(self) -> Response:
        # What Neocrm says of a day's limit is not known: this is a gateway's before it.
        return Response(429, _envelope(429, "Too Many Requests"), {"Retry-After": "3600"})

    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        return {}

    def crm_id(self, number: int) -> str:
        return str(_id(number))

    def expire_tokens(self) -> None:
        self._tokens.clear()
        self.faults.active.expire_tokens = None

    def _log_in(self, request: Request) -> Response:
        form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
        if form.get("grant_type") != "password":
            return _login_error("unsupported_grant_type")
        user, password, secret = self._credentials
        if form.get("client_id") != CLIENT or not _same(form.get("client_secret"), secret):
            return _login_error("invalid_client")
        if form.get("username") != user or not _same(form.get("password"), password):
            return _login_error("invalid_grant")
        token = secrets.token_hex(32)
        self._tokens.add(token)
        uri = f"http://{request.headers['host']}"
        return Response(200, {
            "access_token": token, "token_type": "Bearer", "expires_in": 7200, "tenant_id": "1", "instance_uri": uri,
        })  # fmt: skip

    def _describe(self, request: Request) -> Response:
        _check_kind(request.params["kind"])
        fields = [field.document() for field in FIELDS.values()]
        return _done({"apiKey": "lead", "label": "销售线索", "fields": fields})

    def _create(self, request: Request) -> Response:
        _check_kind(request.params["kind"])
        sent = _sent(request)
        if missing := [name for name in REQUIRED if sent.get(name) is None]:
            raise Problem(5000010, f"Required field is missing[{missing[0]}]")
        fields = {name: value for name, value in sent.items() if value is not None}
        return _done({"id": _id(self._saved(None, fields, sent).number)})

    def _update(self, request: Request) -> Response:
        row, sent = self._one(request), _sent(request)
        if missing := [name for name in REQUIRED if name in sent and sent[name] is None]:
            raise Problem(5000010, f"Required field is missing[{missing[0]}]")
        fields = {name: value for name, value in {**row.fields, **sent}.items() if value is not None}
        self._saved(row, fields, sent)
        return _done(None)

    def _saved(self, row: Row | None, fields: dict[str, Any], sent: dict[str, Any]) -> Row:
        external_id = _external_id(fields)
        if why := self.faults.rejects(external_id):
            raise Problem(5000099, why)
        if self.faults.strikes("conflict"):
            raise Refusal(self.problem(500, "the database is busy"))
        if row is None:
            return self.store.create(external_id, fields, {}, sent)
        return self.store.update(row, external_id, fields, {}, sent)

    def _get(self, request: Request) -> Response:
        row = self._one(request)
        return _done({"id": _id(row.number), **{name: _value(row, name) for name in FIELDS if name != "id"}})

    def _delete(self, request: Request) -> Response:
        self.store.delete(self._one(request))
        return _done(None)

    def _one(self, request: Request) -> Row:
        _check_kind(request.params["kind"])
        number = int(request.params["id"]) - _id(0)
        row = self.store.get(number) if 0 < number < 2**40 else None
        if row is None or row.deleted:
            raise Problem(2040003, "数据不存在或已删除")
        return row

    def _query(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            raise Problem(1010001, "parameter xoql is required")
        form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
        query = QUERY.fullmatch(form.get("xoql", ""))
        if query is None:
            raise Problem(2040001, "xoql syntax error")
        _check_kind(query["kind"])
        columns = query["columns"].split(",")
        for name in (*columns, query["key"]):
            if name not in FIELDS:
                raise Problem(2040004, f"column not exist[{name}]")
        if FIELDS[query["key"]].type != "text" or int(query["size"]) > MAX_PAGE:
            raise Problem(2040002, "xoql condition is not supported")
        wanted = {text[1:-1].casefold() for text in re.findall(TEXT, query["texts"])}
        rows = [row for row in self.store.select() if str(row.fields.get(query["key"], "")).casefold() in wanted]
        first = int(query["first"])
        page = [{name: _value(row, name) for name in columns} for row in rows[first : first + int(query["size"])]]
        if page and self.faults.strikes("half_page"):
            page = page[: len(page) // 2]
        return _done({"totalSize": len(rows), "count": len(page), "records": page})


def _sent(request: Request) -> dict[str, Any]:
    """The fields of the body; what is no field is dropped without a word. Raises Problem."""
    try:
        data = request.json()["data"]
    except (ValueError, TypeError, KeyError):
        raise Problem(1010001, "parameter data is required") from None
    if not isinstance(data, dict):
        raise Problem(1010001, "parameter data is required")
    return {
        name: FIELDS[name].value(value) for name, value in data.items() if name in FIELDS and FIELDS[name].creatable
    }


def _check_kind(kind: str) -> None:
    if kind != "lead":
        raise Problem(2040005, f"object not exist[{kind}]")


def _id(number: int) -> int:
    return 3_392_360_000_000_000 + number


def _value(row: Row, name: str) -> Any:
    return _id(row.number) if name == "id" else row.fields.get(name)


def _external_id(fields: dict[str, Any]) -> str | None:
    """As the lead store has it, for the demo's pages; Neocrm knows the encoded one only."""
    held = fields.get(KEY)
    return unquote(held) if held else None


def _same(given: str | None, right: str) -> bool:
    return hmac.compare_digest((given or "").encode(), right.encode())


def _login_error(error: str) -> Response:
    return Response(400, {"error": error, "error_description": error.replace("_", " ")})


def _done(data: Any) -> Response:
    return Response(200, _envelope(200, "OK", data))


def _envelope(code: int | str, message: str, data: Any = None) -> dict[str, Any]:
    return {"code": code, "msg": message, "data": data, "errorInfo": None}
