"""The DAG `leadsync_alerts` on a real scheduler: people are told what is wrong, and that it is well again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from demo import lead_store
from tests.e2e.conftest import NO_ALERTS, Airflow
from tests.support.receiver import Receiver


@pytest.fixture
def wanted(airflow: Airflow) -> Iterator[None]:
    """People want to know as soon as anything is behind."""
    file = airflow.pipelines / "leads.yaml"
    before = file.read_text()
    alerts = {**NO_ALERTS, "behind_minutes": 0.01, "calm_minutes": 0}
    file.write_text(yaml.safe_dump({**airflow.shipped(), "alerts": alerts}))
    yield
    file.write_text(before)
    airflow.at("leadsync_alerts").run()


def test_a_test_message(airflow: Airflow, receiver: Receiver) -> None:
    checks = airflow.at("leadsync_alerts")
    checks.run(test=True)
    (message,) = receiver.taken()
    assert message["title"] == "Leadsync: test"
    assert f"{airflow.stack.ui_url}/plugin/leadsync" in message["message"]


def test_a_crm_that_is_down_and_well_again(airflow: Airflow, receiver: Receiver, wanted: None) -> None:
    checks = airflow.at("leadsync_alerts")
    airflow.simulators["hubspot"].faults(down=True)
    try:
        uid = lead_store.insert(airflow.hive, "ALERTS", "Zelda Quill")
        run_id = airflow.trigger()
        airflow.until(lambda: airflow.load(run_id, 0)["state"] == "up_for_retry", "HubSpot is not down")
        check = checks.run()
    finally:
        airflow.simulators["hubspot"].faults()
    (message,) = receiver.taken()
    assert message["type"] == "warning"
    assert "hubspot (leads): " in message["message"]
    assert "s behind; 1 lead waits. Since " in message["message"]
    assert f"All of it: {airflow.stack.ui_url}/plugin/leadsync" in message["message"]
    told = str(message) + checks.log(check, "check")
    for private in ("Zelda", f"ALERTS:{uid}", "hook-secret"):
        assert private not in told
    assert airflow.wait(run_id) == "success"
    checks.run()
    (message,) = receiver.taken()
    assert message["type"] == "success"
    assert "hubspot (leads): no longer behind: " in message["message"]
    airflow.assert_in_step()
