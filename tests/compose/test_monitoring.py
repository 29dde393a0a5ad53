"""The profile `monitoring`: Prometheus scrapes the page and knows the rules, Grafana shows the dashboard from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from tests.compose.stack import ROOT, Compose
from tests.e2e.conftest import Airflow

pytestmark = pytest.mark.timeout(3600)

PROFILE = ("--profile", "monitoring")
UP = ("up", "--detach", "--wait", "--no-recreate")


def prometheus(compose: Compose, path: str) -> Any:
    """The data of a reply; it is not published, so it is asked from inside its container."""
    url = f"http://127.0.0.1:9090/api/v1/{path}"
    said = compose(*PROFILE, "exec", "--no-TTY", "prometheus", "wget", "--quiet", "--output-document=-", url)
    return json.loads(said)["data"]


def test_prometheus_scrapes_with_the_token_and_knows_the_rules(compose: Compose, airflow: Airflow) -> None:
    airflow.run()
    compose(*PROFILE, *UP, "prometheus")

    def scraped() -> bool:
        return any(target["health"] == "up" for target in prometheus(compose, "targets?state=active")["activeTargets"])

    airflow.until(scraped, lambda: str(prometheus(compose, "targets?state=active")), seconds=90)
    found = prometheus(compose, "query?query=leadsync_behind_seconds")["result"]
    assert {sample["metric"]["destination"] for sample in found} == {"hubspot", "salesforce"}
    rules = [rule for group in prometheus(compose, "rules")["groups"] for rule in group["rules"]]
    assert rules
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, rules


def test_grafana_has_the_dashboard_and_reaches_prometheus(compose: Compose, airflow: Airflow) -> None:
    compose(*PROFILE, *UP, "prometheus", "grafana")
    login = ("admin", (compose.secrets / "grafana_admin_password").read_text())

    def ask(path: str) -> Any:
        reply = requests.get(compose.url("grafana") + path, auth=login, timeout=20)
        assert reply.ok, reply.text
        return reply.json()

    shipped = json.loads((ROOT / "deploy" / "monitoring" / "grafana-dashboard.json").read_text())
    shown = ask(f"/api/dashboards/uid/{shipped['uid']}")["dashboard"]
    assert [panel["title"] for panel in shown["panels"]] == [panel["title"] for panel in shipped["panels"]]
    source = next(source for source in ask("/api/datasources") if source["type"] == "prometheus")
    assert ask(f"/api/datasources/uid/{source['uid']}/health")["status"] == "OK"
