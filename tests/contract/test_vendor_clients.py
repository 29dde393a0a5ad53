"""The clients that others use against the real CRMs work against the simulators: so these are to be believed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import odoorpc
import pytest
from hubspot import HubSpot
from hubspot.crm.contacts import (
    ApiException,
    BatchInputSimplePublicObjectBatchInputUpsert,
    BatchInputSimplePublicObjectId,
    BatchReadInputSimplePublicObjectId,
    SimplePublicObjectBatchInputUpsert,
)
from simple_salesforce import Salesforce
from simple_salesforce.exceptions import SalesforceExpiredSession, SalesforceOperationError, SalesforceResourceNotFound

from tests.contract.calls import Client
from tests.support.simulators import Simulator, Simulators

KEY = "leadsync_external_id"


@pytest.fixture
def contacts(hubspot: Simulator) -> Any:
    # Every look at an attribute of the client makes a new object with the vendor's address, so these are kept.
    api = HubSpot(access_token=hubspot.token).crm.contacts
    kept = SimpleNamespace(batch_api=api.batch_api, basic_api=api.basic_api)
    for part in (kept.batch_api, kept.basic_api):
        part.api_client.configuration.host = hubspot.url
    return kept


@pytest.fixture
def salesforce_client(salesforce: Simulator) -> Salesforce:
    client = Salesforce(instance_url=salesforce.url, session_id=Client(salesforce).token, version="62.0")
    client.base_url = f"{salesforce.url}/services/data/v62.0/"  # it insists on https otherwise
    return client


@pytest.fixture
def odoo(simulators: Simulators) -> Simulator:
    simulators["odoo"].reset()
    return simulators["odoo"]


@pytest.fixture
def odoo_client(odoo: Simulator) -> odoorpc.ODOO:
    client = odoorpc.ODOO("127.0.0.1", port=odoo.port)
    client.login("demo", odoo.client_id, odoo.client_secret)
    return client


def upsert(contacts: Any, **emails: str) -> Any:
    return contacts.batch_api.upsert(BatchInputSimplePublicObjectBatchInputUpsert(inputs=[
        SimplePublicObjectBatchInputUpsert(
            id=name, id_property=KEY, properties={"email": email}, object_write_trace_id=name
        )
        for name, email in emails.items()
    ]))  # fmt: skip


def test_hubspot_upserts_created_and_updated(contacts: Any, hubspot: Simulator) -> None:
    first = upsert(contacts, a="a@example.com")
    assert type(first).__name__ == "BatchResponseSimplePublicUpsertObject"
    assert (first.status, first.results[0].new) == ("COMPLETE", True)
    second = upsert(contacts, a="b@example.com", c="c@example.com")
    assert {item.properties[KEY]: item.new for item in second.results} == {"a": False, "c": True}
    assert hubspot.records()["a"]["email"] == "b@example.com"


def test_hubspot_answers_with_several_statuses(contacts: Any) -> None:
    mixed = upsert(contacts, a="a@example.com", b="nonsense")
    assert type(mixed).__name__ == "BatchResponseSimplePublicUpsertObjectWithErrors"
    assert mixed.num_errors == 1
    assert mixed.errors[0].context == {"objectWriteTraceId": ["b"]}
    assert [item.properties[KEY] for item in mixed.results] == ["a"]


def test_hubspot_reads_and_archives(contacts: Any, hubspot: Simulator) -> None:
    crm_id = upsert(contacts, a="a@example.com").results[0].id
    wanted = BatchReadInputSimplePublicObjectId(
        id_property=KEY, properties=["email"], properties_with_history=[], inputs=[{"id": "a"}, {"id": "b"}]
    )
    found = contacts.batch_api.read(wanted)
    assert [item.properties["email"] for item in found.results] == ["a@example.com"]
    assert found.errors[0].context == {"ids": ["b"]}
    assert contacts.basic_api.get_by_id("a", id_property=KEY, properties=["email"]).id == crm_id
    contacts.batch_api.archive(BatchInputSimplePublicObjectId(inputs=[{"id": crm_id}]))
    assert hubspot.records() == {}
    with pytest.raises(ApiException) as caught:
        contacts.basic_api.get_by_id("a", id_property=KEY)
    assert caught.value.status == 404


def test_salesforce_upserts_and_deletes_single_leads(salesforce_client: Salesforce, salesforce: Simulator) -> None:
    leads = salesforce_client.Lead
    leads.base_url = f"{salesforce_client.base_url}sobjects/Lead/"
    assert leads.upsert("Leadsync_Id__c/A:1", {"LastName": "Li", "Company": "X"}) == 201
    assert leads.upsert("Leadsync_Id__c/A:1", {"City": "Berlin"}) == 200
    found = leads.get_by_custom_id("Leadsync_Id__c", "A:1")
    assert (found["City"], leads.get(found["Id"])["City"]) == ("Berlin", "Berlin")
    assert leads.describe()["name"] == "Lead"
    assert leads.delete(found["Id"]) == 204
    with pytest.raises(SalesforceResourceNotFound):
        leads.get("Leadsync_Id__c/A:1")
    assert salesforce.records() == {}


def test_salesforce_collections_and_queries(salesforce_client: Salesforce, salesforce: Simulator) -> None:
    lead = {"attributes": {"type": "Lead"}, "LastName": "Li", "Company": "X"}
    for first in range(0, 2_200, 200):
        records = [{**lead, "Leadsync_Id__c": f"A:{number}"} for number in range(first, first + 200)]
        results = salesforce_client.restful(
            "composite/sobjects/Lead/Leadsync_Id__c", method="PATCH", json={"allOrNone": False, "records": records}
        )
        assert all(result["created"] for result in results)
    page = salesforce_client.query("SELECT Id, LastName FROM Lead")
    assert (page["totalSize"], page["done"]) == (2_200, False)
    rest = salesforce_client.query_more(page["nextRecordsUrl"].rpartition("/")[2])
    assert len(page["records"]) + len(rest["records"]) == 2_200
    assert salesforce_client.api_usage["api-usage"].used == salesforce.stats()["requests"]
    assert salesforce_client.limits()["DailyApiRequests"]["Max"] > 0
    results = salesforce_client.restful(
        "composite/sobjects", {"ids": page["records"][0]["Id"], "allOrNone": "false"}, method="DELETE"
    )
    assert results[0]["success"] is True
    assert len(salesforce.records()) == 2_199


def test_salesforce_tells_an_ended_session(salesforce_client: Salesforce, salesforce: Simulator) -> None:
    salesforce.faults(expire_tokens=True)
    with pytest.raises(SalesforceExpiredSession):
        salesforce_client.query("SELECT Id FROM Lead")


def test_salesforce_bulk_jobs(salesforce_client: Salesforce, salesforce: Simulator) -> None:
    salesforce_client.bulk2_url = f"{salesforce.url}/services/data/v62.0/jobs/"
    leads = [
        {"Leadsync_Id__c": f"A:{number}", "LastName": 'Li, "Lei"\n', "Company": "X", "Email": ""}
        for number in range(500)
    ]
    leads[7]["Email"] = "nonsense"
    bulk = salesforce_client.bulk2.Lead
    (told,) = bulk.upsert(records=leads, external_id_field="Leadsync_Id__c", wait=0.01)
    assert (told["numberRecordsTotal"], told["numberRecordsProcessed"], told["numberRecordsFailed"]) == (500, 500, 1)
    found = bulk.get_all_ingest_records(told["job_id"])
    assert len(found["successfulRecords"]) >= 499
    assert [row["Leadsync_Id__c"] for row in found["failedRecords"]] == ["A:7"]
    assert found["unprocessedRecords"] == []
    assert len(salesforce.records()) == 499
    assert salesforce.records()["A:1"]["LastName"] == 'Li, "Lei"\n'


def test_salesforce_bulk_jobs_that_fail(salesforce_client: Salesforce, salesforce: Simulator) -> None:
    salesforce_client.bulk2_url = f"{salesforce.url}/services/data/v62.0/jobs/"
    with pytest.raises(SalesforceOperationError, match="Field name not found : Nope__c"):
        salesforce_client.bulk2.Lead.upsert(
            records=[{"Leadsync_Id__c": "A:1", "Nope__c": "x"}], external_id_field="Leadsync_Id__c", wait=0.01
        )
    assert salesforce.journal() == []


def test_odoo_loads_by_external_id_reads_writes_and_deletes(odoo_client: odoorpc.ODOO, odoo: Simulator) -> None:
    assert odoo_client.version == "18.0"
    leads = odoo_client.env["crm.lead"]
    first = leads.load(["id", "name", "city"], [["leadsync.A", "Li", "Berlin"], ["leadsync.B", "Bo", ""]])
    again = leads.load(["id", "name", "team_id"], [["leadsync.A", "Lei", "Sales"]])
    assert again["ids"] == first["ids"][:1]
    assert leads.read(first["ids"], ["name", "city"]) == [
        {"id": first["ids"][0], "name": "Lei", "city": "Berlin"}, {"id": first["ids"][1], "name": "Bo", "city": False}
    ]  # fmt: skip
    assert leads.read(again["ids"], ["team_id"])[0]["team_id"] == [1, "Sales"]
    # A record reads all of its fields at once, relations as ids.
    assert [lead.name for lead in leads.browse(first["ids"])] == ["Lei", "Bo"]
    leads.write(first["ids"][1:], {"city": "Köln"})
    assert odoo.records()["B"]["city"] == "Köln"
    assert leads.unlink(first["ids"][:1]) is True
    assert set(odoo.records()) == {"B"}
    names = [["module", "=", "leadsync"], ["model", "=", "crm.lead"], ["name", "in", ["A", "B"]]]
    assert odoo_client.execute("ir.model.data", "search_count", names) == 1


def test_odoo_tells_what_is_wrong(odoo_client: odoorpc.ODOO, odoo: Simulator) -> None:
    leads = odoo_client.env["crm.lead"]
    refused = leads.load(["id", "name", "x_leadsync_updated_at"], [["leadsync.A", "Li", "one fine day"]])
    assert refused["ids"] is False
    assert [(message["type"], message["field"]) for message in refused["messages"]] == [
        ("error", "x_leadsync_updated_at")
    ]
    for call, name in (
        (lambda: leads.write([999], {"name": "x"}), "odoo.exceptions.MissingError"),
        (lambda: leads.load(["id", "no_such_field"], [["leadsync.A", "x"]]), "builtins.ValueError"),
        (lambda: odoo_client.env["no.such.model"], "odoo.exceptions.UserError"),
    ):
        with pytest.raises(odoorpc.error.RPCError) as caught:
            call()
        assert caught.value.info["data"]["name"] == name
    with pytest.raises(odoorpc.error.RPCError, match="Wrong login"):
        odoo_client.login("demo", odoo.client_id, "wrong")
    assert odoo.journal() == []
