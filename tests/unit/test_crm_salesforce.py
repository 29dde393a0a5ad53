"""Replies of Salesforce's that its simulator does not give."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.errors import AccessError, FailNow, QuotaExceeded, Unavailable
from leadsync.models import Lead, Outcome, Record, Status

LEADS = [Lead("A:1", {"name": "Ada"}), Lead("A:2", {"name": "Ben"})]
TARGET = destination(
    adapter="salesforce", object="Lead", external_id_field="Ext__c", on_delete="delete",
    settings={"requests_per_second": 1000},
)  # fmt: skip
MISSING = (Status.TRANSIENT, "missing_from_reply")


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


@pytest.fixture
def adapter(script: Scripted) -> Iterator[CRMAdapter]:
    made = registry.build(TARGET, Endpoint(script.url, "key", "s3cret"))
    made.http.sleep = lambda seconds: None
    yield made
    made.close()


def token(script: Scripted, **changes: Any) -> Answer:
    return Answer(json={"access_token": "t0ken", "instance_url": script.url, "token_type": "Bearer", **changes})


def done(crm_id: str = "00Q1", *, created: bool = False) -> dict[str, Any]:
    return {"id": crm_id, "success": True, "errors": [], "created": created}


def failed(code: str, message: str = "no", *fields: str) -> dict[str, Any]:
    return {"success": False, "errors": [{"statusCode": code, "message": message, "fields": list(fields)}]}


def refused(status: int, code: str, message: str = "no", **headers: str) -> Answer:
    return Answer(status, [{"errorCode": code, "message": message}], headers=headers)


def page(records: list[dict[str, Any]], total: int | None = None, *, done: bool = True, **more: str) -> dict[str, Any]:
    return {"totalSize": len(records) if total is None else total, "done": done, "records": records, **more}


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


def test_an_upsert_is_what_the_contract_says(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [token(script), Answer(json=[done("00Q1", created=True)])]
    (outcome,) = adapter.deliver([Lead("A:1", {"name": None, "n": 1.5, "b": True})])
    assert (outcome.status, outcome.crm_id) == (Status.CREATED, "00Q1")
    login, upsert = script.requests
    assert parse_qs(login.body.decode()) == {
        "grant_type": ["client_credentials"], "client_id": ["key"], "client_secret": ["s3cret"],
    }  # fmt: skip
    assert (upsert.method, upsert.path) == ("PATCH", "/services/data/v62.0/composite/sobjects/Lead/Ext__c")
    assert upsert.headers["Authorization"] == "Bearer t0ken"
    assert orjson.loads(upsert.body) == {
        "allOrNone": False,
        "records": [{"attributes": {"type": "Lead"}, "name": None, "n": 1.5, "b": True, "Ext__c": "A:1"}],
    }


@pytest.mark.parametrize("results", [[], [done()], [done(), done(), done()]])
def test_a_reply_of_another_length_is_nobodys(script: Scripted, adapter: CRMAdapter, results: list[Any]) -> None:
    script.answers = [token(script), Answer(json=results)]
    assert told(adapter.deliver(LEADS)) == [MISSING, MISSING]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (failed("UNABLE_TO_LOCK_ROW"), Status.TRANSIENT),
        (failed("CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", "trigger: UNABLE_TO_LOCK_ROW, locked"), Status.TRANSIENT),
        (failed("SERVER_UNAVAILABLE"), Status.TRANSIENT),
        (failed("REQUIRED_FIELD_MISSING", "no", "LastName"), Status.REJECTED),
        (failed("DUPLICATES_DETECTED"), Status.REJECTED),
        (failed("INSUFFICIENT_ACCESS_OR_READONLY"), Status.REJECTED),
    ],
)
def test_an_error_of_one_record(script: Scripted, adapter: CRMAdapter, error: dict[str, Any], status: Status) -> None:
    script.answers = [token(script), Answer(json=[error, done()])]
    first, second = adapter.deliver(LEADS)
    assert (first.status, first.code) == (status, error["errors"][0]["statusCode"])
    assert first.field == next(iter(error["errors"][0]["fields"]), None)
    assert second.status is Status.UPDATED


DOUBLED = failed("DUPLICATE_VALUE", "duplicate value found: Ext__c duplicates value on record with id: 00Q2")


def test_a_near_simultaneous_upsert_is_tried_once_more(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [token(script), Answer(json=[DOUBLED, done()]), Answer(json=[done("00Q2")])]
    assert told(adapter.deliver(LEADS)) == [(Status.UPDATED, None), (Status.UPDATED, None)]
    again = orjson.loads(script.requests[2].body)["records"]
    assert [item["Ext__c"] for item in again] == ["A:1"]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (Answer(json=[DOUBLED]), (Status.TRANSIENT, "DUPLICATE_VALUE")),
        (
            Answer(json=[failed("DUPLICATE_VALUE", "duplicate value found: Email")]),
            (Status.REJECTED, "DUPLICATE_VALUE"),
        ),
        (Answer(503, []), (Status.TRANSIENT, "503")),
        (Answer(json=[]), MISSING),
    ],
)
def test_the_second_try_never_costs_the_first_ones_outcomes(
    script: Scripted, adapter: CRMAdapter, second: Answer, expected: tuple[Status, str]
) -> None:
    script.answers = [token(script), Answer(json=[DOUBLED, done()]), second]
    assert told(adapter.deliver(LEADS)) == [expected, (Status.UPDATED, None)]
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (refused(400, "INVALID_FIELD", "No such column 'Nope__c' on sobject of type Lead"), "'Nope__c'"),
        (
            Answer(json=[done(), failed("INVALID_FIELD", "No such column 'Nope__c' on sobject of type Lead")]),
            "'Nope__c'",
        ),
        (Answer(json=[done(), failed("INVALID_FIELD_FOR_INSERT_UPDATE", "no rights to: name", "name")]), "'name'"),
        (
            refused(404, "NOT_FOUND", "Provided external ID field does not exist or is not accessible: Ext__c"),
            "'Ext__c'",
        ),
        (refused(400, "INVALID_TYPE", "sObject type 'Lead' is not supported."), "'Lead'"),
        (refused(403, "INSUFFICIENT_ACCESS"), "rights"),
        (Answer(404, body=b"<html>"), "'Lead'"),
    ],
)
def test_what_is_wrong_with_the_set_up_is_no_fault_of_a_lead(
    script: Scripted, adapter: CRMAdapter, answer: Answer, named: str
) -> None:
    script.answers = [token(script), answer]
    with pytest.raises(AccessError, match=f"crm_target.*{named}"):
        adapter.deliver(LEADS)
    assert len(script.requests) == 2


def test_limits_of_the_day_and_of_the_storage_are_quotas(script: Scripted, adapter: CRMAdapter) -> None:
    for answer in (
        refused(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded."),
        Answer(json=[failed("STORAGE_LIMIT_EXCEEDED"), done()]),
    ):
        script.answers, script.requests = [token(script), answer], []
        adapter.credentials = adapter.make_credentials()
        with pytest.raises(QuotaExceeded):
            adapter.deliver(LEADS)
        assert len(script.requests) == 2


def test_too_many_long_requests_at_once_are_no_quota(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [token(script), refused(403, "REQUEST_LIMIT_EXCEEDED", "ConcurrentPerOrgLongTxn Limit exceeded.")]
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "403")] * 2


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[1]", b'[{"success":"perhaps"}]', b"\xff", b"null"])
@pytest.mark.parametrize("status", [200, 400])
def test_replies_that_make_no_sense(script: Scripted, adapter: CRMAdapter, status: int, body: bytes) -> None:
    script.answers = [token(script), Answer(status, body=body)]
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "malformed_reply")] * 2


def test_a_login_that_fails_in_passing_sent_no_lead(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [Answer(503, headers={"Retry-After": "9"}), Answer(json={"access_token": "s3cret-token"})]
    first, second = adapter.deliver(LEADS[:1]), adapter.deliver(LEADS[:1])
    assert [(o.status, o.code, o.sent, o.retry_after, o.message) for o in first + second] == [
        (Status.TRANSIENT, "503", False, 9, None), (Status.TRANSIENT, "malformed_reply", False, None, None),
    ]  # fmt: skip


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refused_login_is_not_tried_by_every_thread(script: Scripted, adapter: CRMAdapter, status: int) -> None:
    script.answers = [Answer(status, {"error": "invalid_client", "error_description": "s3cret"})]

    def try_it(number: int) -> str:
        with pytest.raises(AccessError) as caught:
            adapter.deliver([Lead(f"A:{number}", {})])
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        (words,) = set(pool.map(try_it, range(8)))
    assert "connection crm_target" in words
    assert "s3cret" not in words
    assert len(script.requests) == 1


def test_an_expired_token_is_renewed_by_one_thread_for_all(script: Scripted, adapter: CRMAdapter) -> None:
    valid, logins, together = ["t1"], [0], threading.Barrier(8)
    stale = threading.local()

    def respond(request: Request) -> Answer:
        if "oauth2" in request.path:
            logins[0] += 1
            return Answer(json={"access_token": valid[0], "instance_url": script.url})
        if request.headers["Authorization"] != f"Bearer {valid[0]}":
            return refused(401, "INVALID_SESSION_ID")
        return Answer(json=[done()])

    script.respond = respond
    adapter.deliver([Lead("A:0", {})])
    valid[0] = "t2"

    def deliver(number: int) -> Status:
        if not hasattr(stale, "met"):
            stale.met = True
            together.wait(10)
        return adapter.deliver([Lead(f"A:{number}", {})])[0].status

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(deliver, range(8))) == {Status.UPDATED}
    assert logins == [2]


def test_a_token_that_is_refused_after_the_new_login_is_an_access_error(script: Scripted, adapter: CRMAdapter) -> None:
    script.respond = lambda request: token(script) if "oauth2" in request.path else refused(401, "INVALID_SESSION_ID")
    with pytest.raises(AccessError, match=r"crm_target.*401"):
        adapter.deliver(LEADS)
    assert len(script.requests) == 4


@pytest.mark.parametrize("instance", ["http://elsewhere.example", "ftp://127.0.0.1", "", "//127.0.0.1", "https://"])
def test_the_token_is_not_sent_elsewhere_in_the_clear(script: Scripted, adapter: CRMAdapter, instance: str) -> None:
    script.answers = [token(script, instance_url=instance)]
    with pytest.raises(AccessError, match="https"):
        adapter.deliver(LEADS)
    assert len(script.requests) == 1


def test_a_delete_of_what_is_gone_meanwhile_is_done(script: Scripted, adapter: CRMAdapter) -> None:
    leads = [*LEADS, Lead("A:3", {}), Lead("A:4", {})]
    found = [{"Id": f"00Q{number}", "Ext__c": f"A:{number}"} for number in (1, 2, 4)]
    results = [failed("ENTITY_IS_DELETED"), failed("DELETE_FAILED"), {"id": "00Q4", "success": True, "errors": []}]
    script.answers = [token(script), Answer(json=page(found)), Answer(json=results)]
    assert told(adapter.deliver(leads, delete=True)) == [
        (Status.DELETED, None), (Status.REJECTED, "DELETE_FAILED"), (Status.DELETED, None), (Status.DELETED, None),
    ]  # fmt: skip
    assert parse_qs(urlsplit(script.requests[2].path).query)["ids"] == ["00Q1,00Q2,00Q4"]


def test_a_query_compares_with_regard_to_case_and_reads_all_pages(script: Scripted, adapter: CRMAdapter) -> None:
    pages = [
        page([{"Id": "1", "Ext__c": "a:1"}], 2, done=False, nextRecordsUrl="/services/data/v62.0/query/01g-2"),
        page([{"Id": "2", "Ext__c": "A:2", "name": "Ben"}], 2),
    ]
    script.answers = [token(script), *(Answer(json=page) for page in pages)]
    assert adapter.fetch(["A:1", "A:2"]) == {"A:1": [], "A:2": [Record("A:2", "2", {"name": "Ben"})]}
    assert script.requests[2].path == "/services/data/v62.0/query/01g-2"


def test_long_external_ids_are_asked_for_in_several_queries(script: Scripted, adapter: CRMAdapter) -> None:
    script.respond = lambda request: token(script) if "oauth2" in request.path else Answer(json=page([]))
    ids = [f"{'语' * 80}:{number}" for number in range(100)]
    assert adapter.fetch(ids) == {external_id: [] for external_id in ids}
    assert len(script.requests) > 2
    assert max(len(request.path) for request in script.requests) < 16_000


def test_a_query_that_leaves_records_out_is_not_taken_for_their_absence(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [token(script), Answer(json=page([{"Id": "1", "Ext__c": "A:1"}], 2))]
    with pytest.raises(Unavailable, match="left records out of its reply"):
        adapter.fetch(["A:1", "A:2"])
    outcomes = adapter.deliver([Lead("A:1", {}), Lead("A:2", {})], delete=True)
    assert told(outcomes) == [(Status.TRANSIENT, "missing_from_reply")] * 2


def test_doubles_are_read_and_deleted_all_of_them(script: Scripted, adapter: CRMAdapter) -> None:
    both = [{"Id": "00Q1", "Ext__c": "A:1", "name": "Ada"}, {"Id": "00Q2", "Ext__c": "A:1", "name": "Ben"}]
    script.answers = [token(script), Answer(json=page(both))]
    assert [record.crm_id for record in adapter.fetch(["A:1"])["A:1"]] == ["00Q1", "00Q2"]
    gone, locked = done(), failed("UNABLE_TO_LOCK_ROW")
    for results, status in ([gone, locked], Status.TRANSIENT), ([gone, gone], Status.DELETED):
        script.answers = [Answer(json=page(both)), Answer(json=results)]
        assert adapter.deliver([Lead("A:1", {})], delete=True)[0].status is status
    assert parse_qs(urlsplit(script.requests[-1].path).query)["ids"] == ["00Q1,00Q2"]


def test_a_query_that_is_refused_is_an_error_of_ours(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [token(script), refused(400, "MALFORMED_QUERY", "unexpected token: 'Ada'")]
    with pytest.raises(FailNow, match="MALFORMED_QUERY") as caught:
        adapter.fetch(["A:1"])
    assert "Ada" not in str(caught.value)
