"""Replies of Fxiaoke's that its simulator does not give."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.errors import AccessError, QuotaExceeded, Unavailable
from leadsync.models import Lead, Outcome, Status

LEADS = [Lead("A:1", {"name": "Ada"}), Lead("A:2", {"name": "Ben"})]
FIELDS = {
    "ext__c": {"type": "text", "is_unique": True}, "name": {"type": "text"}, "age": {"type": "number"},
    "at": {"type": "date_time"}, "old": {"type": "text", "is_active": False}, "sum": {"type": "formula"},
}  # fmt: skip


class API:
    """Answers by interface; a list is worked off, and its last answer stays."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "token": {"errorCode": 0, "accessToken": "t0ken", "ea": "ea1"},
            "describe": {"errorCode": 0, "data": {"describe": {"fields": FIELDS}}},
            "query": page(),
            "create": {"errorCode": 0, "dataId": "id1"},
            "update": {"errorCode": 0},
            "invalid": {"errorCode": 0},
        }

    def __call__(self, request: Request) -> Answer:
        name = request.path.partition("?")[0].rpartition("/")[2]
        answer = self.answers[name]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        return answer if isinstance(answer, Answer) else Answer(200, answer)


def page(*records: dict[str, Any], total: int | None = None) -> dict[str, Any]:
    return {"errorCode": 0, "data": {"dataList": list(records), "total": len(records) if total is None else total}}


def record(number: int, external_id: str, **more: Any) -> dict[str, Any]:
    return {"_id": f"{number:03}", "ext__c": external_id, **more}


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        running.respond = API()
        yield running


@pytest.fixture
def api(script: Scripted) -> API:
    assert isinstance(script.respond, API)
    return script.respond


def destination(**changes: Any) -> Destination:
    plain = {
        "name": "target", "adapter": "fxiaoke", "object": "LeadsObj", "external_id_field": "ext__c",
        "on_delete": "archive", "fields": {"name": "name"}, "settings": {"requests_per_second": 1000},
    }  # fmt: skip
    return Destination.model_validate({**plain, **changes})


def build(script: Scripted, **changes: Any) -> CRMAdapter:
    made = registry.build(destination(**changes), Endpoint(script.url, "app", "s3cret", {"permanent_code": "c0de"}))
    made.http.sleep = lambda seconds: None
    return made


@pytest.fixture
def adapter(script: Scripted) -> Iterator[CRMAdapter]:
    made = build(script)
    yield made
    made.close()


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


def sent(script: Scripted, name: str) -> list[Any]:
    return [orjson.loads(r.body) for r in script.requests if r.path.partition("?")[0].endswith(f"/{name}")]


def test_what_each_request_carries(script: Scripted, adapter: CRMAdapter) -> None:
    adapter.deliver(LEADS)
    login, *rest = script.requests
    assert orjson.loads(login.body) == {
        "appId": "app", "appSecret": "s3cret", "permanentCode": "c0de", "grantType": "app_secret",
    }  # fmt: skip
    assert "Authorization" not in login.headers
    carried = {(r.headers["Authorization"], r.headers["x-fs-ea"], r.headers["x-fs-userid"]) for r in rest}
    assert carried == {("Bearer t0ken", "ea1", "1000")}
    traces = {r.path.partition("thirdTraceId=")[2] for r in script.requests}
    assert len(traces) == len(script.requests) == 5
    assert all(len(trace) == 36 for trace in traces)
    assert sent(script, "create")[0] == {
        "triggerApprovalFlow": False, "triggerWorkFlow": False,
        "data": {"object_data": {"dataObjectApiName": "LeadsObj", "ext__c": "A:1", "name": "Ada"}},
    }  # fmt: skip


def test_a_custom_object_has_interfaces_of_its_own(script: Scripted) -> None:
    adapter = build(script, object="lead__c")
    adapter.deliver(LEADS[:1])
    paths = [request.path.partition("?")[0] for request in script.requests]
    assert paths[1:] == [
        "/cgi/crm/v2/object/describe", "/cgi/crm/custom/v2/data/query", "/cgi/crm/custom/v2/data/create",
    ]  # fmt: skip


def test_an_owner_is_given_to_new_records_only(script: Scripted, api: API) -> None:
    adapter = build(script, settings={"requests_per_second": 1000, "owner": "1001"})
    api.answers["query"] = page(record(2, "A:2"))
    adapter.deliver(LEADS)
    assert sent(script, "create")[0]["data"]["object_data"]["owner"] == ["1001"]
    assert "owner" not in sent(script, "update")[0]["data"]["object_data"]


@pytest.mark.parametrize("name", ["shoe_size", "old", "sum"])
def test_a_field_that_can_not_be_written_is_named_before_anything_is(
    script: Scripted, adapter: CRMAdapter, name: str
) -> None:
    with pytest.raises(AccessError, match=f"'{name}'"):
        adapter.deliver([Lead("A:1", {name: "x"})])
    assert sent(script, "create") == []


def test_doubles_are_updated_and_deleted_together(script: Scripted, api: API, adapter: CRMAdapter) -> None:
    api.answers["query"] = page(record(1, "A:1"), record(2, "A:1"), record(3, "a:1"), record(4, "A:2"))
    assert told(adapter.deliver(LEADS[:1])) == [(Status.UPDATED, None)]
    assert [each["data"]["object_data"]["_id"] for each in sent(script, "update")] == ["001", "002"]
    assert told(adapter.deliver(LEADS[:1], delete=True)) == [(Status.DELETED, None)]
    assert [each["data"]["object_data_id"] for each in sent(script, "invalid")] == ["001", "002"]
    assert [found.crm_id for found in adapter.fetch(["A:1"])["A:1"]] == ["001", "002"]


def test_records_that_are_invalid_are_not_there(api: API, adapter: CRMAdapter) -> None:
    api.answers["query"] = page(record(1, "A:1", life_status="invalid"))
    assert adapter.fetch(["A:1"]) == {"A:1": []}
    assert told(adapter.deliver(LEADS[:1])) == [(Status.CREATED, None)]


def test_a_full_page_is_not_the_end(script: Scripted, api: API, adapter: CRMAdapter) -> None:
    full = [record(number, "A:1") for number in range(100)]
    api.answers["query"] = [page(*full, total=102), page(record(100, "A:1"), record(101, "A:2"))]
    found = adapter.fetch(["A:1", "A:2"])
    assert [len(records) for records in found.values()] == [101, 1]
    first, second = [each["data"]["search_query_info"] for each in sent(script, "query")]
    assert first["filters"] == [{"field_name": "ext__c", "field_values": ["A:1", "A:2"], "operator": "IN"}]
    assert second["filters"][1] == {"field_name": "_id", "field_values": ["099"], "operator": "GT"}
    assert second["offset"] == 0


@pytest.mark.parametrize("answer", [page(record(1, "A:1"), total=2), page({"ext__c": "A:1"})])
def test_a_list_that_leaves_records_out_is_no_answer(api: API, adapter: CRMAdapter, answer: Any) -> None:
    api.answers["query"] = answer
    with pytest.raises(Unavailable, match="left records out"):
        adapter.fetch(["A:1", "A:2"])
    assert told(adapter.deliver(LEADS, delete=True)) == [(Status.TRANSIENT, "missing_from_reply")] * 2


def test_a_total_that_is_not_counted_says_nothing(api: API, adapter: CRMAdapter) -> None:
    api.answers["query"] = page(record(1, "A:1"), total=0)
    assert len(adapter.fetch(["A:1"])["A:1"]) == 1


@pytest.mark.parametrize(("code", "status"), [(-1, "503"), (-2, "503"), (50009, "503"), (14001, "429"), (30004, "429")])
def test_codes_of_what_passes(api: API, adapter: CRMAdapter, code: int, status: str) -> None:
    api.answers["create"] = {"errorCode": code, "errorMessage": "later"}
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, status)] * 2


@pytest.mark.parametrize("code", [15003, 20012, 20014, 20020, 20021, 20022, 20023])
def test_codes_of_rights(api: API, adapter: CRMAdapter, code: int) -> None:
    api.answers["create"] = {"errorCode": code, "errorMessage": "no"}
    with pytest.raises(AccessError, match=f"crm_target.*{code}"):
        adapter.deliver(LEADS)


@pytest.mark.parametrize("code", [20005, 20016, 20017])
def test_a_token_that_ended_is_renewed_once(script: Scripted, api: API, adapter: CRMAdapter, code: int) -> None:
    api.answers["create"] = [{"errorCode": code}, {"errorCode": 0, "dataId": "id1"}]
    assert told(adapter.deliver(LEADS[:1])) == [(Status.CREATED, None)]
    api.answers["query"] = {"errorCode": code}
    with pytest.raises(AccessError, match="401"):
        adapter.deliver(LEADS)
    assert len(sent(script, "token")) == 3


def test_the_quota_of_the_day_comes_back_at_midnight_in_china(api: API, adapter: CRMAdapter) -> None:
    api.answers["create"] = {"errorCode": 30002}
    with pytest.raises(QuotaExceeded) as caught:
        adapter.deliver(LEADS)
    assert caught.value.resets_at is not None
    assert (caught.value.resets_at.hour, caught.value.resets_at.minute) == (16, 0)
    assert timedelta() < caught.value.resets_at - datetime.now(UTC) <= timedelta(days=1)
    api.answers["create"] = {"errorCode": 30003}
    with pytest.raises(QuotaExceeded, match="bought") as caught:
        adapter.deliver(LEADS)
    assert caught.value.resets_at is None


def test_other_codes_reject_the_lead_and_keep_the_words(api: API, adapter: CRMAdapter) -> None:
    api.answers["create"] = [{"errorCode": 32000, "errorMessage": "name is too odd"}, {"errorCode": 0, "dataId": "i"}]
    rejected, created = adapter.deliver(LEADS)
    assert (rejected.status, rejected.code, rejected.field) == (Status.REJECTED, "32000", "name")
    assert created.status is Status.CREATED


def test_what_is_refused_to_be_invalidated_and_is_gone_is_deleted(api: API, adapter: CRMAdapter) -> None:
    api.answers["invalid"] = {"errorCode": 32000, "errorMessage": "no"}
    api.answers["query"] = [page(record(1, "A:1")), page()]
    assert told(adapter.deliver(LEADS[:1], delete=True)) == [(Status.DELETED, None)]
    api.answers["query"] = page(record(1, "A:1"))
    assert told(adapter.deliver(LEADS[:1], delete=True)) == [(Status.REJECTED, "32000")]


def test_a_look_up_that_is_refused_is_no_fault_of_the_leads(api: API, adapter: CRMAdapter) -> None:
    api.answers["query"] = {"errorCode": 77, "errorMessage": "no"}
    for act in (lambda: adapter.deliver(LEADS), lambda: adapter.fetch(["A:1"])):
        with pytest.raises(AccessError, match="refuses to list 'LeadsObj' .77."):
            act()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"errorCode":"x"}', b'{"errorCode":0}', b"\xff"])
@pytest.mark.parametrize("name", ["query", "create"])
def test_replies_that_make_no_sense(api: API, adapter: CRMAdapter, name: str, body: bytes) -> None:
    api.answers[name] = Answer(200, body=body)
    assert {outcome.status for outcome in adapter.deliver(LEADS)} == {Status.TRANSIENT}
    assert adapter.deliver(LEADS)[0].code == "malformed_reply"


@pytest.mark.parametrize(
    ("answer", "code"),
    [({"errorCode": -1}, "503"), ({"errorCode": 14001}, "429"), (Answer(502, body=b"x"), "502"),
     ({"errorCode": 0, "accessToken": "s3cret-token"}, "malformed_reply"),
     (Answer(200, body=b"<html>"), "malformed_reply")],
)  # fmt: skip
def test_a_login_that_fails_in_passing_sent_no_lead(api: API, adapter: CRMAdapter, answer: Any, code: str) -> None:
    api.answers["token"] = answer
    outcomes = adapter.deliver(LEADS)
    assert {(o.status, o.code, o.sent) for o in outcomes} == {(Status.TRANSIENT, code, False)}
    assert "s3cret" not in str(outcomes)


def test_a_redirect_to_the_website_says_to_mend_the_address(api: API, adapter: CRMAdapter) -> None:
    api.answers["query"] = Answer(302, body=b"<html>", headers={"Location": "https://www.example.com/"})
    with pytest.raises(AccessError, match="302.*address"):
        adapter.deliver(LEADS)
