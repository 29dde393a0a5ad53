"""Snapshots in a real Valkey."""

import base64

import pytest
import redis

from leadsync import snapshot
from leadsync.errors import SnapshotError
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore

KEY = base64.b64encode(bytes(32)).decode()
ROWS = [b"A\t%d\tname\n" % n for n in range(300_000)]


@pytest.fixture
def store(valkey: redis.Redis) -> SnapshotStore:
    return SnapshotStore(valkey, Sealer(KEY), "leads", 3600)


def test_what_was_stored_comes_back_and_expires(store: SnapshotStore, valkey: redis.Redis) -> None:
    manifest = store.write("a1", ROWS, 7, ("appkey", "uid", "name"))
    assert manifest == store.manifest("a1")
    assert (manifest.rows, manifest.sequence) == (300_000, 7)
    assert manifest.chunks > 2
    assert b"".join(chunk for _, chunk in store.chunks("a1")) == b"".join(ROWS)
    assert all(0 < valkey.ttl(key) <= 3600 for key in valkey.scan_iter())


def test_a_snapshot_without_manifest_does_not_exist(store: SnapshotStore, valkey: redis.Redis) -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield ROWS[0]
        raise RuntimeError("the lead store died")

    with pytest.raises(RuntimeError):
        store.write("a1", broken(), 1, ("appkey",))
    with pytest.raises(SnapshotError, match="is gone from Redis .*clear the task `extract`"):
        store.manifest("a1")


@pytest.mark.parametrize(("key", "value"), [("0", None), ("0", b"x"), ("1", "0")])
def test_a_lost_damaged_or_swapped_chunk_says_what_to_do(
    store: SnapshotStore, valkey: redis.Redis, key: str, value: bytes | str | None
) -> None:
    store.write("a1", ROWS, 1, ("appkey", "uid", "name"))
    place = f"leadsync:leads:snapshot:a1:{key}"
    if value is None:
        valkey.delete(place)
    else:
        stolen = value if isinstance(value, bytes) else valkey.get(f"leadsync:leads:snapshot:a1:{value}")
        valkey.set(place, stolen)
    with pytest.raises(SnapshotError, match="clear the task `extract`"):
        list(store.chunks("a1"))


@pytest.mark.parametrize("lost", [(), ("manifest",), ("manifest", "1"), ("0", "1", "2", "3", "4")])
def test_a_snapshot_is_dropped_whole_and_no_other(
    store: SnapshotStore, valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...]
) -> None:
    monkeypatch.setattr(snapshot, "KEYS_AT_ONCE", 2)
    store.write("a1", ROWS, 1, ("appkey", "uid", "name"))
    store.write("a10", ROWS[:2], 2, ("appkey", "uid", "name"))
    SnapshotStore(valkey, Sealer(KEY), "other", 60).write("a1", ROWS[:2], 3, ("appkey", "uid", "name"))
    for name in lost:
        valkey.delete(f"leadsync:leads:snapshot:a1:{name}")
    size = sum(valkey.strlen(key) for key in valkey.scan_iter("leadsync:leads:snapshot:a1:*"))
    assert store.stored() == {"a1": "manifest" not in lost, "a10": True}
    assert size > 0
    assert store.drop("a1") == size
    assert store.stored() == {"a10": True}
    assert store.drop("a1") == 0
    assert sorted(valkey.scan_iter()) == [
        f"leadsync:{snapshot_id}:{name}".encode()
        for snapshot_id in ("leads:snapshot:a10", "other:snapshot:a1")
        for name in ("0", "manifest", "writer")
    ]


def test_what_remains_includes_chunks_of_an_earlier_longer_try(store: SnapshotStore) -> None:
    store.write("a1", ROWS, 1, ("appkey", "uid", "name"))
    assert b"".join(store.remains("a1")) == b"".join(ROWS)
    store.write("a1", ROWS[:2], 2, ("appkey", "uid", "name"))
    assert b"".join(chunk for _, chunk in store.chunks("a1")) == b"".join(ROWS[:2])
    assert ROWS[-1] in b"".join(store.remains("a1"))
    store.drop("a1")
    assert list(store.remains("a1")) == []


def test_a_full_redis_says_what_to_do(store: SnapshotStore, valkey: redis.Redis) -> None:
    valkey.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(SnapshotError, match="is full: raise `maxmemory`"):
            store.write("a1", ROWS, 1, ("appkey", "uid", "name"))
    finally:
        valkey.config_set("maxmemory", "0")


def test_an_eviction_policy_that_drops_snapshots_is_reported(store: SnapshotStore, valkey: redis.Redis) -> None:
    assert store.eviction_policy() is None
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert store.eviction_policy() == "allkeys-lru"
    finally:
        valkey.config_set("maxmemory-policy", "noeviction")
