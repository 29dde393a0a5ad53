"""How adapters talk: one HTTP client with time-outs, pacing and a login, whose failures are named by their reaction.

Nothing that can change a record is repeated here except what was surely not processed (429, 401): a repeat after a lost
reply is the load's business. No text made here holds an address, a header or a body.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ssl import SSLCertVerificationError, SSLError
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import orjson
from pydantic import TypeAdapter, ValidationError

from leadsync.crm.access import Credentials
from leadsync.crm.pacing import Pace
from leadsync.crm.routes import Route, Routes
from leadsync.errors import AccessError, LeadsyncError, QuotaExceeded, Unavailable

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

T = TypeVar("T")

TRIES = 3  # of a request that was throttled
FIRST_WAIT = 1.0  # seconds, where the CRM does not say how long; the second wait is four times that
LONGEST_WAIT = 10.0  # seconds; longer throttling is the load's to wait out
# Seconds; no quota takes longer to fill, and what a proxy makes up may be any number.
LONGEST_RETRY_AFTER = 7 * 86_400.0
LARGEST_REPLY = 64 * 1024 * 1024  # bytes
LONGEST_NONSENSE = 64 * 1024  # bytes of a reply that makes no sense that are looked at
# PostgreSQL keeps no NUL, so what a CRM calls an id or a code must not hold one, and nothing sent ever did. An even
# number of backslashes before it are characters of their own.
NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
# The adapter reads these; what is not here, and no success, has one meaning for every CRM.
ADAPTER_JUDGES = frozenset({400, 409, 413, 422})
PASSING = frozenset({408, 423, 425, 429})
HEADER = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")  # what a header's value may hold
# OpenSSL's words for a server that speaks no TLS, or none that both know, or that lets no stranger in.
NO_TLS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
        "UNSUPPORTED_PROTOCOL",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "TLSV1_UNRECOGNIZED_NAME",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    }
)


class RequestFailed(Unavailable):
    """One request failed as a whole, in passing.

    `code` is the HTTP status, `timeout`, `connection` or `malformed_reply`; `sent` is False when the CRM can't have
    seen the request; `reply` is the text that made no sense: it may quote leads, so mask it before it is kept.
    """

    def __init__(
        self, message: str, code: str, *, retry_after: float | None = None, sent: bool = True, reply: str | None = None
    ) -> None:
        super().__init__(message, retry_after)
        self.code = code
        self.sent = sent
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Reply:
    """What the CRM answered. `headers` are case-insensitive."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def retry_after(self) -> float | None:
        """Seconds that the CRM asks for, a week at most; None where it does not."""
        value = self.headers.get("Retry-After", "").strip()
        if value.isascii() and value.isdigit():
            return min(float(value), LONGEST_RETRY_AFTER)
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):  # TypeError: a date without a zone
            return None
        return min(max(0.0, seconds), LONGEST_RETRY_AFTER)

    def parse(self, shape: TypeAdapter[T]) -> T:
        """The body as the API's documentation describes it. Raises RequestFailed when it is something else."""
        body = NUL.sub(rb"\1\\ufffd", self.body) if rb"\u0000" in self.body else self.body
        try:
            return shape.validate_json(body)
        except ValidationError:
            raise self.malformed() from None

    def malformed(self) -> RequestFailed:
        """The failure to raise for a reply that makes no sense."""
        text = self.body[:LONGEST_NONSENSE].decode("utf-8", "replace").replace("\0", "\ufffd")
        return RequestFailed("the CRM's reply makes no sense", "malformed_reply", reply=text)


class HTTPClient:
    """One per adapter, used by all its threads.

    `pace` is waited for, and then `before_request` asked last, before every request leaves, logins and repeats
    included. `translate` gives a reply the status that it deserves, where a vendor tells errors in a 200. `explain`
    turns a vendor's error reply into what to raise, or None for the general rules. `sleep` waits out short throttling.
    `throttled` is told for how many seconds the CRM wants no requests, and whether that is
    because of a spent quota. `observe` is told of every request that has ended: the status that the reply deserves
    (None without a whole one), the seconds that it took, and the reply's headers.
    """

    def __init__(
        self,
        who: str,
        *,
        pace: Pace,
        connect_timeout: float,
        read_timeout: float,
        before_request: Callable[[], None],
        explain: Callable[[Reply], LeadsyncError | None],
        translate: Callable[[Reply], Reply] = lambda reply: reply,
        sleep: Callable[[float], None] = time.sleep,
        observe: Callable[[int | None, float, Mapping[str, str]], None] = lambda status, seconds, headers: None,
    ) -> None:
        self._who = who
        self._timeouts = (connect_timeout, read_timeout)
        self._pace = pace
        self._before_request = before_request
        self._explain = explain
        self._translate = translate
        self._observe = observe
        self.sleep = sleep
        self.throttled: Callable[[float, bool], None] = lambda seconds, spent: None
        self._routes = Routes(who, connect_timeout, read_timeout)

    @property
    def longest_request(self) -> float:
        """Seconds from `before_request` to the end of the request, at most.

        Connecting to two addresses (IPv6 and IPv4) and sending take a connect time-out each. The answer is read with
        a deadline that is looked at between two reads, so one more time-out may pass. What a network holds back is
        given up by the kernel after a read time-out, also when this process is gone (on Linux). Not bounded: looking
        up the name, and headers that dribble in; by then the CRM has had the whole request.
        """
        connect, read = self._timeouts
        return 3 * connect + 2 * read

    def request(
        self,
        method: str,
        path: str,
        credentials: Credentials,
        *,
        json: Any = None,
        body: bytes | None = None,
        form: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """The reply when it is a success or something that the adapter judges (`ADAPTER_JUDGES`).

        `body` is sent in place of `json`; its Content-Type is then among `headers`, which replace those made here.
        Raises RequestFailed for what may pass, AccessError, and what `explain` and `before_request` raise.
        """
        body = body if json is None else orjson.dumps(json)
        refused, tries = None, 0
        while True:
            try:
                access = credentials.renew(refused) if refused else credentials.access()
            except RequestFailed as failure:
                failure.sent = False  # it was the login that failed
                raise
            sent = {**(headers or {}), **access.authorization}
            reply = self.send(
                method, access.url + path, headers=sent, body=body, form=form, params=params, translate=self._translate
            )
            if reply.status == 401 and refused is None:
                refused = access
                continue
            error = self._error(reply)
            if error is None:
                return reply
            tries += 1
            # What was throttled was not processed, so it may be sent again.
            wait = FIRST_WAIT * 4 ** (tries - 1) if reply.retry_after is None else reply.retry_after
            throttled = reply.status == 429 and isinstance(error, RequestFailed)
            if throttled:
                self.throttled(wait, False)
            elif isinstance(error, QuotaExceeded) and reply.retry_after is not None:
                self.throttled(reply.retry_after, True)
            if not throttled or wait > LONGEST_WAIT or tries == TRIES:
                raise error
            self.sleep(wait)

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        form: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        translate: Callable[[Reply], Reply] = lambda reply: reply,
    ) -> Reply:
        """One request as it is, whatever its status. Raises RequestFailed when there is no whole reply."""
        sent = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate", "User-Agent": "leadsync"}
        sent.update(headers or {})
        if form is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode(form).encode()
        elif body is not None:
            sent.setdefault("Content-Type", "application/json")
        for name, value in sent.items():
            if not HEADER.fullmatch(value):  # http.client's own error would quote it
                raise AccessError(
                    f"{self._who}: the header {name} would hold what HTTP does not allow there: correct the token or "
                    "the credentials in the connection"
                )
        route = self._routes.to(url)
        self._pace.wait()
        self._before_request()
        began = time.monotonic()
        try:
            reply = self._exchange(route, method, f"{url}?{urlencode(params)}" if params else url, sent, body)
        except LeadsyncError:
            self._observe(None, time.monotonic() - began, {})
            raise
        seconds = time.monotonic() - began
        reply = translate(reply)
        self._observe(reply.status, seconds, reply.headers)
        return reply

    def _exchange(self, route: Route, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        from urllib3.exceptions import HTTPError

        deadline = time.monotonic() + self.longest_request - self._timeouts[1]
        try:
            response = route.pool.urlopen(
                method, route.target(url), body=body, headers={**headers, **route.headers}, timeout=route.timeout,
                retries=False, redirect=False, assert_same_host=False, preload_content=False, decode_content=False,
            )  # fmt: skip
            try:
                reply = Reply(response.status, response.headers, self._read(response, deadline))
            except BaseException:
                response.close()
                raise
            response.release_conn()
            return reply
        except HTTPError as error:
            raise self._no_reply(error) from None

    def close(self) -> None:
        self._routes.close()

    def _read(self, response: BaseHTTPResponse, deadline: float) -> bytes:
        body = bytearray()
        while chunk := response.read1(65536, decode_content=True):
            body += chunk
            if time.monotonic() > deadline:
                raise RequestFailed(f"{self._who} did not answer in time", "timeout")
            if len(body) > LARGEST_REPLY:
                raise RequestFailed(f"{self._who} answered with more than any API should", "malformed_reply")
        return bytes(body)

    def _error(self, reply: Reply) -> LeadsyncError | None:
        status = reply.status
        if 200 <= status < 300:
            return None
        explained = self._explain(reply) if status >= 400 else None
        if explained is not None or status in ADAPTER_JUDGES:
            return explained
        if status in PASSING or status >= 500:
            return RequestFailed(f"{self._who} answered {status}", str(status), retry_after=reply.retry_after)
        if status == 401:
            return AccessError(f"{self._who} refuses the credentials (401): correct them in the connection")
        if status == 403:
            return AccessError(f"{self._who} denies access (403): give the account the rights to read and write there")
        return AccessError(
            f"{self._who} has nothing at this address ({status}): check the connection's address, the destination's "
            "object and the API version"
        )

    def _no_reply(self, error: Exception) -> LeadsyncError:
        from urllib3.exceptions import ConnectTimeoutError, DecodeError, NewConnectionError
        from urllib3.exceptions import TimeoutError as ReadTimeout

        causes = list(_causes(error))

        def has(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        if has(SSLCertVerificationError):
            return AccessError(f"{self._who}: its TLS certificate can't be verified; nothing was sent")
        reason = next((cause.reason for cause in causes if isinstance(cause, SSLError)), None)
        if reason in NO_TLS:
            return AccessError(f"{self._who} does not take our TLS ({reason}): check the connection's address and port")
        if has(DecodeError):
            return RequestFailed(f"{self._who} answered in a broken encoding", "malformed_reply")
        timed_out = has(ReadTimeout, TimeoutError)
        unsent = has(ConnectTimeoutError, NewConnectionError)  # NewConnectionError: refused, or no such name
        if timed_out and not has(NewConnectionError):
            return RequestFailed(f"{self._who} did not answer in time", "timeout", sent=not unsent)
        what = "can't be reached" if unsent else "closed the connection"
        return RequestFailed(f"{self._who} {what}", "connection", sent=not unsent)


def _causes(error: BaseException) -> list[BaseException]:
    """The error with all that it wraps, in whichever of Python's, requests' and urllib3's ways."""
    found: list[BaseException] = []
    queue: list[object] = [error]
    while queue:
        cause = queue.pop()
        if isinstance(cause, BaseException) and cause not in found:
            found.append(cause)
            queue += [*cause.args, cause.__cause__, cause.__context__, getattr(cause, "reason", None)]
    return found
