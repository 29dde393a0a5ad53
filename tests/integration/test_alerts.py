"""Alerts on the real servers: one message when something starts, one when it ends, whatever fails in between."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis
import requests
from tests.support.page import Page, serving
from tests.support.receiver import Receiver
from tests.support.simulators import Simulator
from tests.support.world import World

from leadsync import alerts, conditions, figures, messaging, metering, redis_state
from leadsync.budget import SLICE, Limit, account_key, redis_keys
from leadsync.conditions import SeenRedis, Stands
from leadsync.config import Alerts, Pipeline
from leadsync.crm.base import Endpoint
from leadsync.errors import Unavailable
from leadsync.figures import SourceState
from leadsync.messaging import Address
from leadsync.state import alerts as state_alerts
from leadsync.state import watermark

PAGE = "http://127.0.0.1:8080/plugin/leadsync"
OFF = {
    "behind_minutes": None, "parked": False, "dead_letters": None, "quota_left": None, "held_back_minutes": None,
    "unreachable": False, "redis_memory": None, "redis_unsafe": False,
}  # fmt: skip


class Watch:
    """The checks over a World. The lead store or Redis can be taken away."""

    def __init__(self, world: World, receiver: Receiver) -> None:
        self.world = world
        self.receiver = receiver
        self.urls = receiver.url
        self.store_away = self.redis_away = False
        self.unread: set[str] = set()
        self.pipelines = [world.pipeline]
        self.want(calm_minutes=0)

    def want(self, **wanted: Any) -> None:
        """What the pipeline file says of alerts."""
        alerts_wanted = Alerts.model_validate(wanted)
        self.pipelines = [self.world.pipeline.model_copy(update={"alerts": alerts_wanted})]

    def check(self, state: psycopg.Connection[Any] | None = None, addresses: Any = None) -> dict[str, Any]:
        if addresses is None:
            addresses, _ = messaging.addresses(self.urls)
        state = state or self.world.state
        return alerts.check(state, self.pipelines, self.unread, self._store, self._redis, addresses, PAGE)

    def told(self) -> list[dict[str, Any]]:
        """What a check tells."""
        self.check()
        return self.receiver.taken()

    def behind(self, minutes: float, destination: str | None = None) -> None:
        """Changes of so many minutes ago that one destination, or each, has not got."""
        self.world.hive.execute("ALTER TABLE customer DISABLE TRIGGER ALL")
        self.world.hive.execute("UPDATE customer SET update_time = now() - %s * interval '1 minute'", (minutes,))
        self.world.state.execute(
            "UPDATE leadsync.watermark SET watermark = now() - CASE WHEN destination = coalesce(%s, destination) "
            "THEN interval '1 day' ELSE interval '1 second' END",
            (destination,),
        )

    def log(self) -> list[tuple[str, str | None, str, str]]:
        rows = self.world.state.execute(
            "SELECT kind, destination, details ->> 'condition', message FROM leadsync.recovery_log "
            "WHERE kind LIKE 'alert%' ORDER BY id"
        )
        return rows.fetchall()

    def _store(self, pipeline: Pipeline, marks: Mapping[str, datetime | None]) -> SourceState:
        if self.store_away:
            raise Unavailable("connection lead_store: the PostgreSQL server can't be reached")
        with psycopg.connect(self.world.dsn, autocommit=True) as connection:
            return figures.source_state(connection, pipeline, marks)

    def _redis(self) -> Any:
        if self.redis_away:
            raise Unavailable("connection leadsync_redis: ConnectionError")
        names = [("leads", name) for name in self.world.simulators]
        told = redis_state.ask(self.world.redis, self.pipelines, self._endpoint)
        return told, metering.read(self.world.redis, names)

    def _endpoint(self, target: Any) -> Endpoint:
        return self.world.simulators[target.name].endpoint


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def watch(
    database: str,
    state: psycopg.Connection[Any],
    valkey: redis.Redis,
    hubspot: Simulator,
    salesforce: Simulator,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Watch]:
    monkeypatch.setattr(alerts, "PAUSE_SECONDS", 0.0)
    world = World(database, state, valkey, {"hubspot": hubspot, "salesforce": salesforce})
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, email, phone) SELECT 'ASDAD', n, 'Zelda ' || n, "
        "'zelda' || n || '@example.com', '13800' || lpad(n::text, 6, '0') FROM generate_series(1, 20) n"
    )
    world.run()
    before = valkey.config_get("maxmemory*")
    yield Watch(world, receiver)
    for name, value in before.items():  # type: ignore[union-attr]
        if name in ("maxmemory", "maxmemory-policy"):
            valkey.config_set(name, value)
    world.hive.close()


# One message at each end ---------------------------------------------------------------------------------------------


def test_one_message_when_it_starts_and_one_when_it_ends(watch: Watch) -> None:
    assert watch.told() == []
    watch.behind(20, "hubspot")
    (start,) = watch.told()
    assert start["title"] == "Leadsync: hubspot (leads) behind"
    assert start["type"] == "warning"
    assert start["message"].startswith("hubspot (leads): 20 min behind; 20 leads wait. Since 20")
    assert "card on the overview" in start["message"]
    assert start["message"].endswith(f"All of it: {PAGE}")
    for _ in range(3):
        assert watch.told() == []
    watch.world.run()
    (end,) = watch.told()
    assert (end["title"], end["type"]) == ("Leadsync: hubspot (leads) no longer behind", "success")
    assert "hubspot (leads): no longer behind: 0 s behind; 0 leads wait. It was from 20" in end["message"]
    assert "(20 min)" in end["message"]
    assert watch.told() == []
    assert watch.world.state.execute("SELECT count(*) FROM leadsync.alert").fetchone() == (0,)
    assert [line[:3] for line in watch.log()] == [
        ("alert", "hubspot", "behind"), ("alert_over", "hubspot", "behind"),
    ]  # fmt: skip


def test_several_at_once_are_one_message(watch: Watch) -> None:
    watch.behind(20)
    watch.store_away = True
    watch.told()
    watch.store_away = False
    (both,) = watch.told()
    assert both["title"] == "Leadsync: 2 new, 1 over"
    assert both["type"] == "warning"
    for line in ("hubspot (leads): 20 min behind", "salesforce (leads): 20 min behind",
                 "leads: no longer without its lead store: the lead store answers"):  # fmt: skip
        assert line in both["message"]


def test_a_check_says_what_it_found(watch: Watch) -> None:
    watch.behind(20, "hubspot")
    found = {"started": ["hubspot (leads): behind"], "ended": [], "running": ["hubspot (leads): behind"], "messages": 1}
    assert watch.check() == found
    assert watch.check() == {**found, "started": [], "messages": 0}


def test_a_long_list_is_cut(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "LONGEST", 1)
    watch.behind(20)
    (message,) = watch.told()
    assert message["message"].count("behind;") == 1
    assert "And 1 more." in message["message"]
    assert watch.told() == []


# Whatever fails ------------------------------------------------------------------------------------------------------


def test_a_service_that_is_down_gets_its_message_later(watch: Watch) -> None:
    watch.behind(20, "hubspot")
    watch.receiver.status = 503
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"address 1 \(JSON\) .* took no message") as failed:
            watch.check()
        assert "hook-secret" not in str(failed.value)
    assert len(watch.log()) == 1, "it is kept all the same, once"
    watch.receiver.status = 200
    (start,) = watch.told()
    assert start["title"] == "Leadsync: hubspot (leads) behind"
    assert watch.told() == []


def test_what_is_over_before_anybody_heard_of_it_is_one_message(watch: Watch) -> None:
    watch.behind(20, "hubspot")
    watch.receiver.status = 503
    with pytest.raises(Unavailable):
        watch.check()
    watch.world.run()
    with pytest.raises(Unavailable):
        watch.check()
    watch.receiver.status = 200
    (both,) = watch.told()
    assert "hubspot (leads): was behind from 20" in both["message"]
    assert "and is no longer" in both["message"]
    assert both["type"] == "success"
    assert watch.told() == []


def test_one_address_that_is_down_gives_the_others_nothing_twice(watch: Watch) -> None:
    other = Receiver()
    try:
        watch.urls += f"\n{other.url}"
        watch.receiver.status = 503
        watch.behind(20, "hubspot")
        for _ in range(3):
            with pytest.raises(Unavailable, match=r"^address 1 "):
                watch.check()
        assert [each["title"] for each in other.taken()] == ["Leadsync: hubspot (leads) behind"]
        watch.world.run()
        with pytest.raises(Unavailable):
            watch.check()
        assert [each["title"] for each in other.taken()] == ["Leadsync: hubspot (leads) no longer behind"]
        # It starts again before the first address has heard of anything.
        watch.behind(30, "hubspot")
        watch.receiver.status = 200
        watch.check()
        for each in (watch.receiver, other):
            (message,) = each.taken()
            assert message["message"].startswith("hubspot (leads): 30 min behind")
        assert watch.check()["messages"] == 0
    finally:
        other.close()


def test_a_check_that_is_killed_before_it_has_told_loses_nothing(watch: Watch) -> None:
    class Killed(Address):
        def send(self, title: str, body: str, *, good: bool) -> bool:
            os.kill(os.getpid(), signal.SIGKILL)
            return True

    (address,), _ = messaging.addresses(watch.urls)
    watch.behind(20, "hubspot")
    run_and_die(watch, Killed(address.name, address.key, address.service))
    assert [line[:3] for line in watch.log()] == [("alert", "hubspot", "behind")], "it got as far as sending"
    assert [each["title"] for each in watch.told()] == ["Leadsync: hubspot (leads) behind"]
    assert len(watch.log()) == 1


def test_a_check_that_is_killed_while_it_tells_tells_again(watch: Watch) -> None:
    class Killed(Address):
        def send(self, title: str, body: str, *, good: bool) -> bool:
            # Not through Apprise: its threads are the test's, not those of a process that is forked here.
            requests.post(watch.receiver.url.replace("json://", "http://"), json={"title": title}, timeout=10)
            os.kill(os.getpid(), signal.SIGKILL)
            return True

    (address,), _ = messaging.addresses(watch.urls)
    watch.behind(20, "hubspot")
    run_and_die(watch, Killed(address.name, address.key, address.service))
    assert len(watch.receiver.taken()) == 1
    assert len(watch.told()) == 1
    assert watch.told() == []


def run_and_die(watch: Watch, address: Address) -> None:
    """A check in a process of its own, which does not survive telling this address."""
    with watch.world.process(lambda clients: watch.check(clients.state, [address])) as child:
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        assert ended.si_status == signal.SIGKILL


def test_two_checks_at_the_same_time_tell_once(watch: Watch) -> None:
    watch.behind(20)
    watch.receiver.seconds = 0.5
    gate = threading.Barrier(4)
    counts = []

    def check() -> None:
        with psycopg.connect(watch.world.state.info.dsn, autocommit=True) as own:
            gate.wait()
            counts.append(watch.check(own)["messages"])

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, 0, 0, 1]
    assert len(watch.receiver.taken()) == 1
    assert len(watch.log()) == 2


def test_without_an_address_it_is_kept_and_told_to_one_that_comes_later(watch: Watch) -> None:
    watch.urls = ""
    watch.store_away = True
    watch.check()
    watch.store_away = False
    watch.behind(20, "hubspot")
    assert watch.check()["messages"] == 0
    assert [line[:3] for line in watch.log()] == [
        ("alert", None, "lead_store"), ("alert_over", None, "lead_store"), ("alert", "hubspot", "behind"),
    ]  # fmt: skip
    watch.urls = watch.receiver.url
    (message,) = watch.told()
    assert message["title"] == "Leadsync: hubspot (leads) behind", "what was over by then is old news"


# When it has ended ---------------------------------------------------------------------------------------------------


def test_a_number_near_its_limit_starts_and_ends_nothing(watch: Watch) -> None:
    watch.behind(13)
    assert watch.told() == []
    watch.behind(15.5)
    assert len(watch.told()) == 1
    for minutes in (14, 15.5, 12.5, 16):
        watch.behind(minutes)
        assert watch.told() == []
    watch.behind(11.5)
    assert len(watch.told()) == 1


def test_it_has_to_be_well_for_a_while(watch: Watch) -> None:
    def later(minutes: float) -> None:
        watch.world.state.execute(
            "UPDATE leadsync.alert SET started_at = started_at - %(ago)s, calm_since = calm_since - %(ago)s",
            {"ago": timedelta(minutes=minutes)},
        )

    watch.want(calm_minutes=3)
    number = watermark.read(watch.world.state, "leads", ["hubspot"])["hubspot"].destination_id
    watermark.park(watch.world.state, number, "Unavailable", None)
    assert len(watch.told()) == 1
    for _ in range(3):  # it flaps
        watermark.unpark(watch.world.state, number)
        assert watch.told() == []
        later(2.5)
        assert watch.told() == []
        watermark.park(watch.world.state, number, "Unavailable", None)
        assert watch.told() == []
    watermark.unpark(watch.world.state, number)
    assert watch.told() == []
    later(3.5)
    (end,) = watch.told()
    assert "no longer parked: it takes part in runs; 0 leads wait" in end["message"]
    assert "(8 min)" in end["message"], "until it was well, not until that was sure"


def test_nothing_starts_or_ends_by_what_is_not_known(watch: Watch) -> None:
    watch.behind(20, "hubspot")
    watch.check()
    watch.receiver.taken()
    watch.world.run()
    watch.store_away = True
    (away,) = watch.told()
    assert away["title"] == "Leadsync: leads without its lead store"
    watch.store_away = False
    (back,) = watch.told()
    assert back["title"] == "Leadsync: 2 over"


def test_while_it_is_parked_nobody_is_told_that_it_is_behind(watch: Watch) -> None:
    number = watermark.read(watch.world.state, "leads", ["hubspot"])["hubspot"].destination_id
    watch.behind(20, "hubspot")
    watermark.park(watch.world.state, number, "AccessError", None)
    (message,) = watch.told()
    assert message["title"] == "Leadsync: hubspot (leads) parked"
    assert "parked, for it keeps failing (AccessError); 20 leads wait" in message["message"]
    watermark.unpark(watch.world.state, number)
    (message,) = watch.told()
    assert "hubspot (leads): 20 min behind" in message["message"]
    assert "no longer parked: it takes part in runs; 20 leads wait" in message["message"]


# What is watched -----------------------------------------------------------------------------------------------------


def wrong(watch: Watch, kind: str, hold: list[Any]) -> None:
    """Makes one thing wrong; `hold` keeps what has to stay open."""
    world, memory = watch.world, watch.world.redis
    if kind == "behind":
        watch.behind(20, "hubspot")
    elif kind == "parked":
        number = watermark.read(world.state, "leads", ["hubspot"])["hubspot"].destination_id
        watermark.park(world.state, number, "Unavailable", None)
    elif kind == "dead_letters":
        world.simulators["hubspot"].faults(reject={"external_ids": [f"ASDAD:{n}" for n in range(1, 13)]})
        world.pipeline = world.pipeline.model_copy(
            update={"destinations": tuple(each.model_copy(update={"max_rejected_floor": 100})
                                          for each in world.pipeline.destinations)}
        )  # fmt: skip
        world.run(since="2020-01-01T00:00:00Z", resend=True)
    elif kind == "quota told":
        memory.hset("leadsync:metrics:{leads:hubspot}", mapping={"quota:left": 900, "quota:limit": 10_000})
        memory.hset("leadsync:metrics:{leads:hubspot}", "quota:at", int(time.time()))
    elif kind == "quota counted":
        endpoint = world.simulators["hubspot"].endpoint
        names = redis_keys(account_key(endpoint.url, endpoint.login, endpoint.password), [Limit(250_000, 86_400)])
        slice_of_now = int(time.time() * 1_000_000) // round(86_400 * SLICE * 1_000_000)
        memory.hset(names[5], str(slice_of_now), 230_000)
    elif kind == "held_back":
        connection = psycopg.connect(world.dsn)
        connection.execute("SELECT pg_sleep(0.2)")
        hold.append(connection)
    elif kind == "prepared":
        connection = psycopg.connect(world.dsn)
        connection.tpc_begin("alert")
        connection.execute("UPDATE customer SET city = 'Wuhan' WHERE uid = 1")
        connection.tpc_prepare()
        connection.close()
        time.sleep(0.2)
    elif kind == "lead_store":
        watch.store_away = True
    elif kind == "redis":
        watch.redis_away = True
    elif kind == "redis_memory":
        memory.config_set("maxmemory", int(memory.info()["used_memory"] * 1.1))  # type: ignore[index]
    elif kind == "redis_unsafe":
        memory.config_set("maxmemory-policy", "allkeys-lru")


def well(watch: Watch, kind: str, hold: list[Any]) -> None:
    """Undoes it."""
    world, memory = watch.world, watch.world.redis
    if kind in ("behind", "dead_letters"):
        world.simulators["hubspot"].faults()
        world.run(since="2020-01-01T00:00:00Z", resend=True)
        world.run()
    elif kind == "parked":
        number = watermark.read(world.state, "leads", ["hubspot"])["hubspot"].destination_id
        watermark.unpark(world.state, number)
    elif kind == "quota told":
        memory.hset("leadsync:metrics:{leads:hubspot}", "quota:left", 10_000)
    elif kind == "quota counted":
        for name in memory.scan_iter("*budget*"):
            memory.delete(name)
    elif kind == "prepared":
        world.hive.execute("ROLLBACK PREPARED 'alert'")
    elif kind in ("redis_memory", "redis_unsafe"):
        memory.config_set("maxmemory", 0)
        memory.config_set("maxmemory-policy", "noeviction")
    for connection in hold:
        connection.close()
    watch.store_away = watch.redis_away = False


EVERY = {
    "behind": ("hubspot (leads): 20 min behind; 20 leads wait.", "behind"),
    "parked": ("hubspot (leads): parked, for it keeps failing (Unavailable); 0 leads wait.", "parked"),
    "dead_letters": ("hubspot (leads): 12 dead letters are open.", "dead_letters"),
    "quota told": ("hubspot (leads): 900 of 10,000 requests of its quota are left.", "quota"),
    "quota counted": ("requests of its quota are left.", "quota"),
    "held_back": ("leads: a transaction of role postgres (pid ", "held_back"),
    "prepared": ("leads: prepared transactions (1) in the lead store stop the watermark; ", "held_back"),
    "lead_store": ("leads: the lead store does not answer (connection lead_store: ", "lead_store"),
    "redis": ("Redis does not answer (connection leadsync_redis: ConnectionError)", "redis"),
    "redis_memory": ("Redis uses 9", "redis_memory"),
    "redis_unsafe": ("evicts keys when it is full (`maxmemory-policy allkeys-lru`)", "redis_unsafe"),
}


@pytest.mark.parametrize("kind", EVERY)
def test_every_kind_starts_ends_and_can_be_switched_off(watch: Watch, kind: str) -> None:
    hold: list[Any] = []
    text, called = EVERY[kind]
    limits = {"held_back_minutes": 0.002} if called == "held_back" else {}
    setting = {
        "behind": "behind_minutes", "quota": "quota_left", "held_back": "held_back_minutes",
        "lead_store": "unreachable", "redis": "unreachable",
    }.get(called, called)  # fmt: skip
    wrong(watch, kind, hold)
    try:
        watch.want(calm_minutes=0, **{setting: OFF[setting]})
        assert watch.told() == []
        watch.want(calm_minutes=0, **{**OFF, setting: Alerts.model_validate({}).model_dump()[setting], **limits})
        (start,) = watch.told()
        assert text in start["message"]
        assert watch.told() == []
    finally:
        well(watch, kind, hold)
    (end,) = watch.told()
    assert end["type"] == "success"
    assert [line[2] for line in watch.log()] == [called, called]
    assert set(alerts.KINDS) == {each[1] for each in EVERY.values()}, "every kind is here"
    for line in (start, end):
        for private in ("ASDAD", "zelda", "Zelda", "13800", "customer", "hook-secret"):
            assert private not in str(line), private


def test_what_is_switched_off_or_taken_away_ends(watch: Watch) -> None:
    watch.behind(20)
    watch.check()
    watch.receiver.taken()
    watch.want(calm_minutes=60, behind_minutes=None)
    (message,) = watch.told()
    assert message["title"] == "Leadsync: 2 over"
    assert "hubspot (leads): no longer behind: it is not watched any more." in message["message"]


def test_a_pipeline_file_that_is_wrong_ends_nothing(watch: Watch) -> None:
    watch.behind(20, "hubspot")
    watch.redis_away = True
    watch.check()
    watch.receiver.taken()
    pipelines, watch.pipelines, watch.unread = watch.pipelines, [], {"leads"}
    assert watch.told() == []
    watch.pipelines, watch.unread = pipelines, set()
    assert watch.told() == []
    assert len(watch.check()["running"]) == 2


def test_redis_is_everybodys_and_one_alert(watch: Watch) -> None:
    (leads,) = watch.pipelines
    watch.pipelines = [leads, leads.model_copy(update={"name": "others"})]
    watch.redis_away = True
    (message,) = watch.told()
    assert message["title"] == "Leadsync: Redis away"
    rows = watch.world.state.execute("SELECT pipeline FROM leadsync.recovery_log WHERE kind = 'alert' ORDER BY id")
    assert rows.fetchall() == [("leads",), ("others",)], "each pipeline's people see it"


def test_a_disk_that_fails_redis_is_told(watch: Watch) -> None:
    told, counters = watch._redis()
    assert told.writes
    found = {
        each.name.kind: each
        for each in conditions.of_redis([Alerts()], SeenRedis(replace(told, writes=False), counters))
    }
    assert found["redis_unsafe"].stands is Stands.WRONG
    assert "could not write to its disk" in found["redis_unsafe"].text


def test_a_service_that_restarts_is_asked_again(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Unavailable("away"), Unavailable("away"), None])
    ask = watch._redis

    def restarting() -> Any:
        error = next(answers)
        if error:
            raise error
        return ask()

    monkeypatch.setattr(watch, "_redis", restarting)
    assert watch.told() == []


def test_nothing_of_a_lead_is_kept(watch: Watch) -> None:
    hold: list[Any] = []
    for kind in ("dead_letters", "behind", "redis_unsafe"):
        wrong(watch, kind, hold)
    watch.check()
    kept = [str(alert) for alert in state_alerts.read(watch.world.state)] + [str(line) for line in watch.log()]
    assert len(kept) > 3
    for private in ("ASDAD", "zelda", "Zelda", "13800", "hook-secret"):
        assert private not in "".join(kept)
    well(watch, "dead_letters", hold)


# On the page ---------------------------------------------------------------------------------------------------------


def test_the_overview_shows_what_is_wrong_to_those_who_may_see_it(watch: Watch) -> None:
    watch.behind(20, "hubspot")
    watch.redis_away = True
    watch.check()
    with serving(Page(watch.world)) as page:
        redis_away, behind = sorted(page.get("overview")["alerts"], key=lambda each: each["destination"])
        assert (redis_away["pipeline"], redis_away["destination"], redis_away["kind"]) == ("", "", "redis")
        assert (behind["pipeline"], behind["destination"], behind["kind"]) == ("leads", "hubspot", "behind")
        assert behind["text"] == "20 min behind; 20 leads wait"
        assert page.client("stranger").get("/api/overview").status_code == 403
        watch.world.run()
        watch.redis_away = False
        watch.receiver.status = 503
        with pytest.raises(Unavailable):
            watch.check()
        assert page.get("overview")["alerts"] == [], "what is over is no more to be seen, told or not"
