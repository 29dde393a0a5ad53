"""How Odoo's models are called: JSON-RPC, whose errors come as HTTP 200, or JSON-2, which Odoo 19 brought."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from leadsync.crm.access import Access, StaticToken
from leadsync.crm.base import BatchRefused, Endpoint
from leadsync.crm.http import HTTPClient, Reply, RequestFailed
from leadsync.errors import AccessError, LeadsyncError

T = TypeVar("T")


class Fault(BaseModel):
    """An exception that a reply tells of; its words may quote a lead."""

    name: str = ""  # with its module
    message: str = ""

    @property
    def code(self) -> str:
        """Its name alone."""
        return self.name.rpartition(".")[2]


class _Error(BaseModel):
    data: Fault = Fault()


class _Answer(BaseModel):
    result: Any = None
    error: _Error | None = None


FAULT = TypeAdapter(Fault)
ANSWER = TypeAdapter(_Answer)
UID = TypeAdapter[int | Literal[False]](int | Literal[False])


class OdooRPC:
    """The methods of one database's models, for all threads; `judge` makes of a fault what to raise."""

    def __init__(
        self,
        who: str,
        http: HTTPClient,
        endpoint: Endpoint,
        *,
        database: str,
        json2: bool,
        judge: Callable[[Fault], LeadsyncError],
    ) -> None:
        self._who = who
        self._http = http
        self._endpoint = endpoint
        self._database = database
        self._json2 = json2
        self._judge = judge
        # JSON-RPC has login and password in the body.
        headers = {"Authorization": f"Bearer {endpoint.password}", "X-Odoo-Database": database} if json2 else {}
        self.credentials = StaticToken(who, Access(endpoint.url, endpoint.password, headers))
        self._lock = threading.Lock()
        self._uid: int | None = None
        self._refused: str | None = None  # many tries with a wrong password lock the user out

    def call(
        self,
        shape: TypeAdapter[T],
        model: str,
        method: str,
        *,
        ids: Sequence[int] = (),
        context: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> T:
        """What a method returns for the records `ids`; `arguments` are in the order of its parameters.

        Raises RequestFailed, AccessError and what `judge` makes of a fault.
        """
        named = {"context": context} if context else {}
        if self._json2:
            body = {**({"ids": ids} if ids else {}), **arguments, **named}
            return self._post(f"/json/2/{model}/{method}", body).parse(shape)
        placed = [*([ids] if ids else []), *arguments.values()]
        target = [self._database, self._login(), self._endpoint.password, model, method]
        return self._dispatch(shape, "object", "execute_kw", [*target, placed, named])

    def refuse(self, code: str) -> AccessError:
        """The error for credentials that Odoo does not take; they are not tried again."""
        self._refused = (
            f"{self._who} refuses the login ({code}): correct the connection's login and its password or API key, and "
            "the destination's `database`"
        )
        return AccessError(self._refused)

    def _login(self) -> int:
        """The number of the user; one thread asks for all."""
        with self._lock:
            if self._refused:
                raise AccessError(self._refused)
            if self._uid is None:
                arguments = [self._database, self._endpoint.login, self._endpoint.password, {}]
                try:
                    uid = self._dispatch(UID, "common", "authenticate", arguments)
                except RequestFailed as failure:
                    failure.sent = False  # it was the login that failed
                    raise
                except BatchRefused as refused:  # no lead was in it
                    words = f"{self._who} refused the login ({refused.code})"
                    raise RequestFailed(words, refused.code, sent=False) from None
                if uid is False:
                    raise self.refuse("authenticate")
                self._uid = uid
            return self._uid

    def _dispatch(self, shape: TypeAdapter[T], service: str, method: str, arguments: list[Any]) -> T:
        params = {"service": service, "method": method, "args": arguments}
        reply = self._post("/jsonrpc", {"jsonrpc": "2.0", "method": "call", "id": 1, "params": params})
        answer = reply.parse(ANSWER)
        if answer.error is not None:
            raise self._judge(answer.error.data)
        try:
            return shape.validate_python(answer.result)
        except ValidationError:  # its text stays here, for it quotes the reply
            raise reply.malformed() from None

    def _post(self, path: str, body: Any) -> Reply:
        reply = self._http.request("POST", path, self.credentials, json=body)
        if reply.status >= 400:
            raise reply.malformed()
        return reply
