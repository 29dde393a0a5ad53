"""Logins that several adapters share: one thread logs in for all, and what was refused is not tried again.

With the tokens in Redis (`tokens`) one process logs in for all, too.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace

from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from leadsync.crm.access import Access, StaticToken
from leadsync.crm.http import HTTPClient, Reply, RequestFailed
from leadsync.errors import AccessError


class _Token(BaseModel):
    access_token: str


class _Lifetime(BaseModel):
    expires_in: FiniteFloat | None = None


TOKEN = TypeAdapter(_Token)
LIFETIME = TypeAdapter(_Lifetime)


class Login(ABC):
    """Credentials that have to log in. `log_in` is never called by two threads at once.

    `token` gets the access of a login, or an earlier one's that is not the one refused.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.token: Callable[[Callable[[], Access], Access | None], Access] = lambda log_in, refused: log_in()
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._ended: Access | None = None
        self._refused: str | None = None  # many tries with a wrong secret may lock the account

    def access(self) -> Access:
        with self._lock:
            if self._refused:
                raise AccessError(self._refused)
            if self._access is None:
                self._access = self.token(self.log_in, self._ended)
            return self._access

    def renew(self, refused: Access) -> Access:
        with self._lock:
            if self._access == refused:
                self._access, self._ended = None, refused
        return self.access()

    @abstractmethod
    def log_in(self) -> Access:
        """Raises RequestFailed for what may pass, and what `refuse` returns for what a person has to mend."""

    def refuse(self, why: str) -> AccessError:
        """The error to raise when the credentials are refused: from now on for every request."""
        self._refused = f"{self.who} {why}"
        return AccessError(self._refused)

    def check_up(self, reply: Reply) -> None:
        """Raises RequestFailed when the reply to a login says nothing of the credentials."""
        if reply.status == 429 or reply.status >= 500:
            raise RequestFailed(
                f"{self.who} answered the login with {reply.status}", str(reply.status), retry_after=reply.retry_after
            )


class TokenLogin(Login):
    """OAuth 2 without a person: posts `form` to `url` for a token, kept until the CRM refuses it.

    `read` turns the reply into where to send requests; None means that the login is refused, and it raises
    RequestFailed for what may pass. `remedy` says what to correct then. Failing servers and 429 never reach it.
    """

    def __init__(
        self,
        who: str,
        http: HTTPClient,
        url: str,
        form: Mapping[str, str],
        read: Callable[[Reply], Access | None],
        remedy: str,
    ) -> None:
        super().__init__(who)
        self._http = http
        self._url = url
        self._form = dict(form)
        self._read = read
        self._remedy = remedy

    def log_in(self) -> Access:
        reply = self._http.send("POST", self._url, form=self._form)
        self.check_up(reply)
        access = self._read(reply)
        if access is None:
            raise self.refuse(f"refuses the login ({reply.status}): {self._remedy}")
        try:
            return replace(access, lifetime=LIFETIME.validate_json(reply.body).expires_in)
        except ValidationError:
            return access


def token_for(url: str) -> Callable[[Reply], Access | None]:
    """How `TokenLogin` reads a plain token that is used at this address."""

    def read(reply: Reply) -> Access | None:
        if not 200 <= reply.status < 300:
            return None
        try:
            return Access(url, TOKEN.validate_json(reply.body).access_token)
        except ValidationError:  # its text, and the reply's, stay here: they may hold a token
            raise RequestFailed("the login's reply makes no sense", "malformed_reply") from None

    return read


class FixedHeaders(StaticToken):
    """A key, or login and password, that can't be renewed."""

    def renew(self, refused: Access) -> Access:
        raise AccessError(f"{self._who} refuses the credentials (401): correct them in the connection")


class NoLogin:
    """Stands for a login that the connection does not describe: `why` is said when it is needed, not before."""

    def __init__(self, why: str) -> None:
        self._why = why

    def access(self) -> Access:
        raise AccessError(self._why)

    def renew(self, refused: Access) -> Access:
        raise AccessError(self._why)
