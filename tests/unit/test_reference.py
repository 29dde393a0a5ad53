"""The reference of the configuration: current, complete, and its example is a pipeline file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from leadsync import reference
from leadsync.config import Destination, Pipeline, load_pipeline
from leadsync.crm import registry
from leadsync.fields import kind, nested

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"


def example() -> dict[str, Any]:
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    content: dict[str, Any] = yaml.safe_load(found[1])
    return content


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == reference.page(), "run `make docs`"


def test_every_key_is_explained() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in nested(Pipeline)
        for name, field in reference.keys(model).items()
        if not reference.meaning(field)
    ]
    assert silent == []


def test_the_example_is_a_pipeline_with_every_key(tmp_path: Path) -> None:
    file = tmp_path / "leads.yaml"
    file.write_text(yaml.safe_dump(example()))
    registry.check_pipeline(load_pipeline(file))
    shown = set(_keys(example()))
    known = {key for model in nested(Pipeline) for key in reference.keys(model)}
    assert known - shown == set()


def _keys(content: Any) -> Any:
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from _keys(value)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("start", "`beginning`, `now` or time with offset"),
        ("in_flight", "whole number, from 1, up to 64"),
        ("crm_owned", "list of text"),
        ("max_rejected", "number, above 0, up to 1"),
        ("record_url", "text or null"),
        ("fields", "mapping"),
    ],
)
def test_types_are_told_in_words(field: str, words: str) -> None:
    assert kind(Destination.model_fields[field]) == words


def test_every_variable_of_the_environment_is_named() -> None:
    code = "".join(path.read_text() for path in (ROOT / "include" / "leadsync").rglob("*.py"))
    read = set(re.findall(r"""environ(?:\.get\(|\[)\s*"(LEADSYNC_[A-Z_]+)""", code))
    assert read == set(reference.ENVIRONMENT)
