"""What Salesforce may say of bulk jobs that its simulator does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry, salesforce_bulk
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.errors import AccessError, QuotaExceeded, Unavailable
from leadsync.models import Lead, Status

JOBS = "/services/data/v62.0/jobs/ingest"
LEADS = [Lead("A:1", {"name": "Ada", "n": 1.5, "b": True}), Lead("A:2", {"name": None, "n": "", "b": False})]
TARGET = destination(
    adapter="salesforce", object="Lead", external_id_field="Ext__c", on_delete="delete",
    settings={"requests_per_second": 1000, "bulk_above": 1},
)  # fmt: skip
OURS = {"object": "Lead", "operation": "upsert"}
REFUSED = Answer(400, [{"errorCode": "INVALIDJOBSTATE", "message": "no"}])


class Org:
    """Answers as an organisation that a test makes up: `said` overrules by method and path; `jobs` are id → state."""

    def __init__(self, script: Scripted) -> None:
        self.script = script
        self.said: dict[tuple[str, str], Answer] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.succeeded = "sf__Id,sf__Created,Ext__c\n00Q1,true,A:1\n00Q2,false,A:2\n"
        script.respond = self.respond

    def respond(self, request: Request) -> Answer:
        path = request.path.removeprefix(JOBS)
        if "oauth2" in path:
            return Answer(json={"access_token": "t", "instance_url": self.script.url})
        if (request.method, path) in self.said:
            return self.said[request.method, path]
        job = self.jobs.get(path.strip("/"))
        if request.method == "POST" and path == "":
            self.jobs["750new"] = {"id": "750new", "state": "Open"}
            return Answer(json=self.jobs["750new"])
        if request.method == "PUT":
            return Answer(201, body=b"")
        if request.method == "PATCH" and job is not None:
            state = orjson.loads(request.body)["state"]
            job["state"] = "JobComplete" if state == "UploadComplete" else state
            return Answer(json=job)
        if path.endswith("successfulResults"):
            return Answer(body=self.succeeded.encode())
        if path.endswith("failedResults"):
            return Answer(body=b"sf__Id,sf__Error,Ext__c\n")
        return Answer(404, [{"errorCode": "NOT_FOUND", "message": "no"}]) if job is None else Answer(json=job)

    def asked(self, method: str) -> list[str]:
        return [each.path.removeprefix(JOBS) for each in self.script.requests if each.method == method]


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


@pytest.fixture
def org(script: Scripted) -> Org:
    return Org(script)


@pytest.fixture
def adapter(script: Scripted) -> Iterator[CRMAdapter]:
    made = registry.build(TARGET, Endpoint(script.url, "key", "s3cret"))
    made.http.sleep = lambda seconds: None
    yield made
    made.close()


def test_a_job_is_what_the_contract_says(org: Org, adapter: CRMAdapter) -> None:
    outcomes = adapter.deliver(LEADS)
    assert [(o.status, o.crm_id) for o in outcomes] == [(Status.CREATED, "00Q1"), (Status.UPDATED, "00Q2")]
    _, create, upload, close, _, results, *_ = org.script.requests
    assert orjson.loads(create.body) == {
        "operation": "upsert", "object": "Lead", "externalIdFieldName": "Ext__c", "contentType": "CSV",
        "lineEnding": "LF", "columnDelimiter": "COMMA",
    }  # fmt: skip
    assert (upload.method, upload.path) == ("PUT", f"{JOBS}/750new/batches")
    assert upload.headers["Content-Type"] == "text/csv; charset=UTF-8"
    assert upload.body == b"Ext__c,name,n,b\nA:1,Ada,1.5,true\nA:2,#N/A,#N/A,false\n"
    assert (close.method, orjson.loads(close.body)) == ("PATCH", {"state": "UploadComplete"})
    assert (results.path, results.headers["Accept"]) == (f"{JOBS}/750new/successfulResults", "text/csv")


@pytest.mark.parametrize(
    ("succeeded", "codes"),
    [
        ("sf__Id,sf__Created,Ext__c\n00Q2,true,A:2\n00Q9,true,A:9\n\n", ["missing_from_reply", None]),
        ("sf__Id,sf__Created,Ext__c\n00Q1,true,A:1\n00Q2,true,A:1\n", ["malformed_reply", "missing_from_reply"]),
        ("\ufeffExt__c,sf__Created,sf__Id\nA:1,true,00Q1\nA:2,true,00Q2\n", [None, None]),
        ("sf__Id,sf__Created\n00Q1,true\n", ["malformed_reply"] * 2),
        ("sf__Id,sf__Created,Ext__c\n00Q1,true,A:1\n00Q2,true\n", ["malformed_reply"] * 2),
        ("<html>A:1</html>", ["malformed_reply"] * 2),
        ("", ["malformed_reply"] * 2),
    ],
)
def test_results_are_reconciled_by_external_id(
    org: Org, adapter: CRMAdapter, succeeded: str, codes: list[str | None]
) -> None:
    org.succeeded = succeeded
    outcomes = adapter.deliver(LEADS)
    assert [outcome.code for outcome in outcomes] == codes
    assert {o.status for o in outcomes if o.code} <= {Status.TRANSIENT}
    assert {outcome.message for outcome in outcomes} == {None}
    assert not adapter.at_work


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("REQUIRED_FIELD_MISSING:Required fields are missing: [name]:name --",
         (Status.REJECTED, "REQUIRED_FIELD_MISSING", "name", "Required fields are missing: [name]")),
        ("UNABLE_TO_LOCK_ROW:unable to obtain exclusive access: 00Q1:--",
         (Status.TRANSIENT, "UNABLE_TO_LOCK_ROW", None, "unable to obtain exclusive access: 00Q1")),
        ("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY:a trigger: UNABLE_TO_LOCK_ROW, x:--",
         (Status.TRANSIENT, "CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", None, "a trigger: UNABLE_TO_LOCK_ROW, x")),
        ("something else", (Status.REJECTED, None, None, "something else")),
    ],
)  # fmt: skip
def test_errors_of_records(org: Org, adapter: CRMAdapter, words: str, expected: tuple[Any, ...]) -> None:
    org.succeeded = "sf__Id,sf__Created,Ext__c\n00Q2,true,A:2\n"
    org.said["GET", "/750new/failedResults"] = Answer(body=f'sf__Id,sf__Error,Ext__c\n,"{words}",A:1\n'.encode())
    first, second = adapter.deliver(LEADS)
    assert (first.status, first.code, first.field, first.message) == expected
    assert second.status is Status.CREATED


def test_a_near_simultaneous_upsert_is_tried_once_more_without_a_job(org: Org, adapter: CRMAdapter) -> None:
    org.succeeded = "sf__Id,sf__Created,Ext__c\n00Q2,true,A:2\n"
    words = "DUPLICATE_VALUE:duplicate value found: Ext__c duplicates value on record with id: 00Q1:--"
    org.said["GET", "/750new/failedResults"] = Answer(body=f'sf__Id,sf__Error,Ext__c\n,"{words}",A:1\n'.encode())
    path = "/services/data/v62.0/composite/sobjects/Lead/Ext__c"
    org.said["PATCH", path] = Answer(json=[{"id": "00Q1", "success": True, "errors": [], "created": False}])
    assert [outcome.status for outcome in adapter.deliver(LEADS)] == [Status.UPDATED, Status.CREATED]


def test_a_field_that_may_not_be_written_is_no_fault_of_a_record(org: Org, adapter: CRMAdapter) -> None:
    words = "INVALID_FIELD_FOR_INSERT_UPDATE:Unable to create/update fields: name:name --"
    org.said["GET", "/750new/failedResults"] = Answer(body=f'sf__Id,sf__Error,Ext__c\n,"{words}",A:1\n'.encode())
    with pytest.raises(AccessError, match="'name'"):
        adapter.deliver(LEADS)
    assert not adapter.at_work


@pytest.mark.parametrize("status", [400, 403])
def test_without_the_bulk_api_the_leads_go_without_it(org: Org, adapter: CRMAdapter, status: int) -> None:
    org.said["POST", ""] = Answer(status, [{"errorCode": "FEATURENOTENABLED", "message": "no"}])
    done = [{"id": f"00Q{number}", "success": True, "errors": [], "created": True} for number in (1, 2)]
    org.said["PATCH", "/services/data/v62.0/composite/sobjects/Lead/Ext__c"] = Answer(json=done)
    assert [outcome.status for outcome in adapter.deliver(LEADS)] == [Status.CREATED] * 2


@pytest.mark.parametrize(("method", "path"), [("POST", ""), ("GET", "/750new")])
def test_replies_that_make_no_sense_are_kept_in_part(org: Org, adapter: CRMAdapter, method: str, path: str) -> None:
    org.said[method, path] = Answer(body=b"<html>a proxy's page for ada@example.org" + b"x" * 900)
    outcomes = adapter.deliver(LEADS)
    assert {(o.status, o.code, o.sent) for o in outcomes} == {(Status.TRANSIENT, "malformed_reply", True)}
    assert {(o.message or "")[:28] for o in outcomes} == {"<html>a proxy's page for •••"}
    assert adapter.at_work is (method == "GET")


def test_without_the_bulk_api_nothing_is_left_at_work(org: Org, adapter: CRMAdapter) -> None:
    org.said["GET", "?jobType=V2Ingest"] = Answer(400, [{"errorCode": "FEATURENOTENABLED", "message": "no"}])
    assert adapter.end_work() is False


def test_a_spent_quota_of_jobs(org: Org, adapter: CRMAdapter) -> None:
    org.said["POST", ""] = Answer(400, [{"errorCode": "EXCEEDEDQUOTA", "message": "no"}])
    with pytest.raises(QuotaExceeded):
        adapter.deliver(LEADS)


def test_a_job_that_can_not_be_closed_is_aborted_before_its_leads_go_without_it(org: Org, adapter: CRMAdapter) -> None:
    org.jobs["750new"] = {}
    org.said["PATCH", "/750new"] = REFUSED
    with pytest.raises(Unavailable, match="750new is at work"):
        adapter.deliver(LEADS)
    assert not [path for path in org.asked("PATCH") if "composite" in path]
    assert adapter.at_work


def test_a_job_that_may_have_begun_is_not_done_without(org: Org, adapter: CRMAdapter) -> None:
    """The close is refused, for an earlier one has arrived meanwhile."""
    org.jobs["750new"] = {}
    closes = [0]

    def respond(request: Request) -> Answer:
        if request.method == "PATCH" and b"UploadComplete" in request.body:
            closes[0] += 1
            org.jobs["750new"]["state"] = "Open" if closes[0] == 1 else "InProgress"
            return Answer(503, []) if closes[0] == 1 else REFUSED
        return org.respond(request)

    org.script.respond = respond
    outcomes = adapter.deliver(LEADS)
    assert {(o.status, o.code, o.sent) for o in outcomes} == {(Status.TRANSIENT, "timeout", True)}
    assert org.jobs["750new"]["state"] == "Aborted"
    assert not [path for path in org.asked("PATCH") if "composite" in path]


def test_a_job_that_is_told_nothing_of_stays_known(org: Org, adapter: CRMAdapter) -> None:
    org.said["GET", "/750new"] = REFUSED
    with pytest.raises(Unavailable, match="750new"):
        adapter.deliver(LEADS)
    assert adapter.at_work


def test_only_unfinished_jobs_of_this_object_and_field_are_ended(org: Org, adapter: CRMAdapter) -> None:
    listed = {
        "open": {**OURS, "state": "Open"},
        "queued": {**OURS, "object": "lead", "state": "UploadComplete"},
        "ended": {**OURS, "state": "JobComplete"},
        "other_object": {**OURS, "object": "Contact", "state": "InProgress"},
        "other_operation": {**OURS, "operation": "delete", "state": "InProgress"},
        "other_field": {**OURS, "state": "InProgress"},
    }
    for name, job in listed.items():
        org.jobs[name] = {**job, "id": name, "externalIdFieldName": "Nope__c" if name == "other_field" else "Ext__c"}
    pages = [[{**job, "id": name} for name, job in listed.items()][part] for part in (slice(0, 1), slice(1, 6))]
    more = f"{JOBS}?queryLocator=2"
    org.said["GET", "?jobType=V2Ingest"] = Answer(json={"done": False, "records": pages[0], "nextRecordsUrl": more})
    org.said["GET", "?queryLocator=2"] = Answer(json={"done": True, "records": pages[1], "nextRecordsUrl": None})
    assert adapter.end_work() is True
    assert org.asked("PATCH") == ["/open", "/queued"]
    assert {name: job["state"] for name, job in org.jobs.items() if job["state"] == "Aborted"} == {
        "open": "Aborted", "queued": "Aborted",
    }  # fmt: skip


@pytest.mark.parametrize("state", ["JobComplete", "InProgress"])
@pytest.mark.parametrize(
    "answer", [REFUSED, Answer(403, [{"errorCode": "INVALIDUSER", "message": "no"}]), Answer(503, [])]
)
def test_a_job_whose_abort_is_refused_has_ended_or_stops_everything(
    org: Org, adapter: CRMAdapter, answer: Answer, state: str
) -> None:
    org.jobs["750old"] = {**OURS, "id": "750old", "externalIdFieldName": "Ext__c", "state": "UploadComplete"}
    listed = {"done": True, "records": [{**OURS, "id": "750old", "state": "UploadComplete"}], "nextRecordsUrl": None}
    org.said["GET", "?jobType=V2Ingest"] = Answer(json=listed)
    org.said["PATCH", "/750old"] = answer
    looks = [0]

    def respond(request: Request) -> Answer:
        if request.method == "GET" and request.path.endswith("/750old"):
            looks[0] += 1
            org.jobs["750old"]["state"] = "UploadComplete" if looks[0] == 1 else state
        return org.respond(request)

    org.script.respond = respond
    if state == "JobComplete":
        assert adapter.end_work() is True
    else:
        with pytest.raises(Unavailable, match="750old is at work"):
            adapter.end_work()


def test_a_list_that_is_not_whole_ends_nothing(org: Org, adapter: CRMAdapter) -> None:
    org.said["GET", "?jobType=V2Ingest"] = Answer(json={"done": False, "records": [], "nextRecordsUrl": None})
    with pytest.raises(Unavailable, match="left records out"):
        adapter.end_work()


def test_what_may_be_in_a_job() -> None:
    def fit(lead: Lead) -> bool:
        parts = [part for part, _ in salesforce_bulk._uploads("Ext__c", [lead])]
        assert parts in ([], [[lead]])
        return bool(parts)

    assert fit(Lead("A:1", {"a": "x" * 32_000, "b": None, "c": 1, "d": 'x\n"y"', "e": " #N/A"}))
    assert fit(Lead("A:1", {str(number): "x" * 32_000 for number in range(12)}))
    assert not fit(Lead("A:1", {"a": "x" * 32_001}))
    assert not fit(Lead("A:1", {str(number): "x" * 32_000 for number in range(13)}))
    assert not fit(Lead("A:1", {"a": "#N/A"}))
    assert not fit(Lead("#N/A", {"a": "x"}))
    assert not fit(Lead("A:1", {"a": "x\ry"}))
    assert not fit(Lead("A\r1", {"a": "x"}))
    assert not fit(Lead("A:1", {"a": {"b": 1}}))
    assert not fit(Lead("A:1", {"a": ["b"]}))


def test_what_values_look_like_in_a_job() -> None:
    """A field without a value is emptied; one that a lead does not have stays as it is."""
    leads = [
        Lead("A:1", {"a": "", "b": None, "c": True, "d": False, "e": 1, "f": 0, "g": 1.5, "h": 'x, "y"\nz'}),
        Lead("A:2", {"a": {"no": "csv"}, "i": "x"}),
        Lead("A:3", {"h": "张伟"}),
    ]
    ((part, upload),) = salesforce_bulk._uploads("Ext__c", leads)
    assert part == [leads[0], leads[2]]
    assert upload.decode() == (
        'Ext__c,a,b,c,d,e,f,g,h\nA:1,#N/A,#N/A,true,false,1,0,1.5,"x, ""y""\nz"\nA:3,,,,,,,,张伟\n'
    )
