"""Pipedrive's adapter against the simulator: leads, which have an API of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.errors import AccessError
from leadsync.models import Lead, Outcome, Status
from tests.support.simulators import Simulator, Simulators

KEY = "e411ee487cebbbc613cff2ae273c4b94f7878dc0"
CITY = "567e3dff2688dbef9916cf340d7365936761ba6f"


def destination(**changes: Any) -> Destination:
    content = {
        "name": "pipedrive", "adapter": "pipedrive", "object": "leads", "external_id_field": KEY, "on_delete": "delete",
        "fields": {"title": "name", "organization_id": {"constant": 7}, CITY: "city"},
        "settings": {"requests_per_second": 1000},
    }  # fmt: skip
    return Destination.model_validate({**content, **changes})


@pytest.fixture(params=[0, 300], ids=["search knows at once", "search lags"])
def crm(request: pytest.FixtureRequest, simulators: Simulators) -> Simulator:
    simulators["pipedrive"].reset()
    simulators["pipedrive"].faults(search_lag=request.param)
    return simulators["pipedrive"]


@pytest.fixture
def adapter(crm: Simulator) -> Iterator[CRMAdapter]:
    adapter = registry.build(destination(), crm.endpoint)
    yield adapter
    adapter.close()


def lead(number: int, crm_id: str | None = None, **fields: Any) -> Lead:
    return Lead(f"ASDAD:{number}", {"title": "Li Lei", "organization_id": 7, CITY: "Berlin", **fields}, crm_id)


def statuses(outcomes: list[Outcome]) -> list[Status]:
    return [outcome.status for outcome in outcomes]


def call(crm: Simulator, method: str, path: str, body: Any = None) -> Any:
    headers = {"x-api-token": crm.token}
    return requests.request(method, f"{crm.url}/api/v1/leads{path}", json=body, headers=headers, timeout=10).json()


def test_leads_are_created_updated_read_and_deleted(adapter: CRMAdapter, crm: Simulator) -> None:
    adapter.check()
    first = adapter.deliver([lead(1), lead(2)])
    assert statuses(first) == [Status.CREATED] * 2
    second = adapter.deliver([lead(1, **{CITY: "Kyiv"}), lead(2, **{CITY: None}), lead(3)])
    assert statuses(second) == [Status.UPDATED, Status.UPDATED, Status.CREATED]
    assert [outcome.crm_id for outcome in second[:2]] == [outcome.crm_id for outcome in first]
    found = adapter.fetch([f"ASDAD:{number}" for number in range(1, 5)])
    assert [[record.fields[CITY] for record in records] for records in found.values()] == [
        ["Kyiv"], [None], ["Berlin"], []
    ]  # fmt: skip
    assert statuses(adapter.deliver([lead(1), lead(9)], delete=True)) == [Status.DELETED] * 2
    assert set(crm.records()) == {"ASDAD:2", "ASDAD:3"}


def test_a_lost_reply_makes_no_double(adapter: CRMAdapter, crm: Simulator) -> None:
    adapter.check()
    crm.faults(search_lag=300, lose_reply={"next": 1})
    assert statuses(adapter.deliver([lead(1)])) == [Status.TRANSIENT]
    assert statuses(adapter.deliver([lead(1)])) == [Status.UPDATED]
    assert crm.stats()["doubled"] == 0


def test_doubles_are_told_and_deleted_together(adapter: CRMAdapter, crm: Simulator) -> None:
    ids = [call(crm, "POST", "", {"title": "x", "person_id": 1, KEY: "ASDAD:1"})["data"]["id"] for _ in range(2)]
    assert [record.crm_id for record in adapter.fetch(["ASDAD:1"])["ASDAD:1"]] == ids
    assert statuses(adapter.deliver([lead(1, ids[0])], delete=True)) == [Status.DELETED]
    assert crm.records() == {}


def test_a_known_id_is_used_only_while_it_leads_to_the_lead(adapter: CRMAdapter, crm: Simulator) -> None:
    one, other = adapter.deliver([lead(1), lead(2)])
    (outcome,) = adapter.deliver([lead(1, one.crm_id)])
    assert (outcome.status, outcome.crm_id) == (Status.UPDATED, one.crm_id)
    for stale in (other.crm_id, "nonsense", "00000000-0000-0000-0000-00000000ffff"):
        (outcome,) = adapter.deliver([lead(1, stale)])
        assert (outcome.status, outcome.crm_id) == (Status.UPDATED, one.crm_id)
    assert len(crm.records()) == 2
    call(crm, "DELETE", f"/{one.crm_id}")
    assert statuses(adapter.deliver([lead(1, one.crm_id)])) == [Status.CREATED]


def test_an_archived_lead_is_still_there(adapter: CRMAdapter, crm: Simulator) -> None:
    (outcome,) = adapter.deliver([lead(1)])
    call(crm, "PATCH", f"/{outcome.crm_id}", {"is_archived": True})
    many = [f"ASDAD:{number}" for number in range(120)]
    assert [record.crm_id for record in adapter.fetch(many)["ASDAD:1"]] == [outcome.crm_id]
    assert statuses(adapter.deliver([lead(1, outcome.crm_id)])) == [Status.UPDATED]
    assert len(crm.records()) == 1


def test_lists_are_read_page_by_page(adapter: CRMAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leadsync.crm.pipedrive_records.PAGE_SIZE", 4)
    leads = [lead(number) for number in range(10)]
    adapter.deliver(leads)
    assert statuses(adapter.deliver(leads)) == [Status.UPDATED] * 10
    found = adapter.fetch([f"ASDAD:{number}" for number in range(120)])
    assert sum(map(len, found.values())) == 10


def test_persons_and_leads_do_not_mix(adapter: CRMAdapter, crm: Simulator) -> None:
    headers = {"x-api-token": crm.token}
    body = {"name": "Li", "custom_fields": {"3339fe67e9a9406d52bbdf177157fc4aa07d3d69": "ASDAD:1"}}
    requests.post(f"{crm.url}/api/v2/persons", json=body, headers=headers, timeout=10).raise_for_status()
    assert statuses(adapter.deliver([lead(1)])) == [Status.CREATED]


def test_a_lead_of_nobody_is_refused(adapter: CRMAdapter, crm: Simulator) -> None:
    assert statuses(adapter.deliver([lead(1, organization_id=None)])) == [Status.REJECTED]
    unlinked = registry.build(destination(fields={"title": "name"}), crm.endpoint)
    with pytest.raises(AccessError, match="map person_id or organization_id"):
        unlinked.check()


def test_fields_are_those_of_leads_and_deals(adapter: CRMAdapter, crm: Simulator) -> None:
    for name in ("name", "email", "852356669e0270244002c417b8d6fd91e363368f"):
        with pytest.raises(AccessError, match=name):
            adapter.deliver([lead(1, **{name: "x"})])
    assert crm.records() == {}
