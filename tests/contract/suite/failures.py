"""What an adapter makes of a CRM that fails, throttles, ends its token, loses or garbles its replies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from leadsync.crm.base import CRMAdapter
from leadsync.crm.http import RequestFailed
from leadsync.errors import AccessError, FenceLost, LeadsyncError, QuotaExceeded
from leadsync.models import Outcome, Status
from tests.contract.suite.case import Case, before, requests
from tests.support.simulators import Simulator


class Failures(Case):
    def test_half_a_page_is_no_answer(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = self.leads(4)
        adapter.deliver(leads)
        crm.faults(half_page={"next": 1})
        with pytest.raises(RequestFailed, match="left records out of its reply"):
            adapter.fetch([lead.external_id for lead in leads])
        crm.faults(half_page={"next": 1})
        outcomes = adapter.deliver(leads, delete=True)
        assert Status.TRANSIENT in self.statuses(outcomes)
        gone = {outcome.external_id for outcome in outcomes if outcome.status is Status.DELETED}
        assert not gone & set(crm.records())

    def test_a_lost_reply_makes_no_double(self, adapter: CRMAdapter, later: CRMAdapter, crm: Simulator) -> None:
        adapter.check()  # logs in, so that the reply lost is that to the change
        crm.faults(lose_reply={"next": 1})
        lost = adapter.deliver(self.leads(3))
        assert {(outcome.status, outcome.code, outcome.sent) for outcome in lost} == {
            (Status.TRANSIENT, "connection", True)
        }
        # Without batches the lost reply was that to the first lead, and the rest were not sent.
        rest = Status.CREATED if self.one_a_call else Status.UPDATED
        assert self.statuses(later.deliver(self.leads(3))) == [Status.UPDATED, rest, rest]
        assert crm.get("stats")["doubled"] == 0

    @pytest.mark.parametrize("retry_after", [None, 3])
    def test_short_throttling_is_waited_out(
        self, adapter: CRMAdapter, crm: Simulator, retry_after: float | None
    ) -> None:
        slept: list[float] = []
        adapter.http.sleep = slept.append
        adapter.check()
        crm.faults(too_many={"next": 2, "retry_after": retry_after})
        assert self.statuses(adapter.deliver([self.lead(1)])) == [Status.CREATED]
        assert slept == ([1, 4] if retry_after is None else [retry_after, retry_after])

    def test_long_throttling_is_handed_back(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        crm.faults(too_many={"rate": 1, "retry_after": 77})
        (outcome,) = adapter.deliver([self.lead(1)])
        assert (outcome.status, outcome.code, outcome.retry_after) == (Status.TRANSIENT, "429", 77)

    def test_a_spent_quota_is_told_apart(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        crm.faults(quota_spent=True)
        if self.has_quota:
            with pytest.raises(QuotaExceeded):
                adapter.deliver([self.lead(1)])
        else:
            (outcome,) = adapter.deliver([self.lead(1)])
            assert (outcome.status, outcome.code, outcome.retry_after) == (Status.TRANSIENT, "429", 3600)

    def test_a_failing_server_is_transient(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        crm.faults(server_error={"rate": 1, "status": 502})
        assert {(o.status, o.code) for o in adapter.deliver(self.leads(2))} == {(Status.TRANSIENT, "502")}

    def test_nonsense_is_transient_and_masked(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        crm.faults(malformed={"next": 1})
        secret = {self.text_field: "Private Person"}
        (outcome,) = adapter.deliver([self.lead(1, **secret)])
        assert (outcome.status, outcome.code) == (Status.TRANSIENT, "malformed_reply")
        assert outcome.message is not None
        assert outcome.message.startswith("<html>proxy error")
        assert len(outcome.message) <= 200
        assert "Private Person" not in outcome.message

    def test_a_lost_reply_to_a_delete_is_made_up_for(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = self.leads(3)
        adapter.deliver(leads)
        crm.faults(lose_reply={"next": 1})
        lost = adapter.deliver(leads, delete=True)
        assert {(outcome.status, outcome.code) for outcome in lost} == {(Status.TRANSIENT, "connection")}
        assert lost[0].sent
        assert self.statuses(adapter.deliver(leads, delete=True)) == [Status.DELETED] * 3
        assert crm.records() == {}

    def test_a_reply_that_tells_of_half_the_leads(self, adapter: CRMAdapter, later: CRMAdapter, crm: Simulator) -> None:
        """By key and count: what a reply leaves out is not taken for done, nor for another's."""
        leads = self.leads(4)
        adapter.check()
        crm.faults(half_results={"next": 1})
        told = adapter.deliver(leads)
        assert set(self.statuses(told)) <= {Status.CREATED, Status.TRANSIENT}
        assert (Status.TRANSIENT in self.statuses(told)) is (self.tells_each and not self.one_a_call)
        again = later.deliver(leads)
        assert self.statuses(again) == [Status.UPDATED] * 4
        ids = {outcome.external_id: outcome.crm_id for outcome in again}
        assert [o for o in told if o.status is Status.CREATED and o.crm_id != ids[o.external_id]] == []
        crm.faults(half_results={"next": 1})
        gone = adapter.deliver(leads, delete=True)
        assert set(self.statuses(gone)) <= {Status.DELETED, Status.TRANSIENT}
        assert self.statuses(later.deliver(leads, delete=True)) == [Status.DELETED] * 4
        assert crm.get("stats")["doubled"] == 0

    def test_a_conflict_with_another_transaction_passes(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = self.leads(4)
        adapter.check()
        for _ in range(2):  # of a new record, and of one that is there
            crm.faults(conflict={"next": 1})
            statuses = self.statuses(adapter.deliver(leads))
            assert Status.TRANSIENT in statuses
            assert Status.REJECTED not in statuses
            assert set(self.statuses(adapter.deliver(leads))) <= {Status.CREATED, Status.UPDATED}
        assert len(crm.records()) == 4
        assert crm.get("stats")["doubled"] == 0

    def test_a_token_that_ends_in_the_middle(self, adapter: CRMAdapter, later: CRMAdapter, crm: Simulator) -> None:
        count = adapter.max_batch * 2
        adapter.check()
        sent = requests(crm)
        adapter.deliver([lead._replace(external_id=f"before {lead.external_id}") for lead in self.leads(count)])
        usual = requests(crm) - sent
        leads = self.leads(count)
        before(adapter, usual // 2 + 1, lambda: crm.faults(expire_tokens=True))
        if self.renews:
            assert self.statuses(adapter.deliver(leads)) == [Status.CREATED] * count
            assert requests(crm) - sent == 2 * usual + 2  # what was refused, and the login
        else:
            with pytest.raises(AccessError, match=f"connection crm_{self.name}"):
                adapter.deliver(leads)
            crm.clear_faults()
            assert set(self.statuses(later.deliver(leads))) == {Status.CREATED, Status.UPDATED}
        assert len(crm.records()) == 2 * count
        assert crm.get("stats")["doubled"] == 0

    def test_a_quota_that_is_spent_in_the_middle(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = self.leads(adapter.max_batch * 2)
        adapter.check()
        before(adapter, self.requests_per_batch + 1, lambda: crm.faults(quota_spent=True))
        if self.has_quota:
            with pytest.raises(QuotaExceeded):
                adapter.deliver(leads)
        else:
            told = adapter.deliver(leads)
            assert {(o.status, o.code) for o in told[adapter.max_batch :]} == {(Status.TRANSIENT, "429")}
        adapter.before_request = lambda: None
        crm.clear_faults()
        made = len(crm.records())
        statuses = self.statuses(adapter.deliver(leads))
        assert (statuses.count(Status.UPDATED), statuses.count(Status.CREATED)) == (made, len(leads) - made)
        assert crm.get("stats")["doubled"] == 0

    @pytest.mark.parametrize(
        ("status", "meaning"),
        [(200, "transient"), (400, "transient"), (403, "AccessError"), (404, "AccessError"), (409, "transient"),
         (502, "transient")],
    )  # fmt: skip
    def test_a_proxys_page_says_nothing_of_the_leads(
        self, adapter: CRMAdapter, later: CRMAdapter, crm: Simulator, status: int, meaning: str
    ) -> None:
        meaning = "transient" if status == 403 and self.gateway_blocks else meaning
        leads = self.leads(2)
        adapter.deliver(leads)
        held = crm.records()
        crm.faults(proxy_page=status)
        for act in (lambda: adapter.deliver(leads), lambda: adapter.deliver(leads, delete=True)):
            assert self._ends(act) == {meaning}
        with pytest.raises(AccessError if meaning == "AccessError" else RequestFailed):
            adapter.fetch(["ASDAD:1"])
        # A login that is answered so may be refused, or tried again.
        assert self._ends(lambda: later.deliver(leads)) <= {"transient", "AccessError"}
        crm.clear_faults()
        assert crm.records() == held
        assert self.statuses(adapter.deliver(leads)) == [Status.UPDATED] * 2

    @staticmethod
    def _ends(act: Callable[[], list[Outcome]]) -> set[str]:
        """The statuses, or the error's class."""
        try:
            return {outcome.status for outcome in act()}
        except LeadsyncError as error:
            return {type(error).__name__}

    def test_nothing_is_sent_once_the_fence_is_lost(self, adapter: CRMAdapter, crm: Simulator) -> None:
        def lost() -> None:
            raise FenceLost("lost")

        adapter.before_request = lost
        with pytest.raises(FenceLost):
            adapter.deliver([self.lead(1)])
        assert crm.get("stats")["by_status"] == {}

    def test_before_every_request_it_asks_whether_it_may(self, adapter: CRMAdapter, crm: Simulator) -> None:
        asked: list[None] = []
        adapter.before_request = lambda: asked.append(None)
        adapter.deliver(self.leads(adapter.max_batch + 1))
        adapter.deliver(self.leads(2), delete=True)
        adapter.fetch(["ASDAD:5"])
        assert len(asked) == sum(crm.get("stats")["by_status"].values()) >= 4

    def test_a_fence_lost_on_the_way_stops_the_rest(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        before = sum(crm.get("stats")["by_status"].values())
        allowed = iter([True] * 2 * self.requests_per_batch)

        def ask() -> None:
            if not next(allowed, False):
                raise FenceLost("lost")

        adapter.before_request = ask
        with pytest.raises(FenceLost):
            adapter.deliver(self.leads(adapter.max_batch * 3))
        assert sum(crm.get("stats")["by_status"].values()) - before == 2 * self.requests_per_batch
        assert len(crm.records()) == adapter.max_batch * 2
