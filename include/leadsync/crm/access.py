"""What opens a CRM's door: an access, and who gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from leadsync.errors import AccessError


@dataclass(frozen=True, slots=True)
class Access:
    """Where to send requests, and what opens the door: a bearer token, unless the vendor wants `headers` of its own.

    `lifetime` is in seconds from the login on, None where nobody says.
    """

    url: str
    token: str = field(repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    lifetime: float | None = field(default=None, compare=False)

    @property
    def authorization(self) -> Mapping[str, str]:
        """The headers that each request carries."""
        return {"Authorization": f"Bearer {self.token}"} if self.headers is None else self.headers


class Credentials(Protocol):
    def access(self) -> Access:
        """Logs in where that is needed and not done yet."""

    def renew(self, refused: Access) -> Access:
        """Logs in again, unless another thread did since. Raises AccessError where there is no login."""


class StaticToken:
    """A token that does not expire and can't be renewed."""

    def __init__(self, who: str, access: Access) -> None:
        self._who = who
        self._access = access

    def access(self) -> Access:
        return self._access

    def renew(self, refused: Access) -> Access:
        raise AccessError(f"{self._who} refuses the token (401): put a valid one into the connection's password")
