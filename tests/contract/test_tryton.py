"""Tryton's adapter against a real Tryton server."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.tryton import ANYTHING, Tryton
from leadsync.errors import AccessError
from leadsync.models import Lead, Status
from tests.contract.suite import AdapterSuite
from tests.support.simulators import Simulator

Build = Callable[..., CRMAdapter]


class TestTryton(AdapterSuite):
    name = "tryton"
    text_field = "leadsync_answers"
    good = {"name": "Li Lei"}
    bad = {"leadsync_source": "nonsense"}
    many = 150  # a real server is slow, and a batch with a bad lead is sent in halves
    requests_per_batch = 2  # one to look up, one to create
    has_quota = False

    @pytest.fixture
    def build(self, crm: Simulator, destination: Destination) -> Iterator[Build]:
        """Makes adapters for the destination with some of it changed."""
        with ExitStack() as built:

            def build(**changes: Any) -> CRMAdapter:
                content = destination.model_dump(exclude_unset=True) | changes
                adapter = registry.build(Destination.model_validate(content), crm.endpoint)
                built.callback(adapter.close)
                return adapter

            yield build

    def test_contacts_and_address_are_kept_in_records_of_their_own(self, adapter: CRMAdapter) -> None:
        def held() -> dict[str, Any]:
            (record,) = adapter.fetch(["ASDAD:1"])["ASDAD:1"]
            return {name: record.fields[name] for name in ("email", "phone", "addresses.city")}

        first = {"email": "a@example.org", "phone": "+49 170 1", "addresses.city": "Berlin"}
        adapter.deliver([self.lead(1, **first)])
        assert held() == first
        second = {"email": "b@example.org", "phone": None, "addresses.city": "Köln"}
        adapter.deliver([self.lead(1, **second)])
        assert held() == second
        adapter.deliver([self.lead(1, **dict.fromkeys(first))])
        assert held() == dict.fromkeys(first)
        adapter.deliver([self.lead(1, **first)])
        assert held() == first

    def test_what_people_add_to_a_party_stays(self, adapter: CRMAdapter) -> None:
        assert isinstance(adapter, Tryton)
        (made,) = adapter.deliver([self.lead(1, email="a@example.org")])
        added = {"party": int(made.crm_id or 0), "type": "email", "value": "private@example.org", "sequence": 99}
        contacts = "party.contact_mechanism"
        adapter.call(ANYTHING, "create", [added], model=contacts)
        for email in ("b@example.org", None):
            adapter.deliver([self.lead(1, email=email)])
            kept = adapter.call(ANYTHING, "search_read", [], 0, None, None, ["value"], model=contacts)
            assert sorted(contact["value"] for contact in kept) == sorted(filter(None, [email, "private@example.org"]))

    def test_values_by_the_type_of_their_field(self, build: Build) -> None:
        values = {
            "name": "two\nlines", "leadsync_uid": "12", "leadsync_born": "1999-12-31", "leadsync_revenue": 12.5,
            "leadsync_wants_news": True, "leadsync_source": "fair",
            "leadsync_updated_at": "2026-01-31T10:30:00.5+01:00",
        }  # fmt: skip
        adapter = build(fields={name: {"column": "uid"} for name in values})
        adapter.check()
        adapter.deliver([Lead("A:1", values)])
        (record,) = adapter.fetch(["A:1"])["A:1"]
        assert record.fields == {
            "name": "two lines", "leadsync_uid": 12, "leadsync_born": "1999-12-31", "leadsync_revenue": "12.5",
            "leadsync_wants_news": True, "leadsync_source": "fair",
            "leadsync_updated_at": "2026-01-31T09:30:00.500000+00:00",
        }  # fmt: skip
        assert [name for name, sent in values.items() if not adapter.same(name, sent, record.fields[name])] == []

    @pytest.mark.parametrize(
        ("field", "value"),
        [("leadsync_uid", "twelve"), ("leadsync_uid", 2**63), ("leadsync_updated_at", "yesterday"),
         ("leadsync_uid", 1.5)],
    )  # fmt: skip
    def test_what_no_field_can_hold_is_not_sent(self, adapter: CRMAdapter, field: str, value: Any) -> None:
        outcomes = adapter.deliver([self.lead(1), self.lead(2, **{field: value}), self.lead(3)])
        assert self.statuses(outcomes) == [Status.CREATED, Status.REJECTED, Status.CREATED]
        assert (outcomes[1].code, outcomes[1].field) == ("invalid_value", field)

    @pytest.mark.parametrize("external_id", [" A:1", "A:1\n", "A:\t1"])
    def test_an_external_id_that_would_not_be_found_again(
        self, adapter: CRMAdapter, crm: Simulator, external_id: str
    ) -> None:
        (outcome,) = adapter.deliver([Lead(external_id, self.good)])
        assert (outcome.status, outcome.field) == (Status.REJECTED, "code")
        assert crm.records() == {}

    def test_the_external_id_in_a_field_of_its_own(self, build: Build, crm: Simulator) -> None:
        adapter = build(external_id_field="leadsync_id")
        adapter.check()
        adapter.deliver(self.leads(2))
        assert self.statuses(adapter.deliver(self.leads(3))) == [Status.UPDATED, Status.UPDATED, Status.CREATED]
        assert set(adapter.fetch(["ASDAD:2"])) == {"ASDAD:2"}
        assert all(code.isdigit() for code in crm.records()), "Tryton's own numbers"

    @pytest.mark.parametrize("mode", ["delete", {"mode": "field", "field": "active", "value": False}])
    def test_other_ways_to_delete(self, build: Build, crm: Simulator, mode: object) -> None:
        adapter = build(on_delete=mode)
        adapter.check()
        leads = self.leads(3)
        adapter.deliver(leads)
        if mode == "delete":
            assert self.statuses(adapter.deliver(leads[:2], delete=True)) == [Status.DELETED] * 2
        else:
            adapter.deliver([self.lead(number, active=False) for number in range(2)])
            assert adapter.fetch(["ASDAD:0"])["ASDAD:0"][0].fields["active"] is False
        assert set(crm.records()) == {"ASDAD:2"}
        assert len(crm.records(deleted=True)) == (1 if mode == "delete" else 3)
        assert self.statuses(adapter.deliver([self.lead(0, active=True)])) == [Status.CREATED]
        assert set(crm.records()) == {"ASDAD:0", "ASDAD:2"}

    def test_a_lead_that_may_not_come_back_stays_inactive(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver([self.lead(1)])
        adapter.deliver([self.lead(1)], delete=True)
        assert self.statuses(adapter.deliver([self.lead(1, **self.bad)])) == [Status.REJECTED]
        assert crm.records() == {}

    def test_a_field_that_is_not_unique_is_no_external_id(self, build: Build, crm: Simulator) -> None:
        with pytest.raises(AccessError, match="does not refuse the same 'name'"):
            build(external_id_field="name", fields={"phone": {"column": "phone"}}).check()
        build().check()
        assert crm.records(deleted=True) == {}

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"object": "res.user", "external_id_field": "login"}, "denies access to 'res.user'"),
            ({"fields": {"code_digit": {"column": "uid"}}}, "'code_digit'"),
            ({"fields": {"contact_mechanisms": {"column": "uid"}}}, "'contact_mechanisms'"),
            ({"fields": {"addresses.nothing": {"column": "uid"}}}, "'addresses.nothing'"),
            ({"object": "country.country", "fields": {"name": {"column": "name"}}}, "'code'|denies access"),
        ],
    )  # fmt: skip
    def test_what_the_user_may_not_do(self, build: Build, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(AccessError, match=said):
            build(**{"fields": {"name": {"column": "name"}}, **changes}).check()

    def test_an_address_without_a_database(self, crm: Simulator, destination: Destination) -> None:
        endpoint = Endpoint(crm.url.removesuffix("/crm"), crm.endpoint.login, crm.endpoint.password)
        with pytest.raises(AccessError, match="must end in the name of the database"):
            registry.build(destination, endpoint).check()
