"""EspoCRM's Lead as an API user sees it: list, read, create, update and delete; metadata, and the user's own rights."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from demo.crm.espocrm_fields import ATTRIBUTES, FIELDS, KEY, WRITABLE, Invalid
from demo.crm.store import Row
from demo.crm.vendor import Refusal, Request, Response, Route, Vendor

API = "/api/v1"
MAX_SIZE = 200
NULL = orjson.Fragment(b"null")  # a body, unlike None
LISTED = 10_000  # characters of a text that a list shows
WHERE = re.compile(r"where\[(\d+)\]\[(type|attribute|value)\](\[\d*\])?")
RIGHTS = {"create": "yes", "read": "all", "edit": "all", "delete": "all", "stream": "no"}


class EspoCRM(Vendor):
    """Leads by EspoCRM's id; no field is unique, and unknown fields are dropped without a word."""

    title = "EspoCRM"
    credentials = ("DEMO_CRM_TOKEN",)

    def routes(self) -> list[Route]:
        one = rf"{API}/Lead/(?P<id>\w+)"
        return [
            ("GET", f"{API}/App/user", self._user),
            ("GET", f"{API}/Metadata", self._metadata),
            ("GET", f"{API}/Lead", self._list),
            ("POST", f"{API}/Lead", self._create),
            ("GET", one, self._read),
            ("PUT", one, self._update),
            ("PATCH", one, self._update),
            ("DELETE", one, self._delete),
        ]

    def admit(self, request: Request) -> None:
        if "authorization" in request.headers:  # it goes before the key, and has to be Basic
            raise Refusal(_problem(400, "Auth: Bad authorization string provided."))
        key = request.headers.get("x-api-key", "")
        if not hmac.compare_digest(key.encode(), self._credentials[0].encode()) or self.faults.active.expire_tokens:
            raise Refusal(Response(401))

    def problem(self, status: int, message: str) -> Response:
        return _problem(status, message)

    def throttled(self) -> Response:
        # EspoCRM knows no limit of requests: a 429 is that of a web server before it.
        return Response(429)

    def quota_spent(self) -> Response:
        return Response(429, None, {"Retry-After": "3600"})

    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        return {}

    def crm_id(self, number: int) -> str:
        return f"{number:017x}"

    def expire_tokens(self) -> None:
        """An API key has no end; `admit` refuses it while the fault is on."""

    def _user(self, _: Request) -> Response:
        acl = {"table": {"Lead": RIGHTS, "Activities": True}, "fieldTable": {"Lead": {}}, "assignmentPermission": "all"}
        return Response(200, {"user": {"userName": "leadsync", "type": "api"}, "acl": acl, "token": None})

    def _metadata(self, request: Request) -> Response:
        found: Any = {"entityDefs": {"Lead": {"fields": {name: f.definition() for name, f in FIELDS.items()}}}}
        for part in request.query.get("key", "").split("."):
            found = found.get(part) if isinstance(found, dict) and part else found
        return Response(200, NULL if found is None else found)

    def _list(self, request: Request) -> Response:
        try:
            offset, size = int(request.query.get("offset", 0)), int(request.query.get("maxSize", MAX_SIZE))
        except ValueError:
            raise Refusal(_problem(400, "maxSize must be integer.")) from None
        if size > MAX_SIZE:
            raise Refusal(_problem(403, f"Max size should not exceed {MAX_SIZE}. Use offset and limit."))
        rows = self._wanted(request)
        shown = rows[offset : offset + size]
        if shown and self.faults.strikes("half_page"):
            shown = shown[: len(shown) // 2]
        names = [name for name in request.query.get("select", "").split(",") if name in (*ATTRIBUTES, "id")]
        found = []
        for row in shown:
            record = self._shown(row)
            record = {name: value[:LISTED] if isinstance(value, str) else value for name, value in record.items()}
            found.append({name: record[name] for name in ["id", *names]} if names else record)
        return Response(200, {"total": len(rows), "list": found})

    def _wanted(self, request: Request) -> list[Row]:
        """The live records that the `where` of an address lets through, in the order of their ids."""
        items: dict[str, dict[str, Any]] = {}
        for name, value in parse_qsl(urlsplit(request.target).query, keep_blank_values=True):
            if found := WHERE.fullmatch(name):
                item = items.setdefault(found[1], {"value": []})
                if found[2] == "value":
                    item["value"].append(value)
                else:
                    item[found[2]] = value
        rows = list(self.store.select(external_ids=_keys(items.values())))
        for item in items.values():
            attribute, kind = item.get("attribute", ""), item.get("type")
            if attribute not in (*ATTRIBUTES, "id"):
                raise Refusal(_problem(400, f"Not existing attribute '{attribute}' in where."))
            if kind not in ("in", "equals"):
                raise Refusal(_problem(400, f"Unknown where item type '{kind}'."))
            rows = [row for row in rows if str(self._shown(row)[attribute]) in item["value"]]
        return rows

    def _create(self, request: Request) -> Response:
        sent = self._values(request)
        fields = {"status": "New", **{name: value for name, value in sent.items() if value is not None}}
        if not (fields.get("firstName") or fields.get("lastName")):
            raise Refusal(_invalid(Invalid("name", "required")))
        doubles = [row for row in self.store.select() if _double(row.fields, fields)] if _checks(request) else []
        if doubles:
            raise Refusal(_problem(409, "duplicate", [self._shown(row) for row in doubles]))
        return Response(200, self._shown(self.store.create(fields.get(KEY), fields, {}, sent)))

    def _read(self, request: Request) -> Response:
        return Response(200, self._shown(self._one(request)))

    def _update(self, request: Request) -> Response:
        row, sent = self._one(request), self._values(request)
        fields = {name: value for name, value in {**row.fields, **sent}.items() if value is not None}
        if not (fields.get("firstName") or fields.get("lastName")):
            raise Refusal(_invalid(Invalid("name", "required")))
        noted = {KEY: row.external_id, **sent}
        return Response(200, self._shown(self.store.update(row, fields.get(KEY), fields, {}, noted)))

    def _delete(self, request: Request) -> Response:
        self.store.delete(self._one(request))
        return Response(200, True)

    def _one(self, request: Request) -> Row:
        crm_id = request.params["id"]
        try:
            number = int(crm_id, 16)
        except ValueError:
            number = 0
        row = self.store.get(number) if number < 2**63 and self.crm_id(number) == crm_id else None
        if row is None or row.deleted:  # only an administrator still sees what was deleted
            raise Refusal(_problem(404, f"Record {crm_id} not found."))
        return row

    def _values(self, request: Request) -> dict[str, Any]:
        """What of a body is kept. Raises Refusal."""
        try:
            document = request.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Refusal(_problem(400, "Bad request body."))
        try:
            sent = {name: WRITABLE[name].value(value) for name, value in document.items() if name in WRITABLE}
        except Invalid as invalid:
            raise Refusal(_invalid(invalid)) from None
        if why := self.faults.rejects(sent.get(KEY)):
            raise Refusal(_problem(400, why))
        if self.faults.strikes("conflict"):
            raise Refusal(_problem(500, "Deadlock found when trying to get lock"))
        return sent

    def _shown(self, row: Row) -> dict[str, Any]:
        names = (str(row.fields.get(name) or "") for name in ("firstName", "lastName"))
        empty = {name: False if field.type == "bool" else None for name, field in ATTRIBUTES.items()}
        return {
            **empty, **row.fields,
            "id": self.crm_id(row.number), "name": " ".join(names).strip(), "deleted": False,
            "createdAt": _moment(row.created_at), "modifiedAt": _moment(row.updated_at),
        }  # fmt: skip


def _keys(items: Any) -> list[str] | None:
    """The external ids that a search is limited to, which the store has an index for."""
    return next((item["value"] for item in items if item.get("attribute") == KEY), None)


def _double(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """EspoCRM's own check for duplicates: the same address, or the same name."""
    if one.get("emailAddress") and one.get("emailAddress") == other.get("emailAddress"):
        return True
    names = [(fields.get("firstName"), fields.get("lastName")) for fields in (one, other)]
    return all(names[0]) and names[0] == names[1]


def _checks(request: Request) -> bool:
    return request.headers.get("x-skip-duplicate-check") != "true"


def _moment(stored: str) -> str:
    return stored[:19].replace("T", " ")


def _problem(status: int, reason: str, document: Any = None) -> Response:
    return Response(status, document, {"X-Status-Reason": reason.encode("ascii", "replace").decode()})


def _invalid(invalid: Invalid) -> Response:
    data = {"field": invalid.field, "type": invalid.check}
    body = {"messageTranslation": {"label": "validationFailure", "scope": None, "data": data}}
    return _problem(400, str(invalid), body)
