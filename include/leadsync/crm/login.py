"""Logins that several adapters share: one thread logs in for all, and what was refused is not tried again."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

from pydantic import BaseModel, TypeAdapter, ValidationError

from leadsync.crm.base import Endpoint
from leadsync.crm.http import Access, HTTPClient, RequestFailed, StaticToken
from leadsync.errors import AccessError


class _Token(BaseModel):
    access_token: str


TOKEN = TypeAdapter(_Token)


class Login(ABC):
    """Credentials that have to log in. `log_in` is never called by two threads at once."""

    def __init__(self, who: str) -> None:
        self.who = who
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._refused: str | None = None  # many tries with a wrong secret may lock the account

    def access(self) -> Access:
        with self._lock:
            if self._refused:
                raise AccessError(self._refused)
            if self._access is None:
                self._access = self.log_in()
            return self._access

    def renew(self, refused: Access) -> Access:
        with self._lock:
            if self._access == refused:
                self._access = None
        return self.access()

    @abstractmethod
    def log_in(self) -> Access:
        """Raises RequestFailed for what may pass, and what `refuse` returns for what a person has to mend."""

    def refuse(self, why: str) -> AccessError:
        """The error to raise when the credentials are refused: from now on for every request."""
        self._refused = f"{self.who} {why}"
        return AccessError(self._refused)


class FixedHeaders(StaticToken):
    """A key, or login and password, that can't be renewed."""

    def renew(self, refused: Access) -> Access:
        raise AccessError(f"{self._who} refuses the credentials (401): correct them in the connection")


class ClientCredentials(Login):
    """The OAuth 2 client credentials flow; the token is used at the connection's own address."""

    def __init__(self, who: str, endpoint: Endpoint, http: HTTPClient, path: str, scope: str | None) -> None:
        super().__init__(who)
        self._endpoint = endpoint
        self._http = http
        self._path = path
        self._scope = scope

    def log_in(self) -> Access:
        form = {
            "grant_type": "client_credentials",
            "client_id": self._endpoint.login,
            "client_secret": self._endpoint.password,
            **({"scope": self._scope} if self._scope else {}),
        }
        reply = self._http.send("POST", self._endpoint.url + self._path, form=form)
        if reply.status == 429 or reply.status >= 500:
            raise RequestFailed(
                f"{self.who} answered the login with {reply.status}", str(reply.status), retry_after=reply.retry_after
            )
        if not 200 <= reply.status < 300:
            raise self.refuse(
                f"refuses the login ({reply.status}): correct the connection's address, client id (login) and client "
                "secret (password), and `auth`"
            )
        try:
            return Access(self._endpoint.url, TOKEN.validate_json(reply.body).access_token)
        except ValidationError:  # its text stays here, for it may hold a token
            raise RequestFailed(f"{self.who}: the login's reply makes no sense", "malformed_reply") from None
