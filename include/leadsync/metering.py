"""Counts what the loads do: leads by what became of them, requests and their latency, freshness, quotas.

Many short processes do the work, so the counters are shared, in Redis: one hash per destination that only grows, for
Prometheus, and one per minute for a while, for what is so now. Not in PostgreSQL: a sum over the operation log falls
when retention removes rows, and a counter that falls looks like a restart; in a table of counters the shards of a load
would wait for each other's rows. A Redis that has lost its data is a restart of the counters, which Prometheus knows.

A request costs a lookup and two additions in memory. The counts leave every few seconds and at the end, in one round
trip; what Redis does not take then is kept for the next time, and fails no load. What a process that is killed has
counted since is lost: these are figures to watch by, the sums that must hold are in the operation log.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isinf
from typing import NamedTuple, cast

import redis
import structlog

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 5.0
RECENT_MINUTES = 15  # what counts as now
KEPT_SECONDS = 90 * 86_400  # of a destination that is no more
QUOTA_SECONDS = 86_400  # what a CRM told longer ago says nothing of today

# Upper bounds in seconds; the last bucket of each has none.
BOUNDS: Mapping[str, tuple[float, ...]] = {
    "latency": (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, inf),
    "freshness": (0.5, 1, 2, 3, 4, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600, 21_600, 86_400,
                  inf),
    "load": (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 10_800, inf),
}  # fmt: skip
# The counters of each bucket.
BUCKETS = {what: tuple(f"{what}:{bound:g}" for bound in bounds) for what, bounds in BOUNDS.items()}
STATUSES = ("2xx", "3xx", "4xx", "429", "5xx", "none")  # 429 is not among 4xx; none: there was no whole reply
RESULTS = ("delivered", "unchanged", "overtaken", "not_routed", "dead")


class Quota(NamedTuple):
    """What a CRM told of its longer limit: requests (or credits) that are left, of how many where it tells that too."""

    left: int
    limit: int | None


class Meter:
    """Counts in one process; thread-safe. `quota` reads what a reply's headers tell of a quota."""

    def __init__(self, quota: Callable[[Mapping[str, str]], Quota | None] = lambda headers: None) -> None:
        self._quota = quota
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._headers: Mapping[str, str] | None = None
        self._kept: tuple[redis.Redis, str] | None = None
        self._due = 0.0

    @contextmanager
    def kept(self, client: redis.Redis, pipeline: str, destination: str = "") -> Iterator[None]:
        """Meanwhile, and at its end, the counts go to Redis. Without a destination they are the pipeline's own."""
        self._kept = client, _key(pipeline, destination)
        self._due = time.monotonic() + FLUSH_SECONDS
        try:
            yield
        finally:
            self.flush()

    def request(self, status: int | None, seconds: float, headers: Mapping[str, str]) -> None:
        """One request has ended: its status (None without a whole reply), how long it took, the reply's headers."""
        with self._lock:
            self._counts[f"requests:{_class(status)}"] += 1
            self._observe("latency", seconds, 1)
            if status is not None:
                self._headers = headers
        if time.monotonic() >= self._due:
            self.flush()

    def observe(self, what: str, seconds: float, many: int = 1) -> None:
        """So many times something took so long; `what` is one of `BOUNDS`."""
        with self._lock:
            self._observe(what, seconds, many)

    def add(self, counts: Mapping[str, int]) -> None:
        """Other counters: `retries`, and those called `leads:…`, `loads:…` and `snapshot:…`."""
        with self._lock:
            self._counts.update(counts)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Times one try of a load, and counts how it ended."""
        began, result = time.monotonic(), "failure"
        try:
            yield
            result = "success"
        finally:
            self.observe("load", time.monotonic() - began)
            self.add({f"loads:{result}": 1})

    def flush(self) -> None:
        """Hands over what was counted; keeps it when Redis does not take it."""
        with self._lock:
            self._due = time.monotonic() + FLUSH_SECONDS
            if self._kept is None:
                return
            counts, self._counts = self._counts, Counter()
            headers, self._headers = self._headers, None
        quota = None if headers is None else self._quota(headers)
        try:
            _write(*self._kept, counts, quota)
        except redis.RedisError as error:
            log.warning("not counted", reason=type(error).__name__)
            with self._lock:
                self._counts.update(counts)

    def _observe(self, what: str, seconds: float, many: int) -> None:
        self._counts[BUCKETS[what][bisect_left(BOUNDS[what], seconds)]] += many
        self._counts[f"{what}:sum"] += round(seconds * 1_000_000) * many


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters of one destination, by name: all that was ever counted, and that of the last `seconds`.

    `quota` is what the CRM told last, None where it did not tell of late.
    """

    total: Mapping[str, int]
    recent: Mapping[str, int]
    seconds: float
    quota: Quota | None


def read(client: redis.Redis, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Reading]:
    """The counters of destinations (pipeline, name; of a pipeline itself with an empty name). Raises RedisError."""
    now = time.time()
    minute = int(now // 60)
    found: dict[tuple[str, str], Reading] = {}
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            key = _key(*name)
            pipeline.hgetall(key)
            for at in range(minute - RECENT_MINUTES + 1, minute + 1):
                pipeline.hgetall(_minute(key, at))
        answers = iter([_numbers(answer) for answer in pipeline.execute()])
    for name in names:
        total, recent = next(answers), Counter[str]()
        for _ in range(RECENT_MINUTES):
            recent.update(next(answers))
        told = None
        if total.get("quota:at", 0) > now - QUOTA_SECONDS:
            told = Quota(total["quota:left"], total.get("quota:limit"))
        found[name] = Reading(total, recent, (RECENT_MINUTES - 1) * 60 + now % 60, told)
    return found


def histogram(counts: Mapping[str, int], what: str) -> tuple[list[tuple[float, int]], float]:
    """Upper bounds with how many lay at or below each, and the sum in seconds."""
    below, found = 0, []
    for bound, name in zip(BOUNDS[what], BUCKETS[what], strict=True):
        below += counts.get(name, 0)
        found.append((bound, below))
    return found, counts.get(f"{what}:sum", 0) / 1_000_000


def quantile(counts: Mapping[str, int], what: str, share: float) -> float | None:
    """Seconds within which that share lay, evenly spread in its bucket (as Prometheus has it); None without any."""
    buckets, _ = histogram(counts, what)
    wanted = share * buckets[-1][1]
    if not wanted:
        return None
    lower, before = 0.0, 0
    for bound, below in buckets:
        if below >= wanted:
            return lower if isinf(bound) else lower + (bound - lower) * (wanted - before) / (below - before)
        lower, before = bound, below
    return lower


def _class(status: int | None) -> str:
    if status is None:
        return "none"
    return "429" if status == 429 else f"{status // 100}xx"


def _key(pipeline: str, destination: str) -> str:
    # The braces keep the keys of one destination on one node of a cluster.
    return f"leadsync:metrics:{{{pipeline}:{destination}}}"


def _minute(key: str, minute: int) -> str:
    return f"{key}:minute:{minute}"


def _write(client: redis.Redis, key: str, counts: Mapping[str, int], quota: Quota | None) -> None:
    now = time.time()
    minute = _minute(key, int(now // 60))
    with client.pipeline() as pipeline:
        for name, number in counts.items():
            if number:
                pipeline.hincrby(key, name, number)
                pipeline.hincrby(minute, name, number)
        if quota is not None:
            told = {"quota:left": quota.left, "quota:limit": quota.limit, "quota:at": int(now)}
            pipeline.hset(key, mapping={name: value for name, value in told.items() if value is not None})
        if len(pipeline):
            pipeline.expire(minute, (RECENT_MINUTES + 2) * 60)
            pipeline.expire(key, KEPT_SECONDS)
            pipeline.execute()


def _numbers(answer: object) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in cast(dict[bytes, bytes], answer).items()}
