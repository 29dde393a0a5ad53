"""`python -m bench.adapters`: what an adapter costs over posting ready-made bodies with the same client.

Each adapter first delivers new leads to its simulator, and all that it sends and is answered is written down. Then the
cases take turns against one server that gives those answers again: the adapter's `deliver`; `HTTPClient` posting the
bodies that were written down, without a look at the answers; and the same with each body written from its document and
each answer read, as JSON and nothing more, which no adapter can do without. One thread, one connection, and what counts
is the processor time of this process, so how fast the server is does not matter. Logins and what is asked once are not
counted. The server hangs up on a request that is another one than was written down, and what `deliver` returns is
checked.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import orjson
import yaml
from tests.support.simulators import Simulator, running_simulator

from leadsync.config import Destination, Pipeline, load_pipeline
from leadsync.crm import registry
from leadsync.crm.access import Access, StaticToken
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.http import HTTPClient, Reply
from leadsync.crm.pacing import Pacer
from leadsync.mapping import Mapper
from leadsync.models import Lead, Status

SHIPPED = load_pipeline(Path(__file__).parents[1] / "include" / "pipelines" / "leads.yaml")
# Adapter → the simulator that it speaks to, and settings: the pace of the real CRM is what this does not measure.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "hubspot": ("hubspot", {}),
    "salesforce": ("salesforce", {"bulk_above": None}),
    "dynamics365": ("dynamics365", {}),
    "zoho": ("zoho", {}),
    "odoo": ("odoo", {}),
    "rest": ("hubspot", {}),
}
LIMIT = 15  # percent that an adapter may add


@dataclass(frozen=True)
class Exchange:
    """A request as it left, and what it was answered."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    reply: Reply

    def answer(self, recorded: str, now: str) -> bytes:
        """The answer as bytes, with the address of this server in place of the simulator's."""
        body = self.reply.body.replace(recorded.encode(), now.encode())
        kind = self.reply.headers.get("Content-Type", "application/json")
        head = f"HTTP/1.1 {self.reply.status} OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body


@dataclass(frozen=True)
class Cost:
    """Seconds of processor time for 100,000 leads, and how many requests they take."""

    requests: float
    deliver: float
    post: float
    encode: float

    @property
    def added(self) -> float:
        """Percent."""
        return 100 * (self.deliver / self.post - 1)


def rows(count: int) -> Iterator[list[str | None]]:
    """Rows of the shipped pipeline's columns, some 280 bytes each, with what is not ASCII and nested JSON."""
    for number in range(count):
        yield [
            "BENCH", str(number), f"+86{13_000_000_000 + number}", ("James O'Brien", "张伟", "Søren")[number % 3],
            f"lead{number}@example.com", ("Shanghai", "São Paulo", "深圳", None)[number % 4],
            f'{{"utm": {{"campaign": "{number * 2654435761 % 2**64:032x}"}}, "score": {number % 101}}}',
            "2026-01-31 09:30:00.123456+00", "f",
        ]  # fmt: skip


def destination(name: str, settings: dict[str, Any]) -> Destination:
    """The adapter's example over the shipped pipeline's columns."""
    example = yaml.safe_load(registry.adapter_class(name).example)
    example["settings"] = {**example.get("settings", {}), "requests_per_second": 1_000_000, **settings}
    content = {**SHIPPED.model_dump(exclude={"destinations"}), "destinations": {name: example}}
    return Pipeline.model_validate(content).destinations[0]


def record(adapter: CRMAdapter, leads: Sequence[Lead]) -> tuple[list[Exchange], int]:
    """What is exchanged, and how much of it belongs to the first lead: logins and what is asked once."""
    exchanged: list[Exchange] = []
    send = adapter.http.send

    def recording(method: str, url: str, *, params: Any = None, form: Any = None, **content: Any) -> Reply:
        reply = send(method, url, params=params, form=form, **content)
        path = url.removeprefix(adapter.endpoint.url) + (f"?{urlencode(params)}" if params else "")
        body = urlencode(form).encode() if form else content.get("body") or b""
        exchanged.append(Exchange(method, path, dict(content.get("headers") or {}), body, reply))
        return reply

    adapter.http.send = recording  # type: ignore[method-assign]
    deliver(adapter, leads[:1])
    first = len(exchanged)
    deliver(adapter, leads[1:])
    return exchanged, first


def deliver(adapter: CRMAdapter, leads: Sequence[Lead]) -> None:
    """Raises SystemExit unless every lead arrived."""
    arrived = sum(outcome.status in (Status.CREATED, Status.UPDATED) for outcome in adapter.deliver(leads))
    if arrived != len(leads):
        raise SystemExit(f"{adapter.label}: {len(leads) - arrived} of {len(leads)} leads did not arrive")


def post(client: HTTPClient, url: str, exchanged: Sequence[Exchange], documents: Sequence[Any] | None = None) -> None:
    """Sends what was written down; with `documents` written anew from these, where they are not None."""
    credentials = StaticToken("bench", Access(url, "", {}))
    for number, each in enumerate(exchanged):
        document = documents[number] if documents else None
        body = None if document is not None else each.body or None
        reply = client.request(each.method, each.path, credentials, json=document, body=body, headers=each.headers)
        if document is not None and reply.body:
            orjson.loads(reply.body)


def document(exchange: Exchange) -> Any:
    """The body's, None where it is no JSON."""
    try:
        return orjson.loads(exchange.body)
    except orjson.JSONDecodeError:
        return None


def serve(listener: socket.socket, exchanged: Sequence[Exchange], answers: Sequence[bytes]) -> None:
    """Gives every connection all the answers in their order; hangs up on another request than was written down."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = bytearray()
            for each, answer in zip(exchanged, answers, strict=True):
                expected = f"{each.method} {each.path} HTTP/1.1\r\n".encode()
                end = -1
                while end < 0 or len(received) < end + 4 + len(each.body):
                    piece = connection.recv(1 << 18)
                    if not piece:
                        break
                    received += piece
                    end = received.find(b"\r\n\r\n") if end < 0 else end
                # Ids that an adapter makes up differ in each run, but not in their length.
                if not received.startswith(expected) or len(received) != end + 4 + len(each.body):
                    break
                received.clear()
                connection.sendall(answer)


@contextmanager
def replaying(exchanged: Sequence[Exchange], recorded: str) -> Iterator[str]:
    """A server of its own process that gives the answers again; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        answers = [each.answer(recorded, url) for each in exchanged]
        process = multiprocessing.get_context("fork").Process(target=serve, args=(listener, exchanged, answers))
        process.start()
        try:
            yield url
        finally:
            process.terminate()
            process.join()


def plain_client() -> HTTPClient:
    """The adapters' client with nobody to ask."""
    return HTTPClient(
        "bench", pace=Pacer(1_000_000), connect_timeout=5, read_timeout=30, before_request=lambda: None,
        explain=lambda reply: None,
    )  # fmt: skip


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Adds the processor time of what is inside."""
    gc.collect()
    began = time.process_time()
    yield
    seconds.append(time.process_time() - began)


def moved(endpoint: Endpoint, url: str) -> Endpoint:
    """The same connection at another address."""
    extra = {
        name: value.replace(endpoint.url, url) if isinstance(value, str) else value
        for name, value in endpoint.extra.items()
    }
    return replace(endpoint, url=url, extra=extra)


def measure(name: str, simulator: Simulator, settings: dict[str, Any], count: int, rounds: int) -> Cost:
    """The medians of all rounds."""
    target = destination(name, settings)
    mapper = Mapper(SHIPPED.source, target)
    mapped = [mapper.map(row) for row in rows(count + 1)]
    leads = [Lead(each.external_id, each.fields) for each in mapped]
    with closing(registry.build(target, simulator.endpoint)) as adapter:
        exchanged, first = record(adapter, leads)
    documents = [document(each) for each in exchanged]
    seconds: dict[str, list[float]] = {"deliver": [], "post": [], "encode": []}
    with replaying(exchanged, simulator.url) as url:
        for _ in range(rounds):
            with closing(registry.build(target, moved(simulator.endpoint, url))) as adapter:
                deliver(adapter, leads[:1])
                with timed(seconds["deliver"]):
                    deliver(adapter, leads[1:])
            for case, written in (("post", None), ("encode", documents)):
                with closing(plain_client()) as client:
                    post(client, url, exchanged[:first])
                    with timed(seconds[case]):
                        post(client, url, exchanged[first:], written and written[first:])
    scale = 100_000 / count
    cost = {case: statistics.median(found) * scale for case, found in seconds.items()}
    return Cost((len(exchanged) - first) * scale, **cost)


def table(found: dict[str, Cost], count: int, rounds: int) -> str:
    """As Markdown."""
    lines = [
        f"\nFor 100,000 new leads, from {count:,} of them, median of {rounds} rounds; the limit is {LIMIT} %\n",
        "| adapter | requests | `deliver`, CPU s | posting, CPU s | posting and JSON, CPU s | added to posting |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, cost in found.items():
        lines.append(
            f"| {name} | {cost.requests:,.0f} | {cost.deliver:.2f} | {cost.post:.2f} | {cost.encode:.2f} "
            f"| {cost.added:.0f} % |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.adapters", description=__doc__)
    parser.add_argument("--leads", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--only", action="append", choices=list(CASES), help="default: all of them")
    arguments = parser.parse_args()
    gc.set_threshold(200_000, 10, 10)  # as a load does
    found = {}
    for name in arguments.only or CASES:
        kind, settings = CASES[name]
        with running_simulator(kind) as simulator:
            found[name] = measure(name, simulator, settings, arguments.leads, arguments.rounds)
        print(f"{name}: {found[name]}", flush=True)
    print(table(found, arguments.leads, arguments.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
