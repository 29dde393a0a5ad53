"""What all simulators share: faults around the vendor's API, the `/_demo/` endpoints, and the page for people."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response as HTTPResponse
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from demo.crm.faults import Faults, half_told
from demo.crm.server import Connections
from demo.crm.store import Row, Store
from demo.crm.vendor import Refusal, Request, Response, Vendor

PAGE = Path(__file__).with_name("page.html")
LATEST = 50


@dataclass
class Counters:
    """Requests to the vendor's API since the start or the last reset."""

    requests: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    resets: int = 0


class App:
    """The ASGI application of one simulator."""

    def __init__(self, vendor: Vendor, connections: Connections) -> None:
        self._vendor = vendor
        self._connections = connections
        self._counters = Counters()
        self._demo = DemoAPI(vendor, self._counters).application()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/" or scope["path"].startswith("/_demo/"):
            self._vendor.catch_up()
            await self._demo(scope, receive, send)
            return
        response = await self._vendor_reply(HTTPRequest(scope, receive))
        if response is None:
            self._counters.by_status["dropped"] += 1
            if connection := self._connections.get(scope["client"]):
                connection.abort()
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            self._counters.by_status[str(response.status_code)] += 1
            await response(scope, receive, send)

    async def _vendor_reply(self, http: HTTPRequest) -> HTTPResponse | None:
        """None where the connection is to be dropped."""
        vendor, faults = self._vendor, self._vendor.faults
        self._counters.requests += 1
        resets = self._counters.resets
        if faults.active.down:
            return None
        try:
            body = await http.body()
        except ClientDisconnect:
            return None
        if faults.active.latency:
            await asyncio.sleep(faults.active.latency)
        if resets != self._counters.resets:
            return None  # it belongs to what was forgotten
        if faults.active.proxy_page:
            return HTTPResponse(b"<html>not for you</html>", faults.active.proxy_page, media_type="text/html")
        if http.url.path != vendor.login_path:
            refusal = self._refusal()
            if refusal is not None:
                return self._render(refusal)
        target = http.url.path + (f"?{http.url.query}" if http.url.query else "")
        request = Request(http.method, http.scope["path"], http.query_params, http.headers, body, target)
        # No await from here to the commit: requests are handled one after the other.
        vendor.catch_up()
        before = vendor.store.writes()
        try:
            with vendor.store.transaction():
                response = vendor.answer(request)
        except Refusal as refused:
            return self._render(refused.response)
        if vendor.store.writes() > before:
            if faults.strikes("lose_reply"):
                return None
            if faults.strikes("malformed"):
                # A careless proxy that quotes the request: what it quotes must not end up in anybody's log.
                return HTTPResponse(b"<html>proxy error for " + body[:300] + b"</html>", media_type="text/html")
            half = half_told(response.document) if faults.active.half_results else None
            if half is not None and faults.strikes("half_results"):
                response = replace(response, document=half)
        return self._render(response)

    def _refusal(self) -> Response | None:
        vendor, faults = self._vendor, self._vendor.faults
        if faults.active.quota_spent:
            return vendor.quota_spent()
        too_many, server_error = faults.active.too_many, faults.active.server_error
        if too_many and faults.strikes("too_many"):
            response = vendor.throttled()
            if too_many.retry_after is None:
                return response
            return Response(response.status, response.document, {"Retry-After": f"{too_many.retry_after:g}"})
        if server_error and faults.strikes("server_error"):
            return vendor.problem(server_error.status, "The service is unavailable; try again later")
        return None if faults.admits() else vendor.throttled()

    def _render(self, response: Response) -> HTTPResponse:
        limit, faults = self._vendor.faults.active.rate_limit, self._vendor.faults
        headers = self._vendor.headers(
            self._counters.requests, limit.requests if limit else None, faults.window_left()
        ) | dict(response.headers)
        if response.document is None or isinstance(response.document, bytes):
            return HTTPResponse(response.document, response.status, headers)
        return _json(response.document, response.status, headers)


class DemoAPI:
    """What the demo world and the tests read and set. It has no credentials: it listens on this machine only."""

    def __init__(self, vendor: Vendor, counters: Counters) -> None:
        self._vendor = vendor
        self._store: Store = vendor.store
        self._counters = counters

    def application(self) -> Starlette:
        """The ASGI application of these endpoints."""
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/_demo/health", self.health),
                Route("/_demo/records", self.records),
                Route("/_demo/journal", self.journal),
                Route("/_demo/stats", self.stats),
                Route("/_demo/faults", self.faults),
                Route("/_demo/faults", self.set_faults, methods=["POST"]),
                Route("/_demo/reset", self.reset, methods=["POST"]),
                Route("/_demo/overview", self.overview),
            ]
        )

    async def page(self, _: HTTPRequest) -> HTTPResponse:
        """The page for people. Its policy admits the inline script and style by their hashes, and nothing else."""
        text = PAGE.read_text("utf-8").replace("{{title}}", self._vendor.title)
        hashes = {
            tag: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            for tag, content in re.findall(r"<(script|style)>(.*?)</\1>", text, re.S)
        }
        policy = (
            f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}';"
            " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return HTTPResponse(text, media_type="text/html", headers=headers)

    async def health(self, _: HTTPRequest) -> HTTPResponse:
        return _json({"status": "ok"})

    async def records(self, request: HTTPRequest) -> HTTPResponse:
        """{external id: record}; a record without one stands under `#` and its CRM id."""
        return StreamingResponse(
            _pieces(self._record_lines(request.query_params.get("deleted") == "true"), b"{", b"}"),
            media_type="application/json",
        )

    async def journal(self, request: HTTPRequest) -> HTTPResponse:
        """[change, …] with seq > `after`, oldest first, at most `limit`."""
        try:
            after = int(request.query_params.get("after", 0))
            limit = int(request.query_params.get("limit", 2**53))
        except ValueError:
            return _json({"error": "`after` and `limit` are whole numbers"}, 400)
        return StreamingResponse(_pieces(self._journal_lines(after, limit), b"[", b"]"), media_type="application/json")

    async def stats(self, _: HTTPRequest) -> HTTPResponse:
        return _json(self._stats())

    async def faults(self, _: HTTPRequest) -> HTTPResponse:
        return _json(self._faults())

    async def set_faults(self, request: HTTPRequest) -> HTTPResponse:
        """Replaces the faults; `{}` switches all off."""
        if _foreign(request):
            return _json({"error": "sent by another site"}, 403)
        try:
            wanted = orjson.loads(await request.body())
            if not isinstance(wanted, dict):
                raise ValueError("not an object")
            self._vendor.faults.set(wanted)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            return _json({"error": "; ".join(problems), "allowed": _catalogue()}, 400)
        except ValueError:
            return _json({"error": "the body is not a JSON object", "allowed": _catalogue()}, 400)
        if self._vendor.faults.active.expire_tokens:
            self._vendor.expire_tokens()
        return _json(self._faults())

    async def reset(self, request: HTTPRequest) -> HTTPResponse:
        """Empties records, journal, faults and counters, and drops what is under way."""
        if _foreign(request):
            return _json({"error": "sent by another site"}, 403)
        self._store.reset()
        self._vendor.faults.set({})
        self._counters.resets += 1
        self._counters.requests = 0
        self._counters.by_status.clear()
        return _json({"status": "ok"})

    async def overview(self, _: HTTPRequest) -> HTTPResponse:
        """What the page shows, in one request."""
        records = [
            {"id": self._vendor.crm_id(row.number), "external_id": row.external_id, "fields": row.fields,
             "deleted": row.deleted, "at": row.updated_at}
            for row in self._store.latest(LATEST)
        ]  # fmt: skip
        changes = self._store.journal(self._store.changes() - LATEST, LATEST)[::-1]
        return _json({"stats": self._stats(), "records": records, "journal": changes, **self._faults()})

    def _stats(self) -> dict[str, Any]:
        counters = self._counters
        return {**self._store.stats(), "requests": counters.requests, "by_status": dict(counters.by_status)}

    def _faults(self) -> dict[str, Any]:
        return {"active": self._vendor.faults.document(), "catalogue": _catalogue()}

    def _record_lines(self, deleted: bool) -> Iterator[bytes]:
        for row in self._store.dump(deleted=deleted):
            record = {"id": self._vendor.crm_id(row.number), "fields": row.fields, "deleted": row.deleted}
            yield orjson.dumps(self._key(row)) + b":" + orjson.dumps(record)

    def _key(self, row: Row) -> str:
        return row.external_id if row.external_id is not None else f"#{self._vendor.crm_id(row.number)}"

    def _journal_lines(self, after: int, limit: int) -> Iterator[bytes]:
        while limit > 0:
            changes = self._store.journal(after, min(limit, 1000))
            if not changes:
                return
            yield from map(orjson.dumps, changes)
            after, limit = changes[-1]["seq"], limit - len(changes)


async def _pieces(lines: Iterator[bytes], opening: bytes, closing: bytes) -> AsyncIterator[bytes]:
    """Joins lines by commas, some at a time."""
    piece = bytearray(opening)
    comma = b""
    for line in lines:
        piece += comma + line
        comma = b",\n"
        if len(piece) > 65_536:
            yield bytes(piece)
            piece.clear()
            await asyncio.sleep(0)  # lets other requests through
    yield bytes(piece + closing)


def _foreign(request: HTTPRequest) -> bool:
    """Whether a page of another site sent this: any site may post to a port of this machine."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _catalogue() -> dict[str, Any]:
    return {
        name: {"description": info.description, "example": (info.examples or [None])[0]}
        for name, info in Faults.model_fields.items()
    }


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> HTTPResponse:
    return HTTPResponse(orjson.dumps(document), status, headers, "application/json")
