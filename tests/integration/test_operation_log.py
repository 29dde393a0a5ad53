"""The operation log, from a load to what a person reads."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from tests.support.simulators import Simulator
from tests.support.world import World

from demo import lead_store
from leadsync import operation_log
from leadsync.__main__ import main
from leadsync.errors import Unavailable


@pytest.fixture
def world(database: str, state: psycopg.Connection[Any], valkey: redis.Redis, hubspot: Simulator) -> Iterator[World]:
    world = World(database, state, valkey, {"hubspot": hubspot})
    yield world
    world.hive.close()


def test_what_was_sent_is_kept_sealed_and_read_as_statements(world: World) -> None:
    started = round(time.time() * 1000)
    lead_store.insert(world.hive, "ASDAD", "O'Hara")
    lead_store.insert(world.hive, "ASDAD", "Li")
    world.run()
    lead_store.update(world.hive, "ASDAD", 1, "Newer", None, None)
    lead_store.delete(world.hive, "ASDAD", 2)
    operation = world.extract()
    world.snapshot(operation)
    world.load(operation, "hubspot")
    stored = world.state.execute("SELECT records FROM leadsync.operation_data").fetchall()
    assert len(stored) == 2
    assert not any(b"Hara" in row[0] or b"Newer" in row[0] for row in stored)
    (entry,) = operation_log.read(world.state, world.sealer, operation.sync_id)
    assert (entry["id"], entry["destination"], entry["result"]) == (operation.sync_id, "hubspot", 1)
    assert started <= entry["start_at"] <= entry["end_at"] <= round(time.time() * 1000)
    update, delete = sorted(entry["data"], reverse=True)
    assert update.startswith("update customer set phone=NULL,name='Newer',")
    assert update.endswith(" where appkey='ASDAD' and uid=1")
    assert delete == "delete from customer where appkey='ASDAD' and uid=2"


def test_a_failed_load_has_the_result_0_until_a_retry_succeeds(world: World) -> None:
    lead_store.insert(world.hive, "ASDAD", "Li")
    operation = world.extract()
    world.snapshot(operation)
    world.simulators["hubspot"].faults(down=True)
    with pytest.raises(Unavailable):
        world.load(operation, "hubspot")
    (entry,) = operation_log.read(world.state, world.sealer, operation.sync_id)
    assert (entry["data"], entry["result"]) == ([], 0)
    world.simulators["hubspot"].faults()
    world.load(operation, "hubspot")
    (entry,) = operation_log.read(world.state, world.sealer, operation.sync_id)
    assert entry["result"] == 1
    assert entry["data"][0].startswith("insert into customer (appkey,uid,phone,")


def test_the_command_line_prints_it(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lead_store.insert(world.hive, "ASDAD", "Li")
    operation = world.extract()
    world.snapshot(operation)
    world.load(operation, "hubspot")
    monkeypatch.setenv("LEADSYNC_ENCRYPTION_KEY", base64.b64encode(bytes(32)).decode())
    dsn = ["--dsn", world.state.info.dsn]
    capsys.readouterr()
    assert main(["operation", operation.sync_id, *dsn]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == operation.sync_id
    assert main(["operation", str(uuid4()), *dsn]) == 1
    assert "there is no load" in capsys.readouterr().err
