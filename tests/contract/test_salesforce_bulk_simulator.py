"""The simulated Bulk API 2.0 is as strict as the documented one, and its jobs work without anybody looking on."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from demo.crm.faults import FaultBox
from demo.crm.salesforce_bulk import BulkJobs
from demo.crm.store import Store
from demo.crm.vendor import Request
from tests.contract.calls import DATA, Client
from tests.support.simulators import Simulator

JOBS = f"{DATA}/jobs/ingest"
JOB = {"operation": "upsert", "object": "Lead", "externalIdFieldName": "Leadsync_Id__c", "contentType": "CSV"}
DATA_OF_TWO = "Leadsync_Id__c,LastName,Company,City\nA:1,Li,X,Berlin\nA:2,Han,X,\n"


@pytest.fixture
def client(salesforce: Simulator) -> Client:
    return Client(salesforce)


def create(client: Client, **changes: Any) -> str:
    reply = client.call("POST", JOBS, JOB | changes)
    assert reply.status_code == 200, reply.text
    job_id: str = reply.json()["id"]
    return job_id


def upload(client: Client, job_id: str, data: str, content_type: str = "text/csv") -> requests.Response:
    return requests.put(
        f"{client.simulator.url}{JOBS}/{job_id}/batches", data=data.encode(), timeout=10,
        headers={"Authorization": f"Bearer {client.token}", "Content-Type": content_type},
    )  # fmt: skip


def change(client: Client, job_id: str, state: str) -> requests.Response:
    return client.call("PATCH", f"{JOBS}/{job_id}", {"state": state})


def run(client: Client, data: str, **changes: Any) -> dict[str, Any]:
    """One job to its end; what it says then, with its `id`."""
    job_id = create(client, **changes)
    assert upload(client, job_id, data).status_code == 201
    assert change(client, job_id, "UploadComplete").json()["state"] == "UploadComplete"
    job: dict[str, Any] = client.call("GET", f"{JOBS}/{job_id}").json()
    return job


def results(client: Client, job_id: str, kind: str) -> list[dict[str, str]]:
    reply = client.call("GET", f"{JOBS}/{job_id}/{kind}")
    assert reply.headers["Content-Type"].startswith("text/csv")
    return list(csv.DictReader(reply.text.splitlines()))


def test_a_job_creates_and_updates(client: Client, salesforce: Simulator) -> None:
    client.upsert("A:2", City="Bonn", Phone="1")
    job = run(client, DATA_OF_TWO)
    assert (job["state"], job["numberRecordsProcessed"], job["numberRecordsFailed"]) == ("JobComplete", 2, 0)
    first, second = results(client, job["id"], "successfulResults")
    assert (first["Leadsync_Id__c"], first["sf__Created"], second["sf__Created"]) == ("A:1", "true", "false")
    assert first["sf__Id"].startswith("00Q")
    assert results(client, job["id"], "failedResults") == results(client, job["id"], "unprocessedrecords") == []
    assert salesforce.records()["A:2"] == {
        "Leadsync_Id__c": "A:2", "LastName": "Han", "Company": "X", "City": "Bonn", "Phone": "1",
    }  # fmt: skip


def test_an_empty_value_stays_and_a_mark_clears(client: Client, salesforce: Simulator) -> None:
    client.upsert("A:1", City="Bonn", Phone="1")
    run(client, "Leadsync_Id__c,City,Phone\nA:1,,#N/A\n")
    assert salesforce.records()["A:1"]["City"] == "Bonn"
    assert "Phone" not in salesforce.records()["A:1"]


def test_bad_records_fail_alone(client: Client, salesforce: Simulator) -> None:
    head = "Leadsync_Id__c,LastName,Company,Email\n"
    job = run(client, head + "A:1,Li,X,nonsense\n,Li,X,\nA:3,,X,\nA:4,Li,X,\nA:5,Li,X,\nA:5,Li,X,\n")
    assert (job["state"], job["numberRecordsFailed"]) == ("JobComplete", 5)
    errors = {row["Leadsync_Id__c"]: row["sf__Error"] for row in results(client, job["id"], "failedResults")}
    assert errors["A:1"] == "INVALID_EMAIL_ADDRESS:Email: invalid email address: nonsense:Email --"
    assert errors["A:3"].startswith("REQUIRED_FIELD_MISSING:")
    assert errors["A:5"].startswith("DUPLICATE_VALUE:")
    assert set(salesforce.records()) == {"A:4"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"object": "Nope"}, "INVALIDENTITY"), ({"externalIdFieldName": "City"}, "INVALIDJOB"),
        ({"lineEnding": "CR"}, "INVALIDJOB"), ({"contentType": "JSON"}, "INVALIDJOB"),
        ({"operation": "merge"}, "INVALIDOPERATION"), ({"columns": 1}, "JSON_PARSER_ERROR"),
    ],
)  # fmt: skip
def test_wrong_jobs_are_refused(client: Client, changes: dict[str, Any], code: str) -> None:
    reply = client.call("POST", JOBS, JOB | changes)
    assert (reply.status_code, reply.json()[0]["errorCode"]) == (400, code)
    assert client.call("GET", JOBS).json()["records"] == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Leadsync_Id__c,Nope__c\nA:1,x\n", "InvalidBatch : Field name not found : Nope__c"),
        ("LastName,Company\nLi,X\n", "InvalidBatch : Field name not found : Leadsync_Id__c"),
        ("Leadsync_Id__c,LastName\r\nA:1,Li\r\n", "ClientInputError : LineEnding is invalid"),
        ("Leadsync_Id__c,LastName\nA:1,Li,X\n", "InvalidBatch : the number of values"),
        ("Leadsync_Id__c,LastName\nA:1,\"Li\" x\n", "InvalidBatch : Failed to parse"),
        ("\n", "InvalidBatch : Failed to read request header"),
        (f"Leadsync_Id__c,Answers__c\nA:1,{'x' * 32_001}\n", "InvalidBatch : a field"),
    ],
)  # fmt: skip
def test_data_that_makes_no_sense_fails_the_job(client: Client, salesforce: Simulator, data: str, message: str) -> None:
    job = run(client, data)
    assert job["state"] == "Failed"
    assert job["errorMessage"].startswith(message)
    assert salesforce.journal() == []


def test_states_change_in_their_order_only(client: Client) -> None:
    job_id = create(client)
    assert change(client, job_id, "UploadComplete").status_code == 400, "it has no data"
    assert change(client, job_id, "JobComplete").status_code == 400
    assert upload(client, job_id, DATA_OF_TWO, "application/json").status_code == 400
    assert upload(client, job_id, DATA_OF_TWO).status_code == 201
    again = upload(client, job_id, DATA_OF_TWO)
    assert (again.status_code, "multiple contents" in again.text) == (400, True)
    assert client.call("GET", f"{JOBS}/{job_id}/successfulResults").status_code == 400
    assert client.call("DELETE", f"{JOBS}/{job_id}").status_code == 400
    assert change(client, job_id, "Aborted").json()["state"] == "Aborted"
    for state in ("UploadComplete", "Aborted"):
        reply = change(client, job_id, state)
        assert (reply.status_code, reply.json()[0]["errorCode"]) == (400, "INVALIDJOBSTATE")
    assert upload(client, job_id, DATA_OF_TWO).status_code == 400
    assert client.call("DELETE", f"{JOBS}/{job_id}").status_code == 204
    for path in (f"{JOBS}/{job_id}", f"{JOBS}/nonsense"):
        assert client.call("GET", path).status_code == 404


def test_all_jobs_are_listed_in_pages(tmp_path: Path) -> None:
    def ask(**query: str) -> Any:
        return jobs.all(Request("GET", JOBS, query, {}, b"", JOBS, {"version": "62"})).document

    store = Store(tmp_path)
    jobs = BulkJobs(store, FaultBox(), lambda key, fields: {})
    post = Request("POST", JOBS, {}, {}, orjson.dumps(JOB), JOBS, {"version": "62"})
    with store.transaction():
        ids = {jobs.create(post).document["id"] for _ in range(1_001)}
    page = ask(jobType="V2Ingest")
    assert (page["done"], len(page["records"])) == (False, 1_000)
    assert "externalIdFieldName" not in page["records"][0]
    rest = ask(queryLocator=page["nextRecordsUrl"].partition("=")[2])
    assert (rest["done"], rest["nextRecordsUrl"]) == (True, None)
    assert {job["id"] for job in page["records"] + rest["records"]} == ids
    assert ask(jobType="Classic")["records"] == []
    store.close()


def test_a_slow_job_works_by_itself_and_survives_a_crash(client: Client, salesforce: Simulator) -> None:
    salesforce.faults(slow_job=0.5)
    assert run(client, DATA_OF_TWO)["state"] == "UploadComplete"
    assert salesforce.records() == {}
    salesforce.kill()
    time.sleep(0.6)
    salesforce.start()
    assert set(salesforce.records()) <= {"A:1", "A:2"}
    time.sleep(0.6)
    assert set(salesforce.records()) == {"A:1", "A:2"}


def test_an_aborted_job_stops_and_keeps_what_it_did(client: Client, salesforce: Simulator) -> None:
    salesforce.faults(slow_job=0.4)
    job = run(client, DATA_OF_TWO)
    time.sleep(0.5)
    assert client.call("GET", f"{JOBS}/{job['id']}").json()["state"] == "InProgress"
    assert change(client, job["id"], "Aborted").status_code == 200
    time.sleep(0.5)
    assert set(salesforce.records()) == {"A:1"}
    assert [row["Leadsync_Id__c"] for row in results(client, job["id"], "successfulResults")] == ["A:1"]
    assert [row["Leadsync_Id__c"] for row in results(client, job["id"], "unprocessedrecords")] == ["A:2"]


def test_a_failed_job_keeps_what_it_did(client: Client, salesforce: Simulator) -> None:
    salesforce.faults(fail_job={"next": 1})
    job = run(client, DATA_OF_TWO)
    assert (job["state"], job["errorMessage"].split()[0]) == ("Failed", "InternalServerError")
    assert set(salesforce.records()) == {"A:1"}
    assert [row["Leadsync_Id__c"] for row in results(client, job["id"], "unprocessedRecords")] == ["A:2"]


def test_replies_to_steps_of_a_job_can_be_lost(client: Client, salesforce: Simulator) -> None:
    salesforce.faults(lose_reply={"next": 1})
    with pytest.raises(requests.ConnectionError):
        create(client)
    assert [job["state"] for job in client.call("GET", JOBS).json()["records"]] == ["Open"]
