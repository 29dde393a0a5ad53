"""No adapter without a suite, and no suite that overrides an inherited case."""

from importlib import import_module
from pathlib import Path

import pytest

from leadsync.crm import pages, registry, scaffold
from leadsync.fields import nested
from tests.contract.suite import AdapterSuite
from tests.contract.suite.case import Case

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", registry.adapter_names())
def test_every_adapter_inherits_the_suite(name: str) -> None:
    module = import_module(f"tests.contract.test_{name}")
    suites = [
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, AdapterSuite) and found is not AdapterSuite
    ]
    assert {suite.name for suite in suites} == {name}
    simulators = [getattr(suite, "simulator", name) for suite in suites]
    assert len(set(simulators)) == len(simulators), "one suite for each kind of CRM that it speaks to"
    inherited = {name: thing for base in AdapterSuite.__mro__[:-1] for name, thing in vars(base).items()}
    overridden = [case for suite in suites for case in vars(suite) if case in inherited]
    attributes = Case.__annotations__  # these are for the adapters to set
    assert not [case for case in overridden if not case.startswith("__") and case not in attributes]


@pytest.mark.parametrize("name", registry.adapter_names())
def test_every_adapter_is_documented(name: str) -> None:
    written = (ROOT / "docs" / "crm" / f"{name}.md").read_text()
    assert written == pages.page(registry.adapter_class(name)), "run `make docs`"
    assert f"docs/crm/{name}.md" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", registry.adapter_names())
def test_nothing_that_the_template_wants_changed_is_left(name: str) -> None:
    written = [(ROOT / path.format(name=name)) for path in scaffold.FILES.values()]
    assert [path.name for path in written if path.is_file() and "CHANGE:" in path.read_text()] == []


@pytest.mark.parametrize("name", registry.adapter_names())
def test_every_setting_is_explained(name: str) -> None:
    models = nested(registry.adapter_class(name).settings_model)
    fields = [(model, setting, field) for model in models for setting, field in model.model_fields.items()]
    assert [(model, setting) for model, setting, field in fields if not field.description] == []
