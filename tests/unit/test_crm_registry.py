"""Adapters are found by their module's name, and a destination that one can't serve is refused with what is allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.test_crm_base import destination

from leadsync.config import load_pipeline
from leadsync.crm import registry
from leadsync.crm.hubspot import HubSpot
from leadsync.errors import ConfigError

INCLUDE = Path(__file__).parents[2] / "include"


def test_adapters_are_the_modules_that_define_one() -> None:
    names = registry.adapter_names()
    assert names == sorted(names)
    assert {"hubspot", "salesforce"} <= set(names)
    assert not {"base", "http", "pages", "registry", "values"} & set(names)
    assert registry.adapter_class("hubspot") is HubSpot


@pytest.mark.parametrize("name", ["nope", "base", "http", "registry", "hubspot.HubSpot", "../hubspot", ""])
def test_an_unknown_adapter_lists_the_allowed(name: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed: .*hubspot, .*salesforce"):
        registry.adapter_class(name)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"adapter": "nope"},
            r"destinations.target.adapter: there is no adapter 'nope'; allowed: .*hubspot, .*salesforce",
        ),
        ({"on_delete": "delete"}, r"destinations.target.on_delete: HubSpot can't 'delete'; allowed: archive, field"),
        ({"settings": {"speed": 9}}, r"destinations.target.settings.speed: Extra inputs .*read_timeout"),
        ({"settings": {"read_timeout": 0}}, r"destinations.target.settings.read_timeout: Input should be greater"),
        ({"settings": {"api_version": "v1"}}, r"destinations.target.settings.api_version: String should match"),
        ({"object": "contacts/../deals"}, r"destinations.target: 'contacts/../deals' is no name"),
        ({"fields": {"a b": "name"}}, r"destinations.target: 'a b' is no name"),
    ],
)
def test_a_destination_that_can_not_work_is_refused(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        registry.check_destination(destination(**changes))


def test_the_shipped_destinations_are_right() -> None:
    registry.check_pipeline(load_pipeline(INCLUDE / "pipelines" / "leads.yaml"))


def test_looking_at_destinations_loads_no_http_library() -> None:
    """They are checked whenever a DAG is parsed."""
    code = (
        "import sys; from leadsync.crm import registry; registry.adapter_names(); "
        "print(sorted({'requests', 'urllib3', 'airflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(INCLUDE)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
