"""Chosen leads are read anew and delivered through the ordinary load."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from tests.support.simulators import Simulator
from tests.support.world import World

from demo import lead_store
from leadsync import redelivery
from leadsync.errors import ConfigError


@pytest.fixture
def world(database: str, state: psycopg.Connection[Any], valkey: redis.Redis, hubspot: Simulator) -> Iterator[World]:
    world = World(database, state, valkey, {"hubspot": hubspot})
    for number in range(1, 6):
        lead_store.insert(world.hive, "A:B", f"Lead {number}")
    yield world
    world.hive.close()


def test_the_present_state_goes_out_under_a_new_sequence(world: World) -> None:
    world.run()
    before = world.watermark("hubspot")
    old = world.extract(since="2020-01-01T00:00:00Z", resend=True)
    world.snapshot(old)
    lead_store.update(world.hive, "A:B", 2, "Newer", None, None)
    world.hive.execute("DELETE FROM customer WHERE uid = 3")
    ids = ["A\\:B:2", "A\\:B:3", "A\\:B:4"]
    found = redelivery.prepare(world.clients, world.pipeline, "replay-1", "replay", "hubspot", ids)
    assert found.gone == ["A\\:B:3"]
    counts = world.load(found.operation, "hubspot")
    assert (counts["read"], counts["delivered"], counts["unchanged"]) == (2, 1, 1)
    assert world.watermark("hubspot") == before
    assert world.load(old, "hubspot")["delivered"] == 5  # of two of them what they are by now
    assert world.simulators["hubspot"].records()["A\\:B:2"]["firstname"] == "Newer"
    again = redelivery.prepare(world.clients, world.pipeline, "repair-1", "repair", "hubspot", ids, resend=True)
    assert world.load(again.operation, "hubspot")["delivered"] == 2


@pytest.mark.parametrize("wrong", ["A", "A:B:1", "A:x"])
def test_an_id_that_can_not_be_is_named(world: World, wrong: str) -> None:
    world.run()
    with pytest.raises(ConfigError, match="external id"):
        redelivery.prepare(world.clients, world.pipeline, "replay-1", "replay", "hubspot", [wrong])
