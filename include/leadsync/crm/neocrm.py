"""销售易 (Neocrm): any business object, through its REST API 2.0; records are looked up by XOQL.

The connection's host is the API's, such as `https://api.xiaoshouyi.com`, or `https://api-p10.xiaoshouyi.com` for an
account that lives there; its login is at the same name with `login` for `api`. Login and password are those of a user,
the password followed at once by the user's security token. `client_secret` in the connection's extra is the connected
app's, and the setting `client_id` names that app. Times go as epoch milliseconds (`transform: epoch_ms`).

Neocrm takes one record a call, and knows no upsert: records are looked up before they are written, by a text field of
your own. XOQL does not say how a quote is written inside a text, so blanks, quotes, backslashes and percent signs of an
external id are percent-encoded there. Doubles that are there already are updated and deleted together. A delete goes
to the recycle bin. The bulk jobs are not used: they run when Neocrm comes to them, and might bring an old state of a
lead after a newer one.

Neocrm limits requests by licence (five a second are a guess), and answers HTTP 200 for errors too. What the codes mean
is hardly published: one that is unknown here fails the load when a look-up gets it, with which every batch begins, and
refuses the lead when a write does.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from leadsync.budget import Limit
from leadsync.crm import values
from leadsync.crm.access import Access, Credentials
from leadsync.crm.base import CRMAdapter, Settings, batches
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.login import TokenLogin
from leadsync.crm.singly import one_by_one, unfit_id
from leadsync.errors import AccessError
from leadsync.models import Lead, Outcome, Record, Status

DONE = "200"
THROTTLED = frozenset({"1020024", "1020025"})
NO_COLUMN = "2040004"
COLUMN = re.compile(r"\[(\w+)\]$")
# Whole beginnings: what follows may quote a lead.
NO_TOKEN = re.compile(r"(invalid |expired )?(access[ _]?)?token|登录(已)?(失效|过期)|(请|未)登录", re.I)
BUSY = re.compile(
    r"系统(繁忙|异常|错误)|服务(繁忙|异常)|(请求|操作)超时|system (is )?busy|system error|internal error|time.?out",
    re.I,
)
DENIED = re.compile(r"(您|用户)?(没有|无).{0,10}权限|no (\w+ )?(permission|privilege|right)|permission denied", re.I)
LONG_TEXTS = frozenset({"textarea", "richtext", "html"})  # fields that no query compares
UNSAFE = re.compile(r"[\s'\"\\%\x00-\x1f\x7f]")
PAGE_SIZE = 2000
QUERY_LENGTH = 4_000  # characters of external ids in one query


class _Answer(BaseModel):
    code: int | str
    msg: str | None = None
    data: Any = None


class _Made(BaseModel):
    id: int | str


class _Page(BaseModel):
    totalSize: int
    records: list[dict[str, Any]]


class _Field(BaseModel):
    apiKey: str
    type: str = ""
    creatable: bool | None = None


class _Description(BaseModel):
    fields: list[_Field]


class _Token(BaseModel):
    access_token: str


ANSWER = TypeAdapter(_Answer)
MADE = TypeAdapter(_Made)
PAGE = TypeAdapter(_Page)
DESCRIPTION = TypeAdapter(_Description)
TOKEN = TypeAdapter(_Token)


class NeocrmSettings(Settings):
    client_id: str = Field(min_length=1, description="of the connected app; its secret is in the connection's extra")


class Neocrm(CRMAdapter):
    name = "neocrm"
    label = "Neocrm (销售易)"
    max_batch = 20
    limits = (Limit(5, 1),)  # not published: it goes by the licence
    delete_modes = frozenset({"delete", "field"})
    settings_model: ClassVar[type[Settings]] = NeocrmSettings
    example = """
adapter: neocrm
object: lead
external_id_field: leadsyncId__c
on_delete: delete
settings: {client_id: demo}
fields:
  name: {column: name, transform: trim, default: Unknown}
  companyName: appkey
  entityType: {constant: 11010000200001}
  email: {column: email, transform: [trim, lower]}
  phone: phone
  city__c: city
  leadsyncUid__c: uid
  leadsyncAnswers__c: answers
  leadsyncUpdatedAt__c: {column: update_time, transform: epoch_ms}
"""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lock = threading.Lock()
        self._types: dict[str, str] | None = None

    def make_credentials(self) -> Credentials:
        form = {
            "grant_type": "password",
            "client_id": self.settings.client_id,
            "client_secret": str(self.endpoint.extra.get("client_secret", "")),
            "username": self.endpoint.login,
            "password": self.endpoint.password,
        }
        remedy = (
            "correct the connection's address, login and password (with the security token at its end), `client_id` "
            "and `client_secret`"
        )
        return TokenLogin(self.who, self.http, _login_address(self.endpoint.url), form, self._access, remedy)

    def _access(self, reply: Reply) -> Access | None:
        if 200 <= reply.status < 300:
            try:
                return Access(self.endpoint.url, TOKEN.validate_json(reply.body).access_token)
            except ValidationError:  # its text stays here, for it may hold a token
                if not reply.body.lstrip().startswith(b"{"):  # a proxy's page
                    raise RequestFailed(f"{self.who}: the login's reply makes no sense", "malformed_reply") from None
        return None

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        self._require(name for lead in leads for name in lead.fields)
        there = self._find([lead.external_id for lead in leads])
        return one_by_one(self, leads, lambda lead: self._write(lead, there[lead.external_id]))

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        there = self._find([lead.external_id for lead in leads])
        return one_by_one(self, leads, lambda lead: self._remove(lead, there[lead.external_id]))

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        names = self.fields_read
        return {
            external_id: [
                Record(external_id, str(record["id"]), {name: record.get(name) for name in names}) for record in records
            ]
            for external_id, records in self._find(external_ids, names).items()
        }

    def same(self, name: str, sent: Any, held: Any) -> bool:
        if isinstance(sent, bool) and held in (0, 1):
            return sent == bool(held)
        return values.same(sent, held)

    def check(self) -> None:
        target = self.destination
        self._types = None
        if self._require(self.fields_read)[target.external_id_field] in LONG_TEXTS:
            raise AccessError(
                f"{self.who}: the field {target.external_id_field!r} of {target.object!r} is a long text, which no "
                "query compares: make a text field of one line for the external id"
            )
        self._find([target.name])

    def translate(self, reply: Reply) -> Reply:
        if reply.status != 200:
            return reply
        try:
            answer = reply.parse(ANSWER)
        except RequestFailed:  # whoever asked will say that it makes no sense
            return reply
        if str(answer.code) in THROTTLED:
            return replace(reply, status=429)
        ended = str(answer.code) != DONE and NO_TOKEN.match(answer.msg or "")
        return replace(reply, status=401) if ended else reply

    def _write(self, lead: Lead, records: Sequence[dict[str, Any]]) -> Outcome:
        key, name = self.destination.external_id_field, _encoded(lead.external_id)
        unfit = unfit_id(lead._replace(external_id=name), key)
        if unfit:
            return unfit._replace(external_id=lead.external_id)
        body = {"data": {**lead.fields, key: name}}
        if not records:
            answer = self._call("POST", self._object, json=body)
            if str(answer.code) != DONE:
                return self._refused(lead, answer, records)
            return Outcome(lead.external_id, Status.CREATED, str(_shaped(MADE, answer).id))
        for record in records:
            answer = self._call("PATCH", f"{self._object}/{record['id']}", json=body)
            if str(answer.code) != DONE:
                return self._refused(lead, answer, records)
        return Outcome(lead.external_id, Status.UPDATED, str(records[0]["id"]))

    def _remove(self, lead: Lead, records: Sequence[dict[str, Any]]) -> Outcome:
        for record in records:
            answer = self._call("DELETE", f"{self._object}/{record['id']}")
            if str(answer.code) != DONE:
                return self._refused(lead, answer, records)
        return Outcome(lead.external_id, Status.DELETED, str(records[0]["id"]) if records else None)

    def _refused(self, lead: Lead, answer: _Answer, records: Sequence[dict[str, Any]]) -> Outcome:
        """What a code means for one lead. Raises RequestFailed and AccessError when it is not about the lead."""
        self._judge(answer, everybodys=not records)
        # The codes of a record that came or went meanwhile are not known: a second look tells.
        now = self._find([lead.external_id])[lead.external_id]
        same = [record["id"] for record in now] == [record["id"] for record in records]
        code, words = str(answer.code), answer.msg or ""
        status = Status.REJECTED if same else Status.TRANSIENT
        return Outcome(lead.external_id, status, None, code, self.named(words), words)

    def _judge(self, answer: _Answer, *, everybodys: bool) -> None:
        """Raises what a code calls for when no lead is to blame; `everybodys` rights are not those of one record."""
        code, words = str(answer.code), answer.msg or ""
        if code == NO_COLUMN:
            column = COLUMN.search(words)
            raise self.missing(code, column[1] if column else self.named(words))
        if BUSY.match(words):
            raise RequestFailed(f"{self.who} answered {code}", code)
        if everybodys and DENIED.match(words):
            raise AccessError(
                f"{self.who} denies access ({code}): give the user the rights to read and write "
                f"{self.destination.object!r}"
            )

    def _find(self, external_ids: Sequence[str], names: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
        """The records of every external id, each with `id` and the named fields; more than one when it is doubled."""
        key, kind = self.destination.external_id_field, self.destination.object
        owners = {_encoded(external_id): external_id for external_id in external_ids}
        found: dict[str, list[dict[str, Any]]] = {external_id: [] for external_id in external_ids}
        columns = ",".join(dict.fromkeys(["id", key, *names]))
        length = max(map(len, owners), default=0) + 3
        for part in batches(owners, min(100, max(1, QUERY_LENGTH // length))):
            texts = ",".join(f"'{name}'" for name in part)
            # Names are checked by the registry, and no quote is left in a value; XOQL has no parameters.
            query = f"select {columns} from {kind} where {key} in ({texts}) limit 0,{PAGE_SIZE}"  # noqa: S608
            answer = self._call("POST", "/rest/data/v2.0/query/xoql", form={"xoql": query})
            if str(answer.code) != DONE:
                self._judge(answer, everybodys=True)
                raise AccessError(
                    f"{self.who} refuses to look {kind!r} up by {key!r} ({answer.code}): check the object and the field"
                )
            page = _shaped(PAGE, answer)
            if len(page.records) != page.totalSize or not all("id" in record for record in page.records):
                raise self.left_out()
            for record in page.records:
                if record.get(key) in owners:  # XOQL compares without regard to case
                    found[owners[record[key]]].append(record)
        return found

    def _require(self, names: Iterable[str]) -> dict[str, str]:
        """The fields' types. Raises AccessError for one that is not there or can't be written: it might be dropped."""
        with self._lock:
            if self._types is None:
                answer = self._call("GET", f"{self._object}/description")
                if str(answer.code) != DONE:
                    self._judge(answer, everybodys=True)
                    raise self.missing(str(answer.code), self.destination.object)
                fields = _shaped(DESCRIPTION, answer).fields
                self._types = {field.apiKey: field.type for field in fields if field.creatable is not False}
            types = self._types
        for name in (self.destination.external_id_field, *names):
            if name not in types:
                raise self.missing("description", name)
        return types

    @property
    def _object(self) -> str:
        return f"/rest/data/v2.0/xobjects/{self.destination.object}"

    def _call(self, method: str, path: str, **content: Any) -> _Answer:
        """The answer, whatever its code."""
        return self.http.request(method, path, self.credentials, **content).parse(ANSWER)


def _shaped(shape: TypeAdapter[Any], answer: _Answer) -> Any:
    try:
        return shape.validate_python(answer.data)
    except ValidationError:  # its text stays here, for it quotes the reply
        raise RequestFailed("the CRM's reply makes no sense", "malformed_reply") from None


def _encoded(external_id: str) -> str:
    return UNSAFE.sub(lambda found: quote(found[0], safe=""), external_id)


def _login_address(url: str) -> str:
    parts = urlsplit(url)
    host = re.sub(r"^api(?=[.-])", "login", parts.netloc)
    return urlunsplit((parts.scheme, host, "/auc/oauth2/token", "", ""))
