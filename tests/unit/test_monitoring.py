"""The files of deploy/monitoring: promtool reads them, tries the rules, and every figure they name is one of ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
HOW_TO_INSTALL = "the rules are checked by promtool: apt-get install prometheus"
DASHBOARD = FOLDER / "grafana-dashboard.json"


def promtool(*arguments: str | Path) -> None:
    found = shutil.which("promtool")
    if found is None:
        # Whoever has none still wants the other tests; CI has one, or is broken.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(HOW_TO_INSTALL)
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def test_the_rules_are_right() -> None:
    promtool("check", "rules", FOLDER / "alerts.yaml")


def test_the_rules_call_when_they_should_and_not_before() -> None:
    promtool("test", "rules", FOLDER / "alerts_test.yaml")


def test_every_rule_is_tried() -> None:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    tried = {
        each["alertname"]
        for test in yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
        for each in test["alert_rule_test"]
        if each.get("exp_alerts")
    }
    assert {rule["alert"] for rule in group["rules"]} == tried


def test_the_example_configuration_is_right() -> None:
    # The token is made by `make up`, so it need not be there.
    promtool("check", "config", "--syntax-only", FOLDER / "prometheus.yml")


def test_every_query_of_the_dashboard_can_be_read(tmp_path: Path) -> None:
    queries = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    assert len(queries) > 20
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries)
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", file)


def test_the_dashboard_asks_the_data_source_that_a_person_chooses() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["templating"]["list"][0]["type"] == "datasource"
    assert len({panel["id"] for panel in panels()}) == len(panels())
    asked = [each for panel in panels() if panel["type"] != "row" for each in (panel, *panel["targets"])]
    assert {each["datasource"]["uid"] for each in asked} == {"${datasource}"}
    known = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) <= known
