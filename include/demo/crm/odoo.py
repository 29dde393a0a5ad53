"""Odoo's crm.lead through JSON-RPC and JSON-2: `load` by external id, and what reads, archives and deletes."""

from __future__ import annotations

import hmac
import inspect
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote

from demo.crm.faults import FaultBox
from demo.crm.odoo_fields import FIELDS, RELATIONS, Problem
from demo.crm.store import Row, Store
from demo.crm.vendor import Refusal, Request, Response, Route, Vendor

DATABASE = "demo"
USER = 2
MODEL, NAMES, USERS = "crm.lead", "ir.model.data", "res.users"
KEY = "id"
MODULE = "leadsync."
MANY_ERRORS = 10
STATUSES = {"odoo.exceptions.AccessDenied": 403, "odoo.exceptions.AccessError": 403,
            "odoo.exceptions.MissingError": 404, "odoo.exceptions.UserError": 422,
            "odoo.exceptions.ValidationError": 422, "werkzeug.exceptions.NotFound": 404,
            "werkzeug.exceptions.UnprocessableEntity": 422, "werkzeug.exceptions.Unauthorized": 401}  # fmt: skip

VERSION = {"server_version": "18.0", "server_serie": "18.0", "protocol_version": 1}

Domain = Sequence[Sequence[Any]]


class Fault(Exception):
    """An exception of Odoo's: its name with its module, and its words."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class RolledBack(Exception):
    """A method's result that goes with nothing kept of what it did."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


class Odoo(Vendor):
    """Leads by Odoo's number or their external id."""

    title = "Odoo"
    credentials = ("DEMO_CRM_CLIENT_ID", "DEMO_CRM_CLIENT_SECRET")

    def __init__(self, store: Store, faults: FaultBox, *credentials: str) -> None:
        super().__init__(store, faults, *credentials)
        # Each with the names of its parameters, in order; `ids` and `context` are any method's.
        self._methods: dict[tuple[str, str], tuple[Callable[..., Any], tuple[str, ...]]] = {
            (MODEL, "load"): (self._load, ("fields", "data")),
            (MODEL, "read"): (self._read, ("ids", "fields", "load")),
            (MODEL, "write"): (self._write, ("ids", "vals")),
            (MODEL, "unlink"): (self._unlink, ("ids",)),
            (MODEL, "fields_get"): (self._fields_get, ("allfields", "attributes")),
            (MODEL, "search_count"): (self._count_leads, ("domain",)),
            (NAMES, "search_read"): (self._search_names, ("domain", "fields")),
            (NAMES, "search_count"): (self._count_names, ("domain",)),
            (USERS, "context_get"): (lambda: {"lang": "en_US", "tz": "Europe/Berlin"}, ()),
        }

    def routes(self) -> list[Route]:
        return [
            ("POST", "/jsonrpc", self._json_rpc),
            ("POST", "/web/webclient/version_info", self._version_info),
            ("POST", r"/json/2/(?P<model>[\w.]+)/(?P<method>\w+)", self._json2),
        ]

    def admit(self, request: Request) -> None:
        """Both APIs have credentials of their own."""

    def problem(self, status: int, message: str) -> Response:
        name = "NotFound" if status == 404 else "MethodNotAllowed" if status == 405 else "ServiceUnavailable"
        return _failure(status, Fault(f"werkzeug.exceptions.{name}", message))

    def throttled(self) -> Response:
        # Odoo itself has no limit: this is the web server's before it.
        return Response(429, "Too Many Requests")

    def quota_spent(self) -> Response:
        # Nor has it a quota: a gateway before it may have one.
        return Response(429, "Too Many Requests", {"Retry-After": "3600"})

    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        return {}

    def crm_id(self, number: int) -> str:
        return str(number)

    def expire_tokens(self) -> None:
        """An API key has an end, and no key comes of itself: `_check` refuses it while the fault is on."""

    def _json_rpc(self, request: Request) -> Response:
        try:
            document = request.json()
            params = document["params"]
            service, method, arguments = params["service"], params["method"], list(params["args"])
        except (ValueError, TypeError, KeyError):
            raise Refusal(_failure(400, Fault("werkzeug.exceptions.BadRequest", "Invalid JSON-RPC data"))) from None
        envelope = {"jsonrpc": "2.0", "id": document.get("id")}
        try:
            result = self._service(service, method, arguments)
        except Fault as fault:
            error = {"code": 200, "message": "Odoo Server Error", "data": _serialized(fault)}
            raise Refusal(Response(200, {**envelope, "error": error})) from None
        except RolledBack as back:
            raise Refusal(Response(200, {**envelope, "result": back.result})) from None
        return Response(200, {**envelope, "result": result})

    def _version_info(self, request: Request) -> Response:
        """What clients ask before they know who they are."""
        return Response(200, {"jsonrpc": "2.0", "id": request.json().get("id"), "result": VERSION})

    def _service(self, service: str, method: str, arguments: list[Any]) -> Any:
        if (service, method) == ("common", "version"):
            return VERSION
        if service == "common" and method in ("login", "authenticate"):
            database, login, password, *_ = arguments
            _check_database(database)
            return USER if login == self._credentials[0] and self._opens(password) else False
        if service != "object" or method not in ("execute", "execute_kw"):
            raise Fault("builtins.Exception", f"Method not found: {method}")
        database, user, password, model, name, *rest = arguments
        placed = rest[0] if method == "execute_kw" else rest
        named: dict[str, Any] = rest[1] if method == "execute_kw" and len(rest) > 1 else {}
        _check_database(database)
        if user != USER or not self._opens(password):
            raise Fault("odoo.exceptions.AccessDenied", "Access Denied")
        if model not in (MODEL, NAMES, USERS):
            raise Fault("odoo.exceptions.UserError", f"Object {model} doesn't exist")
        act, parameters = self._method(model, name)
        given = dict(zip(parameters, placed, strict=False)) | named
        given.pop("context", None)
        try:
            if len(placed) > len(parameters):
                raise TypeError
            inspect.signature(act).bind(**given)
        except TypeError:
            raise Fault("builtins.TypeError", f"{name}() got unexpected or misses required arguments") from None
        return act(**given)

    def _json2(self, request: Request) -> Response:
        model, name = request.params["model"], request.params["method"]
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            if request.headers.get("x-odoo-database", DATABASE) != DATABASE:
                raise Fault("werkzeug.exceptions.NotFound", "The requested URL was not found on the server.")
            if scheme.lower() != "bearer" or not self._opens(token):
                raise Fault("werkzeug.exceptions.Unauthorized", "Invalid apikey")
            if model not in (MODEL, NAMES):
                raise Fault("werkzeug.exceptions.NotFound", f"the model '{model}' does not exist")
            act, parameters = self._method(model, name)
            try:
                given = dict(request.json())
            except (ValueError, TypeError):
                raise Fault("werkzeug.exceptions.UnprocessableEntity", "could not parse the body as json") from None
            given.pop("context", None)
            if "ids" in parameters:
                given.setdefault("ids", [])
            required = {name for name, each in inspect.signature(act).parameters.items() if each.default is each.empty}
            if missing := sorted(required - set(given)):
                raise Fault("werkzeug.exceptions.UnprocessableEntity", f"missing a required argument: '{missing[0]}'")
            if unknown := sorted(set(given) - set(parameters)):
                text = f"got an unexpected keyword argument '{unknown[0]}'"
                raise Fault("werkzeug.exceptions.UnprocessableEntity", text)
            return Response(200, act(**given))
        except Fault as fault:
            raise Refusal(_failure(STATUSES.get(fault.name, 500), fault)) from None
        except RolledBack as back:
            raise Refusal(Response(200, back.result)) from None

    def _method(self, model: str, name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
        if (model, name) not in self._methods:
            raise Fault("builtins.AttributeError", f"The method '{model}.{name}' does not exist")
        return self._methods[model, name]

    def _opens(self, password: str) -> bool:
        right = hmac.compare_digest(str(password).encode(), self._credentials[1].encode())
        return right and not self.faults.active.expire_tokens

    def _load(self, fields: list[str], data: list[list[Any]]) -> dict[str, Any]:
        """All or nothing: with an error nothing is kept, and `ids` is false."""
        for name in fields:
            if name not in FIELDS:
                raise Fault("builtins.ValueError", f"Invalid field '{name}' on model '{MODEL}'")
        ids: list[int] = []
        messages: list[dict[str, Any]] = []
        for place, row in enumerate(data):
            where = {"rows": {"from": place, "to": place}, "record": place}
            if len(row) != len(fields) or not all(isinstance(cell, str) for cell in row):
                raise Fault("builtins.AttributeError", "'int' object has no attribute 'lower'")
            try:
                ids.append(self._save(dict(zip(fields, row, strict=True))))
            except Problem as problem:
                if self.faults.active.whole_batch:
                    raise Fault("odoo.exceptions.ValidationError", str(problem)) from None
                field = {"field": problem.field, "field_name": problem.field} if problem.field else {}
                messages.append({**where, "type": "error", "message": str(problem), **field})
                if not field and not any(message["record"] == 0 for message in messages):
                    # What the attempt with all at once said goes first, and is laid at the first record's door.
                    first = {"rows": {"from": 0, "to": 0}, "record": 0}
                    messages.insert(0, {**first, "type": "error", "message": str(problem)})
                if len(messages) >= MANY_ERRORS:
                    messages.append({"type": "warning", "message": "Found more than 10 errors, interrupted"})
                    break
        if messages:
            raise RolledBack({"ids": False, "messages": messages, "nextrow": 0})
        return {"ids": ids, "messages": [], "nextrow": 0}

    def _save(self, cells: dict[str, str]) -> int:
        """Writes one row by its external id; a new record without one gets none. Raises Problem."""
        xml_id = cells.pop("id", "")
        if xml_id and "." not in xml_id:
            xml_id = f"__import__.{xml_id}"
        sent = {name: FIELDS[name].loaded(text) for name, text in cells.items()}
        external_id = _shown_id(xml_id)
        if why := self.faults.rejects(external_id):
            raise Problem(why)
        if self.faults.strikes("conflict"):
            raise Problem("could not serialize access due to concurrent update")
        if " " in xml_id:
            raise Problem("The operation cannot be completed: External IDs cannot contain spaces")
        found = self.store.find(KEY, xml_id) if xml_id else None
        fields = {"active": True, **(found.fields if found else {}), **sent}
        fields = {name: value for name, value in fields.items() if value is not None}
        if not fields.get("name"):
            raise Problem(f"Missing required value for the field '{FIELDS['name'].label}' (name)", "name")
        named = {KEY: xml_id} if xml_id else {}
        if found:
            return self.store.update(found, external_id, fields | named, named, named | sent).number
        return self.store.create(external_id, fields | named, named, named | sent).number

    def _read(self, ids: list[int], fields: Sequence[str] = (), load: str = "_classic_read") -> list[dict[str, Any]]:
        """Those that are there, archived ones too, with all fields where none is named; the others are skipped.

        Relations come with the names of what they lead to, with another `load` as ids alone.
        """
        fields = fields or list(FIELDS)
        for name in fields:
            if name not in FIELDS:
                raise Fault("builtins.ValueError", f"Invalid field '{name}' on model '{MODEL}'")
        named = load == "_classic_read"
        rows = [
            {
                "id": row.number,
                **{name: FIELDS[name].shown(row.fields.get(name), named=named) for name in fields if name != "id"},
            }
            for row in self._live(ids)
        ]
        return rows[: len(rows) // 2] if rows and self.faults.strikes("half_page") else rows

    def _live(self, ids: list[int]) -> list[Row]:
        return list(self.store.select(numbers=ids))

    def _write(self, ids: list[int], vals: dict[str, Any]) -> bool:
        for name in vals:
            if name not in FIELDS or FIELDS[name].type in RELATIONS:
                raise Fault("builtins.ValueError", f"Invalid field '{name}' in '{MODEL}'")
        rows = self._live(ids)
        if len(rows) < len(set(ids)):
            raise Fault("odoo.exceptions.MissingError", "Record does not exist or has been deleted.")
        for row in rows:
            named = {KEY: row.fields[KEY]} if KEY in row.fields else {}
            self.store.update(row, row.external_id, {**row.fields, **vals}, named, named | vals)
        return True

    def _unlink(self, ids: list[int]) -> bool:
        for row in self._live(ids):
            self.store.delete(row)
        return True

    def _fields_get(self, allfields: Sequence[str] = (), attributes: Sequence[str] = ()) -> dict[str, Any]:
        return {
            name: {key: value for key, value in field.document().items() if key in attributes or not attributes}
            for name, field in FIELDS.items()
            if name in allfields or not allfields
        }

    def _count_leads(self, domain: Domain) -> int:
        return len(self._live(_wanted(domain, "id", "in")))

    def _named(self, domain: Domain) -> list[dict[str, Any]]:
        module, model = _wanted(domain, "module", "="), _wanted(domain, "model", "=")
        found = [(name, self.store.find(KEY, f"{module}.{name}")) for name in _wanted(domain, "name", "in")]
        return [{"id": 1_000 + row.number, "name": name, "res_id": row.number}
                for name, row in found if row and model == MODEL]  # fmt: skip

    def _search_names(self, domain: Domain, fields: list[str]) -> list[dict[str, Any]]:
        if unknown := sorted(set(fields) - {"name", "res_id"}):
            raise Fault("builtins.ValueError", f"Invalid field '{unknown[0]}' on model '{NAMES}'")
        rows = self._named(domain)
        return rows[: len(rows) // 2] if rows and self.faults.strikes("half_page") else rows

    def _count_names(self, domain: Domain) -> int:
        return len(self._named(domain))


def _check_database(database: Any) -> None:
    if database != DATABASE:
        where = 'connection to server on socket "/var/run/postgresql/.s.PGSQL.5432" failed'
        raise Fault("psycopg2.OperationalError", f'{where}: FATAL:  database "{database}" does not exist\n')


def _wanted(domain: Domain, name: str, operator: str) -> Any:
    """What a domain wants of one field; every condition is to hold. Raises Fault."""
    for condition in domain:
        if len(condition) == 3 and list(condition[:2]) == [name, operator]:
            return condition[2]
    raise Fault("builtins.ValueError", f"Invalid domain: no {name} {operator}")


def _shown_id(xml_id: str) -> str | None:
    """The external id as the lead store has it, for the demo's pages; Odoo knows the encoded one only."""
    return unquote(xml_id.removeprefix(MODULE)) if xml_id.startswith(MODULE) else xml_id or None


def _serialized(fault: Fault) -> dict[str, Any]:
    return {"name": fault.name, "message": str(fault), "arguments": [str(fault)], "context": {}, "debug": "Traceback"}


def _failure(status: int, fault: Fault) -> Response:
    return Response(status, _serialized(fault))
