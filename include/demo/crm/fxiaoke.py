"""Fxiaoke's sales leads: login, create, update, query, invalidate and describe. Every error of its own is a 200."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from demo.crm.faults import FaultBox
from demo.crm.fxiaoke_fields import FIELDS, KEY, SYSTEM, Problem
from demo.crm.store import Row, Store
from demo.crm.vendor import Refusal, Request, Response, Route, Vendor

LOGIN = "/oauth2.0/token"
DATA = "/cgi/crm/v2/data"
KIND = "LeadsObj"
EA, USER = "demo", "1000"
MAX_PAGE = 100
TOKEN_SECONDS, SAME_TOKEN_SECONDS = 7200, 6600
LOGINS_A_MINUTE = 10
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
# Codes of the published table; of errors in data it has one.
MALFORMED, NO_TOKEN, ENDED, NO_SUCH_USER, WRONG = 32000, 20017, 20016, 20012, 10006
BUSY, TOO_MANY_CALLS, TOO_FAST, SPENT = -1, 14001, 30004, 30002


class Fxiaoke(Vendor):
    """Leads by Fxiaoke's id; queries by any field."""

    title = "纷享销客 (Fxiaoke)"
    credentials = ("DEMO_CRM_CLIENT_ID", "DEMO_CRM_CLIENT_SECRET", "DEMO_CRM_TOKEN")
    token_name = "permanent_code"  # noqa: S105
    login_path = LOGIN

    def __init__(self, store: Store, faults: FaultBox, *credentials: str) -> None:
        super().__init__(store, faults, *credentials)
        self._tokens: dict[str, float] = {}  # until when they are good
        self._logins: deque[float] = deque()
        self._faults_of_logins: object = None

    def routes(self) -> list[Route]:
        return [
            ("POST", LOGIN, self._log_in),
            ("POST", f"{DATA}/create", self._create),
            ("POST", f"{DATA}/update", self._update),
            ("POST", f"{DATA}/query", self._query),
            ("POST", f"{DATA}/invalid", self._invalidate),
            ("POST", "/cgi/crm/v2/object/describe", self._describe),
        ]

    def admit(self, request: Request) -> None:
        if not UUID.fullmatch(request.query.get("thirdTraceId", "")):
            raise Refusal(_error(MALFORMED, "thirdTraceId must be a UUID of version 4"))
        if request.path == LOGIN:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not token:
            raise Refusal(_error(NO_TOKEN, "corpAccessToken为必填项，不能为空"))
        ends = self._tokens.get(token, 0)
        if scheme != "Bearer" or ends < time.monotonic() or request.headers.get("x-fs-ea") != EA:
            raise Refusal(_error(ENDED, "the cropId,cropAccessToken or authorization is error"))
        if request.headers.get("x-fs-userid") != USER:
            raise Refusal(_error(NO_SUCH_USER, "the user does not exist"))

    def problem(self, status: int, message: str) -> Response:
        if status >= 500:  # a gateway's, before the API
            return Response(status, {"errorCode": BUSY, "errorMessage": message})
        return _error(WRONG, message)

    def throttled(self) -> Response:
        return _error(TOO_FAST, "too many calls in a short time")

    def quota_spent(self) -> Response:
        return _error(SPENT, "the calls of the day are spent")

    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        return {}

    def crm_id(self, number: int) -> str:
        return f"{number:024x}"

    def expire_tokens(self) -> None:
        self._tokens.clear()
        self.faults.active.expire_tokens = None

    def _log_in(self, request: Request) -> Response:
        if self._faults_of_logins is not self.faults.active:  # a reset, or other faults: count anew
            self._faults_of_logins = self.faults.active
            self._logins.clear()
        now = time.monotonic()
        while self._logins and self._logins[0] <= now - 60:
            self._logins.popleft()
        if len(self._logins) >= LOGINS_A_MINUTE:
            raise Refusal(_error(TOO_MANY_CALLS, "too many logins in a minute"))
        self._logins.append(now)
        body = _document(request)
        given = [body.get(name) for name in ("appId", "appSecret", "permanentCode")]
        if body.get("grantType") != "app_secret" or not all(
            isinstance(value, str) and hmac.compare_digest(value.encode(), known.encode())
            for value, known in zip(given, self._credentials, strict=True)
        ):
            raise Refusal(_error(WRONG, "the parameter appSecret is missing or illegal"))
        # For 110 minutes the same token is given again; a new one does not end it.
        fresh = [token for token, ends in self._tokens.items() if ends - now > TOKEN_SECONDS - SAME_TOKEN_SECONDS]
        token = fresh[0] if fresh else secrets.token_hex(16).upper()
        ends = self._tokens.setdefault(token, now + TOKEN_SECONDS)
        return _fine(accessToken=token, expiresIn=int(ends - now), ea=EA, appId=given[0], openUserId="FSCID_DEMO")

    def _create(self, request: Request) -> Response:
        data = self._object_data(request)
        if "_id" in data:
            raise Refusal(_error(MALFORMED, "_id is not for new records"))
        row = self._write(None, data)
        return _fine(dataId=self.crm_id(row.number))

    def _update(self, request: Request) -> Response:
        data = self._object_data(request)
        if "owner" in data:
            raise Refusal(_error(MALFORMED, "owner can only be changed by changeOwner"))
        self._write(self._live(data.get("_id")), data)
        return _fine()

    def _write(self, found: Row | None, data: Mapping[str, Any]) -> Row:
        """Unknown fields are dropped without a word: the worst that a CRM may do, so adapters have to look first."""
        try:
            sent = {name: FIELDS[name].value(value) for name, value in data.items() if name in FIELDS}
        except Problem as problem:
            raise Refusal(_error(MALFORMED, str(problem))) from None
        fields = {**(found.fields if found else {}), **sent}
        fields = {name: value for name, value in fields.items() if value is not None}
        key = fields.get(KEY)
        if why := self.faults.rejects(key):
            raise Refusal(_error(MALFORMED, why))
        if self.faults.strikes("conflict"):
            raise Refusal(_error(BUSY, "the system is busy"))
        for field in FIELDS.values():
            if field.required and field.name not in fields:
                raise Refusal(_error(MALFORMED, f"{field.name} is required"))
        unique = {name: fields[name] for name in fields if FIELDS[name].unique}
        for name, value in unique.items():
            other = self.store.find(name, value)
            if other and (found is None or other.number != found.number):
                raise Refusal(_error(MALFORMED, f"{name} is not unique: another record has this value"))
        if found:
            return self.store.update(found, key, fields, unique, sent)
        return self.store.create(key, fields, unique, sent)

    def _query(self, request: Request) -> Response:
        document = _document(request)
        data = _part(document, "data")
        self._check_kind(data.get("dataObjectApiName"))
        info = _part(data, "search_query_info")
        limit, offset = info.get("limit"), info.get("offset")
        filters, orders, wanted = info.get("filters"), info.get("orders"), info.get("fieldProjection")
        if type(limit) is not int or not 1 <= limit <= MAX_PAGE or type(offset) is not int or offset % limit:
            raise Refusal(_error(MALFORMED, f"limit is 1 to {MAX_PAGE}, offset a multiple of it"))
        if not isinstance(filters, list) or not isinstance(orders, list):
            raise Refusal(_error(MALFORMED, "filters and orders are lists"))
        if orders not in ([], [{"fieldName": "_id", "isAsc": True}]):
            raise Refusal(_error(MALFORMED, "the demo orders by _id only"))
        keys = next((each["field_values"] for each in filters if each.get("field_name") == KEY), None)
        rows = list(self.store.select(external_ids=keys if isinstance(keys, list) else None))
        for each in filters:
            rows = [row for row in rows if self._holds(row, each)]
        total = len(rows)
        rows = rows[offset : offset + limit]
        if rows and self.faults.strikes("half_page"):
            rows = rows[: len(rows) // 2]
        counted = data.get("find_explicit_total_num", True) is not False
        shown = [self._shown(row, wanted) for row in rows]
        return _fine(data={"dataList": shown, "offset": offset, "limit": limit, "total": total if counted else 0})

    def _holds(self, row: Row, condition: Mapping[str, Any]) -> bool:
        name, operator, given = (condition.get(part) for part in ("field_name", "operator", "field_values"))
        if not isinstance(given, list) or not all(isinstance(value, str) for value in given):
            raise Refusal(_error(MALFORMED, "field_values is a list of texts"))
        if name != "_id" and name not in FIELDS:
            raise Refusal(_error(MALFORMED, f"no field {name}"))
        held: str = self.crm_id(row.number) if name == "_id" else str(row.fields.get(str(name), ""))
        if operator == "IN":
            return held in given
        if operator in ("EQ", "GT") and len(given) == 1:
            return bool(held == given[0] if operator == "EQ" else held > given[0])
        raise Refusal(_error(MALFORMED, f"operator {operator} of these values"))

    def _shown(self, row: Row, wanted: Sequence[str] | None) -> dict[str, Any]:
        """A record as replies have it: without the fields that are empty."""
        everything = {
            **row.fields, "_id": self.crm_id(row.number), "life_status": "normal", "is_deleted": False, "owner": [USER]
        }  # fmt: skip
        return {name: value for name, value in everything.items() if not wanted or name in wanted}

    def _invalidate(self, request: Request) -> Response:
        data = _part(_document(request), "data")
        self._check_kind(data.get("dataObjectApiName"))
        self.store.delete(self._live(data.get("object_data_id")))
        return _fine()

    def _describe(self, request: Request) -> Response:
        document = _document(request)
        if not isinstance(document.get("includeDetail"), bool):
            raise Refusal(_error(MALFORMED, "includeDetail is true or false"))
        self._check_kind(_part(document, "data").get("apiName"))
        fields = {name: field.document() for name, field in (FIELDS | SYSTEM).items()}
        return _fine(data={"describe": {"api_name": KIND, "display_name": "销售线索", "fields": fields}})

    def _object_data(self, request: Request) -> dict[str, Any]:
        document = _document(request)
        for name in ("triggerApprovalFlow", "triggerWorkFlow"):
            if not isinstance(document.get(name, True), bool):
                raise Refusal(_error(MALFORMED, f"{name} is true or false"))
        data = _part(_part(document, "data"), "object_data")
        self._check_kind(data.pop("dataObjectApiName", None))
        return data

    def _live(self, crm_id: Any) -> Row:
        known = isinstance(crm_id, str) and re.fullmatch(r"[0-9a-f]{24}", crm_id)
        row = self.store.get(int(crm_id, 16)) if known and int(crm_id, 16) < 2**63 else None
        if row is None or row.deleted:
            raise Refusal(_error(MALFORMED, "the record does not exist, or is invalid"))
        return row

    @staticmethod
    def _check_kind(name: Any) -> None:
        if name != KIND:
            raise Refusal(_error(MALFORMED, f"no object {name}"))


def _document(request: Request) -> dict[str, Any]:
    try:
        document = request.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Refusal(_error(MALFORMED, "the body must be a JSON object"))
    return document


def _part(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    if not isinstance(part, dict):
        raise Refusal(_error(MALFORMED, f"{name} must be an object"))
    return part


def _fine(**more: Any) -> Response:
    return Response(200, {**_answer(0, "OK"), "errorDescription": "success", **more})


def _error(code: int, message: str) -> Response:
    return Response(200, _answer(code, message))


def _answer(code: int, message: str) -> dict[str, Any]:
    return {"traceId": f"E-O.{EA}.{USER}-{secrets.token_hex(8)}", "errorCode": code, "errorMessage": message}
