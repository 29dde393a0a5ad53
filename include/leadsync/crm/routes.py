"""The ways to a CRM's hosts: pooled connections, found by requests' rules for proxies and certificates."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from leadsync.errors import AccessError
from leadsync.transport import OPT_OUT, may_be_plain

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, Timeout

MOST_CONNECTIONS = 64  # the most `in_flight` that a pipeline file may ask for


@dataclass(frozen=True, slots=True)
class Route:
    """Connections to one host, or through a proxy that wants whole URLs."""

    pool: HTTPConnectionPool
    headers: Mapping[str, str]
    timeout: Timeout
    whole_url: bool

    def target(self, url: str) -> str:
        """What the request line asks for."""
        parts = urlsplit(url)
        return url if self.whole_url else f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"


class Routes:
    """One per client, used by all its threads. The time-outs are in seconds."""

    def __init__(self, who: str, connect_timeout: float, read_timeout: float) -> None:
        self._who = who
        self._timeouts = (connect_timeout, read_timeout)
        self._session = _session(read_timeout)
        self._known: dict[str, Route] = {}

    def to(self, url: str) -> Route:
        """Raises AccessError where leads would go in the clear."""
        return self._known.get(urlsplit(url).netloc) or self._find(url)

    def close(self) -> None:
        self._session.close()

    def _find(self, url: str) -> Route:
        import requests
        from requests.utils import select_proxy
        from urllib3 import Timeout

        parts = urlsplit(url)
        if parts.scheme == "http" and not may_be_plain(parts.hostname):
            raise AccessError(
                f"{self._who}: leads and credentials would go to {parts.hostname} in the clear: give an address that "
                f"begins with https://, {OPT_OUT}"
            )
        session = self._session
        request = requests.Request("GET", url).prepare()
        found = session.merge_environment_settings(url, {}, None, None, None)
        adapter = cast("HTTPAdapter", session.get_adapter(url))
        pool = adapter.get_connection_with_tls_context(
            request, found["verify"], proxies=found["proxies"], cert=found["cert"]
        )
        proxied = adapter.request_url(request, found["proxies"]).startswith("http")
        proxy = select_proxy(url, found["proxies"]) if proxied else None
        headers = adapter.proxy_headers(proxy) if proxy else {}
        connect, read = self._timeouts
        route = Route(cast("HTTPConnectionPool", pool), headers, Timeout(connect=connect, read=read), whole_url=proxied)
        return self._known.setdefault(urlsplit(url).netloc, route)


def _session(give_up: float) -> requests.Session:
    """`give_up`: seconds after which what the other end has not acknowledged is sent no more."""
    # Imported here, for adapters are imported when a DAG is parsed and requests takes a tenth of a second.
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection

    options = list(HTTPConnection.default_socket_options)
    if (limit := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
        # Else the kernel repeats a request that got lost for minutes: it could overtake what was sent after it.
        options.append((socket.IPPROTO_TCP, limit, round(give_up * 1000)))

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **more: Any) -> None:
            super().init_poolmanager(*arguments, socket_options=options, **more)

        def proxy_manager_for(self, proxy: str, **more: Any) -> Any:
            return super().proxy_manager_for(proxy, socket_options=options, **more)

    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # shared by threads: keep it without state
    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(pool_maxsize=MOST_CONNECTIONS, max_retries=0))
    return session
