"""The rows of a window, kept in Redis under the sync operation's id: for the loads, for retries and for recovery.

Chunks are blocks of whole COPY lines, sealed; the manifest is written last, so a snapshot without one does not
exist. Every key carries a time to live.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import cast

import orjson
import redis

from leadsync.errors import RedisAway, SnapshotError
from leadsync.sealing import Sealer

CHUNK_BYTES = 1 << 20
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
    """Snapshots of one pipeline. Raises SnapshotError for all that a person has to know; `again` is what to do then."""

    def __init__(
        self, client: redis.Redis, sealer: Sealer, pipeline: str, ttl_seconds: int, again: str = AGAIN
    ) -> None:
        self._redis = client
        self._sealer = sealer
        self._prefix = f"leadsync:{pipeline}:snapshot"
        self._ttl = ttl_seconds
        self._again = again

    def write(
        self, snapshot_id: str, rows: Iterable[bytes | bytearray | memoryview], sequence: int, columns: tuple[str, ...]
    ) -> Manifest:
        """Stores a stream of COPY lines at constant memory and returns the manifest."""
        count = chunks = stored = size = 0
        lines: list[bytes | bytearray | memoryview] = []

        def flush() -> None:
            nonlocal chunks, stored, size
            blob = self._seal(b"".join(lines), f"{self._prefix}:{snapshot_id}:{chunks}")
            chunks, stored, size = chunks + 1, stored + len(blob), 0
            lines.clear()

        for row in rows:
            lines.append(row)
            count += 1
            size += len(row)
            if size >= CHUNK_BYTES:
                flush()
        if lines:
            flush()
        manifest = Manifest(count, chunks, stored, sequence, columns)
        self._seal(orjson.dumps(asdict(manifest)), f"{self._prefix}:{snapshot_id}:manifest")
        return manifest

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

    def chunks(self, snapshot_id: str, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """The chunks from `first` on, with their places."""
        for index in range(first, self.manifest(snapshot_id).chunks):
            yield index, self.chunk(snapshot_id, index)

    def eviction_policy(self) -> str | None:
        """Redis's eviction policy when it may drop snapshots, None when all is well or Redis does not tell."""
        try:
            policy = str(self._redis.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction"))
        except redis.RedisError:
            return None
        return None if policy == "noeviction" else policy

    def _seal(self, data: bytes, key: str) -> bytes:
        blob = self._sealer.seal(data, key)
        try:
            self._redis.set(key, blob, ex=self._ttl)
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
        return blob

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
