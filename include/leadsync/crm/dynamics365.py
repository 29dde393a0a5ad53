"""Microsoft Dynamics 365: any table of Dataverse whose external id column is an alternate key, through its Web API.

The connection's host is the environment's address (`https://<organisation>.crm.dynamics.com`); login and password are
the client id and a secret of an app registration that is an application user there. Its extra holds the `tenant` (id
or domain), or the whole address of another token endpoint as `token_url`. `object` is the table's logical name.

Records are looked up by external id and written by their own id. Dataverse does not take `:` and some other characters
in an alternate key that addresses a record, and external ids are full of them. So a new record gets its id here, and
the alternate key sees to it that two requests at once do not make two records. It ignores case: of two external ids
that differ in nothing else the second is refused.

A batch goes through UpsertMultiple, which takes all of it or nothing. When it takes nothing, or the table does not know
it, the leads are written one by one in a `$batch`. Lookup columns can't be written.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote, urlsplit
from uuid import uuid4

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from leadsync.budget import Limit
from leadsync.crm import odata, values
from leadsync.crm.access import Access, Credentials
from leadsync.crm.base import BatchRefused, CRMAdapter, Settings, batches
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.login import NoLogin, TokenLogin
from leadsync.crm.odata import error_of
from leadsync.errors import AccessError, LeadsyncError, QuotaExceeded
from leadsync.models import Lead, Outcome, Record, Status

TOKEN_URL = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"  # noqa: S105 - an address
CONDITIONS = 50  # external ids in one query; a query may have 500 conditions, a URL in a batch 64 KiB
QUERY_LENGTH = 48_000  # characters of conditions in one query
# Service protection looks at five minutes: a longer wait is the day's entitlement.
QUOTA_WAIT = 3600.0  # seconds

# SQL errors (deadlocks among them), time-outs, throttling, "an unexpected error": they say nothing about the data.
PASSING = frozenset(
    {"0x80040216", "0x80040251", "0x80040255", "0x80044150", "0x80044151", "0x80060882"}
    | {"0x80072321", "0x80072322", "0x80072326"}
)
DUPLICATE = frozenset({"0x80060892", "0x80040237"})
NOT_FOUND = frozenset({"0x80040217", "0x80060891"})  # no such record
# Whole beginnings: a message may quote what a visitor typed.
UNKNOWN = re.compile(
    r"(?:Error identified in Payload provided by the user for Entity :'\w*',[^']{0,250}InnerException : [\w.]+: )?"
    r"(?:The property '([\w.]+)' does not exist on type|An undeclared property '([\w.]+)' which only has"
    r"|Could not find a property named '([\w.]+)' on type)"
)


class _Token(BaseModel):
    access_token: str


class _Attribute(BaseModel):
    LogicalName: str
    IsValidForCreate: bool = False
    IsValidForUpdate: bool = False


class _Key(BaseModel):
    KeyAttributes: list[str]
    EntityKeyIndexStatus: str = ""


class _Table(BaseModel):
    LogicalName: str
    EntitySetName: str
    PrimaryIdAttribute: str
    Attributes: list[_Attribute] = []
    Keys: list[_Key] = []


class _Target(NamedTuple):
    lead: Lead
    crm_id: str
    status: Status  # when it is written


TOKEN = TypeAdapter(_Token)
TABLE = TypeAdapter(_Table)
DOCUMENT = TypeAdapter(dict[str, Any])


class Dynamics365Settings(Settings):
    api_version: str = Field("v9.2", pattern=r"^v9\.\d$", description="of the Web API")


class _NotKnown(AccessError):
    """A table or an action that is not there."""


class Dynamics365(CRMAdapter):
    name = "dynamics365"
    label = "Dynamics 365"
    # UpsertMultiple would take more, but one by one they have to be through before the read time-out.
    max_batch = 100
    # 6,000 in five minutes, of a user and a web server. Besides: 52 at once, and 20 minutes of execution in the five
    # minutes, which Dataverse throttles by itself. A licence's daily entitlement counts records, not requests.
    limits = (Limit(1200, 60),)
    delete_modes = frozenset({"delete", "field"})
    settings_model: ClassVar[type[Settings]] = Dynamics365Settings
    example = """
adapter: dynamics365
object: lead
external_id_field: new_leadsyncid
on_delete: delete
fields:
  lastname: {column: name, transform: trim, default: Unknown, max_length: 50}
  companyname: {column: appkey, max_length: 100}
  emailaddress1: {column: email, transform: [trim, lower], max_length: 100}
  telephone1: {column: phone, max_length: 50}
  address1_city: {column: city, max_length: 80}
  new_appkey: appkey
  new_uid: uid
  new_updatedat: {column: update_time, transform: iso8601}
  new_answers: answers
  leadsourcecode: {constant: 8}
"""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._table: _Table | None = None
        self._lock = threading.Lock()
        self._knows_bulk = True

    def make_credentials(self) -> Credentials:
        extra = self.endpoint.extra
        own = urlsplit(self.endpoint.url)
        url = str(extra.get("token_url") or "")
        if not url and extra.get("tenant"):
            url = TOKEN_URL.format(tenant=quote(str(extra["tenant"]), safe=""))
        # The secret is posted there, so never in the clear to another host.
        if not (
            url.startswith("https://") or (url and own.scheme == "http" and urlsplit(url).hostname == own.hostname)
        ):
            return NoLogin(
                f"{self.who}: put the id of the tenant into the connection's extra as `tenant` (or the https address "
                "of its token endpoint as `token_url`)"
            )
        form = {
            "grant_type": "client_credentials",
            "client_id": self.endpoint.login,
            "client_secret": self.endpoint.password,
            "scope": f"{own.scheme}://{own.netloc}/.default",
        }
        remedy = (
            "correct the connection's client id, secret (they expire) and tenant, and make the app registration an "
            "application user of the environment"
        )
        return TokenLogin(self.who, self.http, url, form, self._access, remedy)

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        there = self._find([lead.external_id for lead in leads], [])
        targets = []
        for lead in leads:
            found = there[lead.external_id]
            if found:
                targets.append(_Target(lead, found[0].crm_id, Status.UPDATED))
            else:
                targets.append(_Target(lead, str(uuid4()), Status.CREATED))
        if self._write_together(targets):
            return [Outcome(target.lead.external_id, target.status, target.crm_id) for target in targets]
        return self._write_singly(targets)

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        there = self._find([lead.external_id for lead in leads], [])
        outcomes = {i: Outcome(i, Status.DELETED) for i, records in there.items() if not records}
        found = [record for records in there.values() for record in records]
        for part in batches(found, self.max_batch):
            replies = self._batch([("DELETE", self._record(record.crm_id), None) for record in part])
            if len(replies) != len(part):
                return list(outcomes.values())
            for record, reply in zip(part, replies, strict=True):
                external_id, error = record.external_id, error_of(reply)
                if reply.status < 300 or error.code in NOT_FOUND:
                    outcomes.setdefault(external_id, Outcome(external_id, Status.DELETED, record.crm_id))
                else:
                    outcomes[external_id] = self._refused(external_id, reply)
        return list(outcomes.values())

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        names = self.fields_read
        return {
            external_id: records
            for ids in batches(external_ids, self.max_batch)
            for external_id, records in self._find(ids, names).items()
        }

    def same(self, name: str, sent: Any, held: Any) -> bool:
        return values.same(sent, held, precision=timedelta(seconds=1))  # times are kept in seconds

    def check(self) -> None:
        target = self.destination
        table = self._describe(
            "&$expand=Attributes($select=LogicalName,IsValidForCreate,IsValidForUpdate)"
            ",Keys($select=KeyAttributes,EntityKeyIndexStatus)"
        )
        new = {column.LogicalName for column in table.Attributes if column.IsValidForCreate}
        kept = {column.LogicalName for column in table.Attributes if column.IsValidForUpdate}
        for name in (target.external_id_field, *target.fields, target.on_delete.field):
            # What marks a deleted lead may be a column that no new record has, as its state.
            if name is not None and (name not in kept or (name not in new and name != target.on_delete.field)):
                raise self.missing("no such column to write", name)
        status = [key.EntityKeyIndexStatus for key in table.Keys if key.KeyAttributes == [target.external_id_field]]
        if "Active" not in status:
            raise AccessError(
                f"{self.who}: the column {target.external_id_field!r} of {target.object!r} has no active alternate key "
                f"of its own ({status[0] if status else 'there is none'}): make one, and wait until it is active"
            )

    def explain(self, reply: Reply) -> LeadsyncError | None:
        error = error_of(reply)
        if reply.status == 429:
            wait = reply.retry_after
            if wait is not None and wait >= QUOTA_WAIT:
                resets_at = datetime.now(UTC) + timedelta(seconds=wait)
                return QuotaExceeded(f"{self.who}: what the licences entitle to in 24 hours is spent", resets_at)
            return RequestFailed(f"{self.who} throttles requests (429)", "429", retry_after=wait)
        if error.code in PASSING:
            return RequestFailed(f"{self.who} answered {error.code}", str(reply.status), retry_after=reply.retry_after)
        if found := UNKNOWN.match(error.message):
            return self.missing(error.code, next(filter(None, found.groups())))
        if reply.status == 412 or error.code in NOT_FOUND:  # a key, or what a plug-in looked for
            return BatchRefused(error.code or "412", field=self.named(error.message), message=error.message)
        if reply.status in (404, 405, 501) and error.code:
            return _NotKnown(str(self.missing(error.code, self.destination.object)))
        return None

    # The table -----------------------------------------------------------------------------------------------------

    def _describe(self, more: str = "") -> _Table:
        path = f"/EntityDefinitions(LogicalName='{self.destination.object}')"
        query = f"?$select=LogicalName,EntitySetName,PrimaryIdAttribute{more}"
        try:
            table = self._call("GET", path + query).parse(TABLE)
        except BatchRefused as refused:  # not about the leads
            raise self.missing(refused.code, self.destination.object) from None
        self._table = table
        return table

    @property
    def table(self) -> _Table:
        """How the table is called; it is asked for once."""
        with self._lock:
            return self._table or self._describe()

    # Requests ------------------------------------------------------------------------------------------------------

    def _path(self, path: str) -> str:
        return f"/api/data/{self.settings.api_version}{path}"

    def _record(self, crm_id: str) -> str:
        return f"/{self.table.EntitySetName}({crm_id})"

    def _call(self, method: str, path: str, **content: Any) -> Reply:
        """The reply when it is a success; raises BatchRefused for what Dataverse says of the data."""
        headers = {**odata.HEADERS, **content.pop("headers", {})}
        reply = self.http.request(method, self._path(path), self.credentials, headers=headers, **content)
        if reply.status < 400 or odata.is_batch(reply):
            return reply
        if reply.status == 413:  # also a web server's own page
            raise BatchRefused("413")
        error = reply.parse(odata.FAILURE).error
        raise BatchRefused(error.code or str(reply.status), field=self.named(error.message), message=error.message)

    def _batch(self, requests: Sequence[tuple[str, str, Any]]) -> list[Reply]:
        """What each request (method, path, document) was answered; fewer when Dataverse left some out."""
        whole = [(method, self.endpoint.url + self._path(path), document) for method, path, document in requests]
        kind, body = odata.write_batch(whole)
        headers = {"Content-Type": kind, "Prefer": "odata.continue-on-error"}
        return odata.read_batch(self._call("POST", "/$batch", body=body, headers=headers))

    def _find(self, external_ids: Sequence[str], names: Sequence[str]) -> dict[str, list[Record]]:
        """The records of every external id, with the named fields."""
        table, key = self.table, self.destination.external_id_field
        columns = ",".join(dict.fromkeys([table.PrimaryIdAttribute, key, *names]))
        conditions = [quote(f"{key} eq {odata.text(i)}", safe="") for i in external_ids]
        longest = max(map(len, conditions), default=1) + len("%20or%20")
        queries = [
            ("GET", f"/{table.EntitySetName}?$select={columns}&$count=true&$filter={'%20or%20'.join(part)}", None)
            for part in batches(conditions, max(1, min(CONDITIONS, QUERY_LENGTH // longest)))
        ]
        replies = self._batch(queries)
        if len(replies) != len(queries):
            raise self.left_out()
        found: dict[str, list[Record]] = {external_id: [] for external_id in external_ids}
        for reply in replies:
            if reply.status >= 400:
                raise self._broken(reply)
            page = reply.parse(odata.PAGE)
            # A query names what it finds and not what it does not: only the count tells that nothing was left out.
            if len(page.value) != page.count:
                raise self.left_out()
            for row in page.value:
                external_id, crm_id = row.get(key), row.get(table.PrimaryIdAttribute)
                if not isinstance(crm_id, str):
                    raise reply.malformed()
                if isinstance(external_id, str) and external_id in found:  # Dataverse compares without regard to case
                    found[external_id].append(Record(external_id, crm_id, {name: row.get(name) for name in names}))
        return found

    def _write_together(self, targets: Sequence[_Target]) -> bool:
        """Whether Dataverse took them all; otherwise it took none."""
        if not self._knows_bulk:
            return False
        table = self.table
        kind = f"Microsoft.Dynamics.CRM.{table.LogicalName}"
        documents = [
            {"@odata.type": kind, "@odata.id": f"{table.EntitySetName}({target.crm_id})", **self._fields(target)}
            for target in targets
        ]
        try:
            path = f"/{table.EntitySetName}/Microsoft.Dynamics.CRM.UpsertMultiple"
            reply = self._call("POST", path, json={"Targets": documents})
        except _NotKnown:  # the table was found before, so it is the action
            self._knows_bulk = False
            return False
        except BatchRefused as refused:
            if refused.code == "413":
                raise
            return False
        if reply.body:
            reply.parse(DOCUMENT)
        return True

    def _write_singly(self, targets: Sequence[_Target]) -> list[Outcome]:
        replies = self._batch([("PATCH", self._record(t.crm_id), self._fields(t)) for t in targets])
        if len(replies) != len(targets):  # attributed by position: with one missing nobody knows whose they are
            return []
        return [
            Outcome(target.lead.external_id, target.status, target.crm_id)
            if reply.status < 300
            else self._refused(target.lead.external_id, reply)
            for target, reply in zip(targets, replies, strict=True)
        ]

    def _fields(self, target: _Target) -> dict[str, Any]:
        return {**target.lead.fields, self.destination.external_id_field: target.lead.external_id}

    # Errors --------------------------------------------------------------------------------------------------------

    def _broken(self, reply: Reply) -> LeadsyncError:
        """What to raise for a part of a batch that failed, and that is not about one lead's data."""
        error = self.explain(reply)
        if error is not None:
            return error
        if reply.status == 403:
            return AccessError(f"{self.who} denies access (403): give the application user a role that may do this")
        code = error_of(reply).code or str(reply.status)
        return RequestFailed(f"{self.who} answered {code}", str(reply.status), retry_after=reply.retry_after)

    def _refused(self, external_id: str, reply: Reply) -> Outcome:
        """What the answer to one lead's request means. Raises AccessError when it is not about the lead."""
        error = error_of(reply)
        broken = self._broken(reply)
        if isinstance(broken, AccessError | QuotaExceeded):
            raise broken
        # A duplicate: somebody made the record since it was looked up, and the next try finds it.
        passing = reply.status >= 500 or reply.status in (401, 408, 429) or error.code in PASSING | DUPLICATE
        status = Status.TRANSIENT if passing else Status.REJECTED
        wait = reply.retry_after if passing else None
        return Outcome(
            external_id, status, None, error.code or str(reply.status), self.named(error.message), error.message,
            retry_after=wait,
        )  # fmt: skip

    def _access(self, reply: Reply) -> Access | None:
        if 400 <= reply.status < 500:
            return None
        try:
            return Access(self.endpoint.url, TOKEN.validate_json(reply.body).access_token)
        except ValidationError:  # its text stays here, for it may hold a token
            raise RequestFailed(f"{self.who}: the login's reply makes no sense", "malformed_reply") from None
