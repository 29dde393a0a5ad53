"""Odoo's adapter against the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from leadsync.config import Delete, Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.errors import AccessError
from leadsync.models import Status
from tests.contract.suite import AdapterSuite
from tests.support.simulators import Simulator

Variant = Callable[..., CRMAdapter]


class TestOdoo(AdapterSuite):
    name = "odoo"
    text_field = "x_leadsync_answers"
    good = {"name": "Li Lei", "x_leadsync_updated_at": "2026-01-31 09:30:00+00:00"}
    bad = {"x_leadsync_updated_at": "one fine day"}
    many = 3_000  # a batch with a bad lead is sent again without it
    renews = False
    requests_per_batch = 2  # `load` does not tell a new record from one that was there
    has_quota = False

    @pytest.fixture
    def variant(self, crm: Simulator, destination: Destination) -> Iterator[Variant]:
        """Makes adapters whose destination differs."""
        made: list[CRMAdapter] = []

        def make(endpoint: Endpoint | None = None, **changes: Any) -> CRMAdapter:
            settings = {**destination.settings, **changes.pop("settings", {})}
            target = destination.model_copy(update={"settings": settings, **changes})
            made.append(registry.build(target, endpoint or crm.endpoint))
            return made[-1]

        yield make
        for adapter in made:
            adapter.close()

    @pytest.mark.parametrize("mode", ["delete", "archive"])
    def test_json2_does_all_that_json_rpc_does(self, variant: Variant, crm: Simulator, mode: str) -> None:
        adapter = variant(settings={"api": "json2"}, on_delete=Delete(mode=mode))
        adapter.check()
        bad = self.lead(4, **self.bad)
        assert self.statuses(adapter.deliver([*self.leads(3), bad])) == [Status.CREATED] * 3 + [Status.REJECTED]
        assert self.statuses(adapter.deliver(self.leads(4))) == [Status.UPDATED] * 3 + [Status.CREATED]
        assert self.statuses(adapter.deliver([self.lead(0), self.lead(9)], delete=True)) == [Status.DELETED] * 2
        assert {i: len(found) for i, found in adapter.fetch(["ASDAD:0", "ASDAD:1"]).items()} == {
            "ASDAD:0": 0, "ASDAD:1": 1,
        }  # fmt: skip
        crm.faults(expire_tokens=True)
        with pytest.raises(AccessError, match="connection crm_odoo"):
            adapter.deliver([self.lead(1)])

    def test_json2_says_what_is_missing(self, variant: Variant) -> None:
        for changes, named in (
            ({"object": "no.such.model"}, "no.such.model"),
            ({"settings": {"api": "json2", "database": "other"}}, "address"),
        ):
            adapter = variant(**{"settings": {"api": "json2"}, **changes})
            with pytest.raises(AccessError, match=named):
                adapter.check()
        adapter = variant(Endpoint(variant().endpoint.url, password="wrong-key"), settings={"api": "json2"})
        with pytest.raises(AccessError, match="connection crm_odoo") as caught:
            adapter.deliver([self.lead(1)])
        assert "wrong-key" not in str(caught.value)

    def test_an_archived_lead_is_not_live_and_comes_back_as_it_was(self, variant: Variant, crm: Simulator) -> None:
        adapter = variant(on_delete=Delete(mode="archive"))
        (first,) = adapter.deliver([self.lead(1)])
        adapter.deliver([self.lead(1)], delete=True)
        assert crm.records()["ASDAD:1"]["active"] is False
        assert adapter.fetch(["ASDAD:1"]) == {"ASDAD:1": []}
        (back,) = adapter.deliver([self.lead(1)])
        assert (back.status, back.crm_id) == (Status.UPDATED, first.crm_id)
        assert crm.records()["ASDAD:1"]["active"] is True

    def test_a_lost_lead_that_was_archived_by_hand_stays_so_and_is_there(
        self, variant: Variant, adapter: CRMAdapter, crm: Simulator
    ) -> None:
        adapter.deliver([self.lead(1)])
        variant(on_delete=Delete(mode="archive")).deliver([self.lead(1)], delete=True)
        adapter.deliver([self.lead(1)])
        assert crm.records()["ASDAD:1"]["active"] is False
        assert len(adapter.fetch(["ASDAD:1"])["ASDAD:1"]) == 1

    def test_a_field_marks_a_deleted_lead(self, variant: Variant, crm: Simulator) -> None:
        adapter = variant(on_delete=Delete(mode="field", field="x_leadsync_deleted", value=True))
        adapter.check()
        gone = self.lead(1)._replace(fields={"x_leadsync_deleted": True})
        assert self.statuses(adapter.deliver([self.lead(1), self.lead(2)])) == [Status.CREATED] * 2
        # Leads of unlike fields in one batch: none may clear a field that it does not name.
        assert self.statuses(adapter.deliver([gone, self.lead(2)])) == [Status.UPDATED] * 2
        assert crm.records()["ASDAD:1"] | {"name": "Li Lei", "x_leadsync_deleted": True} == crm.records()["ASDAD:1"]

    def test_the_first_of_a_refused_batch_is_not_to_blame_for_another(
        self, adapter: CRMAdapter, crm: Simulator
    ) -> None:
        crm.faults(reject={"external_ids": ["ASDAD:2", "ASDAD:3"]})
        statuses = self.statuses(adapter.deliver(self.leads(5)))
        assert statuses == [Status.CREATED] * 2 + [Status.REJECTED] * 2 + [Status.CREATED]
        assert set(crm.records()) == {"ASDAD:0", "ASDAD:1", "ASDAD:4"}

    def test_more_bad_leads_than_odoo_lists(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = [self.lead(number, **(self.bad if number % 2 else {})) for number in range(60)]
        assert self.statuses(adapter.deliver(leads)) == [Status.CREATED, Status.REJECTED] * 30
        assert len(crm.records()) == 30

    @pytest.mark.parametrize(
        "external_id", ["a b", "a.b", "100%", "100%25", "李雷:\u3000", "a\\:b:\\\\", "\U0001f600\n"]
    )
    def test_every_external_id_has_a_name_of_its_own(
        self, adapter: CRMAdapter, crm: Simulator, external_id: str
    ) -> None:
        lead = self.lead(1)._replace(external_id=external_id)
        assert self.statuses(adapter.deliver([lead])) == [Status.CREATED]
        assert set(crm.records()) == {external_id}
        (record,) = adapter.fetch([external_id])[external_id]
        assert record.external_id == external_id

    def test_values_of_every_type_come_back_as_they_were_sent(self, adapter: CRMAdapter, variant: Variant) -> None:
        sent: dict[str, Any] = {
            "name": "Li", "color": 0, "expected_revenue": 12.5, "x_leadsync_deleted": "f", "priority": "2",
            "team_id": "Website", "x_leadsync_updated_at": 1_769_851_800_123, "city": None, "active": True,
        }  # fmt: skip
        target = adapter.destination
        wide = variant(fields={name: next(iter(target.fields.values())) for name in sent})
        wide.check()
        assert self.statuses(wide.deliver([self.lead(1)._replace(fields=sent)])) == [Status.CREATED]
        (record,) = wide.fetch(["ASDAD:1"])["ASDAD:1"]
        assert record.fields["team_id"] == "Website"
        assert [name for name, value in sent.items() if not wide.same(name, value, record.fields[name])] == []
        empty = dict.fromkeys(sent) | {"name": "Li"}
        wide.deliver([self.lead(1)._replace(fields=empty)])
        (record,) = wide.fetch(["ASDAD:1"])["ASDAD:1"]
        assert [name for name, value in empty.items() if not wide.same(name, value, record.fields[name])] == []

    @pytest.mark.parametrize(("field", "why"), [("description", "'html'"), ("tag_ids", "'many2many'"), ("id", "id")])
    def test_fields_that_can_not_be_kept_in_step_are_refused(self, variant: Variant, field: str, why: str) -> None:
        adapter = variant(fields={field: next(iter(variant().destination.fields.values()))})
        with pytest.raises(AccessError, match=why):
            adapter.check()

    def test_a_wrong_database_is_named(self, variant: Variant) -> None:
        with pytest.raises(AccessError, match="no database 'other'"):
            variant(settings={"database": "other"}).check()

    def test_refused_credentials_are_not_tried_twice(self, variant: Variant, crm: Simulator) -> None:
        adapter = variant(Endpoint(crm.url, "who", "wrong"))
        for _ in range(2):
            with pytest.raises(AccessError, match="refuses the login"):
                adapter.deliver([self.lead(1)])
        assert crm.get("stats")["by_status"] == {"200": 1}

    def test_a_password_that_ends_on_the_way_is_told(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        crm.faults(expire_tokens=True)
        with pytest.raises(AccessError, match="refuses the login"):
            adapter.deliver([self.lead(1)])
