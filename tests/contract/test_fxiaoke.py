"""Fxiaoke's adapter against the simulator."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.errors import AccessError
from leadsync.models import Status
from tests.contract.suite import AdapterSuite
from tests.support.simulators import Simulator


class TestFxiaoke(AdapterSuite):
    name = "fxiaoke"
    text_field = "answers__c"
    good = {"name": "Li Lei", "city__c": "Berlin"}
    bad = {"email": "no address"}
    requests_per_batch = 51  # the look-up, and one for each lead
    one_a_call = True
    many = 200

    def test_a_token_says_how_long_it_lasts(self, adapter: CRMAdapter) -> None:
        adapter.check()
        assert 0 < (adapter.credentials.access().lifetime or 0) <= 7200

    def test_numbers_go_as_texts_and_times_as_milliseconds(self, adapter: CRMAdapter, crm: Simulator) -> None:
        fields = {"uid__c": 12, "updated_at__c": 1_700_000_000_123, "company": 7, "deleted__c": True}
        adapter.deliver([self.lead(1, **fields)])
        assert crm.records()["ASDAD:1"].items() >= {**fields, "uid__c": "12", "company": "7"}.items()
        adapter.deliver([self.lead(1, **dict.fromkeys(fields))])
        assert not crm.records()["ASDAD:1"].keys() & fields.keys()

    def test_a_lead_that_another_sender_made_meanwhile_is_updated(
        self, adapter: CRMAdapter, crm: Simulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look = adapter._find  # type: ignore[attr-defined]

        def late(ids: list[str], names: list[str]) -> object:
            monkeypatch.undo()
            found = look(ids, names)
            adapter.deliver([self.lead(1, city__c="Bonn")])
            return found

        monkeypatch.setattr(adapter, "_find", late)
        assert self.statuses(adapter.deliver([self.lead(1)])) == [Status.UPDATED]
        assert crm.records()["ASDAD:1"]["city__c"] == "Berlin"

    @pytest.mark.parametrize("extra", [{}, {"permanent_code": ""}, {"permanent_code": "wrong"}])
    def test_without_the_right_permanent_code_nobody_is_let_in(
        self, crm: Simulator, destination: Destination, extra: dict[str, str]
    ) -> None:
        adapter = registry.build(destination, replace(crm.endpoint, extra=extra))
        for _ in range(2):  # what was refused is not tried again
            with pytest.raises(AccessError, match=r"connection crm_fxiaoke.*permanent.code") as caught:
                adapter.check()
            assert crm.client_secret not in str(caught.value)
        assert crm.stats()["requests"] == (1 if extra.get("permanent_code") else 0)

    def test_an_employee_who_is_not_there_is_said(self, crm: Simulator, destination: Destination) -> None:
        settings = {**destination.settings, "user_id": "7"}
        adapter = registry.build(destination.model_copy(update={"settings": settings}), crm.endpoint)
        with pytest.raises(AccessError, match="20012.*user_id"):
            adapter.check()

    def test_too_many_logins_are_passing(self, crm: Simulator, destination: Destination) -> None:
        for _ in range(10):
            registry.build(destination, crm.endpoint).check()
        (outcome,) = registry.build(destination, crm.endpoint).deliver([self.lead(1)])
        assert (outcome.status, outcome.code, outcome.sent) == (Status.TRANSIENT, "429", False)
