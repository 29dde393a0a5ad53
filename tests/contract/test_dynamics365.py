"""Dynamics 365's adapter against the simulator."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.crm.http import Reply
from leadsync.errors import AccessError, QuotaExceeded
from leadsync.models import Lead, Status
from tests.contract.suite import AdapterSuite
from tests.support.simulators import Simulator


class TestDynamics365(AdapterSuite):
    name = "dynamics365"
    text_field = "new_answers"
    good = {"lastname": "Li Lei", "address1_city": "Berlin"}
    bad = {"companyname": "x" * 101}
    many = 2_000  # in a batch with a bad lead each is a request of its own
    tells_each = False  # it takes them all, or none
    unknown_version = {"api_version": "v9.9"}
    requests_per_batch = 2  # the look-up, and the write

    def test_a_wrong_secret_is_not_tried_twice(self, crm: Simulator, destination: Destination) -> None:
        adapter = registry.build(destination, replace(crm.endpoint, password="wrong-secret"))
        for _ in range(2):
            with pytest.raises(AccessError, match="refuses the login") as caught:
                adapter.deliver([self.lead(1)])
            assert "wrong-secret" not in str(caught.value)
        assert crm.get("stats")["by_status"] == {"401": 1}

    @pytest.mark.parametrize("extra", [{}, {"token_url": "http://login.example.com/token"}])
    def test_a_login_without_an_address_or_in_the_clear_is_none(
        self, crm: Simulator, destination: Destination, extra: dict[str, str]
    ) -> None:
        adapter = registry.build(destination, replace(crm.endpoint, extra=extra))
        with pytest.raises(AccessError, match="`tenant`"):
            adapter.deliver([self.lead(1)])
        assert crm.get("stats")["by_status"] == {}

    def test_good_leads_take_one_write_and_a_bad_one_costs_one_more(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        before = crm.get("stats")["requests"]
        adapter.deliver(self.leads(100))
        assert crm.get("stats")["requests"] - before == 2
        adapter.deliver([*self.leads(99), Lead("ASDAD:bad", {**self.good, **self.bad})])
        assert crm.get("stats")["requests"] - before == 2 + 3
        assert len(crm.records()) == 100

    def test_a_table_without_the_action_is_written_one_by_one(self, adapter: CRMAdapter, crm: Simulator) -> None:
        send = adapter.http.send
        asked: list[str] = []

        def without_bulk(method: str, url: str, **content: object) -> object:
            asked.append(url)
            return send(method, url.replace("UpsertMultiple", "NoSuchAction"), **content)  # type: ignore[arg-type]

        adapter.http.send = without_bulk  # type: ignore[method-assign,assignment]
        assert self.statuses(adapter.deliver(self.leads(3))) == [Status.CREATED] * 3
        assert self.statuses(adapter.deliver(self.leads(3))) == [Status.UPDATED] * 3
        assert len([url for url in asked if "UpsertMultiple" in url]) == 1
        assert crm.get("stats")["doubled"] == 0

    def test_a_record_made_since_the_look_up_is_found_by_the_next_try(
        self, adapter: CRMAdapter, crm: Simulator
    ) -> None:
        find = adapter._find  # type: ignore[attr-defined]

        def blind(external_ids: list[str], names: list[str]) -> dict[str, list[object]]:
            return {external_id: [] for external_id in external_ids}

        adapter.deliver([self.lead(1)])
        adapter._find = blind  # type: ignore[attr-defined]
        outcomes = adapter.deliver([self.lead(1), self.lead(2)])
        assert [(outcome.status, outcome.code) for outcome in outcomes] == [
            (Status.TRANSIENT, "0x80060892"), (Status.CREATED, None)
        ]  # fmt: skip
        adapter._find = find  # type: ignore[attr-defined]
        assert self.statuses(adapter.deliver([self.lead(1), self.lead(2)])) == [Status.UPDATED] * 2
        assert crm.get("stats")["doubled"] == 0

    def test_ids_that_differ_by_case_are_never_one_record(self, adapter: CRMAdapter, crm: Simulator) -> None:
        upper, lower = Lead("ASDAD:1", self.good), Lead("asdad:1", {**self.good, "lastname": "Han"})
        adapter.deliver([upper])
        (outcome,) = adapter.deliver([lower])
        assert outcome.status is Status.TRANSIENT  # and a dead letter after three
        assert crm.records()["ASDAD:1"]["lastname"] == "Li Lei"
        assert self.statuses(adapter.deliver([lower], delete=True)) == [Status.DELETED]
        assert set(crm.records()) == {"ASDAD:1"}

    def test_a_spent_quota_tells_when_it_goes_on(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        crm.faults(quota_spent=True)
        with pytest.raises(QuotaExceeded) as caught:
            adapter.fetch(["ASDAD:1"])
        assert caught.value.resets_at is not None

    def test_an_address_with_a_wrong_path_is_no_fault_of_the_lead(
        self, crm: Simulator, destination: Destination
    ) -> None:
        endpoint = replace(crm.endpoint, url=f"{crm.url}/api/data")
        with pytest.raises(AccessError, match="correct destination"):
            registry.build(destination, endpoint).deliver([self.lead(1)])

    def test_replies_that_are_no_batch_or_half_a_one(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver([self.lead(1)])
        send = adapter.http.send
        changes: list[Callable[[Reply], Reply]] = [
            lambda reply: replace(reply, body=reply.body[:-20]),
            lambda reply: replace(reply, body=reply.body.replace(b"HTTP/1.1 200 OK", b"hello")),
            lambda reply: replace(reply, body=b""),
            lambda reply: replace(reply, headers={"Content-Type": "text/html"}),
        ]
        for change in changes:
            adapter.http.send = lambda *args, change=change, **content: change(send(*args, **content))  # type: ignore[method-assign,assignment,misc]
            (outcome,) = adapter.deliver([self.lead(1)])
            assert (outcome.status, outcome.code) == (Status.TRANSIENT, "malformed_reply")
