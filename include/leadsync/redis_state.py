"""What Redis tells those who watch: memory, snapshots held, whether it keeps what it is given, budgets of requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor
from typing import cast

import redis

from leadsync.budget import SLICE, SLICES, account_key, redis_keys
from leadsync.config import Destination, Pipeline
from leadsync.crm.base import Endpoint, validated_settings
from leadsync.crm.registry import adapter_class
from leadsync.errors import LeadsyncError

# Keys that are looked at for snapshots; beyond it the count says "or more".
KEYS = 50_000
KEYS_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit over a longer time: `used` of `allowed` requests in `seconds`."""

    seconds: float
    used: int
    allowed: int


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of one destination's account. `paused_until` is a pause that the CRM asked for (429), `spent_until`
    when a quota is filled again."""

    quotas: Sequence[Quota]
    paused_until: datetime | None
    spent_until: datetime | None


@dataclass(frozen=True, slots=True)
class RedisState:
    """Bytes, keys, complete snapshots (`more`: or more), and the requests by connection.

    `writes`: whether its last write to disk went well, as far as it tells.
    """

    used_memory: int
    max_memory: int
    keys: int
    snapshots: int
    more: bool
    eviction: str | None
    append_only: bool
    saves: bool
    writes: bool
    requests: Mapping[str, Requests]


def ask(client: redis.Redis, pipelines: Sequence[Pipeline], endpoint: Callable[[Destination], Endpoint]) -> RedisState:
    """Looks once; `endpoint` is what a destination's connection says. Raises LeadsyncError and redis.RedisError."""
    told = client.info()
    snapshots, more = _snapshots(client)
    requests = {}
    for target in {target.conn_id: target for each in pipelines for target in each.destinations}.values():
        try:
            requests[target.conn_id] = _requests(client, endpoint(target), target)
        except LeadsyncError:
            continue  # a connection that is missing: the loads say so
    return RedisState(
        used_memory=told["used_memory"],
        max_memory=told.get("maxmemory", 0),
        keys=client.dbsize(),
        snapshots=snapshots,
        more=more,
        eviction=told.get("maxmemory_policy"),
        append_only=bool(told.get("aof_enabled")),
        saves=bool(told.get("rdb_last_save_time")) and _saves(client),
        writes="err" not in (told.get("rdb_last_bgsave_status"), told.get("aof_last_write_status")),
        requests=requests,
    )


def _saves(client: redis.Redis) -> bool:
    """Whether it writes dumps by itself; managed Redis may not tell."""
    try:
        return bool(cast(dict[str, str], client.config_get("save")).get("save"))
    except redis.RedisError:
        return False


def _snapshots(client: redis.Redis) -> tuple[int, bool]:
    cursor, found, seen = 0, 0, 0
    while True:
        cursor, keys = cast(
            tuple[int, list[bytes]], client.scan(cursor, match="leadsync:*:snapshot:*:manifest", count=KEYS_AT_ONCE)
        )
        found, seen = found + len(keys), seen + KEYS_AT_ONCE
        if cursor == 0 or seen >= KEYS:
            return found, cursor != 0


def _requests(client: redis.Redis, endpoint: Endpoint, target: Destination) -> Requests:
    adapter = adapter_class(target.adapter)
    settings = validated_settings(adapter, target)
    counted = [limit for limit in settings.limits(adapter.limits) if not limit.spaced]
    names = redis_keys(account_key(endpoint.url, endpoint.login, endpoint.password), counted)
    with client.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.hmget(names[0], "paused", "spent")
        for name in names[5:]:
            pipeline.hgetall(name)
        (seconds, microseconds), (paused, spent), *counts = pipeline.execute()
    now = seconds * 1_000_000 + microseconds
    quotas = []
    for limit, held in zip(counted, counts, strict=True):
        width = round(limit.seconds * SLICE * 1_000_000)
        present = now // width
        slices = {int(at): int(number) for at, number in held.items()}
        used = sum(number for at, number in slices.items() if at >= present - SLICES)
        quotas.append(Quota(limit.seconds, used, max(1, floor(limit.requests * (1 - settings.reserve)))))
    return Requests(quotas, _until(paused, now), _until(spent, now))


def _until(at: bytes | None, now: int) -> datetime | None:
    return datetime.fromtimestamp(int(at) / 1_000_000, UTC) if at and int(at) > now else None
