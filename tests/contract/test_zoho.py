"""Zoho CRM's adapter against the simulator."""

from dataclasses import replace

import pytest

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.http import Reply, RequestFailed
from leadsync.crm.login import TokenLogin
from leadsync.errors import AccessError
from leadsync.models import Status
from tests.contract.suite import AdapterSuite
from tests.support.simulators import Simulator


class TestZoho(AdapterSuite):
    name = "zoho"
    text_field = "Answers"
    good = {"Last_Name": "Li Lei", "Company": "ASDAD"}
    bad = {"Email": "no address"}
    unknown_version = {"api_version": "v99"}

    def test_a_token_says_how_long_it_lasts(self, adapter: CRMAdapter) -> None:
        adapter.check()
        assert adapter.credentials.access().lifetime == 3600

    @pytest.mark.parametrize("wrong", ["password", "refresh_token"])
    def test_a_refused_login_comes_as_a_success_and_is_not_tried_twice(
        self, crm: Simulator, destination: Destination, wrong: str
    ) -> None:
        endpoint = replace(crm.endpoint, password="wrong-secret")
        if wrong == "refresh_token":
            endpoint = replace(crm.endpoint, extra={**crm.endpoint.extra, "refresh_token": "wrong-secret"})
        adapter = registry.build(destination, endpoint)
        for _ in range(2):
            with pytest.raises(AccessError, match="refuses the login") as caught:
                adapter.deliver([self.lead(1)])
            assert "wrong-secret" not in str(caught.value)
        assert crm.get("stats")["by_status"] == {"200": 1}

    def test_too_many_logins_pass(self, adapter: CRMAdapter) -> None:
        words = b'{"error": "Access Denied", "error_description": "You have made too many requests continuously."}'
        adapter.http.send = lambda *_, **__: Reply(400, {}, words)  # type: ignore[method-assign,assignment]
        with pytest.raises(RequestFailed) as caught:
            adapter.fetch(["ASDAD:1"])
        assert (caught.value.sent, caught.value.retry_after) == (False, 120)

    @pytest.mark.parametrize(
        ("url", "login"),
        [
            ("https://www.zohoapis.com", "https://accounts.zoho.com/oauth/v2/token"),
            ("https://sandbox.zohoapis.com.au", "https://accounts.zoho.com.au/oauth/v2/token"),
            ("https://www.zohoapis.ca", "https://accounts.zohocloud.ca/oauth/v2/token"),
        ],
    )
    def test_the_login_is_in_the_data_centre_of_the_host(self, destination: Destination, url: str, login: str) -> None:
        adapter = registry.build(destination, Endpoint(url, "id", "secret", {"refresh_token": "token"}))
        assert isinstance(adapter.credentials, TokenLogin)
        assert adapter.credentials._url == login

    def test_a_shared_address_makes_no_two_leads_one(self, adapter: CRMAdapter, crm: Simulator) -> None:
        leads = [self.lead(number, Email="li@example.com") for number in range(2)]
        assert self.statuses(adapter.deliver(leads)) == [Status.CREATED] * 2
        assert len(crm.records()) == 2

    def test_a_field_that_is_gone_is_never_lost_silently(self, adapter: CRMAdapter, crm: Simulator) -> None:
        with pytest.raises(AccessError, match="Nowhere"):
            adapter.deliver([self.lead(1, Nowhere="x")])
        assert crm.journal() == []

    def test_times_lose_their_fractions_and_bad_ones_are_refused(self, adapter: CRMAdapter, crm: Simulator) -> None:
        moment = "2026-01-31T09:30:00.123456+01:00"
        bad = self.lead(2, Updated_At="yesterday")
        outcomes = adapter.deliver([self.lead(1, Updated_At=moment), bad])
        assert self.statuses(outcomes) == [Status.CREATED, Status.REJECTED]
        assert outcomes[1].field == "Updated_At"
        assert crm.records()["ASDAD:1"]["Updated_At"] == "2026-01-31T09:30:00+01:00"
        assert adapter.same("Updated_At", moment, "2026-01-31T08:30:00Z")
