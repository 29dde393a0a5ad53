"""What Prometheus is told after runs against real servers, and to whom it is told."""

from __future__ import annotations

import re
import time
from pathlib import Path

import psycopg
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from tests.support.page import Page
from tests.support.world import World

from leadsync.errors import LeadsyncError


@pytest.fixture
def world(world: World) -> World:
    world.fill_with_people(40)
    return world


def ask(page: Page, authorization: str | None = "Bearer token-of-the-test") -> requests.Response:
    headers = {"Authorization": authorization} if authorization else {}
    return page.client(None).get("/metrics", headers=headers)


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(page: Page) -> Samples:
    reply = ask(page)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, destination: str | None = "hubspot", **labels: str) -> float:
    own = {"pipeline": "leads", **({"destination": destination} if destination else {}), **labels}
    return samples[f"leadsync_{name}", frozenset(own.items())]


def names(samples: Samples) -> set[str]:
    return {name for name, _ in samples}


def test_only_the_token_opens(page: Page) -> None:
    for wrong in (None, "Bearer ", "Bearer wrong", "Basic token-of-the-test", "token-of-the-test", "Bearer tökén"):
        reply = ask(page, wrong and wrong.encode().decode("latin-1"))
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), wrong
        assert "leadsync_" not in reply.text
    assert page.admin.get("/metrics").status_code == 401, "a person's login is not the token"
    assert ask(page).status_code == 200


def test_without_a_token_it_says_what_to_do(page: Page) -> None:
    page.token = ""
    for given in (None, "Bearer ", "Bearer x"):
        reply = ask(page, given)
        assert reply.status_code == 403
        assert "LEADSYNC_METRICS_TOKEN" in reply.text


def test_the_token_opens_nothing_else(page: Page) -> None:
    headers = {"Authorization": "Bearer token-of-the-test"}
    for path in ("/", "/api/overview"):
        assert page.client(None).get(path, headers=headers).status_code == 401


def test_before_the_first_run_the_counters_stand_at_nought(page: Page) -> None:
    samples = scrape(page)
    assert value(samples, "leads_total", result="delivered") == 0
    assert value(samples, "crm_request_duration_seconds_count") == 0
    assert "leadsync_behind_seconds" not in names(samples)
    assert value(samples, "lead_store_up", None) == 1


def test_the_counts_are_those_of_the_operation_log(page: Page, world: World) -> None:
    world.simulators["hubspot"].faults(reject={"external_ids": ["ASDAD:1", "ASDAD:2", "ASDAD:3"]})
    world.run()
    world.simulators["hubspot"].faults()
    world.hive.execute("UPDATE customer SET city = 'Wuhan' WHERE uid > 30")
    world.run()
    world.run(since="2020-01-01T00:00:00Z")
    samples = scrape(page)
    for destination in ("hubspot", "salesforce"):
        row = world.state.execute(
            "SELECT sum(delivered), sum(unchanged), sum(overtaken), sum(not_routed), sum(dead), count(*) "
            "FROM leadsync.operation_log JOIN leadsync.watermark USING (destination_id) WHERE destination = %s",
            (destination,),
        ).fetchone()
        assert row is not None
        *counts, loads = row
        for result, count in zip(("delivered", "unchanged", "overtaken", "not_routed", "dead"), counts, strict=True):
            assert value(samples, "leads_total", destination, result=result) == count, result
        assert value(samples, "loads_total", destination, result="success") == loads
        assert value(samples, "load_duration_seconds_count", destination) == loads
    assert value(samples, "leads_total", result="dead") == 3
    assert value(samples, "leads_total", result="unchanged") >= 37


def test_requests_are_counted_as_the_crm_saw_them(page: Page, world: World) -> None:
    before = {name: simulator.stats()["requests"] for name, simulator in world.simulators.items()}
    world.run()
    samples = scrape(page)
    for name, simulator in world.simulators.items():
        seen = simulator.stats()["requests"] - before[name]
        statuses = ("2xx", "3xx", "4xx", "429", "5xx", "none")
        assert sum(value(samples, "crm_requests_total", name, status=each) for each in statuses) == seen > 0
        assert value(samples, "crm_request_duration_seconds_count", name) == seen
        assert 0 < value(samples, "crm_request_duration_seconds_sum", name) < 30
        limit, left = (value(samples, f"crm_quota_{what}", name) for what in ("limit", "left"))
        assert limit - left == simulator.stats()["requests"]


def test_throttling_failures_and_retries_are_counted(page: Page, world: World) -> None:
    world.simulators["hubspot"].faults(too_many={"next": 1, "retry_after": 0})
    world.run()
    world.simulators["hubspot"].faults(server_error={"rate": 1, "status": 503})
    world.hive.execute("UPDATE customer SET city = 'Wuhan'")
    with pytest.raises(LeadsyncError):
        world.run()
    world.simulators["hubspot"].faults()
    samples = scrape(page)
    assert value(samples, "crm_requests_total", status="429") == 1
    assert value(samples, "crm_requests_total", status="5xx") > 0
    assert value(samples, "loads_total", result="failure") == 1
    assert value(samples, "retries_total") > 0
    assert value(samples, "retries_total") == value(samples, "queue_leads", queue="retry")
    assert value(samples, "destination_state", state="failing") == 1
    assert value(samples, "destination_state", state="up_to_date") == 0


def test_freshness_is_from_the_change_to_its_arrival(page: Page, world: World) -> None:
    world.hive.execute("DELETE FROM customer WHERE uid > 4")
    world.hive.execute("ALTER TABLE customer DISABLE TRIGGER ALL")
    world.hive.execute("UPDATE customer SET update_time = now() - interval '50 seconds' WHERE uid = 1")
    world.run()
    samples = scrape(page)
    assert value(samples, "freshness_seconds_count") == 4
    assert value(samples, "freshness_seconds_bucket", le="45.0") == 3
    assert value(samples, "freshness_seconds_bucket", le="90.0") == 4
    # What a person has sent again is old on purpose.
    world.run(since="2020-01-01T00:00:00Z", resend=True)
    assert value(scrape(page), "freshness_seconds_count") == 4


def test_what_is_so_now(page: Page, world: World) -> None:
    world.simulators["hubspot"].faults(reject={"external_ids": ["ASDAD:1", "ASDAD:2", "ASDAD:3"]})
    world.run()
    samples = scrape(page)
    assert value(samples, "queue_leads", queue="dead") == 3
    assert value(samples, "queue_leads", queue="main") == 0
    assert value(samples, "destination_state", state="up_to_date") == 1
    assert value(samples, "behind_seconds") == 0
    assert 0 < value(samples, "watermark_lag_seconds") < 60
    assert time.time() - value(samples, "last_success_timestamp_seconds") < 60
    assert 0 < value(samples, "run_duration_seconds", None) < 60
    assert value(samples, "snapshot_rows_total", None) == 40
    stored = value(samples, "snapshot_bytes_total", None)
    held = sum(world.redis.strlen(key) for key in world.redis.scan_iter("leadsync:leads:snapshot:*:[0-9]*"))
    assert stored == held > 0
    assert samples["leadsync_redis_up", frozenset()] == 1
    assert samples["leadsync_redis_memory_used_bytes", frozenset()] > 0
    # Something is held back, and something waits.
    with psycopg.connect(world.dsn) as writer:
        writer.execute("SELECT pg_sleep(0.3)")
        assert value(scrape(page), "held_back_seconds", None) >= 0.3
    world.hive.execute("ALTER TABLE customer DISABLE TRIGGER ALL")
    world.hive.execute("UPDATE customer SET update_time = now() + interval '1 hour' WHERE uid <= 5")
    assert value(scrape(page), "queue_leads", queue="main") == 5


def test_one_service_that_is_away_hides_no_other(page: Page, world: World) -> None:
    world.run()
    page.store_away = page.redis_away = True
    samples = scrape(page)
    assert samples["leadsync_redis_up", frozenset()] == 0
    assert value(samples, "lead_store_up", None) == 0
    assert value(samples, "destination_state", state="up_to_date") == 1
    page.store_away = page.redis_away = False
    samples = scrape(page)
    assert samples["leadsync_redis_up", frozenset()] == 1
    assert value(samples, "leads_total", result="delivered") == 40


def test_nothing_of_a_lead_is_told(page: Page, world: World) -> None:
    world.simulators["hubspot"].faults(reject={"external_ids": ["ASDAD:1"]})
    world.run()
    text = ask(page).text
    for word in ("ASDAD", "example.com", "13800", "Lead 1", "customer"):
        assert word not in text


def test_rules_and_dashboard_name_nothing_else(page: Page, world: World) -> None:
    """A figure that is renamed would leave a rule that never calls, and nobody would notice."""
    world.run()
    exported = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", ask(page).text, re.MULTILINE):
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        exported |= {name + suffix for suffix in suffixes}
    folder = Path(__file__).parents[2] / "deploy" / "monitoring"
    for file in ("alerts.yaml", "alerts_test.yaml", "grafana-dashboard.json"):
        named = set(re.findall(r"\bleadsync_\w+", (folder / file).read_text()))
        assert len(named) > 10
        assert named - exported == set(), file
