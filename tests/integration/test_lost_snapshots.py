"""Redis is full, away, or has lost a snapshot: a clear error, a line in the recovery log, and nothing is lost."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from tests.support.servers import free_port
from tests.support.simulators import Simulator
from tests.support.world import World

from leadsync import snapshot
from leadsync.errors import SnapshotError
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore


@pytest.fixture
def world(database: str, state: psycopg.Connection[Any], valkey: redis.Redis, hubspot: Simulator) -> Iterator[World]:
    world = World(database, state, valkey, {"hubspot": hubspot})
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, phone) "
        "SELECT 'ASDAD', n, md5(n::text), md5((-n)::text) FROM generate_series(1, 1000) n"
    )
    yield world
    world.hive.close()


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 1000])
def test_a_full_redis(world: World, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """With small chunks it fails in the middle of the read."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", chunk_bytes)
    operation = world.extract("run-1")
    valkey.config_set("maxmemory", "1kb")
    try:
        with pytest.raises(SnapshotError, match="is full: raise `maxmemory`.*clear the task `extract`"):
            world.snapshot(operation)
    finally:
        valkey.config_set("maxmemory", "0")
    assert world.recovery_log() == ["snapshot"]
    with pytest.raises(SnapshotError):
        world.load(operation, "hubspot")
    again = world.extract("run-1")  # what clearing `extract` does
    assert again.lower == operation.lower
    world.snapshot(again)
    assert world.load(again, "hubspot")["delivered"] == 1000
    world.commit(again)
    world.assert_in_step("hubspot")


@pytest.mark.parametrize("lost", ["everything", "one chunk"])
def test_a_snapshot_that_is_lost_or_expired(world: World, valkey: redis.Redis, lost: str) -> None:
    operation = world.extract()
    world.snapshot(operation)
    if lost == "everything":
        valkey.flushall()
    else:
        valkey.pexpire(f"leadsync:leads:snapshot:{operation.snapshot_id}:0", 0)
    with pytest.raises(SnapshotError, match="is gone from Redis"):
        world.load(operation, "hubspot")
    assert world.recovery_log() == ["SnapshotError"]
    assert world.watermark("hubspot") is None
    assert world.run()["hubspot"]["delivered"] == 1000  # the next run covers the same window
    world.assert_in_step("hubspot")


def test_redis_is_away(world: World) -> None:
    operation = world.extract()
    there, sealer = world.snapshots, Sealer(base64.b64encode(bytes(32)).decode())
    with redis.Redis(port=free_port()) as nobody:
        world.snapshots = SnapshotStore(nobody, sealer, "leads", 60)
        with pytest.raises(SnapshotError, match=r"did not take the snapshot \(ConnectionError\)"):
            world.snapshot(operation)
    world.snapshots = there
    assert world.recovery_log() == ["snapshot"]
    assert world.run()["hubspot"]["delivered"] == 1000


def test_a_redis_that_evicts_is_reported(world: World, valkey: redis.Redis) -> None:
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    try:
        world.run()
    finally:
        valkey.config_set("maxmemory-policy", "noeviction")
    row = world.state.execute("SELECT kind, message FROM leadsync.recovery_log").fetchone()
    assert row is not None
    assert row[0] == "redis"
    assert "set maxmemory-policy noeviction" in row[1]
