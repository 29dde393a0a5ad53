"""What all simulators share: HTTP, the faults, the `/_demo/` endpoints and the page for people.

The standard library's server, since a simulator must be able to drop a connection in the middle of a request.
"""

from __future__ import annotations

import json
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import ValidationError

from demo.crm.faults import FaultBox, Faults
from demo.crm.store import Store

PAGE = Path(__file__).with_name("page.html")
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"


@dataclass(frozen=True)
class Request:
    """One request to the vendor's API."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body decoded; None when it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass(frozen=True)
class Response:
    """A reply; `document` None is an empty body."""

    status: int
    document: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Vendor(ABC):
    """One vendor's API over a store."""

    title: str

    def __init__(self, store: Store, faults: FaultBox) -> None:
        self.store = store
        self.faults = faults

    @abstractmethod
    def handle(self, request: Request) -> Response:
        """Answers one request; runs inside a transaction of the store."""

    @abstractmethod
    def throttled(self, retry_after: float | None) -> Response:
        """The 429 of this vendor."""

    @abstractmethod
    def quota_spent(self) -> Response:
        """What this vendor says when the daily limit is spent."""


class Server(ThreadingHTTPServer):
    """One simulated CRM on 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, vendor: Vendor) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.vendor = vendor
        self.statuses: Counter[str] = Counter()
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """Routes a request to the demo's endpoints or to the vendor's API."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        """Quiet: a request log would hold personal data."""

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        request = Request(self.command, unquote(parts.path), query, self.headers, body)  # type: ignore[arg-type]
        if request.path in ("/", "/page.js", "/page.css"):
            self._page(request.path)
        elif request.path.startswith("/_demo/"):
            self._send(self._demo(request))
        else:
            self._vendor(request)

    def _page(self, path: str) -> None:
        part = PAGE.with_suffix({"/": ".html", "/page.js": ".js", "/page.css": ".css"}[path])
        kind = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}[part.suffix]
        data = part.read_bytes().replace(b"{{title}}", self.server.vendor.title.encode())
        self._write(200, data, {"Content-Type": f"{kind}; charset=utf-8", "Content-Security-Policy": POLICY})

    def _demo(self, request: Request) -> Response:
        vendor, action = self.server.vendor, (request.method, request.path.removeprefix("/_demo/"))
        if action == ("GET", "health"):
            return Response(200, {"status": "ok"})
        if action == ("GET", "records"):
            return Response(200, vendor.store.records(deleted=request.query.get("deleted") == "true"))
        if action == ("GET", "journal"):
            after, limit = int(request.query.get("after", 0)), int(request.query.get("limit", 1_000_000))
            return Response(200, vendor.store.journal(after, limit))
        if action == ("GET", "stats"):
            return Response(200, {**vendor.store.stats(), "by_status": dict(self.server.statuses)})
        if action == ("GET", "faults"):
            about = {name: info.description for name, info in Faults.model_fields.items()}
            return Response(200, {"active": vendor.faults.active.model_dump(), "faults": about})
        if action == ("POST", "faults"):
            try:
                vendor.faults.set(request.json() or {})
            except ValidationError as error:
                return Response(400, {"error": str(error), "allowed": list(Faults.model_fields)})
            return Response(200, {"active": vendor.faults.active.model_dump()})
        if action == ("POST", "reset"):
            vendor.store.reset()
            vendor.faults.set({})
            self.server.statuses.clear()
            return Response(200, {"status": "reset"})
        return Response(404, {"error": "no such endpoint"})

    def _vendor(self, request: Request) -> None:
        vendor, faults = self.server.vendor, self.server.vendor.faults
        if faults.active.latency:
            time.sleep(faults.active.latency)
        if faults.active.down:
            self._drop()
        elif faults.active.quota_spent:
            self._send(vendor.quota_spent())
        elif chance := faults.strikes("too_many"):
            self._send(vendor.throttled(chance.retry_after))
        elif chance := faults.strikes("server_error"):
            self._send(Response(chance.status, [{"message": "the service is unavailable"}]))
        else:
            with vendor.store.transaction():
                response = vendor.handle(request)
            if faults.strikes("lose_reply"):
                self._drop()
            elif faults.strikes("malformed"):
                self._write(200, b"<html>proxy error for " + request.body[:300] + b"</html>", {})
            else:
                self._send(response)

    def _drop(self) -> None:
        self._count("dropped")
        self.close_connection = True
        self.connection.close()

    def _send(self, response: Response) -> None:
        data = b"" if response.document is None else json.dumps(response.document).encode()
        self._write(response.status, data, {"Content-Type": "application/json", **response.headers})

    def _write(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self._count(str(status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status != 204:
            self.wfile.write(data)

    def _count(self, what: str) -> None:
        if not self.path.startswith(("/_demo/", "/page")) and self.path != "/":
            with self.server.lock:
                self.server.statuses[what] += 1
