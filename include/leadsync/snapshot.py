"""The rows of a window, kept in Redis under the sync operation's id: for the loads, for retries and for recovery.

Chunks are blocks of whole COPY lines, sealed; the manifest is written last, so a snapshot without one does not
exist. Every key carries a time to live.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import cast

import orjson
import redis

from leadsync.errors import RedisAway, SnapshotError, Superseded, Unavailable
from leadsync.metering import Meter
from leadsync.models import WHOLE, Share
from leadsync.sealing import Sealer

CHUNK_BYTES = 1 << 20
# So many keys are looked for at once.
KEYS_AT_ONCE = 256
# Keeps a part of a snapshot and says who writes, by sequence. Not when somebody with a higher one does: a try that is
# believed dead and goes on would mix its chunks with those of the next try, which has read other rows.
KEEP = """
local writer = redis.call('GET', KEYS[2])
if writer and tonumber(writer) > tonumber(ARGV[2]) then
    return 0
end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1
"""
AGAIN = "clear the task `extract` of this run (it covers the same window again), or let the next run do it"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot holds: rows, chunks, bytes as stored; `columns` in the order of the lines."""

    rows: int
    chunks: int
    stored_bytes: int
    sequence: int
    columns: tuple[str, ...]


class SnapshotStore:
    """Snapshots of one pipeline.

    Raises SnapshotError for all that a person has to know; `again` is what to do then. `stored`, `remains` and `drop`
    raise Unavailable when Redis can't be reached.
    """

    def __init__(
        self, client: redis.Redis, sealer: Sealer, pipeline: str, ttl_seconds: int, again: str = AGAIN
    ) -> None:
        self._redis = client
        self._keep = client.register_script(KEEP)
        self._sealer = sealer
        self._pipeline = pipeline
        self._prefix = f"leadsync:{pipeline}:snapshot"
        self._ttl = ttl_seconds
        self._again = again

    def write(
        self, snapshot_id: str, rows: Iterable[bytes | bytearray | memoryview], sequence: int, columns: tuple[str, ...]
    ) -> Manifest:
        """Stores a stream of COPY lines at constant memory and returns the manifest.

        Raises Superseded when somebody with a higher sequence has begun to write the same snapshot.
        """
        count, written = 0, list[int]()
        writing: Future[int] | None = None
        with ThreadPoolExecutor(1, "snapshot") as pool:  # seals and writes a chunk while the next one is read
            for lines, data in _chunks(rows):
                count += lines
                if writing is not None:
                    written.append(writing.result())
                writing = pool.submit(self._write, snapshot_id, len(written), data, sequence)
            if writing is not None:
                written.append(writing.result())
        manifest = Manifest(count, len(written), sum(written), sequence, columns)
        self._write(snapshot_id, "manifest", orjson.dumps(asdict(manifest)), sequence)
        return manifest

    def count(self, manifest: Manifest) -> None:
        """Counts a snapshot that was taken, for those who watch."""
        meter = Meter()
        with meter.kept(self._redis, self._pipeline):
            meter.add({"snapshot:rows": manifest.rows, "snapshot:bytes": manifest.stored_bytes})

    def manifest(self, snapshot_id: str) -> Manifest:
        """The manifest of a complete snapshot."""
        data = orjson.loads(self._open(f"{self._prefix}:{snapshot_id}:manifest"))
        return Manifest(**{**data, "columns": tuple(data["columns"])})

    def check_columns(self, snapshot_id: str, columns: tuple[str, ...]) -> None:
        """Raises SnapshotError unless the lines have these columns, in this order."""
        if self.manifest(snapshot_id).columns != columns:
            raise SnapshotError(
                f"the `columns` of the pipeline file have changed since the snapshot {snapshot_id} was taken; "
                f"{self._again}"
            )

    def chunk(self, snapshot_id: str, index: int) -> bytes:
        """One chunk: whole COPY lines."""
        return self._open(f"{self._prefix}:{snapshot_id}:{index}")

    def chunks(self, snapshot_id: str, first: int = 0, share: Share = WHOLE) -> Iterator[tuple[int, bytes]]:
        """The chunks (of one shard) from `first` on, with their places."""
        for index in range(first, self.manifest(snapshot_id).chunks):
            if index % share.of == share.shard:
                yield index, self.chunk(snapshot_id, index)

    def stored(self) -> dict[str, bool]:
        """The ids of all snapshots of which Redis holds anything, and whether they are complete."""
        start, found = f"{self._prefix}:", dict[str, bool]()
        with _reachable():
            for key in self._redis.scan_iter(f"{start}*", count=1000):
                snapshot_id, _, name = key.decode().removeprefix(start).partition(":")
                found[snapshot_id] = found.get(snapshot_id, False) or name == "manifest"
        return found

    def remains(self, snapshot_id: str) -> Iterator[bytes]:
        """All chunks that are there, also what an earlier try has left behind the last one."""
        for keys in self._present(snapshot_id):
            for key in keys:
                if key.endswith((":manifest", ":writer")):
                    continue
                with _reachable():
                    blob = self._redis.get(key)
                if blob is not None:  # not expired since
                    yield self._sealer.open(cast(bytes, blob), key)

    def drop(self, snapshot_id: str) -> int:
        """Removes all that is stored of a snapshot, without blocking Redis; returns the bytes that it took there.

        The manifest goes first: from then on the snapshot does not exist.
        """
        freed = 0
        for keys in self._present(snapshot_id):
            freed += sum(keys.values())
            with _reachable():
                self._redis.unlink(*keys)
        return freed

    def _present(self, snapshot_id: str) -> Iterator[dict[str, int]]:
        """The keys of a snapshot and their bytes, some at a time, the manifest first.

        How many chunks there are only the manifest tells, and one that was never finished has none: so this goes on
        until a whole batch is missing. Chunks that expire do so in order, each at its time.
        """
        names: list[str | int] = ["manifest", "writer"]
        for first in itertools.count(step=KEYS_AT_ONCE):
            names += range(first, first + KEYS_AT_ONCE)
            keys = [f"{self._prefix}:{snapshot_id}:{name}" for name in names]
            with _reachable(), self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.strlen(key)
                sizes = pipeline.execute()
            found = {key: size for key, size in zip(keys, sizes, strict=True) if size}
            if not found:
                return
            yield found
            names.clear()

    def eviction_policy(self) -> str | None:
        """Redis's eviction policy when it may drop snapshots, None when all is well or Redis does not tell."""
        try:
            policy = str(self._redis.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction"))
        except redis.RedisError:
            return None
        return None if policy == "noeviction" else policy

    def _write(self, snapshot_id: str, name: str | int, data: bytes, sequence: int) -> int:
        """Returns the bytes as stored."""
        start = f"{self._prefix}:{snapshot_id}"
        key = f"{start}:{name}"
        blob = self._sealer.seal(data, key)
        try:
            kept = self._keep(keys=[key, f"{start}:writer"], args=[blob, sequence, self._ttl])
        except redis.exceptions.OutOfMemoryError:
            raise SnapshotError(
                "Redis (connection leadsync_redis) is full: raise `maxmemory` or shorten `snapshot_ttl_hours`, "
                f"then {self._again}"
            ) from None
        except redis.RedisError as error:
            raise SnapshotError(
                f"Redis (connection leadsync_redis) did not take the snapshot ({type(error).__name__}); "
                f"once it is back {self._again}"
            ) from None
        if not kept:
            raise Superseded("a newer try of this task takes the snapshot; nothing was lost")
        return len(blob)

    def _open(self, key: str) -> bytes:
        try:
            blob = self._redis.get(key)
        except redis.RedisError as error:
            raise RedisAway(
                f"Redis (connection leadsync_redis) can't be read ({type(error).__name__}); "
                f"once it is back {self._again}"
            ) from None
        if blob is None:
            raise SnapshotError(f"the snapshot key {key} is gone from Redis (expired, evicted or lost); {self._again}")
        try:
            return self._sealer.open(cast(bytes, blob), key)
        except SnapshotError as error:
            raise SnapshotError(f"{error}; {self._again}") from None


def _chunks(rows: Iterable[bytes | bytearray | memoryview]) -> Iterator[tuple[int, bytes]]:
    """The rows in blocks, each with its number of rows."""
    # Not a list of rows: the garbage collector would look at each row again and again while it lives.
    chunk, size, count = io.BytesIO(), 0, 0
    for row in rows:
        size += chunk.write(row)
        count += 1
        if size >= CHUNK_BYTES:
            yield count, chunk.getvalue()
            chunk, size, count = io.BytesIO(), 0, 0
    if count:
        yield count, chunk.getvalue()


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise Unavailable(f"Redis (connection leadsync_redis) can't be used ({type(error).__name__})") from None
