"""The HTTP client that all adapters share: pooled, paced, bounded in time, never repeating by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

CHUNK_BYTES = 1 << 16


class RequestFailed(Exception):
    """One request failed in passing, whatever was in it. The text holds no URL, header or body.

    `code` is the HTTP status, `timeout`, `connection` or `malformed_reply`; `sent` is False when no byte can have
    reached the server; `excerpt` is the beginning of a reply that makes no sense, unmasked.
    """

    def __init__(
        self, code: str, *, sent: bool = True, retry_after: float | None = None, excerpt: str | None = None
    ) -> None:
        super().__init__(f"request failed: {code}")
        self.code = code
        self.sent = sent
        self.retry_after = retry_after
        self.excerpt = excerpt


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply, read in full."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """The body decoded. Raises RequestFailed (`malformed_reply`) when it is not JSON."""
        try:
            return orjson.loads(self.content)
        except orjson.JSONDecodeError:
            raise self.nonsense() from None

    def nonsense(self) -> RequestFailed:
        """The error for a reply that is not what the API promises."""
        return RequestFailed("malformed_reply", excerpt=self.content[:1000].decode("utf-8", "replace"))

    @property
    def retry_after(self) -> float | None:
        """Seconds that the server asks to wait, from either form of Retry-After."""
        value = self.headers.get("Retry-After")
        if not value:
            return None
        try:
            return max(0.0, float(value))
        except ValueError:
            pass
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())


class Pacer:
    """Lets so many requests a second through, of all threads together, and one second's worth at once."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1.0 / per_second
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def wait(self) -> None:
        """Sleeps until it is this caller's turn."""
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now - 1.0) + self._interval
            delay = self._next - now
        if delay > 0:
            time.sleep(delay)


class HTTPClient:
    """A pool of connections to one CRM; thread-safe."""

    def __init__(self, connections: int, connect_timeout: float, read_timeout: float, per_second: float) -> None:
        self._session = requests.Session()
        self._session.trust_env = False  # no credentials from a .netrc, no proxy that nobody configured here
        transport = HTTPAdapter(pool_connections=2, pool_maxsize=connections, max_retries=0)
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, transport)
        self._timeouts = (connect_timeout, read_timeout)
        self._pacer = Pacer(per_second)

    @property
    def longest_request(self) -> float:
        """Seconds that one request may at most be under way: connecting, waiting for the reply, reading it."""
        connect, read = self._timeouts
        return connect + 2 * read

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply:
        """Sends one request, once. Raises RequestFailed when there is no reply; any status is a reply."""
        self._pacer.wait()
        connect, read = self._timeouts
        deadline = time.monotonic() + connect + read
        try:
            with self._session.request(
                method,
                url,
                headers=dict(headers),
                params=params,
                data=body,
                timeout=self._timeouts,
                stream=True,
                allow_redirects=False,
            ) as response:
                parts = []
                for part in response.iter_content(CHUNK_BYTES):
                    parts.append(part)
                    if time.monotonic() > deadline:
                        raise RequestFailed("timeout")
                return Reply(response.status_code, response.headers, b"".join(parts))
        except requests.ConnectionError as error:
            reason = getattr(error.args[0] if error.args else None, "reason", None)
            raise RequestFailed(
                "connection", sent=not isinstance(reason, NewConnectionError | ConnectTimeoutError)
            ) from None
        except requests.Timeout:
            raise RequestFailed("timeout") from None
        except requests.RequestException:
            raise RequestFailed("connection") from None

    def close(self) -> None:
        """Closes the pool."""
        self._session.close()
