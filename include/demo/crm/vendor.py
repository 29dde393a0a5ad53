"""What a kind of CRM has to say for itself; everything else is shared by all of them."""

from __future__ import annotations

import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, ClassVar

import orjson

from demo.crm.faults import FaultBox
from demo.crm.store import Store


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the vendor's API; the path is percent-decoded, header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    target: str  # path and query as sent
    params: Mapping[str, str] = field(default_factory=dict)  # named groups of the route

    def json(self) -> Any:
        """The body decoded; raises ValueError when it is not JSON."""
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """A reply; a `document` of None is an empty body, one of bytes is sent as it is (its type is in `headers`)."""

    status: int
    document: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """Ends a request with this response and undoes what it changed."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


Route = tuple[str, str, Callable[[Request], Response]]


class Vendor(ABC):
    """One vendor's API over a store. Requests are answered one after the other, each in one transaction."""

    title: ClassVar[str]
    # The environment variables that hold the credentials it accepts.
    credentials: ClassVar[tuple[str, ...]]
    # What a connection's extra calls the token, where there are login and password too.
    token_name: ClassVar[str] = "refresh_token"  # noqa: S105
    # Throttling and quotas do not count the login.
    login_path: ClassVar[str | None] = None
    # Of a connection's extra: names that stand for an address of this simulator, and its path.
    addresses: ClassVar[Mapping[str, str]] = {}

    def __init__(self, store: Store, faults: FaultBox, *credentials: str) -> None:
        self.store = store
        self.faults = faults
        self._credentials = credentials
        self._routes = [(method, re.compile(path), answer) for method, path, answer in self.routes()]

    @abstractmethod
    def routes(self) -> list[Route]:
        """Method, regular expression of the whole path, and who answers."""

    @abstractmethod
    def admit(self, request: Request) -> None:
        """Raises Refusal for wrong credentials."""

    @abstractmethod
    def problem(self, status: int, message: str) -> Response:
        """An error that is not about data (404, 405, 5xx), in the vendor's shape."""

    @abstractmethod
    def throttled(self) -> Response:
        """Too many requests in a short time."""

    @abstractmethod
    def quota_spent(self) -> Response:
        """The daily limit is spent."""

    @abstractmethod
    def headers(self, requests: int, window: int | None, left: int) -> dict[str, str]:
        """What every reply carries: `requests` were made so far, `left` of `window` are left in the rolling window."""

    @abstractmethod
    def crm_id(self, number: int) -> str:
        """The vendor's id of a record."""

    @abstractmethod
    def expire_tokens(self) -> None:
        """The fault of this name was switched on."""

    def catch_up(self) -> None:
        """Does what the vendor would have done by itself until now; asked before every request."""
        return

    def answer(self, request: Request) -> Response:
        """Raises Refusal."""
        self.admit(request)
        known = False
        for method, path, answer in self._routes:
            found = path.fullmatch(request.path)
            if found and method == request.method:
                return answer(replace(request, params=found.groupdict()))
            known = known or found is not None
        if known:
            raise Refusal(self.problem(405, "HTTP method not allowed"))
        raise Refusal(self.problem(404, "The requested resource does not exist"))


def now() -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def kinds() -> dict[str, type[Vendor]]:
    """Every kind of CRM by the name of the module that defines it."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    return {vendor.__module__.rpartition(".")[2]: vendor for vendor in Vendor.__subclasses__()}
