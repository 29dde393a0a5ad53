"""A proxy that puts the simulators' faults into the wire before a real CRM: what they mean is in `demo.crm.faults`."""

from __future__ import annotations

import asyncio
import gzip
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from http.client import HTTPResponse
from typing import Any, Protocol

import orjson

from demo.crm.faults import FaultBox, half_told
from tests.support.proxy import Proxy

AUTHORIZATION = re.compile(rb"\r\nauthorization: *([^\r]*)", re.IGNORECASE)
# A real CRM itself decides which records it refuses and whether others of the batch go with them.
FAULTS = frozenset(
    {
        "latency",
        "too_many",
        "server_error",
        "lose_reply",
        "malformed",
        "half_page",
        "half_results",
        "conflict",
        "proxy_page",
        "quota_spent",
        "rate_limit",
        "expire_tokens",
        "down",
    }
)


class Dialect(Protocol):
    """What the proxy has to know of a CRM's API. `line` is the first line of a request, `body` what it holds."""

    def is_login(self, line: str, body: bytes) -> bool:
        """Whether it is a login, which throttling and failures leave alone."""

    def is_change(self, line: str, body: bytes) -> bool:
        """Whether it may change records."""

    def conflict(self) -> tuple[int, Any]:
        """Status and document of the reply to a change that came across another transaction."""

    def half(self, line: str, body: bytes, reply: Any) -> Any | None:
        """The reply (decoded JSON) with half of its records left out; None where it is no list of several records."""


class FaultProxy(Proxy):
    """Stands before the port of one real CRM. Counts what it answered by status, as the simulators do."""

    def __init__(self, upstream: int, dialect: Dialect) -> None:
        super().__init__(upstream, http=True)
        self._dialect = dialect
        self._box = FaultBox()
        self._seen: set[bytes] = set()
        self._expired: set[bytes] = set()
        self.by_status: Counter[str] = Counter()

    def set_faults(self, faults: Mapping[str, Any]) -> None:
        """Replaces them. Raises ValueError for those that can't be put into the wire."""
        if unknown := faults.keys() - FAULTS:
            raise ValueError(f"no fault of the wire: {', '.join(sorted(unknown))}")
        self._box.set(faults)
        # A token that is no login's is good again once the fault is off.
        self._expired = set(self._seen) if self._box.active.expire_tokens else set()

    async def _answer(self, head: bytes, body: bytes) -> bytes | None:
        reply = await self._reply(head, body)
        self.by_status["dropped" if reply is None else reply.split(None, 2)[1].decode()] += 1
        return reply

    async def _reply(self, head: bytes, body: bytes) -> bytes | None:
        faults, line = self._box.active, head.partition(b"\r\n")[0].decode("latin1")
        if faults.down:
            return None
        if faults.latency:
            await asyncio.sleep(faults.latency)
        if faults.proxy_page:
            return page(faults.proxy_page, "So", b"<html>not for you</html>")
        if not self._dialect.is_login(line, body) and (refusal := self._refusal()):
            return refusal
        if found := AUTHORIZATION.search(head):
            self._seen.add(found[1])
            if found[1] in self._expired:
                # The CRM itself says what an ended session is.
                head = head[: found.start(1)] + found[1].partition(b" ")[0] + b" ended" + head[found.end(1) :]
        is_change = self._dialect.is_change(line, body)
        if is_change and self._box.strikes("conflict"):
            return document(*self._dialect.conflict())
        reply = await self._deliver(head + body)
        if is_change:
            if self._box.strikes("lose_reply"):
                return None
            if self._box.strikes("malformed"):
                # A careless proxy that quotes the request: what it quotes must not end up in anybody's log.
                return page(200, "OK", b"<html>proxy error for " + body[:300] + b"</html>")
            return self._halved(reply, "half_results", half_told) if faults.half_results else reply
        if faults.half_page:
            return self._halved(reply, "half_page", lambda told: self._dialect.half(line, body, told))
        return reply

    def _refusal(self) -> bytes | None:
        if self._box.active.quota_spent:  # a gateway's: a CRM's own quota has a shape of its own
            return page(429, "Too Many Requests", b"<html>come later</html>", {"Retry-After": "3600"})
        too_many, server_error = self._box.active.too_many, self._box.active.server_error
        if too_many and self._box.strikes("too_many"):
            wait = {} if too_many.retry_after is None else {"Retry-After": f"{too_many.retry_after:g}"}
            return page(429, "Too Many Requests", b"<html>slow down</html>", wait)
        if server_error and self._box.strikes("server_error"):
            return page(server_error.status, "Unavailable", b"<html>bad gateway</html>")
        return None if self._box.admits() else page(429, "Too Many Requests", b"<html>slow down</html>")

    def _halved(self, reply: bytes, fault: str, halve: Callable[[Any], Any | None]) -> bytes:
        parsed = HTTPResponse(_Received(reply))  # type: ignore[arg-type]
        parsed.begin()
        content = parsed.read()
        if parsed.headers["Content-Encoding"] == "gzip":
            content = gzip.decompress(content)
        try:
            half = halve(orjson.loads(content))
        except orjson.JSONDecodeError:
            half = None
        return reply if half is None or not self._box.strikes(fault) else document(200, half)


class _Received:
    """A socket from which a reply was read already."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._reply)


def document(status: int, content: Any) -> bytes:
    """A whole reply of JSON."""
    return page(status, "So", orjson.dumps(content), {"Content-Type": "application/json"})


def page(status: int, reason: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole reply, of HTML unless the headers say otherwise."""
    lines = {"Content-Type": "text/html", **(headers or {}), "Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} {reason}\r\n{head}\r\n".encode() + body
