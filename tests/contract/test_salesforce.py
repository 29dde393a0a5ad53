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

    def test_an_expired_token_is_renewed_once(self, adapter: CRMAdapter, crm: Simulator) -> None:
        adapter.deliver([self.lead(1)])
        crm.faults(expire_tokens=True)
        assert self.statuses(adapter.deliver([self.lead(1)])) == [Status.UPDATED]
        assert crm.get("stats")["by_status"] == {"200": 4, "401": 1}
