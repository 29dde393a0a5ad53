"""No adapter without a suite, and no suite that overrides an inherited case."""

from importlib import import_module

import pytest

from leadsync.crm import registry
from tests.contract.suite import AdapterSuite


@pytest.mark.parametrize("name", registry.adapter_names())
def test_every_adapter_inherits_the_suite(name: str) -> None:
    module = import_module(f"tests.contract.test_{name}")
    suites = [
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, AdapterSuite) and found is not AdapterSuite
    ]
    assert [suite.name for suite in suites] == [name]
    overridden = [case for suite in suites for case in vars(suite) if case in vars(AdapterSuite)]
    assert not [case for case in overridden if not case.startswith("__")]
