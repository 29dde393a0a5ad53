"""What an adapter says of a destination or a connection that is not as it should be, and what it never says."""

from __future__ import annotations

import base64
import logging
from dataclasses import replace

import pytest
import redis

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.tokens import TokenStore
from leadsync.errors import AccessError
from leadsync.models import Status
from leadsync.sealing import Sealer
from tests.contract.suite.case import Case, requests
from tests.support.servers import free_port
from tests.support.simulators import SECRETS, Simulator


class Setup(Case):
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

    def test_a_refused_connection_sent_nothing(self, crm: Simulator, destination: Destination) -> None:
        endpoint = replace(crm.endpoint, url=f"http://127.0.0.1:{free_port()}")
        (outcome,) = registry.build(destination, endpoint).deliver([self.lead(1)])
        assert (outcome.status, outcome.code, outcome.sent) == (Status.TRANSIENT, "connection", False)

    def test_no_secret_and_no_lead_is_logged(
        self, adapter: CRMAdapter, crm: Simulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        adapter.deliver([self.lead(1, **{self.text_field: "Private Person"})])
        crm.faults(server_error={"next": 1})
        adapter.deliver([self.lead(2, **{self.text_field: "Private Person"})])
        logged = caplog.text
        assert not [value for value in ("Private Person", *SECRETS.values()) if value in logged]

    def test_an_unknown_object_is_no_fault_of_the_leads(self, crm: Simulator, destination: Destination) -> None:
        wrong = registry.build(destination.model_copy(update={"object": "no_such_object"}), crm.endpoint)
        for delete in (False, True):
            with pytest.raises(AccessError):
                wrong.deliver(self.leads(2), delete=delete)
        with pytest.raises(AccessError):
            wrong.fetch(["ASDAD:1"])
        wrong.close()

    def test_an_address_may_end_in_a_slash(self, crm: Simulator, destination: Destination) -> None:
        adapter = registry.build(destination, replace(crm.endpoint, url=f"{crm.url}/"))
        assert self.statuses(adapter.deliver([self.lead(1)])) == [Status.CREATED]
        adapter.close()

    @pytest.mark.parametrize("wrong", ["path", "scheme", "version"])
    def test_a_wrong_address_or_version_is_no_fault_of_the_leads(
        self, crm: Simulator, destination: Destination, wrong: str
    ) -> None:
        endpoint = crm.endpoint
        if wrong == "path":
            endpoint = replace(endpoint, url=f"{crm.url}/no/such/path")
        elif wrong == "scheme":  # of a server that speaks no TLS
            endpoint = replace(endpoint, url=crm.url.replace("http:", "https:"))
        else:
            settings = {**destination.settings, **self.unknown_version}
            destination = destination.model_copy(update={"settings": settings})
        adapter = registry.build(destination, endpoint)
        if wrong == "version" and not self.unknown_version:
            adapter.check()
        else:
            with pytest.raises(AccessError, match=f"connection crm_{self.name}"):
                adapter.check()
            with pytest.raises(AccessError, match=f"connection crm_{self.name}"):
                adapter.deliver([self.lead(1)])
        adapter.close()
        assert crm.records() == {}

    def test_processes_share_one_token(self, crm: Simulator, destination: Destination, valkey: redis.Redis) -> None:
        def requests_of_a_process() -> int:
            sent = requests(crm)
            store = TokenStore(valkey, Sealer(base64.b64encode(bytes(32)).decode()))
            adapter = registry.build(destination, crm.endpoint, tokens=store)
            adapter.check()
            adapter.close()
            return requests(crm) - sent

        first, second = requests_of_a_process(), requests_of_a_process()
        assert first - second == self.renews
