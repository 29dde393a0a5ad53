"""The page's API on the real servers: who sees what, what it tells, and what a person may do through it."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from fastapi.routing import APIRoute
from tests.support.page import Page
from tests.support.reconciling import REPAIR, delete_in, write_in
from tests.support.reconciling import check as reconcile
from tests.support.world import World

from leadsync import operations, snapshot
from leadsync.letters import Letters
from leadsync.mapping import Mapped, Mapper
from leadsync.state import recovery_log
from leadsync.ui import probes

MARKUP = "<img src=x onerror=alert(1)>"
GROUP = "rejected INVALID_VALUE leadsync_external_id"


@pytest.fixture
def world(world: World) -> World:
    world.fill_with_people(40)
    return world


@pytest.fixture
def refused(world: World) -> World:
    """After a run in which HubSpot refused leads 1 to 3."""
    world.simulators["hubspot"].faults(reject={"external_ids": ["ASDAD:1", "ASDAD:2", "ASDAD:3"]})
    world.run()
    world.simulators["hubspot"].faults()
    return world


def bury(world: World, count: int, *, name: str = "Li", message: str = "no", field: str = "email") -> None:
    """Dead letters of HubSpot as a load leaves them."""
    operation = world.extract()
    row = world.state.execute("SELECT destination_id FROM leadsync.watermark WHERE destination = 'hubspot'").fetchone()
    assert row is not None
    letters = Letters(world.state, world.sealer, operation, "hubspot", row[0])
    mapper = Mapper(world.pipeline.source, world.target("hubspot"))
    made = []
    for number in range(count):
        line = ["GONE", str(number), "13900001234", name, "li@example.com", name, "{}", "2026-01-01 00:00:00+00", "f"]
        mapped: Mapped = mapper.map(line)
        made.append(letters.undelivered(mapped, 1, "rejected", 1, "BAD", field, message))
    letters.bury(made)


def people(page: Page) -> Iterator[tuple[str, str]]:
    """Every route but that of the static files: method and path with values that fit."""
    values = {"{sync_id}": "00000000-0000-0000-0000-000000000000", "{letter_id}": "1", "{line}": "1", "{name:path}": ""}
    for route in page.app.routes:
        assert isinstance(route, APIRoute)
        path = route.path
        for name, value in values.items():
            path = path.replace(name, value)
        for method in route.methods:
            yield method, path


BODIES: dict[str, Any] = {
    "/api/dead-letters/ignore": {
        "pipeline": "leads", "destination": "hubspot", "ids": [1], "seen": "2026-01-01T00:00:00Z", "reason": "done",
    },
    "/api/recovery-log/1/acknowledge": {"note": "done"},
    "/api/leads/search": {"query": "x"},
}  # fmt: skip
QUERY = {"pipeline": "leads", "destination": "hubspot", "external_id": "ASDAD:1"}


def test_every_route_refuses_an_anonymous_caller(page: Page) -> None:
    asked = list(people(page))
    assert len(asked) >= 12
    for method, path in asked:
        reply = page.client(None).request(method, path, params=QUERY, json=BODIES.get(path))
        assert reply.status_code == 401, (method, path, reply.text)


def test_every_route_refuses_who_may_see_no_pipeline(page: Page, refused: World) -> None:
    for method, path in people(page):
        if path.startswith("/api/"):
            reply = page.client("stranger").request(method, path, params=QUERY, json=BODIES.get(path))
            assert reply.status_code in (403, 404), (method, path, reply.text)


def test_a_viewer_may_not_act(page: Page, refused: World) -> None:
    (letter,) = page.get("dead-letters", pipeline="leads", destination="hubspot", limit=1)["letters"]
    sync_id = page.get("operations")["operations"][0]["sync_id"]
    (line,) = page.get("recovery-log", limit=1)["lines"]
    before = len(refused.recovery_log())
    ignore = {**BODIES["/api/dead-letters/ignore"], "ids": [letter["id"]], "seen": datetime.now(UTC).isoformat()}
    for path, body in {
        f"/api/dead-letters/{letter['id']}/reveal": None,
        "/api/dead-letters/ignore": ignore,
        f"/api/recovery-log/{line['id']}/acknowledge": {"note": "done"},
        f"/api/operations/{sync_id}/log": None,
    }.items():
        reply = page.viewer.post(path, json=body, params={"destination": "hubspot"})
        assert reply.status_code == 403, (path, reply.text)
        assert page.admin.post(path, json=body, params={"destination": "hubspot"}).status_code == 200, path
    assert len(refused.recovery_log()) == before + 4


def test_a_post_of_another_site_is_refused(page: Page) -> None:
    for name, value in (
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "none"),
        ("x-leadsync", None),
    ):
        client = page.admin
        client.headers.pop(name)
        if value:
            client.headers[name] = value
        for method, path in people(page):
            if method == "POST":
                reply = client.post(path, params=QUERY, json=BODIES.get(path))
                assert reply.status_code == 403, (name, value, path)
                assert "only the page itself" in reply.text


def test_every_answer_says_what_a_browser_may_do_with_it(page: Page) -> None:
    for reply in (page.viewer.get("/"), page.viewer.get("/api/overview"), page.client(None).get("/api/overview")):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert page.viewer.get("/api/overview").headers["cache-control"] == "no-store"


def test_static_files_are_served_and_nothing_else(page: Page) -> None:
    start = page.viewer.get("/")
    assert start.headers["content-type"].startswith("text/html")
    again = page.viewer.get("/", headers={"if-none-match": start.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path in ("/../app.py", "/app.py", "/static/index.html", "/%2e%2e/app.py", "/openapi.json", "/docs"):
        assert page.viewer.get(path).status_code == 404, path


def test_bad_parameters_are_refused(page: Page) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("operations", {"limit": 0}),
        ("operations", {"limit": 201}),
        ("operations", {"kind": "other"}),
        ("operations", {"before": "nonsense"}),
        ("operations", {"before": "2026-01-01T00:00:00~00000000-0000-0000-0000-000000000000"}),
        ("operations", {"sync_id": "' OR 1=1"}),
        ("operations", {"pipeline": "a\0b"}),
        ("operations", {"since": "yesterday"}),
        ("dead-letters", {"pipeline": "leads"}),
        ("dead-letters", {"pipeline": "leads", "destination": "hubspot", "state": "other"}),
        ("dead-letters", {"pipeline": "leads", "destination": "hubspot", "before": "2026-01-01T00:00:00Z~-1"}),
        ("dead-letters", {"pipeline": "leads", "destination": "x" * 301}),
        ("leads", {"pipeline": "leads"}),
        ("leads/history", {"pipeline": "leads", "external_id": "a", "before": "1"}),
        ("recovery-log", {"before": "-1"}),
        ("recovery-log", {"before": str(2**63)}),
        ("recovery-log", {"acknowledged": "perhaps"}),
    ]
    for path, parameters in wrong:
        reply = page.admin.get(f"/api/{path}", params=parameters)
        assert reply.status_code == 422, (path, parameters, reply.text)


def test_what_was_searched_is_not_in_a_refusal(page: Page) -> None:
    wrong: list[Any] = [
        {"query": ""},
        {"query": "a\0"},
        {"query": "\ud800"},
        {"query": "x" * 301},
        {"query": "a", "more": 1},
        {"query": ["a"]},
    ]
    for body in wrong:
        # ensure_ascii: half a character can only be sent as an escape.
        reply = page.admin.post(
            "/api/leads/search", data=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert reply.status_code == 422
        assert "xxx" not in reply.text


def test_injection_finds_nothing(page: Page, refused: World) -> None:
    for text in ("' OR '1'='1", "ASDAD:1'; DROP TABLE customer; --", "%", "_", "\\", "ASDAD:%", "{}", "1; SELECT 1"):
        assert page.get("operations", pipeline=text)["operations"] == []
        assert page.get("operations", destination=text)["operations"] == []
        assert page.get("recovery-log", kind=text)["lines"] == []
        assert page.post("leads/search", {"query": text}, user="viewer")["leads"] == []
        assert page.get("dead-letters", pipeline="leads", destination="hubspot", group=text)["letters"] == []
        assert page.viewer.get("/api/dead-letters", params={**QUERY, "destination": text}).status_code == 404
        assert page.get("leads", pipeline="leads", external_id=text)["known"] is False
    assert refused.hive.execute("SELECT count(*) FROM customer").fetchone() == (40,)


def test_the_overview_before_the_first_run(page: Page) -> None:
    shown = page.get("overview")
    (pipeline,) = shown["pipelines"]
    assert [card["state"] for card in pipeline["destinations"]] == ["not_started", "not_started"]
    assert (pipeline["watermark"], shown["running"]) == (None, [])
    assert pipeline["source"]["reachable"] is True


def test_the_overview_tells_who_is_up_to_date_and_what_waits(page: Page, refused: World) -> None:
    shown = page.get("overview")
    (pipeline,) = shown["pipelines"]
    hubspot, salesforce = pipeline["destinations"]
    assert (hubspot["state"], salesforce["state"]) == ("up_to_date", "up_to_date")
    assert hubspot["queues"] == {
        "main": {"count": 0, "more": False}, "retry": {"count": 0, "more": False}, "dead": {"count": 3, "more": False},
    }  # fmt: skip
    assert (hubspot["delivered"], salesforce["delivered"]) == (37, 40)
    assert sum(hubspot["per_minute"]) * 15 == pytest.approx(37, abs=0.2)
    assert hubspot["error_rate"] == pytest.approx(3 / 40)
    assert datetime.fromisoformat(hubspot["last_success"]) > datetime.now(UTC) - timedelta(minutes=5)
    assert hubspot["last_failure"] is None
    assert pipeline["may_edit"] is False
    assert page.get("overview", user="admin")["pipelines"][0]["may_edit"] is True
    redis_ = shown["redis"]
    assert (redis_["snapshots"], redis_["more"], redis_["eviction"]) == (1, False, "noeviction")
    assert redis_["used_memory"] > 0
    # Something new comes, ten minutes ago by the lead store's clock.
    refused.hive.execute("ALTER TABLE customer DISABLE TRIGGER ALL")
    refused.hive.execute("UPDATE customer SET update_time = now() + interval '1 hour' WHERE uid <= 5")
    moved = page.get("overview")["pipelines"][0]["destinations"][0]
    assert moved["queues"]["main"] == {"count": 5, "more": False}


def test_a_destination_that_lags_is_behind_by_its_oldest_change(page: Page, refused: World) -> None:
    refused.state.execute("UPDATE leadsync.watermark SET watermark = '2026-01-01' WHERE destination = 'salesforce'")
    refused.hive.execute("ALTER TABLE customer DISABLE TRIGGER ALL")
    refused.hive.execute("UPDATE customer SET update_time = now() - interval '10 minutes' WHERE uid = 7")
    hubspot, salesforce = page.get("overview")["pipelines"][0]["destinations"]
    assert hubspot["state"] == "up_to_date"
    assert salesforce["state"] == "behind"
    assert salesforce["behind"] == pytest.approx(600, abs=30)
    assert salesforce["queues"]["main"]["count"] == 40


def test_counts_end_at_their_bound(page: Page, refused: World) -> None:
    refused.state.execute(
        "INSERT INTO leadsync.dead_letter (destination_id, lead_key, external_id, sequence, reason, code, attempts) "
        "SELECT destination_id, gen_random_uuid(), 'X:' || n, 1, 'rejected', 'MANY', 1 "
        "FROM leadsync.watermark, generate_series(1, 10100) n WHERE destination = 'hubspot'"
    )
    hubspot = page.get("overview")["pipelines"][0]["destinations"][0]
    assert hubspot["queues"]["dead"] == {"count": 10_000, "more": True}
    found = page.get("dead-letters/groups")["groups"]
    assert [(group["group"], group["count"], group["more"]) for group in found] == [
        ("rejected MANY", 10_000, True), (GROUP, 3, False),
    ]  # fmt: skip


def test_what_holds_the_watermark_back_is_named(page: Page, refused: World) -> None:
    with psycopg.connect(refused.dsn) as writer:
        writer.execute("SELECT pg_sleep(0.2)")
        source = page.get("overview")["pipelines"][0]["source"]
        assert source["held_back"]["pid"] == writer.info.backend_pid
        assert source["held_back"]["seconds"] >= 0
    assert page.get("overview")["pipelines"][0]["source"]["held_back"] is None


def test_a_lead_store_that_is_away_is_told_and_keeps_nobody_waiting(page: Page, refused: World) -> None:
    page.store_away = True
    (pipeline,) = page.get("overview")["pipelines"]
    assert pipeline["source"]["reachable"] is False
    assert "can't be reached" in pipeline["source"]["problem"]
    assert pipeline["destinations"][0]["behind_is_exact"] is False
    assert pipeline["destinations"][0]["queues"]["main"] is None
    shown = page.get("leads", pipeline="leads", external_id="ASDAD:5")
    assert (shown["known"], shown["source"]["reachable"]) == (True, False)
    found = page.post("leads/search", {"query": "ASDAD:5"}, user="viewer")
    assert [lead["external_id"] for lead in found["leads"]] == ["ASDAD:5"]
    assert [problem["problem"] for problem in found["problems"]] == ["away"]


def test_a_lead_store_that_hangs_does_not_hold_up_the_overview(
    page: Page, refused: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "PATIENCE", 0.05)
    with psycopg.connect(refused.dsn) as locker:
        locker.execute("LOCK TABLE customer IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        source = page.get("overview")["pipelines"][0]["source"]
        assert time.monotonic() - started < 1
        assert source["reachable"] is None
        await_true(lambda: page.get("overview")["pipelines"][0]["source"]["reachable"] is False)


def await_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_redis_that_is_away_is_told(page: Page, refused: World) -> None:
    page.redis_away = True
    shown = page.get("overview")
    assert (shown["redis"]["reachable"], shown["redis"]["problem"]) == (False, "ConnectionError")
    card = shown["pipelines"][0]["destinations"][0]
    assert (card["requests"], card["traffic"]) == (None, None)


def test_a_card_tells_what_its_crm_bears_just_now(page: Page, world: World) -> None:
    idle = page.get("overview")["pipelines"][0]["destinations"][0]["traffic"]
    assert idle == {
        "minutes": 15, "per_second": 0, "throttled": 0, "latency": None, "freshness": None, "quota": None,
    }  # fmt: skip
    world.simulators["hubspot"].faults(too_many={"next": 1, "retry_after": 0}, latency=0.12)
    world.run()
    world.simulators["hubspot"].faults()
    told = page.get("overview")["pipelines"][0]["destinations"][0]["traffic"]
    assert told["throttled"] == 1
    assert told["per_second"] == pytest.approx(world.simulators["hubspot"].stats()["requests"] / 870, rel=0.05)
    assert 0.1 < told["latency"]["p50"] <= told["latency"]["p95"] < 5
    assert 0 < told["freshness"]["p50"] <= told["freshness"]["p95"] <= told["freshness"]["p99"] < 60
    assert told["quota"]["limit"] - told["quota"]["left"] == world.simulators["hubspot"].stats()["requests"]


def test_a_load_under_way_has_a_progress_bar(page: Page, world: World) -> None:
    operation = world.extract()
    assert [run["state"] for run in page.get("overview")["running"]] == ["reading"]
    world.snapshot(operation)
    (number,) = world.state.execute("SELECT destination_id FROM leadsync.watermark WHERE destination = 'hubspot'")
    log = operations.operations.start_load(world.state, operations.current(world.clients, operation.sync_id), number[0])
    log.counts.read = log.counts.delivered = 10
    operations.operations.save_progress(world.state, log)
    (run,) = page.get("overview")["running"]
    assert (run["state"], run["done"], run["rows"], run["seconds_left"]) == ("stopped", 10, 40, None)
    with psycopg.connect(world.state.info.dsn, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(7301401, %s)", number)
        (run,) = page.get("overview")["running"]
        assert run["state"] == "running"
        assert run["seconds_left"] > 0
        assert run["dag_id"] == "leads_sync"


def test_a_destination_that_fails_and_one_that_is_parked(page: Page, refused: World) -> None:
    refused.hive.execute("INSERT INTO customer (appkey, name) VALUES ('NEW', 'New')")
    refused.simulators["salesforce"].kill()
    operation = refused.extract()
    refused.snapshot(operation)
    with pytest.raises(operations.LeadsyncError):
        refused.load(operation, "salesforce")
    refused.simulators["salesforce"].start()
    card = page.get("overview")["pipelines"][0]["destinations"][1]
    assert card["state"] == "failing"
    assert card["last_failure"]["failure"] == "Unavailable"
    refused.state.execute(
        "UPDATE leadsync.watermark SET parked_at = now(), parked_because = 'Unavailable' "
        "WHERE destination = 'salesforce'"
    )
    card = page.get("overview")["pipelines"][0]["destinations"][1]
    assert (card["state"], card["parked"]["because"]) == ("parked", "Unavailable")


def test_the_shards_of_a_load_are_one(page: Page, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 500)
    world.pipeline = world.pipeline.model_copy(update={"shard_rows": 20, "max_shards": 2})
    operation = world.extract()
    assert world.snapshot(operation) == {"hubspot": 2, "salesforce": 2}
    done = world.load(operation, "hubspot", 0)["read"]
    world.state.execute("UPDATE leadsync.operation_log SET end_at = NULL, result = NULL")
    (run,) = page.get("overview")["running"]
    assert (run["done"], run["rows"]) == (done, 40)
    world.load(operation, "hubspot", 0)
    world.load(operation, "hubspot", 1)
    (entry,) = page.get("operations")["operations"]
    assert [(load["destination"], load["counts"]["delivered"]) for load in entry["loads"]] == [("hubspot", 40)]


def test_operations_by_pages_and_filters(page: Page, refused: World) -> None:
    for _ in range(4):
        refused.run()
    refused.open(run_id="again")
    refused.open(run_id="again")
    every = page.get("operations")["operations"]
    assert [each["state"] for each in every] == ["open", "superseded", "done", "done", "done", "done", "done"]
    seen, before = [], None
    while True:
        got = page.get("operations", limit=2, **({"before": before} if before else {}))
        assert len(got["operations"]) <= 2
        seen += got["operations"]
        before = got["next"]
        if before is None:
            break
    assert seen == every
    first = every[-1]
    assert {load["destination"]: load["counts"]["delivered"] for load in first["loads"]} == {
        "hubspot": 37, "salesforce": 40,
    }  # fmt: skip
    assert first["dag_id"] == "leads_sync"
    assert [each["state"] for each in page.get("operations", state="superseded")["operations"]] == ["superseded"]
    assert len(page.get("operations", destination="hubspot")["operations"]) == 7
    assert page.get("operations", destination="none")["operations"] == []
    assert page.get("operations", kind="replay")["operations"] == []
    assert page.get("operations", sync_id=first["sync_id"])["operations"] == [first]
    assert page.get("operations", since=every[0]["started_at"])["operations"] == every[:1]
    assert page.get("operations", until=every[-2]["started_at"])["operations"] == every[-1:]


def test_the_operation_log_is_json_of_the_documented_shape(page: Page, refused: World) -> None:
    sync_id = page.get("operations")["operations"][0]["sync_id"]
    entry = page.post(f"operations/{sync_id}/log", destination="salesforce")
    assert (entry["id"], entry["destination"], entry["result"]) == (sync_id, "salesforce", 1)
    assert len(entry["data"]) == 40
    assert entry["data"][0].startswith("insert into customer (appkey,uid,phone,")
    assert entry["start_at"] <= entry["end_at"] < 2**43
    assert refused.recovery_log()[-1] == "revealed"
    assert page.admin.post(f"/api/operations/{sync_id}/log?destination=none").status_code == 404


def test_dead_letters_are_grouped_and_masked(page: Page, refused: World) -> None:
    (group,) = page.get("dead-letters/groups")["groups"]
    assert (group["destination"], group["group"], group["count"]) == ("hubspot", GROUP, 3)
    assert group["first_seen"] <= group["last_seen"]
    found = page.get("dead-letters", pipeline="leads", destination="hubspot", group=GROUP)["letters"]
    assert [letter["external_id"] for letter in found] == ["ASDAD:3", "ASDAD:2", "ASDAD:1"]
    letter = found[0]
    assert letter["masked"] is True
    assert letter["fields"]["email"] == "•••"
    assert letter["fields"]["city"] is None
    assert "example.com" not in json.dumps(found)
    told = page.post(f"dead-letters/{letter['id']}/reveal")
    assert (told["masked"], told["fields"]["email"]) == (False, "lead3@example.com")
    (line,) = page.get("recovery-log", kind="revealed")["lines"]
    assert line["message"] == "admin looked at the payload of the dead letter of ASDAD:3"
    assert line["details"]["by"] == "admin"


def test_a_message_of_the_crm_is_shown_without_what_the_lead_holds(page: Page, refused: World) -> None:
    bury(refused, 1, name="Zhang Wei", message="zhang wei <li@example.com> 13900001234 may not be 'Zhang Wei'")
    (letter,) = page.get("dead-letters", **{**QUERY, "group": "rejected BAD email"})["letters"]
    assert letter["message"] == "••• <•••> ••• may not be '•••'"
    told = page.post(f"dead-letters/{letter['id']}/reveal")
    assert told["message"].startswith("zhang wei <li@example.com>")


def test_a_row_that_could_not_be_mapped_shows_the_columns(page: Page, world: World) -> None:
    world.pipeline = page.pipeline = with_required_city(page)
    world.hive.execute("UPDATE customer SET city = 'Wuhan' WHERE uid <= 10")
    world.run()
    found = page.get("dead-letters", pipeline="leads", destination="hubspot")["letters"]
    assert len(found) == 30
    assert (found[0]["reason"], found[0]["field"]) == ("mapping", "city")
    assert found[0]["fields"]["city"] is None
    assert found[0]["fields"]["phone"] == "•••"


def with_required_city(page: Page) -> Any:
    hubspot, salesforce = page.pipeline.destinations
    city = hubspot.fields["city"].model_copy(update={"required": True})
    hubspot = hubspot.model_copy(update={"fields": {**hubspot.fields, "city": city}, "max_rejected_floor": 1000})
    return page.pipeline.model_copy(update={"destinations": (hubspot, salesforce)})


def test_a_letter_that_nobody_can_open_is_told(page: Page, refused: World) -> None:
    refused.state.execute("UPDATE leadsync.dead_letter SET payload = payload || 'x'")
    found = page.get("dead-letters", pipeline="leads", destination="hubspot")["letters"]
    assert [(letter["readable"], letter["fields"]) for letter in found] == [(False, {})] * 3


def test_dead_letters_by_pages(page: Page, refused: World) -> None:
    bury(refused, 25)
    query = {"pipeline": "leads", "destination": "hubspot", "limit": 10}
    seen, before = [], None
    while True:
        got = page.get("dead-letters", **query, **({"before": before} if before else {}))
        seen += [letter["id"] for letter in got["letters"]]
        before = got["next"]
        if before is None:
            break
    assert len(seen) == 28
    assert seen == sorted(set(seen), reverse=True)


def test_ignored_letters_are_closed_with_who_and_why(page: Page, refused: World) -> None:
    found = page.get("dead-letters", pipeline="leads", destination="hubspot")["letters"]
    body = {
        "pipeline": "leads", "destination": "hubspot", "ids": [found[0]["id"]], "reason": " a test lead ",
        "seen": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    assert page.post("dead-letters/ignore", body) == {"ignored": 1, "left": False}
    assert page.post("dead-letters/ignore", body) == {"ignored": 0, "left": False}
    (closed,) = page.get("dead-letters", pipeline="leads", destination="hubspot", state="resolved")["letters"]
    assert closed["resolution"] == "ignored by admin: a test lead"
    (line,) = page.get("recovery-log", kind="ignored")["lines"]
    assert line["details"]["by"] == "admin"
    assert line["details"]["reason"] == "a test lead"
    assert line["details"]["external_ids"] == ["ASDAD:3"]
    # The rest of the group; what was renewed since the person looked stays.
    looked = datetime.now(UTC)
    refused.state.execute("UPDATE leadsync.dead_letter SET updated_at = %s WHERE external_id = 'ASDAD:1'",
                          (looked + timedelta(seconds=1),))  # fmt: skip
    rest = {**body, "ids": None, "group": GROUP, "seen": looked.isoformat()}
    assert page.post("dead-letters/ignore", rest) == {"ignored": 1, "left": False}
    assert set(refused.dead("hubspot")) == {"ASDAD:1"}


def test_a_wrong_wish_to_ignore_is_refused(page: Page, refused: World) -> None:
    wrong: list[dict[str, Any]] = [
        {"reason": "  a "}, {"reason": ""}, {"ids": []}, {"ids": None}, {"group": "x"}, {"ids": [0]}, {"ids": ["x"]},
        {"seen": "2026-01-01T00:00:00"}, {"reason": "a\0bc"}, {"other": 1},
    ]  # fmt: skip
    for part in wrong:
        body = {**BODIES["/api/dead-letters/ignore"], **part}
        assert page.admin.post("/api/dead-letters/ignore", json=body).status_code == 422, part
    assert len(refused.dead("hubspot")) == 3


def test_letters_of_another_destination_are_not_ignored_by_id(page: Page, refused: World) -> None:
    (letter,) = page.get("dead-letters", pipeline="leads", destination="hubspot", limit=1)["letters"]
    body = {
        "pipeline": "leads", "destination": "salesforce", "ids": [letter["id"]], "reason": "wrong one",
        "seen": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    assert page.post("dead-letters/ignore", body)["ignored"] == 0


def test_the_csv_has_no_formula_and_no_personal_data(page: Page, refused: World) -> None:
    bury(refused, 1, name="Zhang Wei", message='=HYPERLINK("http://x") Zhang Wei')
    bury_formulas(refused)
    reply = page.viewer.get("/api/dead-letters.csv", params={"pipeline": "leads", "destination": "hubspot"})
    assert reply.headers["content-disposition"] == 'attachment; filename="dead-letters-leads-hubspot.csv"'
    rows = list(csv.DictReader(io.StringIO(reply.text.removeprefix("\ufeff"))))
    assert len(rows) == 3 + 1 + 5
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert "Zhang" not in reply.text
    assert {row["external_id"] for row in rows} >= {"'=1+1", "'@SUM(A1)", "'+1", "'-1", "'\t=1"}
    group = page.viewer.get("/api/dead-letters.csv", params={**QUERY, "group": GROUP})
    assert len(group.text.splitlines()) == 4


def bury_formulas(world: World) -> None:
    world.state.cursor().executemany(
        "INSERT INTO leadsync.dead_letter (destination_id, lead_key, external_id, sequence, reason, attempts) "
        "SELECT destination_id, gen_random_uuid(), %s, 1, 'rejected', 1 FROM leadsync.watermark "
        "WHERE destination = 'hubspot'",
        [(text,) for text in ("=1+1", "@SUM(A1)", "+1", "-1", "\t=1")],
    )


def test_markup_stays_text_in_json(page: Page, refused: World) -> None:
    bury(refused, 1, name=MARKUP, message=MARKUP, field=MARKUP)
    group = f"rejected BAD {MARKUP}"
    reply = page.admin.get("/api/dead-letters", params={**QUERY, "group": group})
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["letters"][0]["field"] == MARKUP
    assert [each["group"] for each in page.get("dead-letters/groups")["groups"]][-1] == group


def test_a_lead_is_found(page: Page, refused: World) -> None:
    for query, by in (
        ("ASDAD:7", "external_id"),
        ("7", "uid"),
        ("13800000007", "lookup"),
        ("lead7@example.com", "lookup"),
        ("LEAD7@Example.com", "lookup"),
    ):
        found = page.post("leads/search", {"query": f" {query} "}, user="viewer")
        assert found["leads"] == [{"pipeline": "leads", "external_id": "ASDAD:7", "by": by}], query
        assert found["problems"] == []
    refused.hive.execute("INSERT INTO customer (appkey, uid) VALUES ('NEW', 99)")
    assert page.post("leads/search", {"query": "NEW:99"}, user="viewer")["leads"] == [
        {"pipeline": "leads", "external_id": "NEW:99", "by": "external_id"}
    ]


def test_a_uid_is_found_after_the_row_is_gone(page: Page, refused: World) -> None:
    refused.hive.execute("DELETE FROM customer WHERE uid = 7")
    assert page.post("leads/search", {"query": "7"}, user="viewer")["leads"] == [
        {"pipeline": "leads", "external_id": "ASDAD:7", "by": "uid"}
    ]


def test_a_column_without_index_is_given_up_in_time(page: Page, refused: World) -> None:
    with psycopg.connect(refused.dsn) as locker:
        locker.execute("LOCK TABLE customer IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        found = page.post("leads/search", {"query": "13800000007"}, user="viewer")
    assert time.monotonic() - started < 10
    assert [problem["problem"] for problem in found["problems"]] == ["slow"]


def test_what_was_searched_is_stored_nowhere(page: Page, refused: World) -> None:
    page.post("leads/search", {"query": "13800000007"}, user="viewer")
    query = "SELECT count(*) FROM pg_stat_activity WHERE position(%s IN query) > 0"
    assert refused.state.execute(query, ("13800000007",)).fetchone() == (0,)
    lines = refused.state.execute("SELECT message || details::text FROM leadsync.recovery_log").fetchall()
    assert not [line for (line,) in lines if "13800000007" in line]


def test_a_lead_over_all_crms(page: Page, refused: World) -> None:
    shown = page.get("leads", pipeline="leads", external_id="ASDAD:1")
    assert shown["known"] is True
    assert (shown["source"]["present"], shown["source"]["deleted"]) == (True, False)
    hubspot, salesforce = shown["destinations"]
    assert (hubspot["ledger"]["delivered"], salesforce["ledger"]["delivered"]) == (False, True)
    assert salesforce["ledger"]["crm_id"]
    assert salesforce["ledger"]["url"] == f"{refused.simulators['salesforce'].url}/#{salesforce['ledger']['crm_id']}"
    assert shown["findings"] == []
    assert salesforce["ledger"]["claimed_by"]["sync_id"] == page.get("operations")["operations"][0]["sync_id"]
    assert [letter["destination"] for letter in shown["letters"]] == ["hubspot"]
    assert "lead1@" not in json.dumps(shown)


def test_a_record_has_a_link_into_its_crm(page: Page, refused: World) -> None:
    salesforce = page.pipeline.destinations[1].model_copy(update={"record_url": "{url}/lightning/{id}/view"})
    page.pipeline = page.pipeline.model_copy(update={"destinations": (page.pipeline.destinations[0], salesforce)})
    refused.state.execute("UPDATE leadsync.delivery SET crm_id = '00Q/\"><x' WHERE external_id = 'ASDAD:2'")
    entry = page.get("leads", pipeline="leads", external_id="ASDAD:2")["destinations"][1]["ledger"]
    assert entry["url"] == f"{refused.simulators['salesforce'].url}/lightning/00Q%2F%22%3E%3Cx/view"


def test_what_a_reconciliation_found_of_a_lead(page: Page, refused: World) -> None:
    crm_id = page.get("leads", pipeline="leads", external_id="ASDAD:9")["destinations"][1]["ledger"]["crm_id"]
    delete_in(refused, "salesforce", "ASDAD:8")
    write_in(refused, "salesforce", "ASDAD:9", "Elsewhere")
    reconcile(refused, "salesforce")
    (found,) = page.get("leads", pipeline="leads", external_id="ASDAD:9")["findings"]
    assert (found["destination"], found["kind"]) == ("salesforce", "changed_by_hand")
    assert set(found["fields"]) == {"LastName", "Company"}
    url = f"{refused.simulators['salesforce'].url}/#{crm_id}"
    assert found["records"] == [{"crm_id": crm_id, "url": url}]
    assert (found["repaired_at"], found["repair_id"]) == (None, None)
    assert "Elsewhere" not in json.dumps(found)
    reconcile(refused, "salesforce", REPAIR)
    newest, oldest = page.get("leads", pipeline="leads", external_id="ASDAD:9")["findings"]
    assert newest["repaired_at"] > oldest["found_at"]
    assert page.get("operations", sync_id=newest["repair_id"])["operations"][0]["kind"] == "repair"
    assert [each["kind"] for each in page.get("leads", pipeline="leads", external_id="ASDAD:8")["findings"]] == [
        "wrongly_deleted", "wrongly_deleted",
    ]  # fmt: skip


def test_the_history_of_a_lead_tells_what_changed_and_no_values(page: Page, refused: World) -> None:
    refused.hive.execute("UPDATE customer SET phone = '13700009999', city = 'Wuhan' WHERE uid = 9")
    refused.run()
    refused.hive.execute("UPDATE customer SET is_delete = true WHERE uid = 9")
    refused.run()
    shown = page.get("leads/history", pipeline="leads", external_id="ASDAD:9")
    mine = [each for each in shown["changes"] if each["destination"] == "salesforce"]
    assert [each["change"] for each in mine] == ["deleted", "updated", "created"]
    assert [each["changed"] for each in mine] == [["update_time", "is_delete"], ["phone", "city", "update_time"], None]
    assert len(shown["changes"]) == 6
    assert shown["next"] is None
    assert "13700009999" not in json.dumps(shown)


def test_the_history_goes_on_where_its_time_was_up(page: Page, refused: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from leadsync.ui import lead

    for number in range(3):
        refused.hive.execute("UPDATE customer SET city = %s WHERE uid = 9", (str(number),))
        refused.run()
    whole = page.get("leads/history", pipeline="leads", external_id="ASDAD:9")["changes"]
    monkeypatch.setattr(lead, "MOST_CHANGES", 1)
    seen, before = [], None
    while True:
        got = page.get(
            "leads/history", pipeline="leads", external_id="ASDAD:9", **({"before": before} if before else {})
        )
        seen += got["changes"]
        before = got["next"]
        if before is None:
            break
    assert [(each["sync_id"], each["destination"]) for each in seen] == [
        (each["sync_id"], each["destination"]) for each in whole
    ]
    assert len(seen) == 8


def test_the_recovery_log_by_pages_and_filters(page: Page, refused: World) -> None:
    for number in range(5):
        recovery_log.append(refused.state, "leads", "held_back", f"line {number}", destination="hubspot")
    recovery_log.append(refused.state, "secret", "other", "of a pipeline that nobody here may see")
    shown = page.get("recovery-log", limit=3)
    assert [line["message"] for line in shown["lines"]] == ["line 4", "line 3", "line 2"]
    following = page.get("recovery-log", limit=3, before=shown["next"])
    assert [line["message"] for line in following["lines"]][:2] == ["line 1", "line 0"]
    assert shown["kinds"] == ["dead_letter", "held_back"]
    assert [line["kind"] for line in page.get("recovery-log", kind="dead_letter")["lines"]] == ["dead_letter"]
    assert page.get("recovery-log", pipeline="secret")["lines"] == []
    assert page.get("recovery-log", destination="salesforce")["lines"] == []


def test_a_line_is_acknowledged_once(page: Page, refused: World) -> None:
    recovery_log.append(refused.state, "leads", "held_back", "a transaction is open")
    (line,) = page.get("recovery-log", kind="held_back")["lines"]
    page.post(f"recovery-log/{line['id']}/acknowledge", {"note": "told the owner"})
    again = page.admin.post(f"/api/recovery-log/{line['id']}/acknowledge", json={"note": "me too"})
    assert again.status_code == 409
    (line,) = page.get("recovery-log", kind="held_back")["lines"]
    assert (line["acknowledged"]["by"], line["acknowledged"]["note"]) == ("admin", "told the owner")
    assert page.get("recovery-log", kind="held_back", acknowledged=False)["lines"] == []
    assert [each["id"] for each in page.get("recovery-log", acknowledged=True)["lines"]] == [line["id"]]
    (own,) = page.get("recovery-log", kind="acknowledged")["lines"]
    assert page.admin.post(f"/api/recovery-log/{own['id']}/acknowledge", json={"note": "what"}).status_code == 404
    assert page.admin.post("/api/recovery-log/999999/acknowledge", json={"note": "what"}).status_code == 404


def test_a_database_without_tables_says_what_to_do(page: Page, world: World) -> None:
    world.state.execute("DROP SCHEMA leadsync CASCADE")
    reply = page.viewer.get("/api/overview")
    assert reply.status_code == 503
    assert "python -m leadsync migrate" in reply.text


def test_the_groups_are_those_of_the_recovery_log(page: Page, refused: World) -> None:
    rows = refused.state.execute(
        "SELECT DISTINCT error_group, concat_ws(' ', reason, nullif(code, ''), nullif(field, '')) "
        "FROM leadsync.dead_letter"
    ).fetchall()
    assert rows == [(GROUP, GROUP)]
    assert GROUP in page.get("recovery-log", kind="dead_letter")["lines"][0]["message"]
