"""The demo's lead store, its generator and its landing page."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import requests
from psycopg import errors
from tests.support.servers import free_port
from tests.support.simulators import INCLUDE

from demo import lead_store
from demo.generator import Generator


@pytest.fixture
def hive(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN CREATE ROLE leadsync_reader LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
        lead_store.create(database)
        yield connection


def wait_for(hive: psycopg.Connection[Any], condition: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        row = hive.execute(f"SELECT {condition} FROM customer").fetchone()  # type: ignore[arg-type]  # noqa: S608
        if row and row[0]:
            return
        time.sleep(0.05)
    raise AssertionError(f"never came true: {condition}")


# The lead store ------------------------------------------------------------------------------------------------------


def test_the_store_is_made_once_and_stamps_every_change(hive: psycopg.Connection[Any], database: str) -> None:
    uid = lead_store.insert(hive, "ASDAD", "Li")
    stamps = [hive.execute("SELECT update_time FROM customer").fetchone()]
    lead_store.create(database)
    lead_store.update(hive, "ASDAD", uid, "Lei", None, None)
    stamps.append(hive.execute("SELECT update_time FROM customer").fetchone())
    lead_store.delete(hive, "ASDAD", uid)
    stamps.append(hive.execute("SELECT update_time FROM customer WHERE is_delete").fetchone())
    assert stamps == sorted(set(stamps))  # type: ignore[type-var]
    lead_store.update(hive, "ASDAD", uid, "too late", None, None)
    assert hive.execute("SELECT name FROM customer").fetchone() == ("Lei",)


def test_the_reader_may_read_and_nothing_else(hive: psycopg.Connection[Any], database: str) -> None:
    with psycopg.connect(database, user=lead_store.READER, autocommit=True) as reader:
        assert reader.execute("SELECT count(*) FROM customer").fetchone() == (0,)
        for statement in ("DELETE FROM customer", "INSERT INTO customer (appkey) VALUES ('A')"):
            with pytest.raises(errors.InsufficientPrivilege):
                reader.execute(statement)  # type: ignore[arg-type]


# The generator -------------------------------------------------------------------------------------------------------


def test_a_seed_makes_the_choices_repeatable(hive: psycopg.Connection[Any], database: str) -> None:
    seen = []
    for _ in range(2):
        hive.execute("TRUNCATE customer RESTART IDENTITY")
        generator = Generator(database, 1, seed=7)
        for number in range(120):
            generator.change(hive, ("insert", "update", "insert", "delete")[number % 4])
        query = "SELECT appkey, uid, phone, name, email, city, answers, is_delete FROM customer ORDER BY uid"
        seen.append(hive.execute(query).fetchall())
        assert generator.counts == {"insert": 60, "update": 30, "delete": 30}
    assert seen[0] == seen[1]
    assert sum(row[-1] for row in seen[0]) == 30


def test_it_goes_on_after_the_database_was_away(hive: psycopg.Connection[Any], database: str) -> None:
    generator = Generator(database, 300, seed=1)
    thread = threading.Thread(target=generator.run)
    thread.start()
    try:
        wait_for(hive, "count(*) > 20")
        before = hive.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
        assert before is not None
        assert before[0] >= 2
        hive.execute("TRUNCATE customer")
        wait_for(hive, "count(*) > 20")
    finally:
        generator.stop.set()
        thread.join(30)
    assert not thread.is_alive()


@contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env={**os.environ, "PYTHONPATH": str(INCLUDE), **environment}
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def test_it_ends_when_told_to(hive: psycopg.Connection[Any], database: str) -> None:
    with running("demo.generator", "--rate", "200", LEAD_STORE_DSN=database) as process:
        wait_for(hive, "count(*) > 20")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_some_transactions_commit_late(hive: psycopg.Connection[Any], database: str) -> None:
    with running("demo.generator", "--rate", "300", "--seed", "3", LEAD_STORE_DSN=database):
        until = time.monotonic() + 30
        oldest = 0.0
        while oldest < 0.4 and time.monotonic() < until:
            row = hive.execute(
                "SELECT extract(epoch FROM max(clock_timestamp() - xact_start))::float8 FROM pg_stat_activity "
                "WHERE datname = current_database() AND state = 'idle in transaction'"
            ).fetchone()
            oldest = max(oldest, row[0] or 0.0) if row else oldest
            time.sleep(0.02)
        assert oldest >= 0.4


# The landing page ----------------------------------------------------------------------------------------------------


@pytest.fixture
def page(hive: psycopg.Connection[Any], database: str) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with running("demo.landing", "--port", str(port), LEAD_STORE_DSN=database, CRM_HUBSPOT_URL="http://127.0.0.1:1"):
        for _ in range(600):
            try:
                if requests.get(f"{url}/health", timeout=5).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.05)
        yield url


TYPED = {
    "appkey": "新品", "name": "  O'Hara <b>&amp;</b> 😀 ", "phone": "+86 1", "email": "li@example.com",
    "city": "上海", "budget": "<100", "message": "Hello\nthere",
}  # fmt: skip


def test_what_was_typed_is_stored_shown_escaped_and_changed(page: str, hive: psycopg.Connection[Any]) -> None:
    assert requests.get(page, timeout=5).text.count("<form") == 1
    reply = requests.post(page, data=TYPED, timeout=5)
    assert reply.ok
    assert reply.history[0].status_code == 303
    assert "<b>" not in reply.text
    assert "新品:1" in reply.text
    assert 'href="http://127.0.0.1:1"' in reply.text
    query = "SELECT appkey, name, phone, email, city, answers, is_delete FROM customer"
    answers = {"budget": "<100", "message": "Hello\nthere"}
    name = "O'Hara <b>&amp;</b> 😀"
    assert hive.execute(query).fetchone() == ("新品", name, "+86 1", "li@example.com", "上海", answers, False)
    change = reply.url.replace("/thanks", "/change")
    assert "Newer" in requests.post(change, data={"name": "Newer", "phone": "2", "city": ""}, timeout=5).text
    assert hive.execute("SELECT name, phone, city FROM customer").fetchone() == ("Newer", "2", None)
    assert "it is deleted" in requests.post(change, data={"forget": "1"}, timeout=5).text
    assert hive.execute("SELECT is_delete FROM customer").fetchone() == (True,)


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ({"name": ""}, "please fill this in"),
        ({"email": "nobody"}, "does not look like an e-mail address"),
        ({"email": "", "phone": ""}, "a phone number or an e-mail address"),
        ({"city": "x" * 61}, "at most 60 characters"),
        ({"name": "a\0b"}, "can&#39;t be stored"),
    ],
)
def test_a_wrong_form_comes_back_with_what_was_typed(
    page: str, hive: psycopg.Connection[Any], typed: dict[str, str], complaint: str
) -> None:
    reply = requests.post(page, data={**TYPED, **typed}, timeout=5)
    assert reply.status_code == 422
    assert complaint in reply.text
    assert "&lt;b&gt;" in reply.text or typed.get("name") is not None
    assert hive.execute("SELECT count(*) FROM customer").fetchone() == (0,)


def test_strangers_are_refused(page: str, hive: psycopg.Connection[Any]) -> None:
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert requests.post(page, data=TYPED, headers=elsewhere, timeout=5).status_code == 403
    uid = lead_store.insert(hive, "ASDAD", "Li")
    own = requests.post(page, data=TYPED, timeout=5).url
    token = re.search(r"token=(\w+)", own)
    assert token is not None
    for proof in ("", "0" * 64, token[1]):
        link = f"appkey=ASDAD&uid={uid}&token={proof}"
        assert requests.get(f"{page}/thanks?{link}", timeout=5).status_code == 403
        assert requests.post(f"{page}/change?{link}", data={"forget": "1"}, timeout=5).status_code == 403
    assert requests.post(page, data={**TYPED, "message": "x" * 70_000}, timeout=5).status_code == 413
    assert hive.execute("SELECT count(*) FROM customer WHERE is_delete").fetchone() == (0,)
