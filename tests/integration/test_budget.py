"""The shared budget on a real Valkey: limits, lanes, pauses, and what it does without its Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from tests.support.scripted import Answer, running_script
from tests.support.servers import running_valkey
from tests.support.simulators import Simulator

from leadsync import budget as budgets
from leadsync.budget import Account, Budget, Lane, Limit
from leadsync.config import Destination, load_pipeline
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.errors import FenceLost, QuotaExceeded, Unavailable
from leadsync.models import Lead, Status
from leadsync.sending import Sender
from leadsync.state import fence, watermark

DAY = 86_400
PREFIX = "leadsync:budget:{account}"
SHIPPED = load_pipeline(Path(__file__).parents[2] / "include" / "pipelines" / "leads.yaml")
TARGET = next(target for target in SHIPPED.destinations if target.name == "hubspot")
LEADS = [Lead("A:1", {"city": "Berlin"})]

Join = Callable[..., Account]


@pytest.fixture
def join(valkey: redis.Redis) -> Join:
    """Joins the account's budget as another worker would."""

    def join(
        *limits: Limit, lane: Lane = Lane.NEW, reserve: float = 0.0, check: Callable[[], None] = lambda: None
    ) -> Account:
        return Account(worker(valkey, lane), "CRM (connection crm)", "account", limits, reserve, check)

    return join


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def worker(valkey: redis.Redis, lane: Lane = Lane.NEW) -> Budget:
    return Budget(redis.Redis(port=valkey.get_connection_kwargs()["port"]), lane)


def state(valkey: redis.Redis, name: str) -> Any:
    return valkey.hget(f"{PREFIX}:state", name)


def used(valkey: redis.Redis, seconds: int) -> int:
    return sum(map(int, valkey.hvals(f"{PREFIX}:count:{seconds}")))  # type: ignore[arg-type]


def until_waiting(valkey: redis.Redis, lane: str, count: int = 1) -> None:
    while valkey.zcard(f"{PREFIX}:{lane}") != count:
        time.sleep(0.01)


def test_two_workers_share_one_pace(join: Join, pool: ThreadPoolExecutor) -> None:
    def send(account: Account) -> list[float]:
        return [(account.wait(), time.monotonic())[1] for _ in range(15)]

    workers = [join(Limit(20, 1)) for _ in range(2)]
    times = [at for part in pool.map(send, workers * 2) for at in part]
    assert max(times) - min(times) > 2, "60 requests at 20 a second take three seconds; each for itself, half of that"


def test_a_limit_is_spent_less_its_reserve_and_says_until_when(join: Join) -> None:
    account = join(Limit(10, DAY), reserve=0.3)
    for _ in range(7):
        account.wait()
    with pytest.raises(QuotaExceeded, match="CRM .connection crm.: the account's requests are spent until") as caught:
        join(Limit(10, DAY), reserve=0.3).wait()
    assert caught.value.resets_at is not None
    left = caught.value.resets_at - datetime.now(UTC)
    assert timedelta(seconds=DAY - 60) < left < timedelta(seconds=DAY * 1.03)


def test_bulk_leaves_a_fifth_of_the_day(join: Join) -> None:
    bulk, new = join(Limit(10, DAY), lane=Lane.BULK), join(Limit(10, DAY))
    for _ in range(8):
        bulk.wait()
    with pytest.raises(QuotaExceeded):
        bulk.wait()
    new.wait()
    new.wait()
    with pytest.raises(QuotaExceeded):
        new.wait()


def test_no_window_of_a_counted_limit_sees_more_and_it_goes_on_when_requests_leave_it(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "SPACED_SECONDS", 0.0)
    account = join(Limit(5, 2))
    times = [(account.wait(), time.monotonic())[1] for _ in range(12)]
    assert times[5] - times[0] >= 2
    assert times[10] - times[5] >= 2
    assert times[4] - times[0] < 2, "what the limit allows may be used at once"


def test_a_request_takes_from_all_limits_or_from_none(valkey: redis.Redis, join: Join) -> None:
    account = join(Limit(1000, 1), Limit(2, 3600), Limit(9, DAY))
    account.wait()
    account.wait()
    before = state(valkey, "next")
    with pytest.raises(QuotaExceeded):
        account.wait()
    assert (used(valkey, 3600), used(valkey, DAY), state(valkey, "next")) == (2, 2, before)


def test_a_request_that_waits_for_its_turn_has_taken_nothing_and_can_be_stopped(
    valkey: redis.Redis, join: Join, pool: ThreadPoolExecutor
) -> None:
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise FenceLost("the load has ended")

    limits = Limit(1, 60), Limit(9, DAY)
    join(*limits).wait()
    account = join(*limits, check=check)
    waiting = [pool.submit(account.wait) for _ in range(3)]
    until_waiting(valkey, "new")
    assert used(valkey, DAY) == 1
    stop.set()
    for thread in waiting:
        with pytest.raises(FenceLost):
            thread.result(20)  # its turn would have been in a minute
    assert used(valkey, DAY) == 1


def test_the_check_is_asked_after_the_wait_and_a_turn_missed_by_it_is_taken_anew(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "FRESH", 0.05)
    delays = iter([0.1, 0.1])
    account = join(Limit(9, DAY), check=lambda: time.sleep(next(delays, 0)))
    account.wait()
    assert next(delays, None) is None, "a request left long after its turn"
    account = join(Limit(100, DAY), check=lambda: time.sleep(0.1))
    with pytest.raises(Unavailable, match="missed their turn"):
        account.wait()


def test_a_new_lead_goes_before_a_backfill_that_came_first(
    valkey: redis.Redis, join: Join, pool: ThreadPoolExecutor
) -> None:
    order: list[str] = []

    def send(lane: Lane) -> None:
        join(Limit(1, 2), lane=lane).wait()
        order.append(lane.name)

    join(Limit(1, 2)).wait()
    threads = []
    for lane in (Lane.BULK, Lane.RETRY, Lane.NEW):
        threads.append(pool.submit(send, lane))
        until_waiting(valkey, lane.name.lower())
    for thread in threads:
        thread.result()
    assert order == ["NEW", "RETRY", "BULK"]


def test_a_lane_that_always_waits_gets_a_tenth(valkey: redis.Redis, join: Join, pool: ThreadPoolExecutor) -> None:
    order: list[Lane] = []
    enough = threading.Event()

    def send(account: Account, lane: Lane) -> None:
        while not enough.is_set():
            account.wait()
            order.append(lane)

    # Five requests at most have their turn ahead of time, so of ten threads some always wait.
    for lane, threads in ((Lane.NEW, 10), (Lane.BULK, 4)):
        account = join(Limit(20, 1), lane=lane)
        for _ in range(threads):
            pool.submit(send, account, lane)
    while order.count(Lane.NEW) < 63:
        time.sleep(0.01)
    enough.set()
    # Seven of seventy; more only where the lane before it leaves room, as threads on a busy machine do.
    assert 6 <= order.count(Lane.BULK) <= 35


def test_a_pause_that_the_crm_asks_for_holds_for_all(valkey: redis.Redis, hubspot: Simulator) -> None:
    first, second = (adapter(valkey, hubspot.endpoint) for _ in range(2))
    hubspot.faults(too_many={"next": 1, "retry_after": 3})
    with ThreadPoolExecutor(1) as pool:
        delivered = pool.submit(first.deliver, LEADS)
        while not (keys := valkey.keys("*:state")) or not valkey.hexists(keys[0], "paused"):
            time.sleep(0.01)
        begun = time.monotonic()
        assert [outcome.status for outcome in second.deliver(LEADS)] != [Status.TRANSIENT]
        assert time.monotonic() - begun > 1.5
        assert [outcome.status for outcome in delivered.result()] != [Status.TRANSIENT]
    assert hubspot.stats()["by_status"] == {"429": 1, "200": 2}


def test_a_long_pause_is_left_to_airflow_and_costs_no_worker_a_request(valkey: redis.Redis, hubspot: Simulator) -> None:
    hubspot.faults(too_many={"rate": 1, "retry_after": 77})
    (outcome,) = adapter(valkey, hubspot.endpoint).deliver(LEADS)
    assert outcome.code == "429"
    with pytest.raises(Unavailable, match="pause of 7. s more") as caught:
        adapter(valkey, hubspot.endpoint).deliver(LEADS)
    assert caught.value.retry_after == pytest.approx(77, abs=15)
    assert hubspot.stats()["requests"] == 1


def test_a_quota_that_the_crm_calls_spent_is_spent_for_all(valkey: redis.Redis) -> None:
    with running_script() as script:
        refusal = {"message": "You have reached your daily limit.", "policyName": "DAILY"}
        script.answers = [Answer(429, refusal, headers={"Retry-After": "7200"})]
        for _ in range(2):
            with pytest.raises(QuotaExceeded) as caught:
                adapter(valkey, Endpoint(script.url, password="t")).deliver(LEADS)
            assert caught.value.resets_at is not None
            left = caught.value.resets_at - datetime.now(UTC)
            assert timedelta(seconds=7100) < left <= timedelta(seconds=7200)
        assert len(script.requests) == 1


def test_requests_that_wait_end_soon_once_the_crm_takes_nothing(
    valkey: redis.Redis, state: psycopg.Connection[Any]
) -> None:
    with running_script() as script:
        refused = Endpoint(script.url, password="t")
    slow = TARGET.model_copy(update={"settings": {"requests_per_second": 0.01}})
    watermark.register(state, "leads", "crm", None)
    number = watermark.read(state, "leads", ["crm"])["crm"].destination_id
    sender_adapter = adapter(valkey, refused, slow)
    with fence.hold(state, number, 1) as held, Sender(sender_adapter, held, 4) as sender:
        sender.proven = True
        batches = [sender.send(LEADS, delete=False) for _ in range(4)]
        sender.finish(batches)  # the second would have its turn in 100 s
        assert (sender.unavailable, sender.error) == (True, None)
        assert sorted(len(batch.result()) for batch in batches) == [0, 0, 0, 1]


def test_redis_holds_no_secret_and_nothing_for_ever(valkey: redis.Redis, hubspot: Simulator) -> None:
    adapter(valkey, hubspot.endpoint).deliver(LEADS)
    for key in valkey.scan_iter():
        assert valkey.pttl(key) > 0
        dump = key + valkey.dump(key)
        assert hubspot.token.encode() not in dump
        assert str(hubspot.port).encode() not in key
    assert valkey.keys("leadsync:budget:*:count:86400")


@pytest.mark.timeout(60)
def test_a_clock_that_was_set_back_stops_nobody(valkey: redis.Redis, join: Join) -> None:
    account = join(Limit(1000, 1))
    account.wait()
    valkey.hincrby(f"{PREFIX}:state", "next", 3_600_000_000)  # an hour in µs
    account.wait()


def test_a_redis_that_forgot_its_scripts_or_its_keys_learns_them_again(valkey: redis.Redis, join: Join) -> None:
    account = join(Limit(1000, 1), Limit(9, DAY))
    account.wait()
    valkey.script_flush()
    account.wait()
    assert used(valkey, DAY) == 2
    valkey.flushall()
    account.wait()
    assert used(valkey, DAY) == 1


def test_without_redis_nothing_is_sent_and_it_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "BLIP", 0.5)
    with running_valkey() as client:
        port = client.get_connection_kwargs()["port"]
        deaf = Budget(redis.Redis(port=port, socket_timeout=0.3), Lane.NEW)
        account = Account(deaf, "CRM", "account", [Limit(1000, 1)], 0, lambda: None)
        account.wait()
        client.client_pause(60_000)
        with pytest.raises(Unavailable, match="TimeoutError.; nothing is sent without it") as caught:
            account.wait()
        assert str(port) not in str(caught.value)
    with pytest.raises(Unavailable, match="leadsync_redis.*ConnectionError"):
        account.wait()


def adapter(valkey: redis.Redis, endpoint: Endpoint, target: Destination = TARGET) -> CRMAdapter:
    """What one worker has: its own client, its own adapter."""
    return registry.build(target, endpoint, budget=worker(valkey))
