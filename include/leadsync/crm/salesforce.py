"""Salesforce: any object with a unique external id field, through the sObject Collections of its REST API.

More than `bulk_above` leads at once go through Bulk API 2.0 instead: some ten requests for 10,000 leads. Deletes do
not, for there a job takes Salesforce's own ids only and could not be told from another tool's.

The connection's login and password are the consumer key and secret of a connected app that allows the client
credentials flow; its address is My Domain. A delete goes to the recycle bin.

A delete looks the record up by external id even where its Salesforce id is known: a known id may be stale, for the
record may have been deleted and created again, and then the new one would stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from leadsync.budget import Limit
from leadsync.crm import values
from leadsync.crm.access import Access, Credentials
from leadsync.crm.base import BatchRefused, CRMAdapter, Settings, batches
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.login import TokenLogin
from leadsync.crm.salesforce_bulk import DISABLED, ROWS, Bulk
from leadsync.errors import AccessError, LeadsyncError, QuotaExceeded
from leadsync.metering import Quota
from leadsync.models import Lead, Outcome, Record, Status

PASSING = frozenset(
    {"UNABLE_TO_LOCK_ROW", "SERVER_UNAVAILABLE", "REQUEST_RUNNING_TOO_LONG", "QUERY_TIMEOUT", "UNKNOWN_EXCEPTION"}
)
NOT_THERE = frozenset({"ENTITY_IS_DELETED", "NOT_FOUND", "INVALID_CROSS_REFERENCE_KEY"})
SETUP = frozenset({"INVALID_FIELD", "INVALID_FIELD_FOR_INSERT_UPDATE", "INVALID_TYPE", "NOT_FOUND"})
USAGE = re.compile(r"(?<![\w-])api-usage=(\d+)/(\d+)")  # that of the whole organisation
COLUMN = re.compile(r"No such column '(\w+)'")
QUERY_LENGTH = 12_000  # characters of external ids in the address of one query: Salesforce takes 16 KiB
ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"})


class _Error(BaseModel):
    statusCode: str = ""  # in the result of one record
    errorCode: str = ""  # in a reply that is an error as a whole
    message: str = ""
    fields: list[str] = []

    @property
    def code(self) -> str:
        return self.statusCode or self.errorCode


class _Result(BaseModel):
    id: str | None = None
    success: bool
    created: bool = False
    errors: list[_Error] = []


class _Page(BaseModel):
    totalSize: int
    records: list[dict[str, Any]]
    done: bool
    nextRecordsUrl: str = ""


class _Token(BaseModel):
    access_token: str
    instance_url: str


class _Field(BaseModel):
    name: str
    unique: bool = False
    externalId: bool = False
    updateable: bool = True


class _Describe(BaseModel):
    fields: list[_Field]


RESULTS = TypeAdapter(list[_Result])
ERRORS = TypeAdapter(list[_Error])
PAGE = TypeAdapter(_Page)
TOKEN = TypeAdapter(_Token)
DESCRIBE = TypeAdapter(_Describe)


class SalesforceSettings(Settings):
    api_version: str = Field("v62.0", pattern=r"^v\d\d\.0$", description="of the REST API")
    bulk_above: int | None = Field(
        2000, ge=0, description="more leads than that at once go through Bulk API 2.0; 0 or null: never"
    )
    bulk_timeout: float = Field(1800, gt=0, le=86_400, description="seconds to wait for a bulk job, then it is aborted")


class Salesforce(CRMAdapter):
    name = "salesforce"
    label = "Salesforce"
    max_batch = 200
    # Salesforce limits requests in 24 hours: 100,000 and more with each licence (Developer Edition: 15,000). It has no
    # limit per second; ours keeps us a good neighbour.
    limits = (Limit(20, 1), Limit(100_000, 86_400))
    delete_modes = frozenset({"delete", "field"})
    settings_model: ClassVar[type[Settings]] = SalesforceSettings
    example = """
adapter: salesforce
object: Lead
external_id_field: Leadsync_Id__c
on_delete: delete
fields:
  LastName: {column: name, transform: trim, default: Unknown, max_length: 80}
  Company: {column: appkey, max_length: 255}
  Email: {column: email, transform: [trim, lower]}
  Phone: {column: phone, max_length: 40}
  City: {column: city, max_length: 40}
  Appkey__c: appkey
  Uid__c: {column: uid, transform: integer}
  Updated_At__c: {column: update_time, transform: iso8601}
  Answers__c: answers
  LeadSource: {constant: Web}
"""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bulk = Bulk(self, self._call, self._row_refused, self._upsert)

    def make_credentials(self) -> Credentials:
        form = {
            "grant_type": "client_credentials",
            "client_id": self.endpoint.login,
            "client_secret": self.endpoint.password,
        }
        remedy = (
            "correct the connection's address, consumer key and secret, and let the connected app use the client "
            "credentials flow"
        )
        url = f"{self.endpoint.url}/services/oauth2/token"
        return TokenLogin(self.who, self.http, url, form, self._access, remedy)

    def _access(self, reply: Reply) -> Access | None:
        if reply.status != 200:
            return None
        try:
            token = TOKEN.validate_json(reply.body)
        except ValidationError:  # its text stays here, for it may hold a token
            raise RequestFailed(f"{self.who}: the login's reply makes no sense", "malformed_reply") from None
        instance, own = urlsplit(token.instance_url), urlsplit(self.endpoint.url)
        # The token goes there with every lead, so never to another host in the clear.
        own_in_clear = instance.scheme == own.scheme == "http" and instance.hostname == own.hostname
        if not own_in_clear and (instance.scheme != "https" or not instance.hostname):
            raise AccessError(f"{self.who} names an instance that is not reached by https: nothing is sent there")
        return Access(token.instance_url.rstrip("/"), token.access_token)

    def batch_size(self, count: int, *, delete: bool) -> int:
        return ROWS if not delete and self._is_bulk(count) else self.max_batch

    @property
    def at_work(self) -> bool:
        return bool(self._bulk.jobs)

    def end_work(self) -> bool:
        return self._bulk.end()

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        act = self._bulk.upsert if self._is_bulk(len(leads)) else self._upsert
        outcomes = {outcome.external_id: outcome for outcome in act(leads)}
        # Two near-simultaneous upserts of one external id, one perhaps another system's: a second try finds the record.
        doubled = [lead for lead in leads if _is_doubled(outcomes.get(lead.external_id))]
        for part in batches(doubled, self.max_batch):
            outcomes |= self.attempt(self._upsert, part)
        return list(outcomes.values())

    def _is_bulk(self, count: int) -> bool:
        return bool(self.settings.bulk_above) and count > self.settings.bulk_above

    def _upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        target = self.destination
        records = [
            {"attributes": {"type": target.object}, **lead.fields, target.external_id_field: lead.external_id}
            for lead in leads
        ]
        path = f"/composite/sobjects/{target.object}/{target.external_id_field}"
        results = self._call("PATCH", path, json={"allOrNone": False, "records": records}).parse(RESULTS)
        if len(results) != len(leads):  # attributed by position: with one missing nobody knows whose they are
            return []
        return [
            Outcome(lead.external_id, Status.CREATED if result.created else Status.UPDATED, result.id)
            if result.success
            else self._refused(lead.external_id, result.errors)
            for lead, result in zip(leads, results, strict=True)
        ]

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        there = self._find([lead.external_id for lead in leads], [])
        outcomes = {i: Outcome(i, Status.DELETED) for i, records in there.items() if not records}
        found = [(external_id, record["Id"]) for external_id, records in there.items() for record in records]
        for part in batches(found, self.max_batch):  # one, unless leads are doubled
            params = {"ids": ",".join(crm_id for _, crm_id in part), "allOrNone": "false"}
            results = self._call("DELETE", "/composite/sobjects", params=params).parse(RESULTS)
            if len(results) != len(part):
                return list(outcomes.values())
            for (external_id, crm_id), result in zip(part, results, strict=True):
                if result.success or any(error.code in NOT_THERE for error in result.errors):
                    outcomes.setdefault(external_id, Outcome(external_id, Status.DELETED, crm_id))
                else:
                    outcomes[external_id] = self._refused(external_id, result.errors)
        return list(outcomes.values())

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        names = self.fields_read
        return {
            external_id: [
                Record(external_id, record["Id"], {name: record.get(name) for name in names}) for record in records
            ]
            for ids in batches(external_ids, self.max_batch)
            for external_id, records in self._find(ids, names).items()
        }

    def same(self, name: str, sent: Any, held: Any) -> bool:
        if held is False and sent in (None, ""):
            return True  # a checkbox is never empty
        if isinstance(sent, str) and isinstance(held, str) and "@" in sent and sent.lower() == held.lower():
            return True  # addresses are kept in lower case
        return values.same(sent, held, precision=timedelta(seconds=1))  # times are kept in seconds

    def check(self) -> None:
        target = self.destination
        reply = self._call("GET", f"/sobjects/{target.object}/describe")
        fields = {field.name: field for field in reply.parse(DESCRIBE).fields}
        for name in (target.external_id_field, *target.fields, target.on_delete.field):
            if name is not None and (name not in fields or not fields[name].updateable):
                raise self.missing("INVALID_FIELD", name)
        key = fields[target.external_id_field]
        if not (key.externalId and key.unique):
            raise AccessError(
                f"{self.who}: the field {key.name!r} of {target.object!r} is not an external id with unique values: "
                "tick both in its definition"
            )

    def quota_left(self, headers: Mapping[str, str]) -> Quota | None:
        usage = USAGE.search(headers.get("Sforce-Limit-Info", ""))
        return Quota(max(0, int(usage[2]) - int(usage[1])), int(usage[2])) if usage else None

    def explain(self, reply: Reply) -> LeadsyncError | None:
        errors = _errors(reply)
        for error in errors:
            if error.code == "REQUEST_LIMIT_EXCEEDED":
                # The same code serves for too many long requests at once, which passes.
                if error.message.startswith("Concurrent"):
                    return RequestFailed(f"{self.who} has too many requests at once", str(reply.status))
                return QuotaExceeded(f"{self.who}: the limit of requests in 24 hours is spent")
            if error.code.upper() == "EXCEEDEDQUOTA":
                return QuotaExceeded(f"{self.who}: the limit of Bulk API jobs in 24 hours is spent")
            if error.code.upper() == DISABLED:  # without the Bulk API the leads get there too
                return BatchRefused(error.code)
            if error.code in PASSING:
                return RequestFailed(
                    f"{self.who} answered {error.code}", str(reply.status), retry_after=reply.retry_after
                )
            if error.code in SETUP:
                return self._missing(error)
        return super().explain(reply)

    def _call(self, method: str, path: str, **content: Any) -> Reply:
        """The reply when it is a success; raises BatchRefused for what Salesforce says of the data."""
        path = path if path.startswith("/services/") else f"/services/data/{self.settings.api_version}{path}"
        reply = self.http.request(method, path, self.credentials, **content)
        if reply.status < 400:
            return reply
        errors = reply.parse(ERRORS)
        if not (errors and errors[0].code):
            raise reply.malformed()
        refused = self._refused("", errors)
        raise BatchRefused(errors[0].code, field=refused.field, message=refused.message)

    def _find(self, external_ids: Sequence[str], names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The records of every external id, each with `Id` and the named fields; more than one when it is doubled."""
        key = self.destination.external_id_field
        found: dict[str, list[dict[str, Any]]] = {external_id: [] for external_id in external_ids}
        quoted = [f"'{external_id.translate(ESCAPES)}'" for external_id in external_ids]
        per_query = max(1, QUERY_LENGTH // max((len(quote(f"{value}, ", safe="")) for value in quoted), default=1))
        for part in batches(quoted, per_query):
            columns = ", ".join(dict.fromkeys(["Id", key, *names]))
            # Names are checked by the registry, values are quoted above; SOQL has no parameters.
            query = f"SELECT {columns} FROM {self.destination.object} WHERE {key} IN ({', '.join(part)})"  # noqa: S608
            page = self._call("GET", "/query", params={"q": query}).parse(PAGE)
            records = page.records
            while not page.done:
                if not page.records or len(records) >= page.totalSize:  # it would go on for ever
                    raise self.left_out()
                page = self._call("GET", page.nextRecordsUrl).parse(PAGE)
                records += page.records
            # A query names what it finds and not what it does not: only the total tells that nothing was left out.
            if len(records) != page.totalSize:
                raise self.left_out()
            for record in records:
                owner = record.get(key)
                if isinstance(owner, str) and owner in found:  # SOQL compares without regard to case
                    if not isinstance(record.get("Id"), str):
                        raise self.left_out()
                    found[owner].append(record)
        return found

    def _missing(self, error: _Error) -> AccessError:
        column = COLUMN.match(error.message)
        return self.missing(error.code, column[1] if column else self.named(" ".join([*error.fields, error.message])))

    def _refused(self, external_id: str, errors: Sequence[_Error]) -> Outcome:
        """What the errors of one record mean. Raises AccessError or QuotaExceeded when they are not about the lead."""
        for error in errors:
            if error.code in SETUP:
                raise self._missing(error)
            if error.code == "STORAGE_LIMIT_EXCEEDED":
                raise QuotaExceeded(f"{self.who}: the storage of the organisation is full")
        first = errors[0] if errors else _Error()
        # A trigger's error has a code of its own and the lock's name in the message.
        passing = any(error.code in PASSING or "UNABLE_TO_LOCK_ROW" in error.message for error in errors)
        doubled = first.code == "DUPLICATE_VALUE" and self.destination.external_id_field in first.message
        status = Status.TRANSIENT if passing or doubled else Status.REJECTED
        field = next(iter(first.fields), None) or self.named(first.message)
        words = "; ".join(error.message for error in errors)
        return Outcome(external_id, status, None, first.code or None, field, words)

    def _row_refused(self, external_id: str, code: str, message: str, fields: Sequence[str]) -> Outcome:
        return self._refused(external_id, [_Error(statusCode=code, message=message, fields=list(fields))])


def _is_doubled(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.code == "DUPLICATE_VALUE"


def _errors(reply: Reply) -> list[_Error]:
    try:
        return reply.parse(ERRORS)
    except RequestFailed:  # a proxy's page, or the token endpoint's other shape
        return []
