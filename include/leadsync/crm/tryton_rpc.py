"""Tryton's JSON-RPC: the login, the calls, and what their errors mean."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from leadsync.crm.access import Access, Credentials
from leadsync.crm.base import BatchRefused, CRMAdapter, Endpoint
from leadsync.crm.http import HTTPClient, Reply, RequestFailed
from leadsync.crm.login import Login
from leadsync.errors import AccessError, LeadsyncError

T = TypeVar("T")

PATH = "/rpc/"
# Whole messages, anchored: other refusals may quote what a visitor typed, and a rule may look at the data.
DENIED = re.compile(r'You are not allowed to access "[^"\n]*"\.')
KEY_ERROR = re.compile(r"'([\w.]+)'")  # how Python says that there is no such model or field
READS = frozenset({"search_count", "search_read", "fields_get", "get_preferences"})


class Answer(BaseModel):
    """One of both is there. `error` starts with the name of one of Tryton's exceptions, or is a text of Python's."""

    result: Any = None
    error: list[Any] | None = None

    @property
    def whole(self) -> bool:
        return bool(self.model_fields_set)


ANSWER = TypeAdapter(Answer)


def request(method: str, *params: Any) -> dict[str, Any]:
    """The body of a request. With other keys Tryton would answer errors by HTTP statuses of their own."""
    return {"id": 1, "method": method, "params": params}


class Session(Login):
    """A login by name and password. After five wrong passwords Tryton takes the right one neither, for minutes."""

    def __init__(self, who: str, endpoint: Endpoint, http: HTTPClient) -> None:
        super().__init__(who)
        self._endpoint = endpoint
        self._http = http

    def log_in(self) -> Access:
        url, name = self._endpoint.url, self._endpoint.login
        body = request("common.db.login", name, {"password": self._endpoint.password}, "en")
        reply = self._http.send("POST", f"{url}{PATH}", body=orjson.dumps(body))
        self.check_up(reply)
        if reply.status == 401:
            raise self._refuse("401", "correct login and password in the connection")
        if reply.status != 200:
            raise self._refuse(
                str(reply.status), "the connection's address must be that of Tryton 8.0 or newer, with its database"
            )
        try:
            answer = reply.parse(ANSWER)
        except RequestFailed:  # its text stays here, for it may hold a token
            raise self._nonsense() from None
        match answer:
            case Answer(error=["LoginException", *_]):
                raise self._refuse("LoginException", "the user needs a login by name and password alone")
            case Answer(error=["'common.db.login'", *_]):
                raise self._refuse("no database", "the connection's address must end in the name of the database")
            case Answer(result=[int(number), str(token), *_]):
                # Tryton splits it at the colons and looks at the number and the token only.
                session = f"{name.replace(':', ' ')}:{number}:{token}"
                header = f"Session {b64encode(session.encode()).decode()}"
                return Access(url, token, {"Authorization": header})
        raise self._nonsense()

    def _refuse(self, code: str, remedy: str) -> AccessError:
        return self.refuse(f"refuses the login ({code}): {remedy}")

    def _nonsense(self) -> RequestFailed:
        return RequestFailed(f"{self.who}: the login's reply makes no sense", "malformed_reply")


class TrytonRPC(CRMAdapter):
    """The part of the adapter that calls Tryton. `context` goes with every call, once the user's is known."""

    context: Mapping[str, Any] = {}

    def make_credentials(self) -> Credentials:
        return Session(self.who, self.endpoint, self.http)

    def explain(self, reply: Reply) -> LeadsyncError | None:
        return None  # a 404 is about the address: what a model lacks comes with 200

    def call(self, shape: TypeAdapter[T], method: str, *arguments: Any, model: str | None = None) -> T:
        """The result. Raises BatchRefused for what Tryton says of data that were to be written."""
        body = request(f"model.{model or self.destination.object}.{method}", *arguments, self.context)
        reply = self.http.request("POST", PATH, self.credentials, json=body)
        if reply.status >= 400:
            raise BatchRefused(str(reply.status)) if method not in READS else reply.malformed()
        answer = reply.parse(ANSWER)
        if answer.error is not None:
            raise self._failure(answer.error, method)
        if not answer.whole:
            raise reply.malformed()
        try:
            return shape.validate_python(answer.result)
        except ValidationError:
            raise reply.malformed() from None

    def _failure(self, error: Sequence[Any], method: str) -> LeadsyncError:
        match error:
            case [("UserError" | "UserWarning") as code, [*words]]:
                # A warning has a name before its text; what a person would confirm, a program must not.
                message = ": ".join(word for word in words[code == "UserWarning" :] if word and isinstance(word, str))
                if method not in READS and not DENIED.match(message):
                    return BatchRefused(code, field=self.field_of(message), message=message)
                return AccessError(
                    f"{self.who} denies access to {self.destination.object!r} ({code}): give the user the rights to "
                    "read and write there"
                )
            case ["ConcurrencyException", *_]:
                return RequestFailed(f"{self.who}: the records are being changed", "ConcurrencyException")
            case [str(text), *_]:
                name = KEY_ERROR.fullmatch(text)
                if name and self.named(name[1]) == name[1]:
                    return self.missing("KeyError", name[1])
                # What fails a request like this elsewhere has status 500.
                return RequestFailed(f"{self.who} failed over the request", "500", reply=text)
        return RequestFailed(f"{self.who} tells an error that makes no sense", "malformed_reply")

    def field_of(self, message: str) -> str | None:
        """The destination's field that a message means."""
        return None
