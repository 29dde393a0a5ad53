"""OAuth 2 logins that need no person: a token from a token endpoint, kept until the CRM refuses it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from leadsync.crm.http import Access, HTTPClient, Reply, RequestFailed
from leadsync.errors import AccessError


class TokenLogin:
    """Posts `form` to `url`; one thread logs in for all, and refused credentials are not tried twice.

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
        self._who = who
        self._http = http
        self._url = url
        self._form = dict(form)
        self._read = read
        self._remedy = remedy
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._refused: str | None = None  # many tries with a wrong secret may lock the account

    def access(self) -> Access:
        with self._lock:
            if self._access is None:
                self._access = self._login()
            return self._access

    def renew(self, refused: Access) -> Access:
        with self._lock:
            if self._access == refused:
                self._access = None
        return self.access()

    def _login(self) -> Access:
        if self._refused:
            raise AccessError(self._refused)
        reply = self._http.send("POST", self._url, form=self._form)
        if reply.status == 429 or reply.status >= 500:
            raise RequestFailed(
                f"{self._who} answered the login with {reply.status}", str(reply.status), retry_after=reply.retry_after
            )
        access = self._read(reply)
        if access is None:
            self._refused = f"{self._who} refuses the login ({reply.status}): {self._remedy}"
            raise AccessError(self._refused)
        return access


class NoLogin:
    """Stands for a login that the connection does not describe: `why` is said when it is needed, not before."""

    def __init__(self, why: str) -> None:
        self._why = why

    def access(self) -> Access:
        raise AccessError(self._why)

    def renew(self, refused: Access) -> Access:
        raise AccessError(self._why)
