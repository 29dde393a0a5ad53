"""The counters in Redis: what a meter counts arrives there once, also from several threads, and fails nobody."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import inf

import pytest
import redis
from tests.support.servers import free_port

from leadsync import metering
from leadsync.metering import BOUNDS, Meter, Quota

OWN = ("leads", "hubspot")


def told(headers: Mapping[str, str]) -> Quota | None:
    return Quota(int(headers["left"]), 100) if "left" in headers else None


def reading(client: redis.Redis) -> metering.Reading:
    return metering.read(client, [OWN])[OWN]


def test_all_that_was_counted_is_read_back(valkey: redis.Redis) -> None:
    meter = Meter(told)
    with meter.kept(valkey, *OWN):
        for status, seconds in ((200, 0.004), (201, 0.06), (302, 0.06), (404, 0.4), (429, 2.5), (503, 70.0), (None, 5)):
            meter.request(status, seconds, {"left": "7"})
        meter.add({"leads:delivered": 5, "leads:dead": 0})
        assert reading(valkey).total == {}, "nothing leaves before its time"
    found = reading(valkey)
    assert found.total == found.recent | {"quota:left": 7, "quota:limit": 100, "quota:at": found.total["quota:at"]}
    assert {status: found.total[f"requests:{status}"] for status in metering.STATUSES} == {
        "2xx": 2, "3xx": 1, "4xx": 1, "429": 1, "5xx": 1, "none": 1,
    }  # fmt: skip
    buckets, total = metering.histogram(found.total, "latency")
    assert buckets[0] == (0.01, 1)
    assert buckets[-1] == (inf, 7)
    assert total == pytest.approx(0.004 + 0.06 * 2 + 0.4 + 2.5 + 70 + 5)
    assert found.quota == Quota(7, 100)
    assert "leads:dead" not in found.total, "what is none makes no field"
    assert 840 <= found.seconds < 900


def test_counters_only_grow_and_minutes_pass(valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(metering.time, "time", lambda: now)
    for _ in range(3):
        with (meter := Meter()).kept(valkey, *OWN):
            meter.add({"retries": 2})
        now += 60
    assert (reading(valkey).total["retries"], reading(valkey).recent["retries"]) == (6, 6)
    now += 60 * (metering.RECENT_MINUTES - 2)
    assert (reading(valkey).total["retries"], reading(valkey).recent["retries"]) == (6, 2)
    now += 60
    assert reading(valkey).recent.get("retries", 0) == 0


def test_what_a_crm_told_yesterday_is_not_told_today(valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    with (meter := Meter(told)).kept(valkey, *OWN):
        meter.request(200, 0.1, {"left": "7"})
    with (meter := Meter(told)).kept(valkey, *OWN):
        meter.request(200, 0.1, {})
    assert reading(valkey).quota == Quota(7, 100), "a reply that tells nothing takes nothing back"
    late = metering.time.time() + metering.QUOTA_SECONDS + 1
    monkeypatch.setattr(metering.time, "time", lambda: late)
    assert reading(valkey).quota is None


def test_every_key_ends_by_itself(valkey: redis.Redis) -> None:
    with (meter := Meter(told)).kept(valkey, *OWN):
        meter.request(200, 0.1, {"left": "7"})
    keys = list(valkey.scan_iter())
    assert len(keys) == 2
    assert all(valkey.ttl(key) > 0 for key in keys)


def test_threads_lose_nothing(valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "FLUSH_SECONDS", 0.0)
    meter = Meter()
    with meter.kept(valkey, *OWN), ThreadPoolExecutor(8) as pool:
        for _ in range(400):
            pool.submit(meter.request, 200, 0.1, {})
    assert reading(valkey).total["requests:2xx"] == 400
    assert metering.histogram(reading(valkey).total, "latency")[0][-1] == (inf, 400)


def test_what_redis_did_not_take_goes_there_later(valkey: redis.Redis) -> None:
    away = redis.Redis(port=free_port())
    meter = Meter()
    with meter.kept(away, *OWN):
        meter.request(200, 0.1, {})
    valkey.config_set("maxmemory", 1)
    try:
        with meter.kept(valkey, *OWN):
            meter.add({"retries": 1})
    finally:
        valkey.config_set("maxmemory", 0)
    assert reading(valkey).total == {}
    with meter.kept(valkey, *OWN):
        pass
    assert reading(valkey).total["requests:2xx"] == 1
    assert reading(valkey).total["retries"] == 1


def test_a_load_that_failed_is_timed_and_counted(valkey: redis.Redis) -> None:
    meter = Meter()
    with meter.kept(valkey, *OWN):
        with pytest.raises(ValueError, match="broken"), meter.loading():
            raise ValueError("broken")
        with meter.loading():
            pass
    total = reading(valkey).total
    assert (total["loads:failure"], total["loads:success"]) == (1, 1)
    assert metering.histogram(total, "load")[0][0] == (0.5, 2)


def test_quantiles_are_those_of_prometheus() -> None:
    assert metering.quantile({}, "latency", 0.5) is None
    counts = {"latency:0.01": 2, "latency:0.05": 2}
    assert metering.quantile(counts, "latency", 0.5) == pytest.approx(0.01)
    assert metering.quantile(counts, "latency", 0.75) == pytest.approx(0.025 + (0.05 - 0.025) / 2)
    assert metering.quantile({"latency:inf": 1}, "latency", 0.99) == 60
    assert all(bounds == tuple(sorted(bounds)) and bounds[-1] == inf for bounds in BOUNDS.values())
