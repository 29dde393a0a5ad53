"""Whatever a pipeline file holds, it is a pipeline or a ConfigError."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from leadsync.config import Pipeline, load_pipeline
from leadsync.crm import registry
from leadsync.errors import ConfigError

SHIPPED = (Path(__file__).parents[2] / "include" / "pipelines" / "leads.yaml").read_text(encoding="utf-8")
WORDS = ["source", "destinations", "leads", "hubspot", "rest", "customer", "field", "delete", "{leads}", "*", "\0", ""]
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.datetimes() | st.binary(max_size=3)
KEY = st.sampled_from(WORDS) | st.integers() | st.text(max_size=5) | st.dates()
VALUE = st.recursive(
    LEAF | KEY, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3), max_leaves=6
)


@pytest.fixture(scope="module")
def file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "leads.yaml"


def read(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        pipeline = load_pipeline(file)
        registry.check_pipeline(pipeline)
    except ConfigError:
        return
    assert isinstance(pipeline, Pipeline)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_one_value_of_the_shipped_file_is_another(file: Path, data: st.DataObject) -> None:
    def changed(document: Any) -> Any:
        if isinstance(document, dict | list) and document and data.draw(st.integers(0, 9)):
            keys = list(document) if isinstance(document, dict) else list(range(len(document)))
            key = data.draw(st.sampled_from(keys))
            copy = document.copy()
            copy[key] = changed(document[key])
            return copy
        return data.draw(VALUE)

    read(file, yaml.dump(changed(yaml.safe_load(SHIPPED)), allow_unicode=True).encode())


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, len(SHIPPED)),
    st.integers(0, 40),
    st.text(max_size=12) | st.text("[]{}:-&*!|>'\"#,\n 0", max_size=12),
)
def test_some_of_the_shipped_file_is_overwritten(file: Path, start: int, length: int, text: str) -> None:
    read(file, (SHIPPED[:start] + text + SHIPPED[start + length :]).encode())


@given(st.binary(max_size=100))
def test_any_bytes(file: Path, content: bytes) -> None:
    read(file, content)


@pytest.mark.parametrize(
    "text",
    [
        "source: 2026-13-45",
        "source: 0b",
        "source: 1:99:99",
        "source: !!int x",
        "source: !!timestamp x",
        "source: &a [*a]",
        "source: &a {b: *a}",
        "? [1]\n: 2",
        "? {a: 1}\n: 2",
        "<<: 1",
        "!!python/object:os.system x",
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "source: " + "9" * 5000,
        "a: 1\n---\nb: 2",
    ],
    ids=lambda text: text[:20],
)
def test_what_yaml_stumbles_over(file: Path, text: str) -> None:
    read(file, text.encode())
