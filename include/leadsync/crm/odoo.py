"""Odoo: any model, through `load`, Odoo's own import: an upsert by external id (`ir.model.data`).

The connection's login and password are those of a user with the rights of the model; an API key may stand for the
password, and has to with `api: json2` (Odoo 19 and newer; 22 has nothing else), which needs no login. The external id
field is always `id`; Odoo names a record `<module>.<id>`, where no space may be: what is no ASCII letter, digit, `_`,
`-`, `~` or `:` is percent-encoded. `module` must not be the name of an installed module, or its records go with it.

`archive` sets `active` to false, and an upsert back to true. Odoo archives lost leads too, so where salespeople mark
leads as lost use `delete` or `field`, which leave `active` alone. One request per second is what Odoo's own cloud asks
for; a server of your own takes more: `requests_per_second`. The field types are those that can be compared: no `html`,
no lists; a `many2one` is given by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, TypeAdapter

from leadsync.budget import Limit
from leadsync.crm import values
from leadsync.crm.access import Credentials
from leadsync.crm.base import BatchRefused, CRMAdapter, Settings, batches
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.odoo_rpc import FAULT, Fault, OdooRPC
from leadsync.crm.odoo_values import cell, encoded, held
from leadsync.errors import AccessError, LeadsyncError
from leadsync.models import Lead, Outcome, Record, Status

# Comparable when read back.
TYPES = frozenset(
    {"char", "text", "integer", "float", "monetary", "boolean", "date", "datetime", "selection", "many2one"}
)
# By the names of exceptions: of PostgreSQL's driver, and what Odoo makes of a record that went away under its hands.
PASSING = frozenset(
    {"SerializationFailure", "DeadlockDetected", "LockNotAvailable", "InFailedSqlTransaction", "OperationalError",
     "InterfaceError", "PoolError", "MissingError"}
)  # fmt: skip
FORBIDDEN = frozenset({"AccessError", "Forbidden"})
REFUSED = frozenset({"UserError", "ValidationError", "RedirectWarning", "except_orm"})  # what Odoo says of the data
CONFLICT = re.compile(
    r"could not serialize access|deadlock detected|could not obtain lock"
    r"|canceling statement due to lock timeout|ir_model_data_module_name_uniq_index"
    r"|^Record does not exist or has been deleted"
)
# `load` lays missing rights at the records' doors.
DENIED = re.compile(
    r"(You are not allowed to|Sorry, you are not allowed|Due to security restrictions)|.*\bAccessError\b"
)
NO_DATABASE = re.compile(r"database .* does not exist")
# Whole beginnings: what follows may quote a lead.
NO_OBJECT = re.compile(r"Object \S+ doesn't exist|the model \S+ does not exist")
NO_FIELD = re.compile(r"(?:Invalid|Unknown) field ['\"]?([\w.]+)|'([\w.]+)'$")  # the last is a KeyError's whole text


class _Message(BaseModel):
    type: str
    message: str = ""
    record: int | None = None  # by position
    field: str | None = None


class _Loaded(BaseModel):
    ids: list[int] | Literal[False]
    messages: list[_Message] = []


class _Name(BaseModel):
    name: str
    res_id: int


class _Field(BaseModel):
    type: str
    readonly: bool = False


LOADED = TypeAdapter(_Loaded)
NAMES = TypeAdapter(list[_Name])
COUNT = TypeAdapter(int)
ROWS = TypeAdapter(list[dict[str, Any]])
FIELDS = TypeAdapter(dict[str, _Field])
DONE = TypeAdapter(Literal[True])


class OdooSettings(Settings):
    database: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]*$", description="its name; Odoo Online: the first part of the host"
    )
    api: Literal["jsonrpc", "json2"] = Field("jsonrpc", description="json2 for Odoo 19 and newer, with an API key")
    module: str = Field("leadsync", pattern=r"^[A-Za-z_]\w*$", description="first part of the records' external ids")


class Odoo(CRMAdapter):
    name = "odoo"
    label = "Odoo"
    max_batch = 200  # Odoo has no limit, but ends a worker that is busy for a minute
    limits = (Limit(1, 1),)
    delete_modes = frozenset({"archive", "delete", "field"})
    settings_model: ClassVar[type[Settings]] = OdooSettings
    example = """
adapter: odoo
object: crm.lead
external_id_field: id
on_delete: delete
settings: {database: demo}
fields:
  name: {column: name, transform: trim, default: Unknown}
  email_from: {column: email, transform: [trim, lower]}
  phone: phone
  city: city
  x_leadsync_appkey: appkey
  x_leadsync_uid: uid
  x_leadsync_answers: answers
  x_leadsync_updated_at: {column: update_time, transform: iso8601}
  referred: {constant: landing page}
"""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._types: dict[str, str] = {}
        self._archives = self.destination.on_delete.mode == "archive"

    def make_credentials(self) -> Credentials:
        settings = self.settings
        self._rpc = OdooRPC(
            self.who,
            self.http,
            self.endpoint,
            database=settings.database,
            json2=settings.api == "json2",
            judge=lambda fault: self._meaning(fault) or RequestFailed(f"{self.who} answered {fault.code}", fault.code),
        )
        return self._rpc.credentials

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        known = self._find([lead.external_id for lead in leads])  # `load` does not tell what it created
        alike: dict[tuple[str, ...], list[Lead]] = {}  # the rows of one call have the same columns
        for lead in leads:
            alike.setdefault(tuple(lead.fields), []).append(lead)
        found = [outcome for group in alike.values() for outcome in self.attempt(self._load, group).values()]
        return [
            outcome._replace(status=Status.UPDATED)
            if outcome.status is Status.CREATED and outcome.crm_id == str(known.get(outcome.external_id))
            else outcome
            for outcome in found
        ]

    def _load(self, leads: Sequence[Lead]) -> list[Outcome]:
        """As if every record was new. All or nothing: without the leads that Odoo names the others are sent again."""
        names = list(leads[0].fields)
        types = self._field_types(names)
        columns, rows = ["id", *names], []
        for lead in leads:
            cells = [cell(types[name], value) for name, value in lead.fields.items()]
            rows.append([f"{self.settings.module}.{encoded(lead.external_id)}", *cells])
        if self._archives and "active" not in names:
            columns.append("active")
            for row in rows:
                row.append("1")
        context = {"tracking_disable": True, "tz": "UTC"}
        loaded = self._rpc.call(LOADED, self.destination.object, "load", context=context, fields=columns, data=rows)
        if loaded.ids is not False:
            if len(loaded.ids) != len(leads):
                return []
            return [
                Outcome(lead.external_id, Status.CREATED, str(crm_id))
                for lead, crm_id in zip(leads, loaded.ids, strict=True)
            ]
        errors = [message for message in loaded.messages if message.type == "error"]
        if any(DENIED.match(error.message) for error in errors):
            raise self._denied("AccessError")
        at = {error.record: error for error in reversed(errors) if error.record in range(len(leads))}
        if not at:
            words = "; ".join(error.message for error in errors)
            if CONFLICT.search(words):
                raise RequestFailed(f"{self.who} had a conflict with another transaction", "SerializationFailure")
            raise BatchRefused("load", field=self.named(words), message=words)
        # Beside the records at fault the first is named for what went wrong with all at once.
        if len(at) > 1 and 0 in at and at[0].field is None:
            del at[0]
        bad = [self._judged(leads[place].external_id, error) for place, error in at.items() if place is not None]
        rest = [lead for place, lead in enumerate(leads) if place not in at]
        return bad + (list(self.attempt(self._load, rest).values()) if rest else [])

    def _judged(self, external_id: str, error: _Message) -> Outcome:
        passing = CONFLICT.search(error.message) is not None
        status = Status.TRANSIENT if passing else Status.REJECTED
        code = "SerializationFailure" if passing else "load"
        return Outcome(external_id, status, None, code, error.field or self.named(error.message), error.message)

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        ids = [lead.external_id for lead in leads]
        there = self._find(ids, whole=True)
        crm_ids = list(there.values())
        if crm_ids and self._archives:
            self._rpc.call(DONE, self.destination.object, "write", ids=crm_ids, vals={"active": False})
        elif crm_ids:
            self._rpc.call(DONE, self.destination.object, "unlink", ids=crm_ids)
        return [Outcome(i, Status.DELETED, str(there[i]) if i in there else None) for i in ids]

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        records: dict[str, list[Record]] = {}
        for ids in batches(external_ids, self.max_batch):
            there = self._find(ids, whole=True)
            rows = {row["id"]: row for row in self._read(list(there.values()))}
            for external_id in ids:
                row = rows.get(there.get(external_id))
                alive = row is not None and (row["active"] or not self._archives)
                records[external_id] = [self._record(external_id, row)] if row and alive else []
        return records

    def _read(self, crm_ids: list[int]) -> list[dict[str, Any]]:
        if not crm_ids:
            return []
        model, context = self.destination.object, {"active_test": False}
        names = [*self.fields_read, *(["active"] if self._archives else [])]
        self._field_types(names)
        rows = self._rpc.call(ROWS, model, "read", ids=crm_ids, fields=names)
        if len(rows) < len(crm_ids):  # Odoo skips those whose external id outlived them
            domain = [["id", "in", crm_ids]]
            if len(rows) != self._rpc.call(COUNT, model, "search_count", context=context, domain=domain):
                raise self.left_out()
        return [{"active": True, **row} for row in rows]

    def _record(self, external_id: str, row: Mapping[str, Any]) -> Record:
        fields = {name: held(self._types[name], row.get(name)) for name in self.fields_read}
        return Record(external_id, str(row["id"]), fields)

    def same(self, name: str, sent: Any, held: Any) -> bool:
        if held in (0, False) and sent in (None, ""):
            return True  # numbers and checkboxes are never empty
        if isinstance(held, bool):
            sent = {"t": True, "f": False}.get(sent, sent)  # as PostgreSQL writes them
        return values.same(sent, held, precision=timedelta(seconds=1))  # times are kept in seconds

    def check(self) -> None:
        target = self.destination
        if target.external_id_field != "id":
            raise AccessError(
                f"{self.who}: the external id field of destination {target.name!r} is {target.external_id_field!r}, "
                "but Odoo's external id is always `id`"
            )
        self._types = {}
        self._field_types([*self.fields_read, *(["active"] if self._archives else [])])
        self._find([])

    def explain(self, reply: Reply) -> LeadsyncError | None:
        try:
            fault = reply.parse(FAULT)
        except RequestFailed:  # a proxy's page
            fault = Fault()
        return BatchRefused("413") if reply.status == 413 else self._meaning(fault)

    def _find(self, external_ids: Sequence[str], *, whole: bool = False) -> dict[str, int]:
        """The ids of those that are there. `whole` makes sure that the others are not."""
        if whole:  # a model that does not exist has no records either, and all would be called deleted
            self._field_types(self.fields_read)
        names = {encoded(external_id): external_id for external_id in external_ids}
        domain = [
            ["module", "=", self.settings.module],
            ["model", "=", self.destination.object],
            ["name", "in", list(names)],
        ]
        found = self._rpc.call(NAMES, "ir.model.data", "search_read", domain=domain, fields=["name", "res_id"])
        if whole and len(found) != self._rpc.call(COUNT, "ir.model.data", "search_count", domain=domain):
            raise self.left_out()
        return {names[each.name]: each.res_id for each in found if each.name in names}

    def _field_types(self, names: Sequence[str]) -> dict[str, str]:
        """The types of the model's fields. Raises AccessError for a field that can't be used."""
        model = self.destination.object
        if any(name not in self._types for name in names):
            fields = self._rpc.call(FIELDS, model, "fields_get", allfields=[], attributes=["type", "readonly"])
            for name in names:
                if name not in fields or fields[name].readonly:
                    raise self.missing("fields_get", name)
                if fields[name].type not in TYPES:
                    raise AccessError(
                        f"{self.who}: the field {name!r} of {model!r} is of the type {fields[name].type!r}, which does "
                        "not come back as it was sent: map to a field of another type"
                    )
            self._types = {name: field.type for name, field in fields.items()}
        return self._types

    def _meaning(self, fault: Fault) -> LeadsyncError | None:
        """What to raise for an exception of Odoo's, None where its name tells nothing."""
        code, words, model = fault.code, fault.message, self.destination.object
        if code == "OperationalError" and NO_DATABASE.search(words):
            return AccessError(
                f"{self.who} has no database {self.settings.database!r}: correct `database` of destination "
                f"{self.destination.name!r}"
            )
        if code in PASSING or CONFLICT.search(words):
            return RequestFailed(f"{self.who} answered {code}", code)
        if code == "AccessDenied":
            return self._rpc.refuse(code)
        if code in FORBIDDEN:
            return self._denied(code)
        if NO_OBJECT.match(words):
            return self.missing(code, model)
        if code == "NotFound":
            return AccessError(f"{self.who} has no such method: check the connection's address and the setting `api`")
        if field := NO_FIELD.match(words):
            return self.missing(code, field[1] or field[2])
        if code in REFUSED:
            return BatchRefused(code, field=self.named(words), message=words)
        return None

    def _denied(self, code: str) -> AccessError:
        return AccessError(
            f"{self.who} denies access ({code}): give the user the rights to read and write "
            f"{self.destination.object!r}, and to read 'ir.model.data'"
        )
