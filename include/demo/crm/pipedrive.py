"""Pipedrive's persons (API v2) and leads (API v1), their custom fields, and the search by the value of a field."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from demo.crm.pipedrive_fields import LEAD, LEAD_CUSTOM, LEAD_KEY, PERSON, PERSON_CUSTOM, PERSON_KEY, Custom, Invalid
from demo.crm.store import Row
from demo.crm.vendor import Refusal, Request, Response, Route, Vendor

PERSONS = r"/api/v2/persons"
LEADS = r"/api/v1/leads"
MAX_LIMIT = 500
MAX_IDS = 100
DAILY = 1_000_000  # tokens
ORDERS = {"id": "number", "add_time": "created_at", "update_time": "updated_at"}


class Pipedrive(Vendor):
    """Persons by number, leads by UUID. No field is unique, and the search may lag behind."""

    title = "Pipedrive"
    credentials = ("DEMO_CRM_TOKEN",)

    def routes(self) -> list[Route]:
        return [
            ("GET", r"/api/v2/personFields", lambda request: _fields(PERSON_CUSTOM.values())),
            ("GET", r"/api/v2/dealFields", lambda request: _fields(LEAD_CUSTOM.values())),
            ("GET", r"/api/v2/itemSearch/field", self._search),
            ("GET", PERSONS, self._list_persons),
            ("POST", PERSONS, self._create_person),
            ("GET", rf"{PERSONS}/(?P<id>[^/]+)", self._get_person),
            ("PATCH", rf"{PERSONS}/(?P<id>[^/]+)", self._update_person),
            ("DELETE", rf"{PERSONS}/(?P<id>[^/]+)", self._delete),
            ("GET", rf"{LEADS}(?P<archived>/archived)?", self._list_leads),
            ("POST", LEADS, self._create_lead),
            ("GET", rf"{LEADS}/(?P<lead>[^/]+)", self._get_lead),
            ("PATCH", rf"{LEADS}/(?P<lead>[^/]+)", self._update_lead),
            ("DELETE", rf"{LEADS}/(?P<lead>[^/]+)", self._delete),
        ]

    def admit(self, request: Request) -> None:
        token = request.headers.get("x-api-token", "")
        if not hmac.compare_digest(token.encode(), self._credentials[0].encode()) or self.faults.active.expire_tokens:
            raise Refusal(_error(401, "unauthorized access", errorCode=401))

    def problem(self, status: int, message: str) -> Response:
        return _error(status, message)

    def throttled(self) -> Response:
        return _error(429, "Rate limit exceeded")

    def quota_spent(self) -> Response:
        return Response(
            429, _error(429, "Rate limit exceeded").document, {"x-daily-ratelimit-token-remaining": "0"}
        )  # fmt: skip

    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        limit = window or 20
        return {
            "x-daily-ratelimit-token-limit": str(DAILY),
            "x-daily-ratelimit-token-remaining": str(max(1, DAILY - requests * 10)),
            "x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(left if window else limit),
            "x-ratelimit-reset": "2",
        }  # fmt: skip

    def crm_id(self, number: int) -> str:
        return str(number)

    def expire_tokens(self) -> None:
        """A personal token has no end; `admit` refuses it while the fault is on."""

    def _search(self, request: Request) -> Response:
        kind, field, term = (request.query.get(name, "") for name in ("entity_type", "field", "term"))
        customs = {"person": PERSON_CUSTOM, "lead": LEAD_CUSTOM}.get(kind)
        if customs is None or field not in customs or customs[field].type not in ("varchar", "text", "double"):
            raise Refusal(_invalid("field: no such field"))
        if not term or (len(term) < 2 and request.query.get("match") != "exact"):
            raise Refusal(_invalid("term: is too short"))
        if request.query.get("match") != "exact":
            raise Refusal(_error(501, "only `match=exact` is there"))
        known = self._searchable(term if field in (PERSON_KEY, LEAD_KEY) else None)
        rows = [row for row in known if _is_lead(row) == (kind == "lead") and row.fields.get(field) == term]
        return _page(request, [{"id": _id(row), field: term} for row in rows])

    def _searchable(self, external_id: str | None) -> Iterable[Row]:
        """The records that the search knows of: not those made, but still those deleted in the last seconds."""
        ids = None if external_id is None else [external_id]
        since = datetime.now(UTC) - timedelta(seconds=self.faults.active.search_lag or 0)
        for row in self.store.select(external_ids=ids, deleted=True):
            changed = datetime.fromisoformat(row.updated_at if row.deleted else row.created_at)
            if row.deleted == (changed > since):
                yield row

    def _list_persons(self, request: Request) -> Response:
        ids = request.query.get("ids")
        if ids is not None:
            wanted = ids.split(",")
            if len(wanted) > MAX_IDS or not all(each.isdecimal() for each in wanted):
                raise Refusal(_invalid(f"ids: at most {MAX_IDS} numbers"))
            rows = [row for row in self.store.select(numbers=list(map(int, wanted))) if not _is_lead(row)]
            if rows and self.faults.strikes("half_page"):
                rows = rows[: len(rows) // 2]
        else:
            rows = [row for row in self.store.select() if not _is_lead(row)]
        by, way = request.query.get("sort_by", "id"), request.query.get("sort_direction", "asc")
        if by not in ORDERS or way not in ("asc", "desc"):
            raise Refusal(_invalid("sort_by: is not supported"))
        rows.sort(key=lambda row: (getattr(row, ORDERS[by]), row.number), reverse=way == "desc")
        return _page(request, [_person(row) for row in rows])

    def _list_leads(self, request: Request) -> Response:
        archived = request.params["archived"] is not None
        rows = [row for row in self.store.select() if _is_lead(row) and bool(row.fields.get("is_archived")) == archived]
        by, _, way = request.query.get("sort", "add_time ASC").partition(" ")
        if by not in ORDERS or way not in ("ASC", "DESC"):
            raise Refusal(_error(400, "Bad request"))
        rows.sort(key=lambda row: (getattr(row, ORDERS[by]), row.number), reverse=way == "DESC")
        try:
            start, limit = int(request.query.get("start", 0)), min(MAX_LIMIT, int(request.query.get("limit", 100)))
        except ValueError:
            raise Refusal(_error(400, "Bad request")) from None
        more = len(rows) > start + limit
        pagination = {"start": start, "limit": limit, "more_items_in_collection": more}
        if more:
            pagination["next_start"] = start + limit
        found = [_lead(row) for row in rows[start : start + limit]] or None
        return _done(200, found, {"pagination": pagination})

    def _get_person(self, request: Request) -> Response:
        return _done(200, _person(self._one(request, deleted=True)))

    def _get_lead(self, request: Request) -> Response:
        return _done(200, _lead(self._one(request)))

    def _create_person(self, request: Request) -> Response:
        sent = self._person_values(request)
        if "name" not in sent:
            raise Refusal(_invalid("name: is required"))
        return _done(201, _person(self._create(PERSON_KEY, sent)))

    def _create_lead(self, request: Request) -> Response:
        sent = self._lead_values(request)
        if "title" not in sent:
            raise Refusal(_invalid("title: is required"))
        if sent.get("person_id") is None and sent.get("organization_id") is None:
            raise Refusal(_error(400, "A lead must be linked to a person or an organization"))
        return _done(201, _lead(self._create(LEAD_KEY, sent)))

    def _create(self, key: str, sent: Mapping[str, Any]) -> Row:
        fields = {name: value for name, value in sent.items() if value is not None}
        return self.store.create(fields.get(key), fields, {}, sent)

    def _update_person(self, request: Request) -> Response:
        return _done(200, _person(self._update(request, PERSON_KEY, self._person_values(request))))

    def _update_lead(self, request: Request) -> Response:
        return _done(200, _lead(self._update(request, LEAD_KEY, self._lead_values(request))))

    def _update(self, request: Request, key: str, sent: Mapping[str, Any]) -> Row:
        row = self._one(request)
        fields = {name: value for name, value in {**row.fields, **sent}.items() if value is not None}
        return self.store.update(row, fields.get(key), fields, {}, {key: row.external_id, **sent})

    def _delete(self, request: Request) -> Response:
        row = self._one(request)
        self.store.delete(row)
        return _done(200, {"id": _id(row)})

    def _one(self, request: Request, *, deleted: bool = False) -> Row:
        wants_lead = "lead" in request.params
        number = _lead_number(request.params["lead"]) if wants_lead else _person_number(request.params["id"])
        row = None if number is None else self.store.get(number)
        if row is None or _is_lead(row) != wants_lead or (row.deleted and not deleted):
            raise Refusal(_error(404, f"{'Lead' if wants_lead else 'Person'} not found", code="ERR_NOT_FOUND"))
        return row

    def _person_values(self, request: Request) -> dict[str, Any]:
        document = _body(request)
        custom = document.pop("custom_fields", {})
        if not isinstance(custom, dict):
            raise Refusal(_invalid("custom_fields: must be an object"))
        sent = _checked(document, PERSON, {}) | _checked(custom, {}, PERSON_CUSTOM, "custom_fields.")
        return self._admitted(sent, PERSON_KEY)

    def _lead_values(self, request: Request) -> dict[str, Any]:
        return self._admitted(_checked(_body(request), LEAD, LEAD_CUSTOM), LEAD_KEY)

    def _admitted(self, sent: dict[str, Any], key: str) -> dict[str, Any]:
        if why := self.faults.rejects(sent.get(key)):
            raise Refusal(_invalid(f"{key}: {why}"))
        if self.faults.strikes("conflict"):
            raise Refusal(self.problem(500, "the record is being changed"))
        return sent


def _checked(
    document: Mapping[str, Any], standard: Mapping[str, Any], custom: Mapping[str, Custom], prefix: str = ""
) -> dict[str, Any]:
    """The values of a body as they are kept. Raises Refusal that names all that is wrong."""
    found: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in document.items():
        path = prefix + name
        try:
            if name in standard:
                found[name] = standard[name](value, path)
            elif name in custom:
                found[name] = custom[name].value(value, path)
            else:
                raise Invalid(path, f"Parameter '{path}' is not allowed for this request")
        except Invalid as invalid:
            wrong.append(str(invalid))
    if wrong:
        raise Refusal(_invalid("; ".join(wrong)))
    return found


def _body(request: Request) -> dict[str, Any]:
    try:
        document = request.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise Refusal(_error(400, "Bad request"))
    return document


def _page(request: Request, items: list[dict[str, Any]]) -> Response:
    """One page of a list of API v2."""
    try:
        limit = int(request.query.get("limit", 100))
        start = int(base64.b64decode(request.query.get("cursor", "")) or 0)
    except ValueError:
        raise Refusal(_invalid("cursor: is not valid")) from None
    if not 0 < limit <= MAX_LIMIT:
        raise Refusal(_invalid(f"limit: must be at most {MAX_LIMIT}"))
    more = len(items) > start + limit
    cursor = base64.b64encode(str(start + limit).encode()).decode() if more else None
    return _done(200, items[start : start + limit], {"next_cursor": cursor})


def _is_lead(row: Row) -> bool:
    return "title" in row.fields


def _id(row: Row) -> int | str:
    return str(UUID(int=row.number)) if _is_lead(row) else row.number


def _person_number(text: str) -> int | None:
    if not text.isdecimal() or len(text) > 18:
        raise Refusal(_invalid("id: must be an integer"))
    return int(text)


def _lead_number(text: str) -> int | None:
    try:
        number = UUID(text).int
    except ValueError:
        raise Refusal(_error(400, "Bad request")) from None
    return number if number < 2**63 else None


def _person(row: Row) -> dict[str, Any]:
    standard = {name: row.fields.get(name) for name in PERSON}
    return {
        **standard, "emails": row.fields.get("emails", []), "phones": row.fields.get("phones", []), "id": row.number,
        "is_deleted": row.deleted, "add_time": _time(row.created_at), "update_time": _time(row.updated_at),
        "custom_fields": {code: row.fields.get(code) for code in PERSON_CUSTOM},
    }  # fmt: skip


def _lead(row: Row) -> dict[str, Any]:
    """Custom fields without a value are not shown."""
    standard = {name: row.fields.get(name) for name in LEAD}
    custom = {code: row.fields[code] for code in LEAD_CUSTOM if code in row.fields}
    return {
        **standard, **custom, "id": _id(row), "is_archived": bool(row.fields.get("is_archived")),
        "add_time": row.created_at, "update_time": row.updated_at,
    }  # fmt: skip


def _time(stored: str) -> str:
    return f"{stored[:19]}Z"


def _fields(customs: Iterable[Custom]) -> Response:
    built_in = {"field_name": "ID", "field_code": "id", "field_type": "int", "is_custom_field": False}
    return _done(200, [built_in, *(custom.document() for custom in customs)], {"next_cursor": None})


def _done(status: int, data: Any, additional: Mapping[str, Any] | None = None) -> Response:
    return Response(status, {"success": True, "data": data, "additional_data": additional})


def _invalid(words: str) -> Response:
    return _error(400, f"Validation failed: {words}", code="ERR_SCHEMA_VALIDATION_FAILED")


def _error(status: int, words: str, **more: Any) -> Response:
    info = "Please check developers.pipedrive.com"
    return Response(status, {"success": False, "error": words, "error_info": info, "data": None, **more})
