"""The vendors' own clients, used as they come, work against the simulators: so these are to be believed."""

from __future__ import annotations

import pytest
import requests
from hubspot import HubSpot
from hubspot.crm.contacts import (
    BatchInputSimplePublicObjectBatchInputUpsert,
    BatchInputSimplePublicObjectId,
    SimplePublicObjectBatchInputUpsert,
)
from simple_salesforce import Salesforce
from simple_salesforce.exceptions import SalesforceResourceNotFound

from tests.support.simulators import SECRETS, Simulator


def test_hubspot_api_client(hubspot: Simulator) -> None:
    client = HubSpot(access_token=SECRETS["DEMO_CRM_TOKEN"])
    batch = client.crm.contacts.batch_api
    batch.api_client.configuration.host = hubspot.url

    def upsert(email: str) -> object:
        lead = SimplePublicObjectBatchInputUpsert(
            id="A:1", id_property="leadsync_external_id", properties={"email": email}, object_write_trace_id="0"
        )
        return batch.upsert(BatchInputSimplePublicObjectBatchInputUpsert(inputs=[lead]))

    created = upsert("a@example.com")
    assert created.results[0].new is True  # type: ignore[attr-defined]
    assert upsert("b@example.com").results[0].new is False  # type: ignore[attr-defined]
    refused = upsert("nonsense")
    assert refused.num_errors == 1  # type: ignore[attr-defined]
    batch.archive(BatchInputSimplePublicObjectId(inputs=[{"id": created.results[0].id}]))  # type: ignore[attr-defined]
    assert hubspot.records() == {}


def test_simple_salesforce(salesforce: Simulator) -> None:
    login = {
        "grant_type": "client_credentials",
        "client_id": SECRETS["DEMO_CRM_CLIENT_ID"],
        "client_secret": SECRETS["DEMO_CRM_CLIENT_SECRET"],
    }
    token = requests.post(f"{salesforce.url}/services/oauth2/token", data=login, timeout=5).json()["access_token"]
    client = Salesforce(instance_url=salesforce.url, session_id=token, version="62.0")
    client.base_url = f"{salesforce.url}/services/data/v62.0/"  # it insists on https otherwise
    leads = client.Lead
    leads.base_url = f"{salesforce.url}/services/data/v62.0/sobjects/Lead/"
    lead = {"LastName": "Li", "Company": "X"}
    assert leads.upsert("Leadsync_Id__c/A:1", lead) in (200, 201)
    record = {"attributes": {"type": "Lead"}, "Leadsync_Id__c": "A:2", **lead}
    results = client.restful(
        "composite/sobjects/Lead/Leadsync_Id__c", method="PATCH", json={"allOrNone": False, "records": [record]}
    )
    assert results[0]["created"] is True
    assert client.query("SELECT Id, LastName FROM Lead WHERE Leadsync_Id__c IN ('A:1', 'A:2')")["totalSize"] == 2
    leads.delete("Leadsync_Id__c/A:1")
    with pytest.raises(SalesforceResourceNotFound):
        leads.get("Leadsync_Id__c/A:1")
    assert set(salesforce.records()) == {"A:2"}
