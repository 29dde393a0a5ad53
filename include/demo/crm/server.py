"""uvicorn, able to drop a connection without a reply."""

from __future__ import annotations

import asyncio

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Open connections by the client's address, which is also the request's `scope["client"]`.
Connections = dict[tuple[str, int], asyncio.Transport]


def serve(app: ASGIApp, host: str, port: int, connections: Connections) -> None:
    """Runs until SIGTERM or SIGINT; requests under way are answered."""

    class Tracked(HttpToolsProtocol):
        """ASGI has no way to close a connection unanswered, so the open ones are kept here."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._address = transport.get_extra_info("peername")
            connections[self._address] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            connections.pop(self._address, None)
            super().connection_lost(exc)

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Tracked,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        # Longer than a client keeps an idle connection: none is closed under a request.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run()
