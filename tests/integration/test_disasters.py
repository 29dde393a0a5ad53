"""What `docs/recovering.md` says of disasters: a whole store is lost, or put back to an earlier time."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from tests.support.reconciling import REPAIR, check, fill, silently
from tests.support.servers import backup_tool
from tests.support.world import World

from leadsync import replay
from leadsync.errors import SnapshotError
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore
from leadsync.state import migration

NEW_KEY = base64.b64encode(b"k" * 32).decode()


@pytest.fixture
def world(world: World) -> World:
    fill(world, 30)
    world.run()
    return world


def in_step(world: World) -> None:
    for name in world.simulators:
        world.assert_in_step(name)


def test_the_lead_store_goes_back_to_a_backup(world: World) -> None:
    world.hive.execute("CREATE TABLE backup AS TABLE customer")
    world.hive.execute("UPDATE customer SET name = 'Newer' WHERE uid <= 10")
    world.hive.execute("INSERT INTO customer (appkey, uid, name) VALUES ('A:B', 31, 'After the backup')")
    world.run()
    silently(world, "DELETE FROM customer; INSERT INTO customer TABLE backup")
    assert {name: counts["delivered"] for name, counts in world.run().items()} == {"hubspot": 0, "salesforce": 0}
    for name in world.simulators:
        assert check(world, name, REPAIR)["repaired"] == 11
    in_step(world)
    world.hive.execute("UPDATE customer SET name = 'Life goes on' WHERE uid = 1")
    world.run()
    in_step(world)


def test_the_database_is_lost_and_there_is_no_backup(world: World) -> None:
    world.hive.execute("UPDATE customer SET name = 'Meanwhile' WHERE uid <= 10")
    world.hive.execute("UPDATE customer SET is_delete = true WHERE uid = 30")
    migration.migrate(world.state.info.dsn + f" password={world.state.info.password}", "base")
    migration.migrate(world.state.info.dsn + f" password={world.state.info.password}")
    for counts in world.run().values():
        assert (counts["read"], counts["delivered"]) == (30, 30)
    in_step(world)


def test_the_database_goes_back_to_a_backup(world: World, tmp_path: Path) -> None:
    backup = str(tmp_path / "backup")
    backup_tool("pg_dump", world.state, "--format=custom", "--schema=leadsync", f"--file={backup}")
    world.hive.execute("UPDATE customer SET name = 'Delivered after the backup' WHERE uid <= 10")
    world.run()
    backup_tool("pg_restore", world.state, "--clean", "--if-exists", backup)
    for counts in world.run().values():
        assert (counts["read"], counts["delivered"]) == (10, 10)
    in_step(world)


def test_redis_is_lost_between_snapshot_and_load(world: World) -> None:
    world.hive.execute("UPDATE customer SET name = 'Meanwhile' WHERE uid <= 10")
    operation = world.extract("run")
    world.snapshot(operation)
    world.redis.flushall()
    with pytest.raises(SnapshotError, match="gone from Redis"):
        world.load(operation, "hubspot")
    world.run()
    in_step(world)


def test_the_key_is_lost(world: World) -> None:
    world.simulators["hubspot"].faults(reject={"external_ids": ["A\\:B:3"]})
    world.hive.execute("UPDATE customer SET name = 'Refused once' WHERE uid <= 3")
    world.run()
    world.simulators["hubspot"].faults()
    assert set(world.dead("hubspot")) == {"A\\:B:3"}
    world.hive.execute("UPDATE customer SET name = 'Under way' WHERE uid = 4")
    operation = world.extract("run")
    world.snapshot(operation)

    world.sealer = Sealer(NEW_KEY)
    world.snapshots = SnapshotStore(world.redis, world.sealer, world.pipeline.name, 3600)
    with pytest.raises(SnapshotError, match="a key that LEADSYNC_ENCRYPTION_KEY does not list"):
        world.load(operation, "hubspot")
    world.run()
    (item,) = replay.choose(world.state, world.pipeline, {"all": True}, "li")
    assert replay.run(world.clients, world.pipeline, "replay", item, "li")["delivered"] == 1
    assert world.dead("hubspot") == {}
    in_step(world)
