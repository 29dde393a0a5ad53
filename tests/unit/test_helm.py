"""The values for the Airflow chart fit what is pinned and measured here. The chart itself is not at hand."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
VALUES = yaml.safe_load((ROOT / "deploy" / "helm" / "values.yaml").read_text(encoding="utf-8"))


def test_the_version_is_the_one_that_is_pinned() -> None:
    pinned = re.search(r"^apache-airflow==(.+)$", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    assert pinned is not None
    assert VALUES["airflowVersion"] == pinned[1]


def test_a_task_gets_the_memory_that_was_measured() -> None:
    table = (ROOT / "docs" / "benchmarks.md").read_text()
    peaks = [
        int(found)
        for found in re.findall(r"^\| (?:extract|snapshot|load \w+|commit_watermark) \| (\d+) \|", table, re.MULTILINE)
    ]
    assert len(peaks) >= 5
    requested = VALUES["workers"]["resources"]["requests"]["memory"]
    assert int(requested.removesuffix("Mi")) * 2**20 > max(peaks) * 10**6


def test_the_connections_are_secrets_and_no_server_is_bundled() -> None:
    assert VALUES["postgresql"] == VALUES["redis"] == {"enabled": False}
    assert yaml.safe_load(VALUES["extraEnvFrom"]) == [{"secretRef": {"name": "leadsync"}}]
    assert not re.search(r"(?i)password|token=|://[^\s]*@", yaml.dump(VALUES))
