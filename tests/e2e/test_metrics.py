"""Prometheus's view of the real stack: the token that `make up` has made opens it, and a run shows in it."""

from __future__ import annotations

import stat

import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import ROOT, Airflow


def scrape(airflow: Airflow) -> dict[tuple[str, ...], float]:
    """Samples by name, destination and, where there is one, result or status; as the example configuration scrapes."""
    (job,) = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus.yml").read_text())["scrape_configs"]
    file = airflow.stack.secrets.folder / job["authorization"]["credentials_file"].rpartition("/")[2]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    headers = {"Authorization": f"Bearer {file.read_text()}"}
    reply = requests.get(airflow.stack.ui_url + job["metrics_path"], headers=headers, timeout=30)
    assert reply.status_code == 200, reply.text
    return {
        tuple(filter(None, (sample.name, *map(sample.labels.get, ("destination", "result", "status"))))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
        if sample.labels.get("pipeline", "leads") == "leads"
    }


def test_a_run_shows_in_the_metrics(airflow: Airflow) -> None:
    before = scrape(airflow)
    sent = {name: simulator.stats()["requests"] for name, simulator in airflow.simulators.items()}
    airflow.hive.execute(
        "INSERT INTO customer (appkey, uid, name) SELECT 'METRICS', n, 'Lead ' || n FROM generate_series(1, 30) n"
    )
    airflow.run()
    airflow.assert_in_step()
    # A probe gives the answer of five seconds ago again.
    airflow.until(lambda: grown(airflow, before, "leadsync_leads_total", "salesforce", "delivered") >= 30, "no leads",
                  seconds=30)  # fmt: skip
    for name, simulator in airflow.simulators.items():
        assert grown(airflow, before, "leadsync_leads_total", name, "delivered") >= 30
        assert grown(airflow, before, "leadsync_freshness_seconds_count", name) >= 30
        requested = grown(airflow, before, "leadsync_crm_requests_total", name, "2xx")
        assert 0 < requested <= simulator.stats()["requests"] - sent[name]
        assert scrape(airflow)["leadsync_behind_seconds", name] == 0
    assert scrape(airflow)["leadsync_redis_up",] == 1


def grown(airflow: Airflow, before: dict[tuple[str, ...], float], *name: str) -> float:
    return scrape(airflow).get(name, 0) - before.get(name, 0)


def test_nobody_gets_the_metrics_without_the_token(airflow: Airflow) -> None:
    address = f"{airflow.stack.ui_url}/leadsync/metrics"
    assert requests.get(address, timeout=30).status_code == 401
    assert requests.get(address, headers={"Authorization": "Bearer guessed"}, timeout=30).status_code == 401
