"""EspoCRM's adapter against the simulator."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from leadsync.crm.base import CRMAdapter
from leadsync.models import Status
from tests.contract.suite import AdapterSuite
from tests.support.simulators import Simulator


def made(crm: Simulator, external_id: str, **fields: Any) -> str:
    """A record that somebody else made; its id."""
    reply = requests.post(
        f"{crm.url}/api/v1/Lead", json={"lastName": "Li", "cLeadsyncId": external_id, **fields},
        headers={"X-Api-Key": crm.token, "X-Skip-Duplicate-Check": "true"}, timeout=10,
    )  # fmt: skip
    found: str = reply.json()["id"]
    return found


class TestEspoCRM(AdapterSuite):
    name = "espocrm"
    text_field = "cAnswers"
    good = {"lastName": "Li Lei", "addressCity": "Berlin"}
    bad = {"emailAddress": "no address"}
    renews = False
    requests_per_batch = 1 + 20  # one look-up, then one for each lead
    one_a_call = True
    refuses_doubles = False
    many = 200
    has_quota = False

    def test_doubles_are_told_updated_and_deleted_together(self, adapter: CRMAdapter, crm: Simulator) -> None:
        ids = [made(crm, "ASDAD:1") for _ in range(3)]
        (outcome,) = adapter.deliver([self.lead(1)])
        assert (outcome.status, outcome.crm_id) == (Status.UPDATED, ids[0])
        records = adapter.fetch(["ASDAD:1"])["ASDAD:1"]
        assert [record.crm_id for record in records] == ids
        assert {record.fields["addressCity"] for record in records} == {"Berlin"}
        assert self.statuses(adapter.deliver([self.lead(1)], delete=True)) == [Status.DELETED]
        assert crm.records() == {}

    def test_more_doubles_than_a_page_are_all_found(self, adapter: CRMAdapter, crm: Simulator) -> None:
        ids = [made(crm, "ASDAD:1") for _ in range(203)]
        assert [record.crm_id for record in adapter.fetch(["ASDAD:1"])["ASDAD:1"]] == ids

    def test_two_leads_may_share_name_and_address(self, adapter: CRMAdapter, crm: Simulator) -> None:
        shared = {"firstName": "Ada", "lastName": "Li", "emailAddress": "ada@example.com"}
        outcomes = adapter.deliver([self.lead(1, **shared), self.lead(2, **shared)])
        assert self.statuses(outcomes) == [Status.CREATED] * 2
        assert len(crm.records()) == 2

    @pytest.mark.parametrize("sent", ["2026-01-31T09:30:00.123Z", "2026-01-31T10:30:00+01:00"])
    def test_times_are_kept_in_utc_and_seconds(self, adapter: CRMAdapter, crm: Simulator, sent: str) -> None:
        assert self.statuses(adapter.deliver([self.lead(1, cConsentAt=sent)])) == [Status.CREATED]
        assert crm.records()["ASDAD:1"]["cConsentAt"] == "2026-01-31 09:30:00"
        assert adapter.same("cConsentAt", sent, "2026-01-31 09:30:00")
        assert not adapter.same("cConsentAt", sent, "2026-01-31 09:30:02")

    def test_an_external_id_with_blanks_around_it_is_refused_instead_of_doubled(
        self, adapter: CRMAdapter, crm: Simulator
    ) -> None:
        leads = [self.lead(1)._replace(external_id=" A:1"), self.lead(2)]
        outcomes = adapter.deliver(leads)
        assert self.statuses(outcomes) == [Status.REJECTED, Status.CREATED]
        assert outcomes[0].field == "cLeadsyncId"
        assert set(crm.records()) == {"ASDAD:2"}

    def test_what_was_done_before_a_reply_was_lost_is_told(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver([self.lead(1)])
        crm.faults(reject={"external_ids": ["ASDAD:2"]}, lose_reply={"next": 1})
        # The first is refused, so the reply lost is that to the second.
        outcomes = adapter.deliver([self.lead(2), self.lead(3), self.lead(4)])
        assert [(outcome.status, outcome.code, outcome.sent) for outcome in outcomes] == [
            (Status.REJECTED, "400", True),
            (Status.TRANSIENT, "connection", True),
            (Status.TRANSIENT, "connection", False),
        ]
        assert self.statuses(adapter.deliver([self.lead(3), self.lead(4)])) == [Status.UPDATED, Status.CREATED]
        assert crm.get("stats")["doubled"] == 0
