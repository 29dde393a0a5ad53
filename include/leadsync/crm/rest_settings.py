"""How a pipeline file describes an API to the adapter `rest`. What a setting means stands beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from leadsync.config import Destination
from leadsync.crm.base import Settings
from leadsync.crm.template import filled, used

ANYWHERE = frozenset({"object", "external_id_field"})  # the destination's own
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})


def _several(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,)


def _path(value: str) -> str:
    _only(ANYWHERE, value)
    return value


def _only(allowed: Iterable[str], template: Any) -> set[str]:
    """The placeholders of a template; raises ValueError for one that has no value there."""
    found = set(used(template))
    if unknown := found - set(allowed):
        raise ValueError(f"{{{min(unknown)}}} has no meaning here; allowed: {', '.join(sorted(allowed))}")
    return found


# A path into a reply, or several of which the first that leads to something counts.
Path = Annotated[str, BeforeValidator(_path)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_several)]
Scalars = Annotated[tuple[str | int | bool, ...], BeforeValidator(_several)]
Codes = Annotated[frozenset[str], BeforeValidator(lambda value: [str(each) for each in _several(value)])]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Auth(_Model):
    scheme: Literal["bearer", "api_key", "basic", "client_credentials"] = Field(
        "bearer",
        description="bearer, api_key: the connection's password is the token or the key; basic: login and password; "
        "client_credentials: the OAuth 2 flow with them as client id and secret",
    )
    header: str = Field("X-API-Key", pattern=r"^[\w-]+$", description="that holds the key, with `api_key`")
    token_path: str | None = Field(None, pattern="^/", description="of the login, with `client_credentials`")
    scope: str | None = Field(None, description="to ask for, with `client_credentials`")

    @model_validator(mode="after")
    def _has_a_login(self) -> Auth:
        if (self.scheme == "client_credentials") != (self.token_path is not None):
            raise ValueError("`token_path` belongs to `scheme: client_credentials`, which needs it")
        return self


class Call(_Model):
    """One kind of request. `whole` and `one` are the placeholders of the request and of one lead in it."""

    whole: ClassVar[frozenset[str]] = frozenset()
    one: ClassVar[frozenset[str]] = frozenset()

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = Field(description="GET, POST, PUT, PATCH or DELETE")
    path: str = Field(pattern="^/", description="after the connection's address")
    query: dict[str, str] = Field({}, description="parameters in the address")
    headers: dict[str, str] = Field({}, description="further headers; secrets belong into the connection")
    body: Any = Field(None, description="the document to send")

    @property
    def single(self) -> bool:
        """Whether a request is about one lead."""
        return False

    @property
    def each_template(self) -> Any:
        return None

    @model_validator(mode="after")
    def _placeholders_have_a_meaning(self) -> Call:
        for name in ("path", "query", "body"):
            try:
                _only(ANYWHERE | self.whole | (self.one if self.single else frozenset()), getattr(self, name))
            except ValueError as error:
                raise ValueError(f"`{name}`: {error}") from None
        _only(ANYWHERE, self.headers)
        if secret := sorted(name for name in self.headers if name.lower() in SECRET_HEADERS):
            raise ValueError(f"`headers`: {secret[0]} belongs into the connection, see `auth`")
        return self

    def placeholders(self) -> set[str]:
        """All that are used, those of one lead too."""
        return set(used([self.path, self.query, self.body, self.each_template]))


class Batch(Call):
    """A request that is about several leads."""

    max_batch: int = Field(1, ge=1, le=10_000, description="leads in one request")
    each: Any = Field(None, description="one lead in `{leads}`")

    @property
    def single(self) -> bool:
        return self.max_batch == 1

    @property
    def each_template(self) -> Any:
        return self.each

    @model_validator(mode="after")
    def _leads_are_described(self) -> Batch:
        try:
            _only(ANYWHERE | self.one, self.each)
        except ValueError as error:
            raise ValueError(f"`each`: {error}") from None
        if ("leads" in self.placeholders()) != (self.each is not None):
            raise ValueError("`each` says what one lead of `{leads}` is: give both or neither")
        return self

    def needs(self, *names: str) -> None:
        """Raises ValueError unless one of the placeholders is used."""
        if not self.placeholders() & set(names):
            raise ValueError(f"needs {' or '.join(f'{{{name}}}' for name in names)} somewhere")


class Results(_Model):
    """Where a reply says what became of each lead. Paths are relative to one result, but for `items`."""

    items: Path = Field("", description="path to the list of results, or to the only one")
    key: Path | None = Field(None, description="path to what the request named the lead by; without it: by position")
    id: Path | None = Field(None, description="path to the CRM's id of the record")
    success: Path | None = Field(None, description="path to the flag of success; without it `code` tells failures")
    success_is: Scalars = Field((True,), description="values of the flag that mean success")
    created: Path | None = Field(None, description="path to the flag of a new record; without it status 201 tells")
    created_is: Scalars = Field((True,), description="values of the flag that mean a new record")
    code: Paths = Field((), description="path to the error code")
    message: Path | None = Field(None, description="path to the error message")
    field: Paths = Field((), description="path to the name of the field at fault")


class Upsert(Batch):
    """Creates or updates by external id, and may be repeated without harm; or creates what a look-up did not find."""

    whole = frozenset({"leads"})
    one = frozenset({"external_id", "fields"})

    results: Results | None = Field(None, description="without it a reply that is a success speaks for all leads")
    failures: Results | None = Field(None, description="where failures stand apart from the results")

    @model_validator(mode="after")
    def _says_which_and_what(self) -> Upsert:
        self.needs("external_id")
        self.needs("fields")
        return self


class Update(Upsert):
    """Updates a record that a look-up found."""

    one = frozenset({"external_id", "fields", "id"})

    @model_validator(mode="after")
    def _says_which_and_what(self) -> Update:
        self.needs("id")
        self.needs("fields")
        return self


class Delete(Batch):
    """Deletes or archives. With `{id}` or `{ids}` the records are looked up first."""

    whole = frozenset({"leads", "ids", "external_ids"})
    one = frozenset({"id", "external_id"})

    results: Results | None = Field(None, description="without it a reply that is a success speaks for all leads")
    absent_status: Literal[404, 410] | None = Field(None, description="404 or 410, where it says: no such record")

    @property
    def by_id(self) -> bool:
        return bool(self.placeholders() & {"id", "ids"})

    @model_validator(mode="after")
    def _says_which(self) -> Delete:
        self.needs("id", "ids", "external_id", "external_ids")
        if self.by_id and self.placeholders() & {"external_id", "external_ids"}:
            raise ValueError("names records by the CRM's id or by the external id, not by both")
        _only_single(self)
        return self


class Fetch(Batch):
    """Reads back by external id. One of `absent`, `total`, `complete` and `absent_status` says what is not there."""

    whole = frozenset({"leads", "external_ids", "names"})
    one = frozenset({"external_id", "names"})

    items: Path = Field("", description="path to the list of records, or to the only one")
    key: Path = Field(description="path to the external id in a record")
    id: Path = Field(description="path to the CRM's id in a record")
    fields: Path = Field("", description="path to the object in a record that holds the fields")
    absent: Path | None = Field(None, description="path to the external ids that the reply says are not there")
    total: Path | None = Field(None, description="path to the number of records found: fewer listed is no answer")
    complete: bool = Field(False, description="the API surely lists all: what is not in the reply is not there")
    absent_status: Literal[404, 410] | None = Field(None, description="404 or 410, where it says: no such record")

    @model_validator(mode="after")
    def _tells_what_is_not_there(self) -> Fetch:
        self.needs("external_id", "external_ids")
        ways = [self.absent is not None, self.total is not None, self.complete, self.absent_status is not None]
        if sum(ways) != 1:
            raise ValueError("needs exactly one of `absent`, `total`, `complete` and `absent_status`")
        _only_single(self)
        return self


def _only_single(call: Delete | Fetch) -> None:
    if call.absent_status is not None and not call.single:
        raise ValueError("`absent_status` needs `max_batch: 1`: the reply must be about one lead")


class Check(Call):
    """Reads the API's description of the object, or else anything that shows that the account is let in."""

    whole = frozenset({"names"})

    fields: Path | None = Field(None, description="path to the list (or object) of field descriptions")
    name: Path = Field("name", description="path to the name in a description")
    unique: Paths = Field((), description="paths to flags that the external id field needs")
    writable: Path | None = Field(None, description="path to the flag of a field that may be written")
    before_upsert: bool = Field(
        False, description="for an API that drops unknown fields without a word: look before the first lead is sent"
    )

    @model_validator(mode="after")
    def _has_fields(self) -> Check:
        if self.fields is None and (self.unique or self.writable or self.before_upsert):
            raise ValueError("`unique`, `writable` and `before_upsert` need `fields`")
        return self


class Errors(_Model):
    """What an error reply says, and what the codes mean. A code of none of these kinds rejects the lead."""

    code: Paths = Field((), description="paths to error codes; where several lead to one, all count")
    message: Path | None = Field(None, description="path to the message")
    field: Paths = Field((), description="path to the name of the field at fault")
    success: Codes = Field(frozenset(), description="codes of a success, for an API that tells errors in a 200")
    transient: Codes = Field(frozenset(), description="codes of what may pass: locks, time-outs")
    throttled: Codes = Field(frozenset(), description="codes of too many requests, where the status is not 429")
    expired: Codes = Field(frozenset(), description="codes of a token that has ended, where the status is not 401")
    setup: Codes = Field(frozenset(), description="codes of a missing object, field or right: no fault of a lead")
    quota: Codes = Field(frozenset(), description="codes of a spent quota")
    gone: Codes = Field(frozenset(), description="codes of a record that is not there: it counts as deleted")


class RestSettings(Settings):
    requests_per_second: float = Field(10, gt=0, description="that the API takes")
    auth: Auth = Field(default_factory=lambda: Auth.model_validate({}), description="how requests are let in")
    upsert: Upsert | None = Field(None, description="how leads are created and updated by external id")
    create: Upsert | None = Field(None, description="where there is no upsert: how a lead is created that is not there")
    update: Update | None = Field(None, description="where there is no upsert: how a record that is there is updated")
    delete: Delete | None = Field(None, description="how they are deleted; not needed with `on_delete: {mode: field}`")
    fetch: Fetch = Field(description="how records are read back")
    check: Check = Field(description="how the set-up is looked at")
    errors: Errors = Field(default_factory=lambda: Errors.model_validate({}), description="of whole replies")
    texts: bool = Field(False, description="numbers and booleans are sent as texts, no value as an empty text")
    time_precision: float = Field(0.001, gt=0, description="seconds that times are kept to, when records are compared")

    @model_validator(mode="before")
    @classmethod
    def _names_are_filled_in(cls, settings: Any, info: ValidationInfo) -> Any:
        target = info.context
        if not isinstance(target, Destination):
            return settings
        return filled(settings, {"object": target.object, "external_id_field": target.external_id_field})

    @model_validator(mode="after")
    def _can_write(self) -> RestSettings:
        pair = (self.create, self.update)
        if (self.upsert is None) == (pair == (None, None)) or (self.upsert is None and None in pair):
            raise ValueError("needs `upsert`, or else `create` and `update`")
        if not all(call is None or call.single for call in pair):
            raise ValueError("`create` and `update` take one lead a request: leave their `max_batch` out")
        return self

    @model_validator(mode="after")
    def _can_delete(self, info: ValidationInfo) -> RestSettings:
        target = info.context
        if isinstance(target, Destination) and self.delete is None and target.on_delete.mode != "field":
            raise ValueError(f"`delete` is needed for `on_delete: {target.on_delete.mode}`")
        return self
