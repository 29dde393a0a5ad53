"""What becomes of leads while all goes well, or only the data is at fault."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError

import pytest

from leadsync.config import Destination
from leadsync.crm.base import CRMAdapter
from leadsync.mapping import Mapper
from leadsync.models import Lead, Status
from tests.contract.suite.case import SHIPPED, Case
from tests.support.simulators import Simulator

# Rows of the shipped pipeline, in the order of its columns.
FULL_ROW: list[str | None] = [
    "A:B\\", "12", " +49 170 1 ", " Zoë \U0001f600\r\nLi ", " Zoe@Example.ORG ", "Köln ", '{"q": "a\\nb"}',
    "2026-01-31 09:30:00.123456+00", "f",
]  # fmt: skip
EMPTY_ROW: list[str | None] = ["A", "13", None, None, "", None, "{}", "2026-01-31 09:30:00+00", "f"]


class Delivery(Case):
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

    def test_two_loads_at_once_make_no_doubles(self, adapter: CRMAdapter, later: CRMAdapter, crm: Simulator) -> None:
        """In step, so that both have looked before either writes. Where the CRM takes doubles only the fence of the
        load keeps the same lead from being sent twice at once.
        """
        leads = self.leads(12)
        step = Barrier(2)

        def in_step() -> None:
            with suppress(BrokenBarrierError):  # one has fewer requests to make: the rest goes on alone
                step.wait(0.5)

        adapter.before_request = later.before_request = in_step
        parts = (leads, leads[::-1]) if self.refuses_doubles else (leads[:6], leads[6:])
        with ThreadPoolExecutor(2) as pool:
            told = [*pool.map(lambda by, part: by.deliver(part), (adapter, later), parts)]
        statuses = {outcome.status for outcomes in told for outcome in outcomes}
        assert statuses <= {Status.CREATED, Status.UPDATED, Status.TRANSIENT}
        assert self.statuses(later.deliver(leads)) == [Status.UPDATED] * 12
        assert crm.get("stats")["doubled"] == 0

    def test_of_many_leads_the_bad_ones_alone_are_refused(self, adapter: CRMAdapter, crm: Simulator) -> None:
        bad = {f"ASDAD:{number}" for number in range(0, self.many, 33)}  # 3 %
        leads = [
            lead._replace(fields={**lead.fields, **self.bad}) if lead.external_id in bad else lead
            for lead in self.leads(self.many)
        ]
        outcomes = adapter.deliver(leads)
        assert [outcome.external_id for outcome in outcomes] == [lead.external_id for lead in leads]
        assert {outcome.external_id for outcome in outcomes if outcome.status is Status.REJECTED} == bad
        assert self.statuses(outcomes).count(Status.CREATED) == len(crm.records()) == self.many - len(bad)
        assert crm.get("stats")["doubled"] == 0
