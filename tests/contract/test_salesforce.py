"""Salesforce's adapter against the simulator."""

from leadsync.crm.base import CRMAdapter
from leadsync.models import Status
from tests.contract.suite import AdapterSuite
from tests.support.simulators import Simulator


class TestSalesforce(AdapterSuite):
    name = "salesforce"
    text_field = "Answers__c"
    good = {"LastName": "Li Lei", "Company": "ASDAD"}
    bad = {"Email": "no address"}
    unknown_version = {"api_version": "v99.0"}

    def test_doubles_are_told_and_deleted_together(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver([self.lead(1)])
        crm.faults(double={"next": 1})
        adapter.deliver([self.lead(1)])
        assert len({record.crm_id for record in adapter.fetch(["ASDAD:1"])["ASDAD:1"]}) == 2
        assert self.statuses(adapter.deliver([self.lead(1)], delete=True)) == [Status.DELETED]
        assert crm.records() == {}
