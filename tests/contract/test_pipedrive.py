"""Pipedrive's adapter against the simulator: persons; leads are in test_pipedrive_leads.py."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from leadsync.config import Delete, Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.models import Status
from tests.contract.suite import AdapterSuite
from tests.support.simulators import Simulator

KEY = "3339fe67e9a9406d52bbdf177157fc4aa07d3d69"
CITY = "852356669e0270244002c417b8d6fd91e363368f"
UID = "bb9ae376a71e137729aafb209b28c274c62449ad"
BUDGET = "55871649a6a1b5a694730e82607a2eb1c10a9e1e"


def call(crm: Simulator, method: str, path: str, body: Any = None, **params: str) -> Any:
    """What anybody else does there."""
    headers = {"x-api-token": crm.token}
    reply = requests.request(method, f"{crm.url}/api{path}", json=body, params=params, headers=headers, timeout=10)
    return reply.json()["data"]


def made(crm: Simulator, external_id: str, **fields: Any) -> str:
    """A person that somebody else made; its id."""
    body = {"name": "Li", "custom_fields": {KEY: external_id}, **fields}
    return str(call(crm, "POST", "/v2/persons", body)["id"])


class TestPipedrive(AdapterSuite):
    name = "pipedrive"
    text_field = "9618b4aad79491791d2acfbcd66991c6d4245fd7"
    good = {"name": "Li Lei", CITY: "Berlin"}
    bad = {"name": ""}
    renews = False
    requests_per_batch = 20 + 1 + 20  # a search for each lead, a look at the newest, and a request for each lead
    one_a_call = True
    refuses_doubles = False
    many = 200  # each takes two requests or more
    gateway_blocks = True

    def paths(self, crm: Simulator) -> int:
        return sum(crm.get("stats")["by_status"].values())

    @pytest.fixture(params=[0, 300], ids=["search knows at once", "search lags"])
    def lag(self, request: pytest.FixtureRequest, crm: Simulator) -> int:
        crm.faults(search_lag=request.param)
        found: int = request.param
        return found

    def test_a_record_that_the_search_does_not_know_yet_is_not_doubled(
        self, lag: int, adapter: CRMAdapter, crm: Simulator
    ) -> None:
        adapter.deliver(self.leads(3))
        assert self.statuses(adapter.deliver(self.leads(4))) == [Status.UPDATED] * 3 + [Status.CREATED]
        assert {key: len(found) for key, found in adapter.fetch(["ASDAD:0", "ASDAD:9"]).items()} == {
            "ASDAD:0": 1, "ASDAD:9": 0
        }  # fmt: skip
        crm.faults(search_lag=lag, lose_reply={"next": 1})
        assert self.statuses(adapter.deliver([self.lead(7)])) == [Status.TRANSIENT]
        assert self.statuses(adapter.deliver([self.lead(7)])) == [Status.UPDATED]
        assert crm.get("stats")["doubled"] == 0

    def test_a_record_that_the_search_still_shows_is_gone(self, lag: int, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver(self.leads(2))
        crm.faults()
        adapter.deliver(self.leads(2), delete=True)
        crm.faults(search_lag=lag)
        assert adapter.fetch(["ASDAD:0", "ASDAD:1"]) == {"ASDAD:0": [], "ASDAD:1": []}
        assert self.statuses(adapter.deliver(self.leads(2), delete=True)) == [Status.DELETED] * 2
        assert self.statuses(adapter.deliver(self.leads(2))) == [Status.CREATED] * 2

    def test_doubles_are_told_updated_and_deleted_together(self, lag: int, adapter: CRMAdapter, crm: Simulator) -> None:
        ids = [made(crm, "ASDAD:1") for _ in range(3)]
        (outcome,) = adapter.deliver([self.lead(1)])
        assert (outcome.status, outcome.crm_id) == (Status.UPDATED, ids[0])
        records = adapter.fetch(["ASDAD:1"])["ASDAD:1"]
        assert [record.crm_id for record in records] == ids
        assert {record.fields[CITY] for record in records} == {"Berlin"}
        known = self.lead(1)._replace(crm_id=ids[1])
        assert self.statuses(adapter.deliver([known], delete=True)) == [Status.DELETED]
        assert crm.records() == {}

    def test_a_known_id_saves_the_search(self, adapter: CRMAdapter, crm: Simulator) -> None:
        outcomes = adapter.deliver(self.leads(5))
        known = [self.lead(number)._replace(crm_id=outcome.crm_id) for number, outcome in enumerate(outcomes)]
        before = self.paths(crm)
        assert self.statuses(adapter.deliver(known)) == [Status.UPDATED] * 5
        assert self.paths(crm) - before == 1 + 5  # one reading of all five

    def test_a_known_id_of_another_lead_is_not_written_to(self, adapter: CRMAdapter, crm: Simulator) -> None:
        one, other = adapter.deliver(self.leads(2))
        stale = [one.crm_id, "nonsense", "0", "9" * 30, "1,2", "999999"]
        for number, crm_id in enumerate(stale, 10):
            lead = self.lead(number)._replace(crm_id=crm_id)
            assert self.statuses(adapter.deliver([lead])) == [Status.CREATED]
        swapped = [
            self.lead(0)._replace(crm_id=other.crm_id),
            self.lead(1, **{CITY: "Kyiv"})._replace(crm_id=one.crm_id),
        ]
        outcomes = adapter.deliver(swapped)
        assert [(outcome.status, outcome.crm_id) for outcome in outcomes] == [
            (Status.UPDATED, one.crm_id), (Status.UPDATED, other.crm_id)
        ]  # fmt: skip
        assert [crm.records()[f"ASDAD:{number}"][CITY] for number in (0, 1)] == ["Berlin", "Kyiv"]

    def test_a_known_id_of_a_record_that_was_deleted_makes_a_new_one(self, adapter: CRMAdapter, crm: Simulator) -> None:
        (old,) = adapter.deliver([self.lead(1)])
        call(crm, "DELETE", f"/v2/persons/{old.crm_id}")
        (new,) = adapter.deliver([self.lead(1)._replace(crm_id=old.crm_id)])
        assert new.status is Status.CREATED
        assert new.crm_id != old.crm_id

    def test_many_external_ids_are_read_from_a_list_of_all(self, adapter: CRMAdapter, crm: Simulator) -> None:
        for number in range(3):
            made(crm, f"ASDAD:{number}")
        doubled = made(crm, "ASDAD:1")
        adapter.check()
        before = self.paths(crm)
        found = adapter.fetch([f"ASDAD:{number}" for number in range(120)])
        assert self.paths(crm) - before == 1
        assert [len(found[f"ASDAD:{number}"]) for number in range(120)] == [1, 2, 1] + [0] * 117
        assert found["ASDAD:1"][1].crm_id == doubled

    def test_lists_are_read_page_by_page(
        self, adapter: CRMAdapter, crm: Simulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("leadsync.crm.pipedrive_records.PAGE_SIZE", 4)
        adapter.deliver(self.leads(10))
        assert {len(records) for records in adapter.fetch([f"ASDAD:{n}" for n in range(10)]).values()} == {1}
        found = adapter.fetch([f"ASDAD:{number}" for number in range(120)])
        assert sum(map(len, found.values())) == 10

    def test_addresses_that_people_added_stay(self, adapter: CRMAdapter, crm: Simulator) -> None:
        (outcome,) = adapter.deliver([self.lead(1, email="old@example.com", phone="1")])
        path = f"/v2/persons/{outcome.crm_id}"
        own = {"value": "private@example.com", "primary": False, "label": "home"}
        call(crm, "PATCH", path, {"emails": [*call(crm, "GET", path)["emails"], own]})
        adapter.deliver([self.lead(1, email="new@example.com", phone=None)])
        person = call(crm, "GET", path)
        assert person["emails"] == [{"value": "new@example.com", "primary": True, "label": "work"}, own]
        assert person["phones"] == []
        (record,) = adapter.fetch(["ASDAD:1"])["ASDAD:1"]
        assert (record.fields["email"], record.fields["phone"]) == ("new@example.com", None)
        adapter.deliver([self.lead(1, email="private@example.com")])
        assert [entry["value"] for entry in call(crm, "GET", path)["emails"]] == ["private@example.com"]

    def test_values_go_in_the_type_of_their_field(self, adapter: CRMAdapter, crm: Simulator) -> None:
        outcomes = adapter.deliver([self.lead(1, **{UID: 12, BUDGET: 1.5}), self.lead(2, **{UID: True, BUDGET: "x"})])
        assert self.statuses(outcomes) == [Status.CREATED, Status.REJECTED]
        assert (outcomes[1].code, outcomes[1].field) == ("ERR_SCHEMA_VALIDATION_FAILED", BUDGET)
        assert crm.records()["ASDAD:1"].items() >= {UID: "12", BUDGET: 1.5}.items()

    @pytest.mark.parametrize("external_id", [" A:1", "A:1\n", "A:" + "1" * 254])
    def test_an_external_id_that_would_not_come_back_is_refused(
        self, adapter: CRMAdapter, crm: Simulator, external_id: str
    ) -> None:
        (outcome,) = adapter.deliver([self.lead(1)._replace(external_id=external_id)])
        assert (outcome.status, outcome.field) == (Status.REJECTED, KEY)
        assert crm.records() == {}

    def test_what_was_done_before_a_reply_was_lost_is_told(self, adapter: CRMAdapter, crm: Simulator) -> None:
        crm.faults(reject={"external_ids": ["ASDAD:2"]}, lose_reply={"next": 1})
        outcomes = adapter.deliver([self.lead(2), self.lead(3), self.lead(4)])
        assert [(outcome.status, outcome.sent) for outcome in outcomes] == [
            (Status.REJECTED, True), (Status.TRANSIENT, True), (Status.TRANSIENT, False)
        ]  # fmt: skip
        assert self.statuses(adapter.deliver([self.lead(3), self.lead(4)])) == [Status.UPDATED, Status.CREATED]

    def test_a_deleted_lead_may_be_marked_instead(self, crm: Simulator, destination: Destination) -> None:
        mark = "6b56994eb19e6946e371ff71f68d6c8d15e9fd0a"
        marking = destination.model_copy(update={"on_delete": Delete(mode="field", field=mark, value=True)})
        adapter = registry.build(marking, crm.endpoint)
        adapter.check()
        assert self.statuses(adapter.deliver([self.lead(1, **{mark: True})])) == [Status.CREATED]
        assert crm.records()["ASDAD:1"][mark] == "true"
