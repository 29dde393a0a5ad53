"""Comparing what was sent with what is held: fair to each CRM's way of writing it, and blind to nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.values import same

HUBSPOT = destination()
SALESFORCE = destination(adapter="salesforce", object="Lead", external_id_field="Ext__c", on_delete="delete")


def adapter(name: str) -> CRMAdapter:
    return registry.build({"hubspot": HUBSPOT, "salesforce": SALESFORCE}[name], Endpoint("https://crm.example"))


@pytest.mark.parametrize(
    ("sent", "held"),
    [
        (None, ""), ("", None), (None, None), (" Zoë\r\nLi ", "Zoë\nLi"), (True, "true"), (False, False),
        (7, "7"), (7, 7.0), ("7", 7), ("007", 7), (7, "7.0"), (0.00001, "0.00001"), (1e22, "10000000000000000000000"),
        (3.14159, 3.14), (2.5, 3), (2.5, 2),
        ("2026-01-31T09:30:00.123Z", "2026-01-31T09:30:00.123+0000"),
        ("2026-01-31T10:30:00+01:00", "2026-01-31T09:30:00Z"),
        (1_769_851_800_000, "2026-01-31T09:30:00Z"), ([1], [1]),
    ],
)  # fmt: skip
def test_the_same_in_another_way_of_writing(sent: Any, held: Any) -> None:
    assert same(sent, held)


@pytest.mark.parametrize(
    ("sent", "held"),
    [
        ("Ada", "ada"), ("Ada", None), (None, "Ada"), (7, 8), (7, 7.4), (7, ""), (0, None), (3.14159, 3.15), ("x", 7),
        ("0049", "49"), (True, "false"), (True, 1), (float("nan"), 1), ("2026-01-31T09:30:00Z", "2026-01-31T09:30:01Z"),
        ("2026-01-31 09:30:00", "2026-01-31T09:30:00Z"), (10**40, "2026-01-31T09:30:00Z"), ([1], "1"),
        ("2026-99-31T09:30:00Z", "2026-01-31T09:30:00Z"), ("a b", "ab"), ({"a": 1}, None),
    ],
)  # fmt: skip
def test_something_else(sent: Any, held: Any) -> None:
    assert not same(sent, held)


@pytest.mark.parametrize(
    ("crm", "name", "sent", "held", "verdict"),
    [
        ("hubspot", "email", "Zoe@Example.ORG", "zoe@example.org", True),
        ("hubspot", "email", "zoe@example.org", "zoe@example.com", False),
        ("hubspot", "name", "Zoe@Example.ORG", "zoe@example.org", False),
        ("hubspot", "name", "2026-01-31T09:30:00.900Z", "2026-01-31T09:30:00.000Z", False),
        ("salesforce", "Email", "Zoe@Example.ORG", "zoe@example.org", True),
        ("salesforce", "name", "Zoe", "zoe", False),
        ("salesforce", "Gone__c", None, False, True),
        ("salesforce", "Gone__c", True, False, False),
        ("salesforce", "At__c", "2026-01-31T09:30:00.900Z", "2026-01-31T09:30:00.000+0000", True),
        ("salesforce", "At__c", "2026-01-31T09:30:00.900Z", "2026-01-31T09:30:02.000+0000", False),
    ],
)
def test_each_crm_has_its_own_ways(crm: str, name: str, sent: Any, held: Any, verdict: bool) -> None:
    assert adapter(crm).same(name, sent, held) is verdict
