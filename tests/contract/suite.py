"""What every adapter has to do, inherited by the test of each: three attributes and a simulator."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from leadsync.config import Destination, Pipeline, load_pipeline
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.http import RequestFailed
from leadsync.errors import AccessError, FenceLost, QuotaExceeded
from leadsync.mapping import Mapper
from leadsync.models import Lead, Outcome, Status
from tests.support.servers import free_port
from tests.support.simulators import SECRETS, Simulator, Simulators

SHIPPED = load_pipeline(Path(__file__).parents[2] / "include" / "pipelines" / "leads.yaml")

# Rows of the shipped pipeline, in the order of its columns.
FULL_ROW: list[str | None] = [
    "A:B\\", "12", " +49 170 1 ", " Zoë \U0001f600\r\nLi ", " Zoe@Example.ORG ", "Köln ", '{"q": "a\\nb"}',
    "2026-01-31 09:30:00.123456+00", "f",
]  # fmt: skip
EMPTY_ROW: list[str | None] = ["A", "13", None, None, "", None, "{}", "2026-01-31 09:30:00+00", "f"]


class AdapterSuite:
    """Inherit it, set the attributes, override nothing."""

    name: ClassVar[str]
    text_field: ClassVar[str]  # a text of at least 1,000 characters, not required
    good: ClassVar[dict[str, Any]]  # fields of a valid lead
    bad: ClassVar[dict[str, Any]]  # fields that make a lead invalid
    # Of an upsert of `max_batch` new leads: more where records are looked up first, or go in a request each.
    requests_per_batch: ClassVar[int] = 1
    one_a_call: ClassVar[bool] = False  # whether each record is written by a request of its own
    has_quota: ClassVar[bool] = True  # False where the vendor knows none: a long 429 is then some gateway's
    # For an adapter that can speak to several kinds of CRM, and has a suite for each: which simulator, if it has not
    # the adapter's name, and the destination in YAML, if it is not the adapter's example.
    simulator: ClassVar[str]
    example: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}  # of the destination, beside those of the example

    @pytest.fixture
    def crm(self, simulators: Simulators) -> Simulator:
        simulator = simulators[getattr(self, "simulator", self.name)]
        simulator.reset()
        return simulator

    @pytest.fixture
    def destination(self) -> Destination:
        example = yaml.safe_load(getattr(self, "example", registry.adapter_class(self.name).example))
        settings = {**example.get("settings", {}), "read_timeout": 20, "requests_per_second": 1000, **self.settings}
        content = {
            **SHIPPED.model_dump(exclude={"destinations"}),
            "destinations": {self.name: {**example, "settings": settings}},
        }
        pipeline = Pipeline.model_validate(content)
        registry.check_pipeline(pipeline)
        return pipeline.destinations[0]

    @pytest.fixture
    def adapter(self, crm: Simulator, destination: Destination) -> Iterator[CRMAdapter]:
        adapter = registry.build(destination, crm.endpoint)
        yield adapter
        adapter.close()

    def lead(self, number: int, **fields: Any) -> Lead:
        return Lead(f"ASDAD:{number}", {**self.good, **fields})

    def leads(self, count: int) -> list[Lead]:
        return [self.lead(number) for number in range(count)]

    @staticmethod
    def statuses(outcomes: list[Outcome]) -> list[Status]:
        return [outcome.status for outcome in outcomes]

    def test_no_leads_make_no_request(self, adapter: CRMAdapter, crm: Simulator) -> None:
        assert adapter.deliver([]) == []
        assert adapter.deliver([], delete=True) == []
        assert crm.get("stats")["by_status"] == {}

    def test_leads_are_created_then_updated_in_their_order(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = self.leads(5)
        first, second = adapter.deliver(leads), adapter.deliver(leads[::-1])
        assert self.statuses(first) == [Status.CREATED] * 5
        assert self.statuses(second) == [Status.UPDATED] * 5
        assert [outcome.external_id for outcome in second] == [lead.external_id for lead in leads[::-1]]
        assert [outcome.crm_id for outcome in first] == [outcome.crm_id for outcome in second[::-1]]
        assert set(crm.records()) == {lead.external_id for lead in leads}

    def test_more_than_a_batch_is_cut(self, adapter: CRMAdapter, crm: Simulator) -> None:
        count = adapter.max_batch * 2 + 1
        assert self.statuses(adapter.deliver(self.leads(count))) == [Status.CREATED] * count
        assert len(crm.records()) == count

    def test_one_lead_twice_is_refused(self, adapter: CRMAdapter) -> None:
        with pytest.raises(ValueError, match="twice"):
            adapter.deliver([self.lead(1), self.lead(1)])

    def test_texts_arrive_unchanged_and_none_clears(self, adapter: CRMAdapter, crm: Simulator) -> None:
        text = "李雷 \U0001f600 \"quoted\" 'single' <b>&amp;</b> \\ \n\t" + "x" * 900
        adapter.deliver([self.lead(1, **{self.text_field: text})])
        assert crm.records()["ASDAD:1"][self.text_field] == text
        adapter.deliver([self.lead(1, **{self.text_field: None})])
        assert self.text_field not in crm.records()["ASDAD:1"]

    def test_deletes(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver(self.leads(3))
        gone = adapter.deliver([self.lead(0), self.lead(7)], delete=True)
        assert self.statuses(gone) == [Status.DELETED] * 2  # one was never there
        assert set(crm.records()) == {"ASDAD:1", "ASDAD:2"}
        assert self.statuses(adapter.deliver([self.lead(0)], delete=True)) == [Status.DELETED]

    def test_a_deleted_lead_comes_back_once(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver([self.lead(1)])
        adapter.deliver([self.lead(1)], delete=True)
        assert self.statuses(adapter.deliver([self.lead(1)])) == [Status.CREATED]
        adapter.deliver([self.lead(1)], delete=True)
        assert crm.records() == {}

    def test_awkward_external_ids(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = [self.lead(1)._replace(external_id=f"a'b\\:\"{number}é,(") for number in range(3)]
        adapter.deliver(leads)
        found = adapter.fetch([lead.external_id for lead in leads])
        assert {key: len(records) for key, records in found.items()} == {lead.external_id: 1 for lead in leads}
        adapter.deliver(leads, delete=True)
        assert crm.records() == {}

    def test_fetch_reads_back(self, adapter: CRMAdapter) -> None:
        adapter.deliver(self.leads(2))
        found = adapter.fetch(["ASDAD:1", "ASDAD:9"])
        (record,) = found.pop("ASDAD:1")
        assert self.good.items() <= record.fields.items()
        assert set(record.fields) == set(adapter.fields_read)
        assert found == {"ASDAD:9": []}

    def test_fetch_accounts_for_every_id_of_several_batches(self, adapter: CRMAdapter) -> None:
        leads = self.leads(adapter.max_batch + 3)
        adapter.deliver(leads[1:])
        found = adapter.fetch([lead.external_id for lead in leads])
        assert set(found) == {lead.external_id for lead in leads}
        assert [external_id for external_id, records in found.items() if not records] == ["ASDAD:0"]

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

    @pytest.mark.parametrize("row", [FULL_ROW, EMPTY_ROW], ids=["full", "empty"])
    def test_what_was_sent_compares_equal_to_what_is_held(
        self, adapter: CRMAdapter, destination: Destination, row: list[str | None]
    ) -> None:
        mapped = Mapper(SHIPPED.source, destination).map(row)
        adapter.deliver([Lead(mapped.external_id, mapped.fields)])
        (record,) = adapter.fetch([mapped.external_id])[mapped.external_id]
        assert set(mapped.fields) == set(destination.fields)
        differ = [name for name, sent in mapped.fields.items() if not adapter.same(name, sent, record.fields[name])]
        assert differ == []
        adapter.deliver([Lead(mapped.external_id, {**mapped.fields, self.text_field: "by hand"})])
        (record,) = adapter.fetch([mapped.external_id])[mapped.external_id]
        differ = [name for name, sent in mapped.fields.items() if not adapter.same(name, sent, record.fields[name])]
        assert differ == [self.text_field]

    def test_a_bad_lead_stands_alone(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = [*self.leads(5), Lead("ASDAD:bad", {**self.good, **self.bad})]
        outcomes = adapter.deliver(leads)
        assert self.statuses(outcomes) == [Status.CREATED] * 5 + [Status.REJECTED]
        assert outcomes[-1].code
        assert outcomes[-1].field in self.bad
        assert len(crm.records()) == 5

    def test_a_batch_refused_as_a_whole_is_halved(self, adapter: CRMAdapter, crm: Simulator) -> None:
        crm.faults(whole_batch=True)
        leads = self.leads(20)
        leads[13] = Lead("ASDAD:bad", {**self.good, **self.bad})
        statuses = self.statuses(adapter.deliver(leads))
        assert statuses.count(Status.CREATED) == 19
        assert statuses[13] is Status.REJECTED

    def test_all_bad(self, adapter: CRMAdapter) -> None:
        leads = [Lead(f"x:{number}", {**self.good, **self.bad}) for number in range(3)]
        assert self.statuses(adapter.deliver(leads)) == [Status.REJECTED] * 3

    def test_a_lost_reply_makes_no_double(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.check()  # logs in, so that the reply lost is that to the change
        crm.faults(lose_reply={"next": 1})
        lost = adapter.deliver(self.leads(3))
        assert {(outcome.status, outcome.code, outcome.sent) for outcome in lost} == {
            (Status.TRANSIENT, "connection", True)
        }
        # Without batches the lost reply was that to the first lead, and the rest were not sent.
        rest = Status.CREATED if self.one_a_call else Status.UPDATED
        assert self.statuses(adapter.deliver(self.leads(3))) == [Status.UPDATED, rest, rest]
        assert crm.get("stats")["doubled"] == 0

    def test_wrong_credentials(self, crm: Simulator, destination: Destination) -> None:
        endpoint = Endpoint(crm.url, "who", "wrong-password")
        with pytest.raises(AccessError, match=f"connection crm_{self.name}") as caught:
            registry.build(destination, endpoint).deliver([self.lead(1)])
        assert "wrong-password" not in str(caught.value)

    def test_a_missing_field_is_named_and_no_fault_of_the_lead(self, adapter: CRMAdapter) -> None:
        with pytest.raises(AccessError, match="no_such_field"):
            adapter.deliver([self.lead(1, no_such_field="x")])

    def test_check_says_what_is_missing(self, crm: Simulator, destination: Destination, adapter: CRMAdapter) -> None:
        adapter.check()
        for change, named in (
            ({"external_id_field": self.text_field}, self.text_field),
            ({"external_id_field": "no_such_key"}, "no_such_key"),
            ({"object": "no_such_object"}, "no_such_object"),
        ):
            wrong = registry.build(destination.model_copy(update=change), crm.endpoint)
            with pytest.raises(AccessError, match=named):
                wrong.check()

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

    def test_a_refused_connection_sent_nothing(self, crm: Simulator, destination: Destination) -> None:
        endpoint = replace(crm.endpoint, url=f"http://127.0.0.1:{free_port()}")
        (outcome,) = registry.build(destination, endpoint).deliver([self.lead(1)])
        assert (outcome.status, outcome.code, outcome.sent) == (Status.TRANSIENT, "connection", False)

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

    def test_a_stale_id_of_the_crm_does_no_harm(self, adapter: CRMAdapter, crm: Simulator) -> None:
        (old,) = adapter.deliver([self.lead(1)])
        (other,) = adapter.deliver([self.lead(2)])
        adapter.deliver([self.lead(1)], delete=True)
        adapter.deliver([self.lead(1)])
        for stale in (old.crm_id, other.crm_id, "nonsense"):
            adapter.deliver([self.lead(1)])
            gone = adapter.deliver([self.lead(1)._replace(crm_id=stale)], delete=True)
            assert self.statuses(gone) == [Status.DELETED]
            assert set(crm.records()) == {"ASDAD:2"}

    def test_many_threads_make_no_doubles(self, adapter: CRMAdapter, crm: Simulator) -> None:
        parts = [self.leads(320)[first : first + 20] for first in range(0, 320, 20)]
        with ThreadPoolExecutor(16) as pool:
            outcomes = [outcome for part in pool.map(adapter.deliver, parts) for outcome in part]
        assert self.statuses(outcomes) == [Status.CREATED] * 320
        assert crm.get("stats")["doubled"] == 0

    def test_no_secret_and_no_lead_is_logged(
        self, adapter: CRMAdapter, crm: Simulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        adapter.deliver([self.lead(1, **{self.text_field: "Private Person"})])
        crm.faults(server_error={"next": 1})
        adapter.deliver([self.lead(2, **{self.text_field: "Private Person"})])
        logged = caplog.text
        assert not [value for value in ("Private Person", *SECRETS.values()) if value in logged]
