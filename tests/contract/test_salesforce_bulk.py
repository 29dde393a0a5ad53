"""Salesforce's Bulk API 2.0 against the simulator: the suite again with jobs, and what only jobs can do."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from leadsync.config import Destination
from leadsync.crm import registry, salesforce_bulk
from leadsync.crm.base import CRMAdapter
from leadsync.crm.http import RequestFailed
from leadsync.errors import AccessError, FenceLost, QuotaExceeded, Unavailable
from leadsync.models import Lead, Status
from tests.contract import test_salesforce  # its class would run here again
from tests.contract.suite import AdapterSuite, before, requests
from tests.support.simulators import Simulator

CREATE, UPLOAD, CLOSE, LOOK = 1, 2, 3, 4  # requests of a job, in their order


@pytest.fixture(autouse=True)
def _jobs_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(salesforce_bulk, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(salesforce_bulk, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(salesforce_bulk, "READ_WAITS", (0.02, 0.02))


class TestInBulk(AdapterSuite):
    """Two leads are enough for a job. Two cases of the suite speak of single requests, and are said of jobs here."""

    name = test_salesforce.TestSalesforce.name
    text_field = test_salesforce.TestSalesforce.text_field
    good = test_salesforce.TestSalesforce.good
    bad = test_salesforce.TestSalesforce.bad
    settings = {"bulk_above": 1}
    tells_each = False  # the results of a job are read: that is half a page

    def test_a_lost_reply_makes_no_double(self, adapter: CRMAdapter, crm: Simulator) -> None:
        """Lost with the reply is the job's id: it stays open and changes nothing."""
        adapter.check()
        crm.faults(lose_reply={"next": 1})
        lost = adapter.deliver(self.leads(3))
        assert {(o.status, o.code, o.sent) for o in lost} == {(Status.TRANSIENT, "connection", True)}
        assert not adapter.at_work
        assert crm.journal() == []
        assert self.statuses(adapter.deliver(self.leads(3))) == [Status.CREATED] * 3
        assert crm.stats()["doubled"] == 0

    def test_a_fence_lost_on_the_way_stops_the_rest(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        sent = requests(crm)

        def lose() -> None:
            raise FenceLost("lost")

        before(adapter, CLOSE, lose)
        with pytest.raises(FenceLost):
            adapter.deliver(self.leads(30))
        assert requests(crm) - sent == 2
        assert crm.records() == {}
        assert adapter.at_work

    def texts(self, crm: Simulator) -> set[str]:
        return {record[self.text_field] for record in crm.records().values()}

    def states(self, text: str, count: int = 6) -> list[Lead]:
        return [self.lead(number, **{self.text_field: text}) for number in range(count)]

    def test_thousands_take_few_requests(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        sent = requests(crm)
        leads = self.leads(3_000)
        assert self.statuses(adapter.deliver(leads)) == [Status.CREATED] * 3_000
        assert requests(crm) - sent == 5  # create, upload, close, look, results
        assert [change["external_id"] for change in crm.journal()] == [lead.external_id for lead in leads]
        assert not adapter.at_work

    def test_one_bad_lead_of_many_stands_alone(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = self.leads(400)
        leads[250] = leads[250]._replace(fields={**self.good, **self.bad})
        outcomes = adapter.deliver(leads)
        (refused,) = [outcome for outcome in outcomes if outcome.status is not Status.CREATED]
        assert (refused.external_id, refused.status) == ("ASDAD:250", Status.REJECTED)
        assert (refused.code, refused.field) == ("INVALID_EMAIL_ADDRESS", "Email")
        assert refused.message == "Email: invalid email address: no address"
        assert [outcome.external_id for outcome in outcomes] == [lead.external_id for lead in leads]

    def test_too_much_for_one_job_goes_in_several(
        self, adapter: CRMAdapter, crm: Simulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(salesforce_bulk, "UPLOAD_BYTES", 1_000)
        adapter.check()
        sent = requests(crm)
        assert self.statuses(adapter.deliver(self.leads(100))) == [Status.CREATED] * 100
        assert (requests(crm) - sent) % 5 == 0
        assert requests(crm) - sent >= 10

    @pytest.mark.parametrize("value", [salesforce_bulk.NULL, "a\r\nb", "x" * 32_001])
    def test_what_a_csv_can_not_say_goes_without_a_job(self, adapter: CRMAdapter, crm: Simulator, value: str) -> None:
        leads = [*self.states("text", 3), self.lead(3, **{self.text_field: value})]
        assert self.statuses(adapter.deliver(leads)) == [Status.CREATED] * 4
        assert crm.records()["ASDAD:3"][self.text_field] == value

    def test_a_field_that_a_lead_does_not_name_stays(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver(self.states("kept"))
        first, *rest = self.states("new")
        adapter.deliver([first, *(lead._replace(fields={"City": "Berlin"}) for lead in rest)])
        texts = [record[self.text_field] for record in crm.records().values()]
        assert sorted(texts) == ["kept"] * 5 + ["new"]

    @pytest.mark.parametrize("step", [UPLOAD, CLOSE])
    def test_lost_replies_to_steps_make_no_double(
        self, adapter: CRMAdapter, crm: Simulator, later: CRMAdapter, step: int
    ) -> None:
        adapter.check()
        before(adapter, step, lambda: crm.faults(lose_reply={"next": 1}))
        statuses = self.statuses(adapter.deliver(self.leads(6)))
        if step == CLOSE:  # the job tells that it was closed
            assert statuses == [Status.CREATED] * 6
            return
        assert statuses == [Status.TRANSIENT] * 6
        assert adapter.at_work
        assert adapter.end_work() is False  # it was only open
        assert not adapter.at_work
        assert later.end_work() is False
        assert crm.journal() == []
        assert self.statuses(adapter.deliver(self.leads(6))) == [Status.CREATED] * 6

    def test_a_look_that_fails_in_passing_costs_nothing(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        before(adapter, LOOK, lambda: crm.faults(server_error={"next": 2}))
        assert self.statuses(adapter.deliver(self.leads(6))) == [Status.CREATED] * 6

    def test_an_ended_session_is_renewed_on_the_way(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        before(adapter, LOOK, lambda: crm.faults(expire_tokens=True))
        assert self.statuses(adapter.deliver(self.leads(6))) == [Status.CREATED] * 6

    def test_half_of_the_results_is_no_answer_for_the_others(self, adapter: CRMAdapter, crm: Simulator) -> None:
        crm.faults(half_page={"next": 1})
        outcomes = adapter.deliver(self.leads(6))
        assert [(o.status, o.code) for o in outcomes] == [(Status.CREATED, None)] * 3 + [
            (Status.TRANSIENT, "missing_from_reply")
        ] * 3
        assert self.statuses(adapter.deliver(self.leads(6))) == [Status.UPDATED] * 6

    def test_results_that_make_no_sense_are_transient_and_not_kept(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = self.states("Private Person")
        adapter.http.sleep = lambda seconds: time.sleep(0.01)
        read = adapter.http.request

        def nonsense(method: str, path: str, *arguments: Any, **options: Any) -> Any:
            reply = read(method, path, *arguments, **options)
            if path.endswith("successfulResults"):
                object.__setattr__(reply, "body", reply.body[: len(reply.body) - 20])
            return reply

        adapter.http.request = nonsense  # type: ignore[method-assign]
        outcomes = adapter.deliver(leads)
        assert {(o.status, o.code, o.message) for o in outcomes} == {(Status.TRANSIENT, "malformed_reply", None)}

    def test_a_failed_job_leaves_what_it_did_not_reach(self, adapter: CRMAdapter, crm: Simulator) -> None:
        crm.faults(fail_job={"next": 1, "message": "TooManyLockFailure : Too many lock failure 200"})
        outcomes = adapter.deliver(self.leads(6))
        assert [(o.status, o.code) for o in outcomes] == [(Status.CREATED, None)] * 3 + [
            (Status.TRANSIENT, "TooManyLockFailure")
        ] * 3
        assert not adapter.at_work

    @pytest.mark.parametrize(
        ("message", "error"),
        [("InvalidBatch : Field name not found : Email", AccessError), ("ExceededQuota : no more", QuotaExceeded)],
    )
    def test_a_job_that_fails_for_no_fault_of_the_leads(
        self, adapter: CRMAdapter, crm: Simulator, message: str, error: type[Exception]
    ) -> None:
        crm.faults(fail_job={"next": 1, "message": message})
        with pytest.raises(error):
            adapter.deliver(self.leads(6))

    def test_a_job_that_is_refused_is_done_without(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()
        change = {"operation": "hardDelete"}
        request = adapter.http.request

        def refused(method: str, path: str, *arguments: Any, **options: Any) -> Any:
            if method == "POST" and path.endswith("/jobs/ingest"):
                options["json"] = options["json"] | change
            return request(method, path, *arguments, **options)

        adapter.http.request = refused  # type: ignore[method-assign]
        assert self.statuses(adapter.deliver(self.leads(401))) == [Status.CREATED] * 401

    def test_a_slow_job_is_waited_for(self, adapter: CRMAdapter, crm: Simulator) -> None:
        crm.faults(slow_job=0.3)
        started = time.monotonic()
        assert self.statuses(adapter.deliver(self.leads(6))) == [Status.CREATED] * 6
        assert time.monotonic() - started >= 0.6

    # What can't go back -------------------------------------------------------------------------------------

    def test_a_job_that_takes_too_long_is_aborted(self, crm: Simulator, destination: Destination) -> None:
        settings = {**destination.settings, "bulk_timeout": 0.3}
        hasty = registry.build(destination.model_copy(update={"settings": settings}), crm.endpoint)
        crm.faults(slow_job=1.0)
        outcomes = hasty.deliver(self.states("old"))
        assert {(o.status, o.code, o.sent) for o in outcomes} == {(Status.TRANSIENT, "timeout", True)}
        assert not hasty.at_work
        crm.faults()
        assert self.statuses(hasty.deliver(self.states("new"))) == [Status.CREATED] * 6
        time.sleep(2.1)
        assert self.texts(crm) == {"new"}
        hasty.close()

    def test_of_an_aborted_job_what_was_done_is_told(self, crm: Simulator, destination: Destination) -> None:
        settings = {**destination.settings, "bulk_timeout": 0.9}
        hasty = registry.build(destination.model_copy(update={"settings": settings}), crm.endpoint)
        crm.faults(slow_job=0.6)
        outcomes = hasty.deliver(self.leads(6))
        assert [(o.status, o.code) for o in outcomes] == [(Status.CREATED, None)] * 3 + [
            (Status.TRANSIENT, "timeout")
        ] * 3
        time.sleep(0.5)
        assert len(crm.records()) == 3
        hasty.close()

    @pytest.mark.parametrize("at", [UPLOAD, CLOSE, LOOK])
    def test_an_abandoned_job_changes_nothing_after_a_newer_state(
        self, adapter: CRMAdapter, crm: Simulator, later: CRMAdapter, at: int
    ) -> None:
        adapter.check()
        crm.faults(slow_job=0.5)

        def die() -> None:
            raise FenceLost("killed")

        before(adapter, at, die)
        with pytest.raises(FenceLost):
            adapter.deliver(self.states("old"))
        assert later.end_work() is (at == LOOK)
        crm.faults()
        assert self.statuses(later.deliver(self.states("new"))) == [Status.CREATED] * 6
        time.sleep(1.1)
        assert self.texts(crm) == {"new"}
        assert [change["fields"][self.text_field] for change in crm.journal()] == ["new"] * 6

    def test_an_abandoned_job_that_is_under_way_stops(
        self, adapter: CRMAdapter, crm: Simulator, later: CRMAdapter
    ) -> None:
        adapter.check()
        crm.faults(slow_job=0.4)
        dead = threading.Event()

        def ask() -> None:
            if dead.is_set():
                raise FenceLost("killed")

        adapter.before_request = ask
        threading.Timer(0.6, dead.set).start()
        with pytest.raises(FenceLost):
            adapter.deliver(self.states("old"))
        assert self.texts(crm) == {"old"}
        assert later.end_work() is True
        crm.faults()
        assert self.statuses(later.deliver(self.states("new"))) == [Status.UPDATED] * 3 + [Status.CREATED] * 3
        time.sleep(0.5)
        assert self.texts(crm) == {"new"}

    def test_jobs_of_other_tools_are_left_alone(
        self, adapter: CRMAdapter, crm: Simulator, destination: Destination
    ) -> None:
        crm.faults(slow_job=0.4)
        other = registry.build(destination.model_copy(update={"external_id_field": "Other_Id__c"}), crm.endpoint)
        outcomes: list[Any] = []
        work = threading.Thread(target=lambda: outcomes.extend(adapter.deliver(self.leads(6))))
        work.start()
        time.sleep(0.2)
        assert other.end_work() is False
        work.join()
        assert self.statuses(outcomes) == [Status.CREATED] * 6
        other.close()

    def test_what_can_not_be_ended_is_said_and_stays_known(
        self, adapter: CRMAdapter, crm: Simulator, later: CRMAdapter
    ) -> None:
        adapter.check()
        crm.faults(slow_job=60)

        def die() -> None:
            raise FenceLost("killed")

        before(adapter, LOOK, die)
        with pytest.raises(FenceLost):
            adapter.deliver(self.states("old"))
        crm.faults(down=True)
        for each in (adapter, later):
            each.before_request = lambda: None
            with pytest.raises(RequestFailed):
                each.end_work()
        assert adapter.at_work
        crm.faults(server_error={"rate": 1})
        with pytest.raises(Unavailable):
            later.end_work()
        crm.faults()
        assert adapter.end_work() is True
        assert not adapter.at_work
        assert later.end_work() is False

    def test_a_lost_reply_to_an_abort_is_looked_up(
        self, adapter: CRMAdapter, crm: Simulator, later: CRMAdapter
    ) -> None:
        adapter.check()
        crm.faults(slow_job=60)

        def die() -> None:
            raise FenceLost("killed")

        before(adapter, LOOK, die)
        with pytest.raises(FenceLost):
            adapter.deliver(self.states("old"))
        crm.faults(lose_reply={"next": 1})
        assert later.end_work() is True
        assert later.end_work() is False

    @pytest.mark.parametrize("off", [0, None])
    def test_it_can_be_switched_off(self, crm: Simulator, destination: Destination, off: int | None) -> None:
        settings = {**destination.settings, "bulk_above": off}
        plain = registry.build(destination.model_copy(update={"settings": settings}), crm.endpoint)
        plain.check()
        sent = requests(crm)
        assert self.statuses(plain.deliver(self.leads(401))) == [Status.CREATED] * 401
        assert requests(crm) - sent == 3
        plain.close()

    def test_small_loads_need_no_job(self, crm: Simulator, destination: Destination) -> None:
        settings = {**destination.settings, "bulk_above": 400}
        plain = registry.build(destination.model_copy(update={"settings": settings}), crm.endpoint)
        assert [len(batch) for batch in plain.cut(range(10_401), delete=False)] == [10_000, 401]
        assert [len(batch) for batch in plain.cut(range(10_400), delete=False)] == [10_000, 200, 200]
        assert [len(batch) for batch in plain.cut(range(401), delete=True)] == [200, 200, 1]
        plain.close()
