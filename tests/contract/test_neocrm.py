"""Neocrm's adapter against the simulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import requests

from leadsync.config import Delete, Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.errors import AccessError
from leadsync.models import Status
from tests.contract.suite import AdapterSuite
from tests.support.simulators import Simulator

MOMENT = 1_769_851_800_123
OBJECTS = "/rest/data/v2.0/xobjects/lead"


class Client:
    """Somebody else's calls."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.token = self.log_in().json()["access_token"]

    def log_in(self, **changes: str) -> requests.Response:
        form = {
            "grant_type": "password", "client_id": "demo", "client_secret": self.simulator.token,
            "username": self.simulator.client_id, "password": self.simulator.client_secret, **changes,
        }  # fmt: skip
        return requests.post(f"{self.simulator.url}/auc/oauth2/token", data=form, timeout=10)

    def call(self, method: str, path: str, **content: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.request(method, self.simulator.url + path, headers=headers, timeout=10, **content)

    def create(self, external_id: str, **fields: Any) -> int:
        data: Mapping[str, Any] = {"name": "Li", "companyName": "X", "entityType": 1, "leadsyncId__c": external_id}
        made: int = self.call("POST", OBJECTS, json={"data": {**data, **fields}}).json()["data"]["id"]
        return made

    def query(self, xoql: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("POST", "/rest/data/v2.0/query/xoql", data={"xoql": xoql}).json()
        return found


class TestNeocrm(AdapterSuite):
    name = "neocrm"
    text_field = "leadsyncAnswers__c"
    good = {"name": "Li Lei", "companyName": "ASDAD", "entityType": 11010000200001, "leadsyncUpdatedAt__c": MOMENT}
    bad = {"leadsyncUpdatedAt__c": "one fine day"}
    requests_per_batch = 1 + 20  # one look-up, then one for each lead
    one_a_call = True
    refuses_doubles = False
    many = 200
    has_quota = False

    def test_refused_credentials_are_not_tried_twice(self, crm: Simulator, destination: Destination) -> None:
        adapter = registry.build(destination, replace(crm.endpoint, extra={"client_secret": "wrong-secret"}))
        for _ in range(2):
            with pytest.raises(AccessError, match="refuses the login") as caught:
                adapter.deliver([self.lead(1)])
        assert "wrong-secret" not in str(caught.value)
        assert crm.get("stats")["by_status"] == {"400": 1}

    def test_doubles_are_told_updated_and_deleted_together(self, adapter: CRMAdapter, crm: Simulator) -> None:
        ids = [str(Client(crm).create("ASDAD:1")) for _ in range(3)]
        (outcome,) = adapter.deliver([self.lead(1)])
        assert (outcome.status, outcome.crm_id) == (Status.UPDATED, ids[0])
        records = adapter.fetch(["ASDAD:1"])["ASDAD:1"]
        assert [record.crm_id for record in records] == ids
        assert {record.fields["name"] for record in records} == {"Li Lei"}
        assert self.statuses(adapter.deliver([self.lead(1)], delete=True)) == [Status.DELETED]
        assert crm.records() == {}

    def test_external_ids_that_differ_by_case_are_different_leads(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = [self.lead(1)._replace(external_id=external_id) for external_id in ("a:1", "A:1")]
        assert self.statuses(adapter.deliver(leads)) == [Status.CREATED] * 2
        assert self.statuses(adapter.deliver(leads)) == [Status.UPDATED] * 2
        assert {i: len(found) for i, found in adapter.fetch(["a:1", "A:1"]).items()} == {"a:1": 1, "A:1": 1}
        adapter.deliver(leads[:1], delete=True)
        assert set(crm.records()) == {"A:1"}

    @pytest.mark.parametrize("external_id", ["a b", "' or ''='", "100%27", "李雷:\u3000", "a\\:b:\\\\", '"\n\x7f'])
    def test_every_external_id_can_be_looked_up(self, adapter: CRMAdapter, crm: Simulator, external_id: str) -> None:
        lead = self.lead(1)._replace(external_id=external_id)
        Client(crm).create("another")
        assert self.statuses(adapter.deliver([lead])) == [Status.CREATED]
        assert self.statuses(adapter.deliver([lead])) == [Status.UPDATED]
        assert set(crm.records()) == {external_id, "another"}
        assert len(adapter.fetch([external_id])[external_id]) == 1

    def test_an_external_id_that_is_too_long_is_refused(self, adapter: CRMAdapter, crm: Simulator) -> None:
        (outcome,) = adapter.deliver([self.lead(1)._replace(external_id="a" * 256)])
        assert (outcome.external_id, outcome.status, outcome.code) == (
            "a" * 256, Status.REJECTED, "UNFIT_EXTERNAL_ID",
        )  # fmt: skip
        assert crm.records() == {}

    def test_long_external_ids_go_in_several_queries(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = [self.lead(1)._replace(external_id=f"{number:0>255}") for number in range(20)]
        assert self.statuses(adapter.deliver(leads)) == [Status.CREATED] * 20
        assert {len(found) for found in adapter.fetch([lead.external_id for lead in leads]).values()} == {1}

    def test_a_field_marks_a_deleted_lead(self, crm: Simulator, destination: Destination) -> None:
        mark = Delete(mode="field", field="leadsyncDeleted__c", value=True)
        adapter = registry.build(destination.model_copy(update={"on_delete": mark}), crm.endpoint)
        adapter.check()
        adapter.deliver([self.lead(1)])
        adapter.deliver([self.lead(1)._replace(fields={"leadsyncDeleted__c": True})])
        assert crm.records()["ASDAD:1"].items() >= {"name": "Li Lei", "leadsyncDeleted__c": True}.items()

    def test_a_field_that_can_not_be_written_is_refused(self, adapter: CRMAdapter) -> None:
        with pytest.raises(AccessError, match="'createdAt'"):
            adapter.deliver([self.lead(1, createdAt=MOMENT)])
