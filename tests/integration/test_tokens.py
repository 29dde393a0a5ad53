"""Access tokens in a real Valkey: one login for all processes, sealed, and never one that the CRM refused."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs
from tests.support.servers import free_port
from tests.support.simulators import Simulator

from leadsync.config import Destination, load_pipeline
from leadsync.crm import registry, tokens
from leadsync.crm.access import Access
from leadsync.crm.base import CRMAdapter
from leadsync.crm.http import RequestFailed
from leadsync.crm.tokens import SharedToken, TokenStore
from leadsync.errors import AccessError, FenceLost
from leadsync.sealing import Sealer

ROOT = Path(__file__).parents[2]
OLD, NEW = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
TOKEN = Access("https://crm.example", "s3cret-token", lifetime=3600)
LATER = Access("https://crm.example", "later-token", lifetime=3600)
Build = Callable[..., CRMAdapter]


def shared(client: redis.Redis, keys: str = OLD, account: str = "account") -> SharedToken:
    return SharedToken(TokenStore(client, Sealer(keys)), "CRM", account, _no_wait)


def _no_wait(seconds: float) -> None:
    raise AssertionError("nobody else logs in")


def _no_login() -> Access:
    raise AssertionError("there is a token")


def token_keys(valkey: redis.Redis) -> list[bytes]:
    return sorted(valkey.scan_iter("leadsync:token:*"))


@pytest.fixture
def destination() -> Destination:
    pipeline = load_pipeline(ROOT / "include" / "pipelines" / "leads.yaml")
    return next(target for target in pipeline.destinations if target.name == "salesforce")


@pytest.fixture
def build(valkey: redis.Redis, salesforce: Simulator, destination: Destination) -> Iterator[Build]:
    with ExitStack() as built:

        def build(**changes: str) -> CRMAdapter:
            endpoint = replace(salesforce.endpoint, **changes)
            made = registry.build(destination, endpoint, tokens=TokenStore(valkey, Sealer(OLD)))
            built.callback(made.close)
            return made

        yield build


@pytest.mark.timeout(120)
def test_eight_processes_log_in_once(valkey: redis.Redis, salesforce: Simulator) -> None:
    port = str(valkey.get_connection_kwargs()["port"])
    command = [sys.executable, "-m", "tests.support.visitor", salesforce.url, port, OLD]
    salesforce.faults(latency=0.3)  # of a login too: all eight would be in it
    visitors = [
        subprocess.Popen(
            command, cwd=ROOT, env={"PYTHONPATH": "include"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]

    def said() -> list[str]:
        return [visitor.stdout.readline() for visitor in visitors if visitor.stdout]

    def all_at_once() -> set[str]:
        for visitor in visitors:
            assert visitor.stdin is not None
            visitor.stdin.write("\n")
            visitor.stdin.flush()
        found = said()
        assert all(found)
        return set(found)

    try:
        assert said() == ["ready\n"] * 8
        first = all_at_once()
        assert salesforce.stats()["by_status"] == {"200": 8 + 1}
        salesforce.faults(expire_tokens=True, latency=0.3)
        second = all_at_once()
        assert salesforce.stats()["by_status"] == {"200": 2 * (8 + 1), "401": 8}
    finally:
        for visitor in visitors:
            visitor.kill()
            visitor.communicate()
    assert len(first) == len(second) == 1
    assert first != second


def test_a_token_is_sealed_and_ends_in_time(valkey: redis.Redis) -> None:
    assert shared(valkey).get(lambda: TOKEN, None) == TOKEN
    (key,) = token_keys(valkey)
    kept = valkey.get(key)
    assert isinstance(kept, bytes)
    assert TOKEN.token.encode() not in kept
    assert b"account" not in key
    assert 3400 < int(valkey.ttl(key)) < 3600
    other = Access(TOKEN.url, "t", {"X-Key": "k"})
    assert shared(valkey, account="another").get(lambda: other, None) == other
    assert shared(valkey, account="another").get(_no_login, None) == other
    assert shared(valkey).get(_no_login, None) == TOKEN
    assert {round(int(valkey.ttl(name)), -2) for name in token_keys(valkey)} == {900, 3400}


def test_a_refused_token_is_not_handed_out_again(valkey: redis.Redis) -> None:
    shared(valkey).get(lambda: TOKEN, None)

    def fails() -> Access:
        assert len(token_keys(valkey)) == 1, "the lock alone"
        raise RequestFailed("away", "503")

    with pytest.raises(RequestFailed):
        shared(valkey).get(fails, TOKEN)
    assert token_keys(valkey) == []
    assert shared(valkey).get(lambda: LATER, TOKEN) == LATER
    assert shared(valkey).get(_no_login, TOKEN) == LATER  # whoever finds out later


def test_the_key_may_be_rotated_at_any_time(valkey: redis.Redis) -> None:
    shared(valkey, OLD).get(lambda: TOKEN, None)
    assert shared(valkey, f"{NEW},{OLD}").get(lambda: LATER, None) == LATER
    assert shared(valkey, NEW).get(_no_login, None) == LATER
    assert shared(valkey, OLD).get(_no_login, None) == TOKEN  # of those that do not know the new key yet
    for key in token_keys(valkey):
        valkey.set(key, Sealer(base64.b64encode(bytes(32)).decode()).seal(b"[]", key.decode()))
    assert shared(valkey, NEW).get(lambda: TOKEN, None) == TOKEN


def test_who_died_in_the_login_keeps_the_others_waiting_for_a_while(valkey: redis.Redis) -> None:
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        (lock,) = token_keys(valkey)
        assert 0 < int(valkey.pttl(lock)) <= 20_000
        if len(waited) == 3:
            valkey.delete(lock)  # as the server does after these seconds

    waiter = SharedToken(TokenStore(valkey, Sealer(OLD)), "CRM", "account", wait)
    valkey.set(f"leadsync:token:{{{Sealer(OLD).name('account')}}}:lock", "of one who died", px=20_000)
    assert waiter.get(lambda: TOKEN, None) == TOKEN
    assert len(waited) == 3
    assert len(token_keys(valkey)) == 1, "the lock is given back"


def test_a_login_that_takes_too_long_is_not_waited_for(valkey: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LOCK", 0.2)
    lock = f"leadsync:token:{{{Sealer(OLD).name('account')}}}:lock"
    valkey.set(lock, "another's")
    waiter = SharedToken(TokenStore(valkey, Sealer(OLD)), "CRM", "account", time.sleep)
    assert waiter.get(lambda: TOKEN, None) == TOKEN
    assert valkey.get(lock) == b"another's"


def test_the_wait_ends_with_the_fence(valkey: redis.Redis) -> None:
    def lost(seconds: float) -> None:
        raise FenceLost("lost")

    valkey.set(f"leadsync:token:{{{Sealer(OLD).name('account')}}}:lock", "another's")
    with pytest.raises(FenceLost):
        SharedToken(TokenStore(valkey, Sealer(OLD)), "CRM", "account", lost).get(_no_login, None)


def test_without_redis_everybody_logs_in_and_says_so() -> None:
    with capture_logs() as logs:
        assert shared(redis.Redis(port=free_port())).get(lambda: TOKEN, TOKEN) == TOKEN
    (line,) = logs
    assert (line["log_level"], line["event"], line["crm"]) == ("warning", "token not shared", "CRM")
    assert TOKEN.token not in str(line)


def test_redis_may_go_away_and_be_full_during_the_login(valkey: redis.Redis) -> None:
    limit = int(valkey.config_get("maxmemory")["maxmemory"])

    def fill() -> Access:
        valkey.config_set("maxmemory", 1)
        return TOKEN

    try:
        assert shared(valkey).get(fill, None) == TOKEN
    finally:
        valkey.config_set("maxmemory", limit)
    assert token_keys(valkey) == [], "the lock is given back"


def test_adapters_of_one_account_share_and_others_do_not(build: Build, salesforce: Simulator) -> None:
    for _ in range(3):
        build().check()
    assert salesforce.stats()["by_status"] == {"200": 3 + 1}
    # Who has a wrong secret is told, whatever token others hold.
    with pytest.raises(AccessError, match="refuses the login"):
        build(password="wrong").check()
    build().check()
    assert salesforce.stats()["requests"] == 3 + 1 + 1 + 1
