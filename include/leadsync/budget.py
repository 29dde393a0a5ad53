"""One budget of requests per CRM account, kept in Redis and shared by every worker, shard, run and DAG.

**Limits of up to a minute** are kept by spacing: one request every `seconds × 1.03 / (requests × (1 - reserve))`, a
token bucket that holds one token. A half-open window of length W holds at most ceil(W / spacing) requests, so any
window of the vendor's holds at most its limit, also when some requests take 3 % of the window longer to arrive than
others; what the reserve leaves makes up for more. **Longer limits** may be spent as fast as the short ones allow. They
are counted in slices of a fiftieth of the window; the slices that are summed reach back 1 % further than the window.
A request takes from all limits or from none, in one script, by Redis's clock.

**Lanes**: `new` goes before `retry`, and that before `bulk`. A waiter is told to come when there is room for
everybody before it and for itself. So a higher lane is served first, a lower one takes what is left, and one that was
killed costs the others a request or two until its place expires. A lane that waits and was passed over nine times is
next: it gets a tenth of the requests, however busy the higher ones are. Of a limit that is counted `bulk` leaves a
fifth, or a backfill in the morning would spend the day of the leads that come in the evening.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from math import ceil, floor, inf
from typing import LiteralString, cast
from urllib.parse import urlsplit
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from leadsync.errors import QuotaExceeded, Unavailable

SPACED_SECONDS = 60.0  # limits of at most so long are kept by spacing
SAFETY = 0.03  # of a limit that is spaced: so much of its window may one request arrive later than another
SLICES = 50  # of the window of a limit that is counted
SLICE = 1.01 / SLICES  # of the window
BULK_SHARE = 0.8  # of a limit that is counted
NAP = 0.5  # seconds; a waiter looks so often whether it is still wanted
FRESH = 0.5  # seconds; a request that could not leave by then takes a new turn, or late ones would leave in a bunch
STALE = 10  # so many turns missed in a row are too many
LONGEST_WAIT = 60.0  # seconds of a pause, and until a spent limit frees requests; longer ones are Airflow's to wait out
BLIP = 5.0  # seconds that Redis may be away

# KEYS: state, who is alive, the queues of the three lanes, the counts of each counted limit.
# ARGV: who asks, its lane, whether more of its threads wait, the spacing in µs, slices; per counted limit: slice in µs,
# budget.
# Returns a verdict (1 go, 0 wait, -1 paused, -2 spent), Redis's time and the time that the verdict is about, in µs.
TAKE: LiteralString = """
local AHEAD, ALIVE, PASSES, DAY = 250000, 3000000, 9, 86400000
local state, alive, id, lane = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
local spacing, behind = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function read(name) return tonumber(redis.call('HGET', state, name) or 0) end
local function waiters(of) return redis.call('ZCARD', KEYS[2 + of]) end
local function due(of) return read('passed' .. of) >= PASSES and waiters(of) > 0 end
local function enqueue() redis.call('ZADD', KEYS[2 + lane], redis.call('HINCRBY', state, 'ticket', 1), id) end

-- Limits that are counted, and what the CRM itself called spent.
local spent, slices = read('spent'), {}
for limit = 6, #KEYS do
  local width, budget = tonumber(ARGV[2 * limit - 6]), tonumber(ARGV[2 * limit - 5])
  local slice, used = math.floor(now / width), 0
  local oldest, counts = slice, redis.call('HGETALL', KEYS[limit])
  for field = 1, #counts, 2 do
    local at = tonumber(counts[field])
    if at < slice - behind then
      redis.call('HDEL', KEYS[limit], counts[field])
    else
      used, oldest = used + counts[field + 1], math.min(oldest, at)
    end
  end
  if used >= budget then spent = math.max(spent, (oldest + behind + 1) * width) end
  slices[limit] = slice
end
if spent > now then return {-2, now, spent} end

-- The place in the queue. A waiter that was not heard of for three seconds has died.
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', now)) do
  redis.call('ZREM', alive, dead)
  for other = 1, 3 do redis.call('ZREM', KEYS[2 + other], dead) end
end
if not redis.call('ZSCORE', KEYS[2 + lane], id) then enqueue() end
redis.call('ZADD', alive, now + ALIVE, id)
for key = 1, 5 do redis.call('PEXPIRE', KEYS[key], DAY) end
local before = redis.call('ZRANK', KEYS[2 + lane], id)
if before > 0 or not due(lane) then
  for other = 1, 3 do
    if other < lane then before = before + waiters(other) end
    if other > lane and due(other) then before = before + 1 end
  end
end

-- The next free slot; it may be taken a quarter of a second ahead, so that none is lost while a waiter is on its way.
local paused, furthest = read('paused'), now + AHEAD + spacing
if paused > now then return {-1, now, paused} end
if read('next') > furthest then redis.call('HSET', state, 'next', furthest) end -- the clock was set back
local slot = math.max(now, read('next'))
local opens = slot + before * spacing - AHEAD
if opens > now then return {0, now, opens} end

redis.call('HSET', state, 'next', slot + spacing, 'passed' .. lane, 0)
for other = lane + 1, 3 do
  if waiters(other) > 0 then redis.call('HINCRBY', state, 'passed' .. other, 1) end
end
for limit, slice in pairs(slices) do
  redis.call('HINCRBY', KEYS[limit], slice, 1)
  redis.call('PEXPIRE', KEYS[limit], math.ceil(ARGV[2 * limit - 6] * (behind + 2) / 1000))
end
redis.call('ZREM', KEYS[2 + lane], id)
if ARGV[3] == '1' then enqueue() else redis.call('ZREM', alive, id) end
return {1, now, slot}
"""
GO, PAUSED, SPENT = 1, -1, -2

# KEYS: state. ARGV: `paused` or `spent`, for how long in µs. The longest counts.
PAUSE: LiteralString = """
local time = redis.call('TIME')
local till = time[1] * 1000000 + time[2] + ARGV[2]
if till > tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) then redis.call('HSET', KEYS[1], ARGV[1], till) end
redis.call('PEXPIRE', KEYS[1], 2 * 86400000)
"""
LONGEST_PAUSE = 86_400.0  # seconds; no vendor's limit is longer, and a nonsensical Retry-After must not stop an account


@dataclass(frozen=True, slots=True)
class Limit:
    """At most so many requests in any window of so many seconds, as the vendor publishes it."""

    requests: float
    seconds: float

    @property
    def spaced(self) -> bool:
        """Whether it is kept by spacing; otherwise requests are counted."""
        return self.seconds <= SPACED_SECONDS


class Lane(IntEnum):
    """Who goes first: leads of ordinary runs, loads that are tried again, and what may take its time."""

    NEW = 1
    RETRY = 2
    BULK = 3


def rate(limits: Sequence[Limit], reserve: float) -> float:
    """Requests per second at which the limits that are spaced hold; infinite without one."""
    spaced = (limit for limit in limits if limit.spaced)
    return min((limit.requests * (1 - reserve) / (limit.seconds * (1 + SAFETY)) for limit in spaced), default=inf)


def account_key(url: str, login: str, password: str) -> str:
    """What names an account in Redis: one way, and the same for every spelling of its address.

    With a login the password does not count: a new one is still the same account.
    """
    address = urlsplit(url)
    host = address.netloc.lower().removesuffix(":443" if address.scheme == "https" else ":80")
    text = f"{host}{address.path.rstrip('/')}\n{login or password}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def redis_keys(account: str, counted: Sequence[Limit]) -> list[str]:
    """The account's keys in Redis: state, who is alive, the three lanes, the counts of each limit that is counted."""
    prefix = f"leadsync:budget:{{{account}}}"  # the braces keep an account's keys on one node of a cluster
    parts = ["state", "alive", "new", "retry", "bulk", *(f"count:{limit.seconds:.0f}" for limit in counted)]
    return [f"{prefix}:{part}" for part in parts]


class Budget:
    """The budgets in one Redis, as the loads of one lane see them. It takes the client over: how it retries changes."""

    def __init__(self, client: redis.Redis, lane: Lane) -> None:
        # A request that is sent again after a time-out may take twice, and a long retry can't be interrupted.
        client.set_retry(Retry(NoBackoff(), 0))
        self.lane = lane
        self.take = client.register_script(TAKE)
        self.pause = client.register_script(PAUSE)


class Account:
    """One load's part in the budget of a CRM account; thread-safe.

    `reserve` is the share of each limit that is left for the account's other users. `check` is asked while a request
    waits and before it leaves; it raises when nothing more is to be sent.
    """

    def __init__(
        self,
        budget: Budget,
        who: str,
        key: str,
        limits: Sequence[Limit],
        reserve: float,
        check: Callable[[], None],
    ) -> None:
        self._budget = budget
        self._who = who
        self._check = check
        counted = [limit for limit in limits if not limit.spaced]
        self._keys = redis_keys(key, counted)
        self._id = uuid4().hex
        share = (1 - reserve) * (BULK_SHARE if budget.lane is Lane.BULK else 1)
        self._limits = [ceil(1_000_000 / rate(limits, reserve)), SLICES]
        for limit in counted:
            self._limits += [round(limit.seconds * SLICE * 1_000_000), max(1, floor(limit.requests * share))]
        # One thread asks at a time: Redis then has one waiter per load, not one per thread.
        self._first = threading.Lock()
        self._lock = threading.Lock()
        self._waiting = 0

    def wait(self) -> None:
        """Returns when one more request may leave.

        Raises QuotaExceeded when a limit is spent, Unavailable when the CRM asked for a long pause or Redis can't be
        used, and what `check` raises.
        """
        for _ in range(STALE):
            leaves, stale = self._slot()
            time.sleep(max(0.0, leaves - time.monotonic()))
            self._check()
            if time.monotonic() < stale:
                return
        raise Unavailable(f"{STALE} requests in a row missed their turn: Redis, or this load, is too slow to keep pace")

    def throttled(self, seconds: float, spent: bool) -> None:
        """The CRM itself asked to wait, or called a limit `spent`: now all who share the account know."""
        microseconds = round(min(seconds, LONGEST_PAUSE) * 1_000_000)
        self._ask(self._budget.pause, self._keys[:1], ["spent" if spent else "paused", microseconds])

    def sleep(self, seconds: float) -> None:
        """Sleeps as long as nothing has to stop; raises what `check` raises."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, NAP))

    def _slot(self) -> tuple[float, float]:
        """When the next request of this thread may leave, and when it is too late for it (monotonic)."""
        with self._turn():
            while True:
                args = [self._id, int(self._budget.lane), int(self._waiting > 1), *self._limits]
                asked, answer = self._ask(self._budget.take, self._keys, args)
                verdict, now, at = cast(list[int], answer)
                seconds = (at - now) / 1_000_000
                if verdict == GO:
                    return time.monotonic() + seconds, asked + seconds + FRESH
                if verdict == SPENT and seconds > LONGEST_WAIT:
                    resets_at = datetime.fromtimestamp(at / 1_000_000, UTC)
                    raise QuotaExceeded(
                        f"{self._who}: the account's requests are spent until {resets_at:%Y-%m-%d %H:%M:%S} UTC, but "
                        "for what is left to others; nothing was sent",
                        resets_at,
                    )
                if verdict == PAUSED and seconds > LONGEST_WAIT:
                    raise Unavailable(f"{self._who} has asked for a pause of {seconds:.0f} s more (429)", seconds)
                self._check()
                time.sleep(min(seconds, NAP))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            self._waiting += 1
        try:
            while not self._first.acquire(timeout=NAP):
                self._check()
            try:
                yield
            finally:
                self._first.release()
        finally:
            with self._lock:
                self._waiting -= 1

    def _ask(self, script: Callable[..., object], keys: Sequence[str], args: Sequence[object]) -> tuple[float, object]:
        """When Redis was asked (monotonic), and its answer. Raises Unavailable when it stays away."""
        until = time.monotonic() + BLIP
        while True:
            asked = time.monotonic()
            try:
                return asked, script(keys=keys, args=args)
            except redis.RedisError as error:
                if time.monotonic() >= until:
                    raise Unavailable(
                        "the budget of requests in Redis (connection leadsync_redis) can't be used "
                        f"({type(error).__name__}); nothing is sent without it"
                    ) from None
            self.sleep(0.2)
