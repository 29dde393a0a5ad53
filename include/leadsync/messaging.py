"""Sends messages to the addresses that people name, through Apprise: Slack, mail, webhooks and a hundred others.

The addresses are URLs that hold tokens and passwords. So nothing is logged while Apprise works, for it names addresses
in its own log lines, and here one is called by its number and its kind.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import apprise

from leadsync.errors import ConfigError

TIMEOUT = 60  # seconds for one address, whatever hangs there
# Without Apprise's name and pictures: those would be fetched from elsewhere.
BRAND = apprise.AppriseAsset(
    app_id="Leadsync", app_desc="Leadsync", app_url="", image_url_mask="", image_url_logo="", secure_logging=True
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where messages go. `name` may be shown to people; `key` knows it again and holds no secret."""

    name: str
    key: str
    service: apprise.NotifyBase

    def send(self, title: str, body: str, *, good: bool) -> bool:
        """Sends plain text; whether the service took it. `good`: there is nothing to worry about any more."""
        kind = apprise.NotifyType.SUCCESS if good else apprise.NotifyType.WARNING
        sender = apprise.Apprise(asset=BRAND)
        with _silence():
            sender.add(self.service)
            return bool(sender.notify(body, title, kind, body_format=apprise.NotifyFormat.TEXT, timeout=TIMEOUT))


def addresses(text: str) -> tuple[list[Address], ConfigError | None]:
    """The addresses that a text names, separated by white space; and what is wrong with others of them, if anything."""
    found, wrong, seen = list[Address](), list[str](), Counter[str]()
    for number, url in enumerate(text.split(), 1):
        with _silence():
            service = apprise.Apprise.instantiate(url, asset=BRAND)
            masked = str(service.url(privacy=True)) if service else ""  # type: ignore[no-untyped-call]
        if service is None:
            wrong.append(str(number))
            continue
        # Two that differ in what is masked only are told apart by their order.
        seen[masked] += 1
        key = hashlib.sha256(f"{masked} {seen[masked]}".encode()).hexdigest()[:16]
        found.append(Address(f"address {number} ({service.service_name})", key, service))
    if not wrong:
        return found, None
    return found, ConfigError(f"Apprise does not know {_numbers(wrong)} of connection leadsync_alerts")


def _numbers(wrong: Sequence[str]) -> str:
    return f"address {wrong[0]}" if len(wrong) == 1 else f"the addresses {', '.join(wrong)}"


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
