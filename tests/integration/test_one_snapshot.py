"""An operation has one snapshot: its loads go on by their place in it, whoever takes it again, or believes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import redis
from tests.support.simulators import Simulator
from tests.support.world import World

from leadsync import groups, snapshot
from leadsync.errors import SnapshotError, Superseded, Unavailable
from leadsync.load import Load
from leadsync.snapshot import SnapshotStore
from leadsync.source import LeadStore


@pytest.fixture
def world(
    database: str,
    state: psycopg.Connection[Any],
    valkey: redis.Redis,
    hubspot: Simulator,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    """Six chunks of 15 leads and a load that settles one at a time. All rows are of one length: what leaves a chunk
    makes room for as many of the next."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(groups, "GROUP_ROWS", 10)
    world = World(database, state, valkey, {"hubspot": hubspot})
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name) SELECT 'ASDAD', n, 'Lead ' || n FROM generate_series(10, 99) n"
    )
    yield world
    world.hive.close()


def change(world: World, first: int, last: int) -> None:
    world.hive.execute("UPDATE customer SET name = 'Changed' WHERE uid BETWEEN %s AND %s", (first, last))


def test_a_snapshot_that_is_cleared_is_not_taken_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the load is done when a person clears `snapshot` and what follows it."""
    operation = world.extract()
    world.snapshot(operation)
    settle = Load._settle

    def settle_and_stop(self: Load, group: groups.Group) -> None:
        settle(self, group)
        raise Unavailable("the CRM is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Load, "_settle", settle_and_stop)
        with pytest.raises(Unavailable):
            world.load(operation, "hubspot")
    change(world, 10, 43)
    world.snapshot(operation)
    counts = world.load(operation, "hubspot")
    world.commit(operation)
    assert world.run()["hubspot"]["delivered"] == 34
    world.assert_in_step("hubspot")
    assert counts["read"] == 90


def test_a_snapshot_that_is_gone_is_not_taken_again_either(world: World, valkey: redis.Redis) -> None:
    operation = world.extract()
    world.snapshot(operation)
    valkey.flushall()
    with pytest.raises(SnapshotError, match="is gone from Redis .*clear the task `extract`"):
        world.snapshot(operation)
    assert world.recovery_log() == ["snapshot"]


def test_a_try_that_is_believed_dead_writes_no_more(world: World) -> None:
    """It has lost its lock, and stands still in the middle of the snapshot until the next try has taken it."""
    operation = world.extract()
    rows = [b"%d\n" % number * 200 for number in range(20)]

    def read() -> Iterator[bytes]:
        yield from rows[:10]
        world.snapshots.write(operation.snapshot_id, [b"next try\n"] * 500, 2, ("name",))
        yield from rows[10:]

    with pytest.raises(Superseded, match="a newer try of this task takes the snapshot"):
        world.snapshots.write(operation.snapshot_id, read(), 1, ("name",))
    kept = b"".join(chunk for _, chunk in world.snapshots.chunks(operation.snapshot_id))
    assert kept == b"next try\n" * 500


def test_a_window_ends_where_it_is_safe_to_read_when_its_snapshot_is_taken(world: World) -> None:
    """What is changed between `extract` and `snapshot` does not wait for the next run."""
    operation = world.extract()
    change(world, 10, 14)
    world.settle()
    world.snapshot(operation)
    assert world.end(operation) > operation.upper
    assert world.load(operation, "hubspot")["delivered"] == 90
    world.commit(operation)
    assert world.watermark("hubspot") == world.end(operation)
    world.assert_in_step("hubspot")
    assert world.run()["hubspot"]["read"] == 0


def test_what_commits_while_the_snapshot_is_taken_is_for_the_next_run(world: World) -> None:
    """A transaction that began before the snapshot holds the end of the window back."""
    operation = world.extract()
    with psycopg.connect(world.dsn) as writer:
        writer.execute("UPDATE customer SET name = 'Late' WHERE uid = 10")
        world.snapshot(operation)
        began = writer.execute("SELECT now()").fetchone()
    assert began is not None
    assert world.end(operation) <= began[0]
    assert world.load(operation, "hubspot")["delivered"] == 90
    world.commit(operation)
    assert world.run()["hubspot"]["delivered"] == 1
    world.assert_in_step("hubspot")


@pytest.mark.parametrize("until", [{}, {"until": "2036-01-01T00:00:00Z"}])
def test_the_window_of_a_backfill_stays(world: World, until: dict[str, str]) -> None:
    operation = world.extract(since="2026-01-01T00:00:00Z", **until)
    world.settle()
    world.snapshot(operation)
    assert world.end(operation) == operation.upper


def test_an_end_that_a_try_has_moved_is_read_up_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It died before there was a snapshot, and now a prepared transaction lets no window move on."""
    operation = world.extract()
    world.settle()

    def begin_and_die(_: SnapshotStore, __: str, rows: Iterator[bytes], *___: Any) -> None:
        next(rows)
        raise SnapshotError("Redis is gone")

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotStore, "write", begin_and_die)
        with pytest.raises(SnapshotError):
            world.snapshot(operation)
    moved = world.end(operation)
    assert moved > operation.upper
    bound = LeadStore.bound
    monkeypatch.setattr(LeadStore, "bound", lambda self: replace(bound(self), prepared=1))
    world.settle()
    world.snapshot(operation)
    assert world.end(operation) == moved
