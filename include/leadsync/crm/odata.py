"""What an OData service says (pages, errors), and its `$batch`: several requests in one, answered in their order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import orjson
from pydantic import BaseModel, Field, TypeAdapter

from leadsync.crm.http import Reply, RequestFailed

HEADERS = {"OData-Version": "4.0", "OData-MaxVersion": "4.0"}


class Error(BaseModel):
    code: str = ""
    message: str = ""


class Page(BaseModel):
    """Rows of a query with `$count=true`."""

    value: list[dict[str, Any]]
    count: int = Field(alias="@odata.count")


class _Failure(BaseModel):
    error: Error


FAILURE = TypeAdapter(_Failure)
PAGE = TypeAdapter(Page)


def error_of(reply: Reply) -> Error:
    """The error that a reply tells; without code and words where it tells none, as a proxy's page."""
    try:
        return reply.parse(FAILURE).error
    except RequestFailed:
        return Error()


def text(value: str) -> str:
    """A text in a query."""
    return "'" + value.replace("'", "''") + "'"


def write_batch(requests: Iterable[tuple[str, str, Any]]) -> tuple[str, bytes]:
    """The Content-Type and the body for requests of method, URL, and document or None."""
    boundary = f"batch_{uuid4()}"
    parts = []
    for method, url, document in requests:
        head, body = f"{method} {url} HTTP/1.1\r\nAccept: application/json", b""
        if document is not None:
            body = orjson.dumps(document)
            head += f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        opening = f"--{boundary}\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary"
        parts.append(f"{opening}\r\n\r\n{head}\r\n\r\n".encode() + body + b"\r\n")
    return f'multipart/mixed; boundary="{boundary}"', b"".join(parts) + f"--{boundary}--\r\n".encode()


def is_batch(reply: Reply) -> bool:
    return reply.headers.get("Content-Type", "").lower().startswith("multipart/mixed")


def read_batch(reply: Reply) -> list[Reply]:
    """The answer to each request. Raises RequestFailed when the reply is no batch, or not all of one."""
    from email import message_from_bytes

    if not is_batch(reply):
        raise reply.malformed()
    kind = f"Content-Type: {reply.headers['Content-Type']}\r\n\r\n"
    batch = message_from_bytes(kind.encode() + reply.body)
    try:
        if batch.defects or not batch.is_multipart():  # a defect: its end is missing
            raise ValueError
        return [_answer(part.get_payload(decode=True)) for part in batch.walk() if part is not batch]
    except (ValueError, LookupError):
        raise reply.malformed() from None


def _answer(payload: Any) -> Reply:
    """Raises ValueError."""
    from email import message_from_bytes

    line, _, rest = bytes(payload or b"").replace(b"\r\n", b"\n").partition(b"\n")
    version, status = line.split()[:2]
    if not version.startswith(b"HTTP/"):
        raise ValueError
    head, _, body = rest.partition(b"\n\n")
    headers = {name.title(): str(value) for name, value in message_from_bytes(head).items()}
    return Reply(int(status), headers, body.strip())
