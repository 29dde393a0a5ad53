"""HubSpot's contacts: batch upsert, archive and read, one contact, and properties. Strict as the published API."""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from demo.crm.faults import FaultBox
from demo.crm.hubspot_properties import PROPERTIES, Problem, Property, created
from demo.crm.store import Row, Store
from demo.crm.vendor import Refusal, Request, Response, Route, Vendor, now

KEY = "leadsync_external_id"
OBJECTS = r"/crm/(?:v3/objects|objects/(?:2025-09|2026-03|2026-09))/(?P<kind>[^/]+)"
DEFINITIONS = r"/crm/(?:v3/properties|properties/(?:2025-09|2026-03|2026-09))/(?P<kind>[^/]+)"
MAX_BATCH = 100
DAILY = 1_000_000
DEFAULT_PROPERTIES = ("createdate", "email", "firstname", "hs_object_id", "lastmodifieddate", "lastname")


class HubSpot(Vendor):
    """Contacts by HubSpot's id, e-mail address or a property of unique values."""

    title = "HubSpot"
    credentials = ("DEMO_CRM_TOKEN",)

    def __init__(self, store: Store, faults: FaultBox, *credentials: str) -> None:
        super().__init__(store, faults, *credentials)
        self._properties: dict[str, Property] = PROPERTIES
        self._defined: list[dict[str, Any]] = []

    def routes(self) -> list[Route]:
        return [
            ("POST", f"{OBJECTS}/batch/upsert", self._upsert),
            ("POST", f"{OBJECTS}/batch/read", self._read),
            ("POST", f"{OBJECTS}/batch/archive", self._archive),
            ("GET", f"{OBJECTS}/(?!batch/)(?P<id>.+)", self._get),
            ("GET", DEFINITIONS, self._list_properties),
            ("POST", DEFINITIONS, self._create_property),
            ("GET", f"{DEFINITIONS}/(?P<name>[^/]+)", self._get_property),
        ]

    def admit(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not hmac.compare_digest(token.encode(), self._credentials[0].encode()):
            raise Refusal(_error(401, "INVALID_AUTHENTICATION", (
                "Authentication credentials not found. This API supports OAuth 2.0 authentication and you can find more"
                " details at https://developers.hubspot.com/docs/methods/auth/oauth-overview"
            )))  # fmt: skip
        if self.faults.active.expire_tokens:
            raise Refusal(_error(401, "EXPIRED_AUTHENTICATION", "The token used to make this call has expired."))

    def problem(self, status: int, message: str) -> Response:
        category = "OBJECT_NOT_FOUND" if status == 404 else "INTERNAL_ERROR" if status >= 500 else "VALIDATION_ERROR"
        return _error(status, category, message)

    def throttled(self) -> Response:
        return self._over_limit("TEN_SECONDLY_ROLLING")

    def quota_spent(self) -> Response:
        return self._over_limit("DAILY")

    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        limit = window or 190
        return {
            "X-HubSpot-RateLimit-Daily": str(DAILY),
            "X-HubSpot-RateLimit-Daily-Remaining": str(max(0, DAILY - requests)),
            "X-HubSpot-RateLimit-Interval-Milliseconds": "10000",
            "X-HubSpot-RateLimit-Max": str(limit),
            "X-HubSpot-RateLimit-Remaining": str(left if window else limit),
        }

    def crm_id(self, number: int) -> str:
        return str(number)

    def expire_tokens(self) -> None:
        """A private app's token has no end; `admit` refuses it while the fault is on."""

    def _upsert(self, request: Request) -> Response:
        started = now()
        inputs = self._inputs(request, upsert=True)
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for item in inputs:
            try:
                results.append(self._write(item))
            except Problem as problem:
                trace = item.get("objectWriteTraceId")
                if trace is None or self.faults.active.whole_batch:
                    raise Refusal(_refused([problem], 409 if problem.category == "CONFLICT" else 400)) from None
                errors.append(_standard_error(problem, {"objectWriteTraceId": [trace]}))
        # HubSpot promises no order: an adapter that goes by position is to break here.
        results.sort(key=lambda result: (result["new"], -int(result["id"])))
        return _batch(started, results, errors)

    def _write(self, item: Mapping[str, Any]) -> dict[str, Any]:
        properties, id_property = self._known(), item["idProperty"]
        # The id names the contact; the property of the same name in the body may give it a new value.
        found = self.store.find(id_property, properties[id_property].text(item["id"]))
        sent = {
            name: properties[name].text(value)
            for name, value in {id_property: item["id"], **item["properties"]}.items()
        }
        if why := self.faults.rejects(sent.get(KEY)):
            raise Problem("INVALID_VALUE", why, KEY)
        if self.faults.strikes("conflict"):
            raise Refusal(_error(423, "LOCKED", "The resource is locked by another request"))
        fields = {name: value for name, value in {**(found.fields if found else {}), **sent}.items() if value != ""}
        unique = {name: fields[name] for name in fields if properties[name].unique or name == "email"}
        for name, value in unique.items():
            other = self.store.find(name, value)
            if other and (found is None or other.number != found.number):
                if name == "email":
                    raise Problem("CONFLICT", f"Contact already exists. Existing ID: {other.number}", name, "CONFLICT")
                raise Problem("CONFLICTING_UNIQUE_VALUE", f"{other.number} already has that value.", name)
        if found:
            row = self.store.update(found, fields.get(KEY), fields, unique, sent)
        else:
            row = self.store.create(fields.get(KEY), fields, unique, sent)
        shown = {name: fields[name] for name in sent if name in fields} | _system(row)
        return {**_object(row, shown), "new": found is None}

    def _read(self, request: Request) -> Response:
        started = now()
        inputs = self._inputs(request)
        document = request.json()
        id_property = document.get("idProperty")
        archived = request.query.get("archived") == "true"
        wanted = self._wanted(document.get("properties"))
        results: list[dict[str, Any]] = []
        missing = []
        for item in inputs:
            row = self._lookup(item["id"], id_property, archived=archived)
            if row is None:
                missing.append(item["id"])
            else:
                results.append(self._shown(row, [*wanted, id_property] if id_property else wanted))
        if results and self.faults.strikes("half_page"):
            results = results[: len(results) // 2]
        if not missing:
            return _batch(started, results[::-1], [])
        problem = Problem("OBJECT_NOT_FOUND", "Could not get some CONTACT objects, they may be deleted or not exist."
                          " Check that ids are valid.", None, "OBJECT_NOT_FOUND")  # fmt: skip
        return _batch(started, results[::-1], [{**_standard_error(problem, {"ids": missing}), "errors": []}])

    def _archive(self, request: Request) -> Response:
        for item in self._inputs(request):
            row = self._lookup(item["id"], None)
            if row:
                self.store.delete(row)
        return Response(204)

    def _get(self, request: Request) -> Response:
        self._check_kind(request)
        row = self._lookup(
            request.params["id"], request.query.get("idProperty"), archived=request.query.get("archived") == "true"
        )
        if row is None:
            raise Refusal(_error(404, "OBJECT_NOT_FOUND", "Object not found.  objectId are usually numeric.",
                                 context={"id": [request.params["id"]]}))  # fmt: skip
        asked = request.query.get("properties")
        return Response(200, self._shown(row, self._wanted(asked.split(",") if asked else None)))

    def _lookup(self, value: str, id_property: str | None, *, archived: bool = False) -> Row | None:
        if id_property in (None, "hs_object_id"):
            if not (value.isascii() and value.isdigit() and len(value) < 19):
                raise Refusal(_invalid(f"{value!r} is not a valid object id"))
            row = self.store.get(int(value))
            return row if row and row.deleted == archived else None
        self._check_unique(id_property)
        if archived:
            found = self.store.select(external_ids=[value], deleted=True) if id_property == KEY else ()
            return next((row for row in found if row.deleted), None)
        return self.store.find(str(id_property), value.strip().lower() if id_property == "email" else value)

    def _inputs(self, request: Request, *, upsert: bool = False) -> list[dict[str, Any]]:
        """The inputs of a batch. Raises Refusal for what is wrong with all of it."""
        self._check_kind(request)
        try:
            document = request.json()
        except ValueError:
            raise Refusal(_invalid("Invalid input JSON")) from None
        inputs = document.get("inputs") if isinstance(document, dict) else None
        if not isinstance(inputs, list) or not all(isinstance(item, dict) for item in inputs):
            raise Refusal(_invalid("Some required fields were not set: [inputs]"))
        if len(inputs) > MAX_BATCH:
            raise Refusal(_invalid(f"The maximum number of inputs supported in a batch request is {MAX_BATCH}"))
        for item in inputs:
            if not isinstance(item.get("id"), str) or not item["id"]:
                raise Refusal(_invalid("Some required fields were not set: [id]"))
            if upsert:
                self._check_input(item)
        keys = [(item.get("idProperty"), item["id"]) for item in inputs]
        if len(set(keys)) < len(keys):
            double = next(key for key in keys if keys.count(key) > 1)
            raise Refusal(_invalid(f"Duplicate IDs found in batch input: [{double[1]}]. IDs must be unique"))
        if upsert:
            names = {name for item in inputs for name in item["properties"]}
            if unknown := sorted(names - self._known().keys()):
                raise Refusal(_refused([
                    Problem("PROPERTY_DOESNT_EXIST", f'Property "{name}" does not exist', name) for name in unknown
                ], 400))  # fmt: skip
        return inputs

    def _check_input(self, item: Mapping[str, Any]) -> None:
        properties = item.get("properties")
        if not isinstance(properties, dict):
            raise Refusal(_invalid("Some required fields were not set: [properties]"))
        for value in properties.values():
            if value is not None and not isinstance(value, str | int | float):
                raise Refusal(_invalid("Invalid input JSON: a property's value is a text, a number, a boolean or null"))
        if not isinstance(item.get("objectWriteTraceId", ""), str):
            raise Refusal(_invalid("Invalid input JSON: objectWriteTraceId is a text"))
        if item.get("idProperty") is None:
            raise Refusal(_invalid("Some required fields were not set: [idProperty]"))
        self._check_unique(item["idProperty"])

    def _check_unique(self, name: Any) -> None:
        known = self._known().get(name) if isinstance(name, str) else None
        if name != "email" and (known is None or not known.unique or known.read_only):
            raise Refusal(_invalid(f"Unable to perform update/upsert by non-unique 0-1 property {name} in portal ID 1"))

    @staticmethod
    def _check_kind(request: Request) -> None:
        if request.params["kind"] not in ("contacts", "contact", "0-1"):
            raise Refusal(_invalid(f"Unable to infer object type from: {request.params['kind']}"))

    def _known(self) -> dict[str, Property]:
        defined = self.store.definitions()
        if defined != self._defined:
            self._defined, self._properties = defined, PROPERTIES | {item["name"]: created(item) for item in defined}
        return self._properties

    def _wanted(self, names: Any) -> list[str]:
        asked = names if isinstance(names, Sequence) and not isinstance(names, str) else ()
        return [name for name in dict.fromkeys((*DEFAULT_PROPERTIES, *asked)) if name in self._known()]

    @staticmethod
    def _shown(row: Row, names: Iterable[str]) -> dict[str, Any]:
        values = row.fields | _system(row)
        return _object(row, {name: values[name] for name in names if name in values})

    def _list_properties(self, request: Request) -> Response:
        self._check_kind(request)
        return Response(200, {"results": [item.document() for item in self._known().values()]})

    def _get_property(self, request: Request) -> Response:
        self._check_kind(request)
        found = self._known().get(request.params["name"])
        if found is None:
            raise Refusal(_error(404, "OBJECT_NOT_FOUND", f"The property '{request.params['name']}' does not exist"))
        return Response(200, found.document())

    def _create_property(self, request: Request) -> Response:
        self._check_kind(request)
        try:
            made = created(request.json())
        except (ValueError, TypeError, KeyError, AttributeError):
            raise Refusal(_invalid("Invalid input JSON")) from None
        except Problem as problem:
            raise Refusal(_refused([problem], 400)) from None
        if made.name in self._known():
            raise Refusal(_error(409, "OBJECT_ALREADY_EXISTS", f"A property named '{made.name}' already exists."))
        self.store.define(made.name, made.document())
        return Response(201, made.document())

    def _over_limit(self, policy: str) -> Response:
        message = f"You have reached your {policy.lower()} limit."
        return _error(429, "RATE_LIMITS", message, errorType="RATE_LIMIT", policyName=policy)


def _system(row: Row) -> dict[str, str]:
    return {"createdate": row.created_at, "lastmodifieddate": row.updated_at, "hs_object_id": str(row.number)}


def _object(row: Row, properties: Mapping[str, Any]) -> dict[str, Any]:
    document = {
        "id": str(row.number), "properties": properties, "createdAt": row.created_at, "updatedAt": row.updated_at,
        "archived": row.deleted,
    }  # fmt: skip
    return document | ({"archivedAt": row.updated_at} if row.deleted else {})


def _batch(started: str, results: list[dict[str, Any]], errors: list[dict[str, Any]]) -> Response:
    document: dict[str, Any] = {"status": "COMPLETE", "startedAt": started, "completedAt": now(), "results": results}
    if errors:
        document |= {"numErrors": len(errors), "errors": errors}
    return Response(207 if errors else 200, document)


def _detail(problem: Problem) -> dict[str, Any]:
    context = {"context": {"propertyName": [problem.name]}} if problem.name else {}
    return {"message": str(problem), "code": problem.code, **context}


def _standard_error(problem: Problem, context: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "status": "error", "id": str(uuid.uuid4()), "category": problem.category, "message": str(problem),
        "context": context, "errors": [_detail(problem)], "links": {},
    }  # fmt: skip


def _refused(problems: Sequence[Problem], status: int) -> Response:
    details = [_detail(problem) for problem in problems]
    return _error(status, problems[0].category, str(problems[0]), errors=details)


def _invalid(message: str) -> Response:
    return _error(400, "VALIDATION_ERROR", message)


def _error(status: int, category: str, message: str, **more: Any) -> Response:
    document = {"status": "error", "message": message, "correlationId": str(uuid.uuid4()), "category": category}
    return Response(status, {**document, **more})
