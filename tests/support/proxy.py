"""A proxy between the product and a service: it cuts connections, delays, and delivers requests late or twice.

It runs in a thread of its own, on 127.0.0.1. Faults, of pieces of a connection or, with HTTP, of whole requests:
`cut`, the share at which the connection is cut, with HTTP half of them after the request was delivered; `delay`, the
most seconds that each is held; `hold`, the seconds that each is held; HTTP only: `double`, the share of requests that
are delivered again, `gap` seconds later and before the reply goes out, as gateways do. What a client has sent is
delivered also when the client is dead by then.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

from tests.support.servers import free_port

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CONNECTION = re.compile(rb"\r\nconnection: [^\r]*", re.IGNORECASE)
# Seconds, after which the upstream is broken itself.
LONGEST_REPLY = 10.0


class Proxy:
    """Stands before one port."""

    def __init__(self, upstream: int, *, http: bool) -> None:
        self.port = free_port()
        self._upstream = upstream
        self._handle = self._http if http else self._pipe
        self._random = random.Random(0)  # noqa: S311
        self._faults: Mapping[str, float] = {}
        self.under_way = 0  # requests that were taken and are not answered or given up yet

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        server = asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(server, self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def set(self, faults: Mapping[str, float], seed: int | None = None) -> None:
        """Replaces the faults, and with a seed begins the choices anew."""
        if seed is not None:
            self._random.seed(seed)
        self._faults = faults

    def drain(self) -> None:
        """Waits until nothing is under way."""
        until = time.monotonic() + 2 * LONGEST_REPLY
        while self.under_way:
            if time.monotonic() > until:
                raise RuntimeError(f"{self.under_way} requests to port {self._upstream} do not end")
            time.sleep(0.01)

    def _strikes(self, fault: str) -> bool:
        return self._random.random() < self._faults.get(fault, 0.0)

    async def _hold(self) -> None:
        seconds = self._faults.get("hold", 0.0) + self._random.uniform(0, self._faults.get("delay", 0.0))
        if seconds:
            await asyncio.sleep(seconds)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            await self._handle(reader, writer)
        writer.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        ways = {
            asyncio.ensure_future(self._copy(reader, upstream_writer)),
            asyncio.ensure_future(self._copy(upstream_reader, writer)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            upstream_writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            await self._hold()
            if self._strikes("cut"):
                return
            writer.write(piece)
            await writer.drain()

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request per connection."""
        first = await reader.readexactly(1)
        if not first.isalpha():  # the first words of TLS, which no server of plain HTTP waits to the end of
            writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        head = first + await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        self.under_way += 1
        try:
            reply = await self._answer(CONNECTION.sub(b"", head)[:-2] + b"Connection: close\r\n\r\n", body)
        finally:
            self.under_way -= 1
        if reply is not None:
            writer.write(reply)
            await writer.drain()
            writer.write_eof()
            await reader.read()  # until the client has closed

    async def _answer(self, head: bytes, body: bytes) -> bytes | None:
        """The whole reply to one request, or None to close the connection without one."""
        cut = self._strikes("cut")
        if cut and self._random.random() < 0.5:
            return None
        await self._hold()
        reply = await self._deliver(head + body)
        if self._strikes("double"):
            await asyncio.sleep(self._faults.get("gap", 0.0))
            reply = await self._deliver(head + body)
        return None if cut else reply

    async def _deliver(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            writer.write(request)
            await writer.drain()
            return await asyncio.wait_for(reader.read(), LONGEST_REPLY)
        except TimeoutError:
            raise RuntimeError(f"port {self._upstream} did not answer {request[:60]!r}") from None
        finally:
            writer.close()
