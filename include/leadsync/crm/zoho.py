"""Zoho CRM: any module with a unique field for the external id, through the upsert of its REST API.

The connection's host is the API of the account's data centre (`https://www.zohoapis.com`, `.eu`, `.in` …), login and
password are a client's id and secret. Its extra holds the `refresh_token`, and `accounts_url` where the login is not at
`https://accounts.zoho.` with the same ending. The token needs the scopes `ZohoCRM.modules.ALL`,
`ZohoCRM.settings.fields.READ` and `ZohoCRM.coql.READ`. Zoho gives ten access tokens in ten minutes; all loads share
one, as long as it lasts (an hour).

The external id is a single-line field that does not allow duplicate values, and minds the case where ids differ in
nothing else. Leads are matched by it alone, never by their e-mail address as Zoho does otherwise. Zoho ignores fields
that it does not know, so its fields are read once, and one that is missing stops the load. A deleted record goes to the
recycle bin.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from leadsync.budget import Limit
from leadsync.crm import values
from leadsync.crm.access import Access, Credentials
from leadsync.crm.base import BatchRefused, CRMAdapter, Settings, batches
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.login import NoLogin, TokenLogin
from leadsync.errors import AccessError, LeadsyncError, QuotaExceeded
from leadsync.metering import Quota
from leadsync.models import Lead, Outcome, Record, Status

API_HOST = re.compile(r"(?:\w+\.)?zohoapis\.([a-z.]+)")
VALUES = 50  # in one `in (…)` of a query
DEAREST = 10  # credits, of an upsert of a hundred records
TOKEN_WAIT = 120.0  # seconds; Zoho says "after some time"
PASSING = frozenset({"INTERNAL_ERROR", "RECORD_LOCKED", "LIMIT_EXCEEDED", "TOO_MANY_REQUESTS"})
DENIED = frozenset({"NO_PERMISSION", "OAUTH_SCOPE_MISMATCH", "AUTHENTICATION_FAILURE", "INVALID_TOKEN"})
NO_MODULE = frozenset({"INVALID_MODULE", "INVALID_URL_PATTERN"})


class _Result(BaseModel):
    status: str = ""
    code: str = ""
    message: str = ""
    action: str = ""
    details: dict[str, Any] = {}

    @property
    def id(self) -> str | None:
        found = self.details.get("id")
        return None if found is None else str(found)


class _Results(BaseModel):
    data: list[_Result]


class _Info(BaseModel):
    count: int
    more_records: bool


class _Page(BaseModel):
    data: list[dict[str, Any]]
    info: _Info


class _Operations(BaseModel):
    api_create: bool = True
    api_update: bool = True


class _Field(BaseModel):
    api_name: str
    data_type: str = ""
    unique: dict[str, Any] | None = None
    external: dict[str, Any] | None = None
    operation_type: _Operations = _Operations()


class _Fields(BaseModel):
    fields: list[_Field]


class _Token(BaseModel):
    access_token: str = ""
    error: str = ""
    error_description: str = ""


RESULT = TypeAdapter(_Result)
RESULTS = TypeAdapter(_Results)
PAGE = TypeAdapter(_Page)
FIELDS = TypeAdapter(_Fields)
TOKEN = TypeAdapter(_Token)


class ZohoSettings(Settings):
    api_version: str = Field("v8", pattern=r"^v([7-9]|\d\d)$", description="of the REST API")
    workflows: bool = Field(
        False, description="whether Zoho's workflows, approvals and blueprints run on what is written"
    )


class Zoho(CRMAdapter):
    name = "zoho"
    label = "Zoho CRM"
    max_batch = 100
    # Every edition but the free one has at least 50,000 credits in 24 hours, and an upsert of a hundred records costs
    # ten. Zoho limits requests at once (10 to 25) and not per second; ours keeps us below.
    limits = (Limit(10, 1), Limit(5_000, 86_400))
    delete_modes = frozenset({"delete", "field"})
    settings_model: ClassVar[type[Settings]] = ZohoSettings
    example = """
adapter: zoho
object: Leads
external_id_field: Leadsync_Id
on_delete: delete
fields:
  Last_Name: {column: name, transform: trim, default: Unknown, max_length: 80}
  Company: {column: appkey, max_length: 200}
  Email: {column: email, transform: [trim, lower], max_length: 100}
  Phone: {column: phone, max_length: 30}
  City: {column: city, max_length: 100}
  Appkey: appkey
  Uid: uid
  Updated_At: {column: update_time, transform: iso8601}
  Answers: {column: answers, max_length: 32000}
  Lead_Source: {constant: Advertisement}
"""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._fields: Mapping[str, _Field] | None = None
        self._lock = threading.Lock()

    def make_credentials(self) -> Credentials:
        extra, own = self.endpoint.extra, urlsplit(self.endpoint.url)
        found = API_HOST.fullmatch(own.hostname or "")
        accounts = str(extra.get("accounts_url") or "").rstrip("/")
        if not accounts and found:
            accounts = f"https://accounts.{'zohocloud' if found[1] == 'ca' else 'zoho'}.{found[1]}"
        # The secret is posted there, so never in the clear to another host.
        in_clear = own.scheme == "http" and urlsplit(accounts).hostname == own.hostname
        if not extra.get("refresh_token") or not (accounts.startswith("https://") or in_clear):
            return NoLogin(
                f"{self.who}: put the `refresh_token` of the client into the connection's extra, and the https address "
                "of the login as `accounts_url` unless the host is Zoho's own"
            )
        form = {
            "grant_type": "refresh_token",
            "client_id": self.endpoint.login,
            "client_secret": self.endpoint.password,
            "refresh_token": str(extra["refresh_token"]),
        }
        remedy = (
            "correct the connection's client id, secret and refresh token, and see that they are of its data centre"
        )
        return TokenLogin(self.who, self.http, f"{accounts}/oauth/v2/token", form, self._access, remedy)

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        key = self.destination.external_id_field
        known = self._known({name for lead in leads for name in lead.fields})
        moments = {name for name, field in known.items() if field.data_type == "datetime"}
        body: dict[str, Any] = {
            "data": [{**_record(lead.fields, moments), key: lead.external_id} for lead in leads],
            "duplicate_check_fields": [key],
        }
        if not self.settings.workflows:
            body["trigger"] = []
        is_external = (known[key].external or {}).get("type") == "org"
        headers = {"X-EXTERNAL": f"{self.destination.object}.{key}"} if is_external else {}
        results = (
            self._call("POST", f"/{self.destination.object}/upsert", json=body, headers=headers).parse(RESULTS).data
        )
        if len(results) != len(leads):  # attributed by position: with one missing nobody knows whose they are
            return []
        return [
            Outcome(lead.external_id, Status.CREATED if result.action == "insert" else Status.UPDATED, result.id)
            if result.status == "success"
            else self._refused(lead.external_id, result)
            for lead, result in zip(leads, results, strict=True)
        ]

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        there = self._find([lead.external_id for lead in leads], [])
        outcomes = {i: Outcome(i, Status.DELETED) for i, records in there.items() if not records}
        found = [record for records in there.values() for record in records]
        for part in batches(found, self.max_batch):
            params = {"ids": ",".join(record.crm_id for record in part)}
            params["wf_trigger"] = "true" if self.settings.workflows else "false"
            results = self._call("DELETE", f"/{self.destination.object}", params=params).parse(RESULTS).data
            if len(results) != len(part):
                return list(outcomes.values())
            for record, result in zip(part, results, strict=True):
                # An id that Zoho does not know any more is called invalid.
                if result.status == "success" or result.code == "INVALID_DATA":
                    outcomes.setdefault(record.external_id, Outcome(record.external_id, Status.DELETED, record.crm_id))
                else:
                    outcomes[record.external_id] = self._refused(record.external_id, result)
        return list(outcomes.values())

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        return self._find(external_ids, self.fields_read)

    def same(self, name: str, sent: Any, held: Any) -> bool:
        if held is False and sent in (None, ""):
            return True  # a checkbox is never empty
        return values.same(sent, held, precision=timedelta(seconds=1))  # times are kept in seconds

    def check(self) -> None:
        target = self.destination
        with self._lock:
            self._fields = self._read_fields()
        known = self._known({*target.fields, *filter(None, [target.on_delete.field])})
        for name, field in known.items():
            if not (field.operation_type.api_create and field.operation_type.api_update):
                raise self.missing("read only", name)
        if not known[target.external_id_field].unique:
            raise AccessError(
                f"{self.who}: the field {target.external_id_field!r} of {target.object!r} is not unique: tick `Do not "
                "allow duplicate values` in its properties"
            )
        self._find(["-"], [])  # needs a scope of its own

    def quota_left(self, headers: Mapping[str, str]) -> Quota | None:
        left = headers.get(
            "X-API-CREDITS-REMAINING", ""
        )  # told once half of the credits are used up, and not of how many
        return Quota(int(left), None) if left.isdecimal() else None

    def explain(self, reply: Reply) -> LeadsyncError | None:
        error = _error(reply)
        if reply.status == 429:
            left = reply.headers.get("X-API-CREDITS-REMAINING", "")
            if left.isdigit() and int(left) < DEAREST:
                return QuotaExceeded(f"{self.who}: the credits of 24 hours are spent")
            return RequestFailed(f"{self.who} throttles requests (429)", "429", retry_after=reply.retry_after)
        if error.code in PASSING:
            return RequestFailed(f"{self.who} answered {error.code}", str(reply.status), retry_after=reply.retry_after)
        if reply.status in (400, 401, 403, 404):
            return self._about_us(error)
        return None

    # Requests ------------------------------------------------------------------------------------------------------

    def _call(self, method: str, path: str, **content: Any) -> Reply:
        """The reply when it is a success; raises BatchRefused for what Zoho says of the data."""
        reply = self.http.request(method, f"/crm/{self.settings.api_version}{path}", self.credentials, **content)
        if reply.status < 400 or _has_results(reply):
            return reply
        error = reply.parse(RESULT)
        if not error.code:
            raise reply.malformed()
        refused = self._refused("", error)
        if refused.status is Status.TRANSIENT:
            raise RequestFailed(f"{self.who} answered {error.code}", str(reply.status), retry_after=reply.retry_after)
        raise BatchRefused(error.code, field=refused.field, message=refused.message)

    def _read_fields(self) -> Mapping[str, _Field]:
        try:
            reply = self._call("GET", "/settings/fields", params={"module": self.destination.object})
        except BatchRefused as refused:  # not about the leads
            raise self.missing(refused.code, self.destination.object) from None
        if reply.status == 204:
            raise self.missing("204", self.destination.object)
        return {field.api_name: field for field in reply.parse(FIELDS).fields}

    def _known(self, names: set[str]) -> dict[str, _Field]:
        """These fields and the external id field. Raises AccessError for one that the module does not have."""
        with self._lock:
            if self._fields is None:
                self._fields = self._read_fields()
            fields = self._fields
        wanted = [self.destination.external_id_field, *sorted(names)]
        for name in wanted:
            if name not in fields:
                raise self.missing("no such field", name)
        return {name: fields[name] for name in wanted}

    def _find(self, external_ids: Sequence[str], names: Sequence[str]) -> dict[str, list[Record]]:
        """The records of every external id, with the named fields."""
        key = self.destination.external_id_field
        self._known(set(names))
        columns = ", ".join(dict.fromkeys(["id", key, *names]))
        found: dict[str, list[Record]] = {external_id: [] for external_id in external_ids}
        for part in batches(external_ids, VALUES):
            texts = ", ".join("'" + external_id.replace("'", "''") + "'" for external_id in part)
            # Names are checked by the registry, values are quoted above; COQL has no parameters.
            query = f"select {columns} from {self.destination.object} where {key} in ({texts}) limit 200"  # noqa: S608
            reply = self._call("POST", "/coql", json={"select_query": query})
            if reply.status == 204:
                continue
            page = reply.parse(PAGE)
            # A query names what it finds and not what it does not: only the count tells that nothing was left out.
            if page.info.more_records or len(page.data) != page.info.count:
                raise self.left_out()
            for row in page.data:
                external_id, crm_id = row.get(key), row.get("id")
                if crm_id is None:
                    raise reply.malformed()
                if isinstance(external_id, str) and external_id in found:  # COQL may compare without regard to case
                    fields = {name: row.get(name) for name in names}
                    found[external_id].append(Record(external_id, str(crm_id), fields))
        return found

    # Errors --------------------------------------------------------------------------------------------------------

    def _about_us(self, error: _Result) -> LeadsyncError | None:
        """The error to raise when it is not about a lead."""
        if error.code == "STORAGE_SPACE_EXCEEDED":
            return QuotaExceeded(f"{self.who}: the storage of the organisation is full")
        if error.code in NO_MODULE:
            return self.missing(error.code, self.destination.object)
        if error.code == "INVALID_QUERY":
            return self.missing(error.code, self.named(error.message))
        if error.code in DENIED:
            return AccessError(
                f"{self.who} denies access ({error.code}): give the user the right to the module, and the token the "
                "scopes that the documentation names"
            )
        return None

    def _refused(self, external_id: str, error: _Result) -> Outcome:
        """What an error means for one lead. Raises AccessError or QuotaExceeded when it is not about the lead."""
        if about_us := self._about_us(error):
            raise about_us
        name = error.details.get("api_name")
        # Somebody made the record at the same time, and the next try finds it.
        doubled = error.code == "DUPLICATE_DATA" and name == self.destination.external_id_field
        status = Status.TRANSIENT if doubled or error.code in PASSING else Status.REJECTED
        field = name if isinstance(name, str) else self.named(error.message)
        return Outcome(external_id, status, None, error.code or None, field, error.message)

    def _access(self, reply: Reply) -> Access | None:
        try:
            token = TOKEN.validate_json(reply.body)
        except ValidationError:  # its text stays here, for it may hold a token
            raise RequestFailed(f"{self.who}: the login's reply makes no sense", "malformed_reply") from None
        if token.access_token:
            header = {"Authorization": f"Zoho-oauthtoken {token.access_token}"}
            return Access(self.endpoint.url, token.access_token, header)
        if "too many requests" in token.error_description:
            raise RequestFailed(f"{self.who} gives no more tokens for now", "429", retry_after=TOKEN_WAIT)
        return None  # also in a 200


def _record(fields: Mapping[str, Any], moments: set[str]) -> dict[str, Any]:
    """Zoho clears by null and not by an empty text, and knows no fractions of a second."""
    record = {name: None if value == "" else value for name, value in fields.items()}
    for name in moments & record.keys():
        try:
            moment = datetime.fromisoformat(str(record[name]))
        except ValueError:
            continue  # Zoho says what is wrong with it
        record[name] = moment.isoformat(timespec="seconds")
    return record


def _has_results(reply: Reply) -> bool:
    try:
        return bool(reply.parse(RESULTS).data)
    except RequestFailed:
        return False


def _error(reply: Reply) -> _Result:
    try:
        return reply.parse(RESULT)
    except RequestFailed:  # a proxy's page
        return _Result()
