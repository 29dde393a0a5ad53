"""BottleCRM's adapter against a real BottleCRM server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, LiteralString

import pytest
import requests

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.errors import AccessError
from leadsync.models import Lead, Status
from tests.contract.suite import AdapterSuite
from tests.support.real_bottlecrm import TOKENS, RealBottleCRM
from tests.support.simulators import Simulator

Build = Callable[..., CRMAdapter]
TIMES: LiteralString = """
INSERT INTO lead
SELECT (jsonb_populate_record(NULL::lead, to_jsonb(lead) || jsonb_build_object('id', gen_random_uuid()))).*
  FROM lead, generate_series(2, %s) RETURNING id
"""
REQUIRED: LiteralString = (
    "UPDATE custom_field_definition SET is_required = %s WHERE key = 'leadsync_born' RETURNING key"
)
REVOKED: LiteralString = """
UPDATE personal_access_token SET revoked_at = CASE WHEN %s THEN now() END WHERE scopes <> '[]' RETURNING id
"""
MODULES: LiteralString = "UPDATE organization SET modules_off = %s::jsonb RETURNING id"


def real(crm: Simulator) -> RealBottleCRM:
    assert isinstance(crm, RealBottleCRM)
    return crm


def by_hand(crm: Simulator, crm_id: str | None, **fields: Any) -> None:
    """What a person does to a lead in BottleCRM."""
    headers = {"Authorization": f"Bearer {TOKENS['administrator']}"}
    reply = requests.patch(f"{crm.url}/api/leads/{crm_id}/", json=fields, headers=headers, timeout=30)
    reply.raise_for_status()


class TestBottleCRM(AdapterSuite):
    name = "bottlecrm"
    text_field = "leadsync_answers"
    good = {"last_name": "Li Lei", "city": "Berlin"}
    bad = {"email": "no address"}
    requests_per_batch = 10 + 10  # each lead is looked up, and then written
    one_a_call = True
    many = 40  # a real server is slow, and each lead takes two requests
    renews = False
    refuses_doubles = False
    has_quota = False

    @pytest.fixture
    def build(self, crm: Simulator, destination: Destination) -> Iterator[Build]:
        """Makes adapters for the destination with some of it, or whose token it is, or the address, changed."""
        with ExitStack() as built:

            def build(role: str = "administrator", url: str = crm.url, **changes: Any) -> CRMAdapter:
                content = destination.model_dump(exclude_unset=True) | changes
                endpoint = replace(crm.endpoint, url=url, password=TOKENS[role])
                adapter = registry.build(Destination.model_validate(content), endpoint)
                built.callback(adapter.close)
                return adapter

            yield build

    def test_a_converted_lead_is_kept_in_step_by_its_id(self, adapter: CRMAdapter, crm: Simulator) -> None:
        first = self.lead(1, email="ada@example.org")
        (made,) = adapter.deliver([first])
        by_hand(crm, made.crm_id, is_converted=True)
        moved = self.lead(1, email="ada@example.org", city="Köln")._replace(crm_id=made.crm_id)
        (outcome,) = adapter.deliver([moved])
        assert (outcome.status, outcome.crm_id) == (Status.UPDATED, made.crm_id)
        assert crm.records()["ASDAD:1"]["city"] == "Köln"
        assert crm.records()["ASDAD:1"]["status"] == "converted"
        (record,) = adapter.fetch_known({"ASDAD:1": made.crm_id})["ASDAD:1"]
        assert (record.crm_id, record.fields["city"]) == (made.crm_id, "Köln")
        assert adapter.fetch_known({"ASDAD:2": made.crm_id}) == {"ASDAD:2": []}
        (outcome,) = adapter.deliver([moved._replace(fields={**moved.fields, "status": "assigned"})])
        assert (outcome.status, outcome.field) == (Status.REJECTED, "status")
        # Whoever lost the id is told so, and makes no second one.
        (outcome,) = adapter.deliver([first])
        assert (outcome.status, outcome.code) == (Status.REJECTED, "duplicate_email")
        assert self.statuses(adapter.deliver([moved], delete=True)) == [Status.DELETED]
        assert crm.records() == {}

    def test_no_two_leads_have_one_address(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = [self.lead(1, email="ada@example.org"), self.lead(2, email="Ada@Example.org"), self.lead(3)]
        outcomes = adapter.deliver(leads)
        assert self.statuses(outcomes) == [Status.CREATED, Status.REJECTED, Status.CREATED]
        assert (outcomes[1].code, outcomes[1].field) == ("duplicate_email", "email")
        assert set(crm.records()) == {"ASDAD:1", "ASDAD:3"}

    def test_doubles_are_told_updated_and_deleted_together(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver([self.lead(1)])
        real(crm).query(TIMES, 102)  # more than a page
        records = adapter.fetch(["ASDAD:1"])["ASDAD:1"]
        assert len({record.crm_id for record in records}) == 102
        real(crm).query("DELETE FROM lead WHERE id IN (SELECT id FROM lead LIMIT 99) RETURNING id")
        assert self.statuses(adapter.deliver([self.lead(1, city="Köln")])) == [Status.UPDATED]
        assert [r.fields["city"] for r in adapter.fetch(["ASDAD:1"])["ASDAD:1"]] == ["Köln"] * 3
        assert self.statuses(adapter.deliver([self.lead(1)], delete=True)) == [Status.DELETED]
        assert crm.records() == {}

    def test_a_status_is_peoples(self, adapter: CRMAdapter, crm: Simulator) -> None:
        (made,) = adapter.deliver([self.lead(1)])
        assert crm.records()["ASDAD:1"]["status"] == "assigned"
        by_hand(crm, made.crm_id, status="closed")  # in a list of its own
        assert self.statuses(adapter.deliver([self.lead(1, city="Köln")])) == [Status.UPDATED]
        (record,) = adapter.fetch(["ASDAD:1"])["ASDAD:1"]
        assert record.fields["city"] == "Köln"
        assert crm.records()["ASDAD:1"]["status"] == "closed"

    def test_what_people_keep_in_other_fields_stays(self, adapter: CRMAdapter, crm: Simulator) -> None:
        (made,) = adapter.deliver([self.lead(1)])
        by_hand(crm, made.crm_id, description="call back", custom_fields={"leadsync_source": "fair"})
        adapter.deliver([self.lead(1, leadsync_answers="x")])
        record = crm.records()["ASDAD:1"]
        assert (record["description"], record["leadsync_source"], record["leadsync_answers"]) == (
            "call back", "fair", "x",
        )  # fmt: skip

    def test_an_archive_makes_inactive_and_active_again(self, build: Build, crm: Simulator) -> None:
        adapter = build(on_delete="archive")
        adapter.check()
        adapter.deliver([self.lead(1), self.lead(2)])
        for _ in range(2):
            assert self.statuses(adapter.deliver([self.lead(1)], delete=True)) == [Status.DELETED]
        assert set(crm.records()) == {"ASDAD:2"}
        assert set(crm.records(deleted=True)) == {"ASDAD:1", "ASDAD:2"}
        assert adapter.fetch(["ASDAD:1"]) == {"ASDAD:1": []}
        assert self.statuses(adapter.deliver([self.lead(1)])) == [Status.CREATED]
        assert crm.get("stats")["doubled"] == 0
        assert len(adapter.fetch(["ASDAD:1"])["ASDAD:1"]) == 1

    def test_a_delete_may_be_a_mark(self, build: Build) -> None:
        adapter = build(on_delete={"mode": "field", "field": "is_active", "value": False})
        adapter.check()
        adapter.deliver([self.lead(1, is_active=False)])
        (record,) = adapter.fetch(["ASDAD:1"])["ASDAD:1"]
        assert record.fields["is_active"] is False

    def test_values_by_the_type_of_their_field(self, build: Build) -> None:
        sent = {
            "first_name": "  Ada ", "probability": 20, "opportunity_amount": 12.5, "close_date": "2026-12-31",
            "source_ref": None, "source_detail": "", "is_active": True,
            "leadsync_uid": 2**53, "leadsync_born": "1999-12-31", "leadsync_wants_news": False,
            "leadsync_source": "fair", "leadsync_answers": " a\n", "leadsync_appkey": 12,
        }  # fmt: skip
        adapter = build(fields={name: {"column": "uid"} for name in sent})
        adapter.check()
        for values in (sent, dict.fromkeys(sent) | {"is_active": True}, sent):
            assert {outcome.code for outcome in adapter.deliver([Lead("A:1", values)])} == {None}
            (record,) = adapter.fetch(["A:1"])["A:1"]
            differ = {
                name: record.fields[name] for name in sent if not adapter.same(name, values[name], record.fields[name])
            }
            assert differ == {}
        assert record.fields["leadsync_answers"] == " a\n"
        assert not adapter.same("leadsync_uid", 2**53 - 2, record.fields["leadsync_uid"])

    @pytest.mark.parametrize(
        ("field", "value"),
        [("leadsync_uid", "twelve"), ("leadsync_uid", 2**53 + 1), ("leadsync_source", "radio"), ("probability", 101),
         ("leadsync_born", "2026-01-31T10:30:00Z"), ("country", "Germany"), ("phone", "none"), ("city", "x" * 256)],
    )  # fmt: skip
    def test_what_no_field_can_hold_is_refused(self, adapter: CRMAdapter, field: str, value: Any) -> None:
        outcomes = adapter.deliver([self.lead(1, **{field: value}), self.lead(2)])
        assert self.statuses(outcomes) == [Status.REJECTED, Status.CREATED]
        assert (outcomes[0].code, outcomes[0].field) == ("invalid_value", field)

    def test_an_external_id_with_blanks_around_it_is_found_again(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = [Lead(external_id, self.good) for external_id in ("A:1", " A:1", "A:1 ", "a:1", "A:1\n")]
        assert self.statuses(adapter.deliver(leads)) == [Status.CREATED] * 5
        assert self.statuses(adapter.deliver(leads)) == [Status.UPDATED] * 5
        assert len(crm.records()) == 5

    def test_who_sees_only_leads_of_their_own_is_refused(self, build: Build, crm: Simulator) -> None:
        for act in (lambda adapter: adapter.check(), lambda adapter: adapter.deliver([self.lead(1)])):
            with pytest.raises(AccessError, match="'USER', who sees only leads of their own"):
                act(build("member"))
        assert crm.records() == {}

    def test_a_token_that_may_only_read_is_told_which_scope_it_lacks(self, build: Build) -> None:
        adapter = build("reader")
        assert adapter.fetch(["ASDAD:1"]) == {"ASDAD:1": []}
        with pytest.raises(AccessError, match="needs the scope leads:write"):
            adapter.check()

    def test_a_token_that_was_revoked_is_told_as_such(self, build: Build, crm: Simulator) -> None:
        adapter = build("reader")
        adapter.fetch(["ASDAD:1"])
        real(crm).query(REVOKED, True)
        try:
            with pytest.raises(AccessError, match="refuses the token"):
                adapter.fetch(["ASDAD:1"])
        finally:
            real(crm).query(REVOKED, False)

    @pytest.mark.parametrize("field", ["leadsync_retired", "id", "tags", "custom_fields"])
    def test_fields_that_would_be_dropped_without_a_word(self, build: Build, field: str) -> None:
        adapter = build(fields={field: {"column": "uid"}})
        with pytest.raises(AccessError, match=f"'{field}'"):
            adapter.check()
        with pytest.raises(AccessError, match=f"'{field}'"):
            adapter.deliver([self.lead(1, **{field: "x"})])

    def test_a_field_that_every_lead_needs_is_told(self, adapter: CRMAdapter, crm: Simulator) -> None:
        real(crm).query(REQUIRED, True)
        try:
            with pytest.raises(AccessError, match="custom field 'leadsync_born' of every lead"):
                adapter.check()
        finally:
            real(crm).query(REQUIRED, False)

    def test_leads_that_are_switched_off_are_not_gone(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver([self.lead(1)])
        real(crm).query(MODULES, '["leads"]')
        try:
            with pytest.raises(AccessError, match="does not know or open"):
                adapter.deliver([self.lead(1)], delete=True)
            with pytest.raises(AccessError, match="does not know or open"):
                adapter.fetch(["ASDAD:1"])
        finally:
            real(crm).query(MODULES, "[]")
        assert set(crm.records()) == {"ASDAD:1"}

    def test_an_address_that_is_not_the_apis(self, build: Build, crm: Simulator) -> None:
        with pytest.raises(AccessError, match="does not know or open 'Lead'"):
            build(url=f"{crm.url}/somewhere").check()
