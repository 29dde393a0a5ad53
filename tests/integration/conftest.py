"""What all integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from tests.support.page import Page, serving
from tests.support.simulators import Simulator
from tests.support.world import World

from leadsync.state import fence
from leadsync.ui import probes


@pytest.fixture(autouse=True)
def _dead_senders_are_not_waited_out_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes over from a sender that died waits for as long as that one may have relied on its lock."""
    monkeypatch.setattr(fence, "CHECK_SECONDS", 0.5)


@pytest.fixture
def world(
    database: str, state: psycopg.Connection[Any], valkey: redis.Redis, hubspot: Simulator, salesforce: Simulator
) -> Iterator[World]:
    """Two CRMs and an empty lead store. Who wants it otherwise makes it so in a fixture of the same name."""
    world = World(database, state, valkey, {"hubspot": hubspot, "salesforce": salesforce})
    yield world
    world.hive.close()


@pytest.fixture
def page(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """The page over this world; it looks at other services each time it is asked."""
    monkeypatch.setattr(probes, "FRESH", 0.0)
    monkeypatch.setattr(probes, "PATIENCE", 5.0)
    with serving(Page(world)) as page:
        yield page
