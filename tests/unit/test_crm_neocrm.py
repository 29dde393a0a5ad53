"""Replies of Neocrm's that its simulator does not give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.http import RequestFailed
from leadsync.crm.neocrm import _login_address
from leadsync.errors import AccessError, ConfigError
from leadsync.models import Lead, Outcome, Status

LEADS = [Lead("A:1", {"name": "Ada"}), Lead("A:2", {"name": "Ada"})]
TARGET = destination(
    adapter="neocrm", object="lead", external_id_field="ext__c", on_delete="delete",
    settings={"client_id": "app", "requests_per_second": 1000},
)  # fmt: skip
ENDPOINT = {"login": "who", "password": "passw0rd", "extra": {"client_secret": "s3cret"}}


class Neocrm:
    """Answers each kind of request as a test says, a list one after the other; the rest as a Neocrm that is empty."""

    def __init__(self, script: Scripted) -> None:
        fields = [{"apiKey": "name"}, {"apiKey": "ext__c", "type": "text"}]
        self.answers: dict[str, Any] = {
            "token": Answer(json={"access_token": "t0ken"}), "description": said(200, data={"fields": fields}),
            "xoql": found(), "POST": said("200", data={"id": 7}), "PATCH": said(200), "DELETE": said(200),
        }  # fmt: skip
        script.respond = self.respond

    def respond(self, request: Request) -> Answer:
        last = request.path.rpartition("/")[2]
        answer = self.answers[last if last in self.answers else request.method]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        assert isinstance(answer, Answer)
        return answer


def said(code: int | str, message: str = "OK", data: Any = None, **headers: str) -> Answer:
    return Answer(json={"code": code, "msg": message, "data": data, "errorInfo": None}, headers=headers)


def found(*records: tuple[int, str], total: int | None = None) -> Answer:
    rows = [{"id": crm_id, "ext__c": external_id} for crm_id, external_id in records]
    return said(200, data={"totalSize": len(rows) if total is None else total, "count": len(rows), "records": rows})


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


@pytest.fixture
def neocrm(script: Scripted) -> Neocrm:
    return Neocrm(script)


@pytest.fixture
def adapter(script: Scripted) -> Iterator[CRMAdapter]:
    made = registry.build(TARGET, Endpoint(script.url, **ENDPOINT))  # type: ignore[arg-type]
    made.http.sleep = lambda seconds: None
    yield made
    made.close()


def test_an_unknown_code_refuses_the_lead_and_the_next_one_goes_on(neocrm: Neocrm, adapter: CRMAdapter) -> None:
    neocrm.answers["POST"] = [said(5000047, "Field data type mismatch"), said(200, data={"id": 8})]
    outcomes = adapter.deliver(LEADS)
    assert told(outcomes) == [(Status.REJECTED, "5000047"), (Status.CREATED, None)]
    assert outcomes[1].crm_id == "8"


def test_a_lead_refused_as_a_double_that_is_there_by_now_is_transient(neocrm: Neocrm, adapter: CRMAdapter) -> None:
    neocrm.answers |= {"xoql": [found(), found((7, "A:1"))], "POST": said(5000001, "数据重复")}
    assert told(adapter.deliver(LEADS[:1])) == [(Status.TRANSIENT, "5000001")]


def test_a_record_that_was_deleted_meanwhile_is_transient(neocrm: Neocrm, adapter: CRMAdapter) -> None:
    neocrm.answers |= {"xoql": [found((7, "A:1")), found()], "PATCH": said(2040003, "数据不存在")}
    assert told(adapter.deliver(LEADS[:1])) == [(Status.TRANSIENT, "2040003")]
    neocrm.answers |= {"xoql": [found((7, "A:1")), found()], "DELETE": said(2040003, "数据不存在")}
    assert told(adapter.deliver(LEADS[:1], delete=True)) == [(Status.TRANSIENT, "2040003")]


def test_a_record_that_may_not_be_deleted_is_refused(neocrm: Neocrm, adapter: CRMAdapter) -> None:
    neocrm.answers |= {"xoql": found((7, "A:1")), "DELETE": said(3000001, "没有删除权限")}
    assert told(adapter.deliver(LEADS[:1], delete=True)) == [(Status.REJECTED, "3000001")]


@pytest.mark.parametrize("message", ["没有新建权限", "您没有该对象的权限", "no permission to create"])
def test_missing_rights_to_create_are_no_fault_of_a_lead(neocrm: Neocrm, adapter: CRMAdapter, message: str) -> None:
    neocrm.answers["POST"] = said(3000001, message)
    with pytest.raises(AccessError, match="denies access"):
        adapter.deliver(LEADS)


@pytest.mark.parametrize("message", ["系统繁忙，请稍后重试", "系统异常", "System error", "请求超时"])
def test_what_passes_is_transient_and_the_rest_is_not_sent(neocrm: Neocrm, adapter: CRMAdapter, message: str) -> None:
    neocrm.answers["POST"] = [said(200, data={"id": 7}), said(1000001, message)]
    outcomes = adapter.deliver([*LEADS, Lead("A:3", {"name": "Ada"})])
    passing = (Status.TRANSIENT, "1000001")
    assert told(outcomes) == [(Status.CREATED, None), passing, passing]
    assert [outcome.sent for outcome in outcomes] == [True, True, False]


def test_a_token_that_ended_is_renewed_also_when_a_200_says_so(
    neocrm: Neocrm, adapter: CRMAdapter, script: Scripted
) -> None:
    neocrm.answers["POST"] = [said(1010005, "access token 已失效"), said(200, data={"id": 7})]
    assert told(adapter.deliver(LEADS[:1])) == [(Status.CREATED, None)]
    logins = [request for request in script.requests if request.path == "/auc/oauth2/token"]
    assert len(logins) == 2
    assert b"client_id=app&client_secret=s3cret&username=who&password=passw0rd" in logins[0].body


def test_a_lead_about_tokens_is_no_sign_of_one_that_ended(neocrm: Neocrm, adapter: CRMAdapter) -> None:
    neocrm.answers["POST"] = said(5000001, "字段错误: token")
    assert told(adapter.deliver(LEADS[:1])) == [(Status.REJECTED, "5000001")]


@pytest.mark.parametrize("code", [1020024, "1020025"])
def test_throttling_comes_as_200_and_is_waited_out(neocrm: Neocrm, adapter: CRMAdapter, code: int | str) -> None:
    waits: list[float] = []
    adapter.http.sleep = waits.append
    neocrm.answers["POST"] = [said(code, "用户访问频率超出限制")] * 2 + [said(200, data={"id": 7})]
    assert told(adapter.deliver(LEADS[:1])) == [(Status.CREATED, None)]
    assert waits == [1, 4]
    neocrm.answers["POST"] = said(code, "用户访问频率超出限制")
    assert told(adapter.deliver(LEADS[:1])) == [(Status.TRANSIENT, "429")]


def test_a_column_that_is_not_there_is_named(neocrm: Neocrm, adapter: CRMAdapter) -> None:
    neocrm.answers["xoql"] = said(2040004, "column not exist[ext__c]")
    with pytest.raises(AccessError, match="does not know or open 'ext__c'"):
        adapter.deliver(LEADS)


def test_a_look_up_that_is_refused_makes_no_lead_new(neocrm: Neocrm, adapter: CRMAdapter) -> None:
    neocrm.answers["xoql"] = said(2049999, "no idea")
    with pytest.raises(AccessError, match="refuses to look 'lead' up by 'ext__c'"):
        adapter.deliver(LEADS)


@pytest.mark.parametrize("reply", [found(total=1), found((7, "A:1"), total=3)])
def test_a_look_up_that_is_not_whole_makes_no_lead_new(neocrm: Neocrm, adapter: CRMAdapter, reply: Answer) -> None:
    neocrm.answers["xoql"] = reply
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "missing_from_reply")] * 2
    with pytest.raises(RequestFailed, match="left records out"):
        adapter.fetch(["A:1"])


@pytest.mark.parametrize(
    "reply",
    [Answer(body=b"<html>a proxy for Ada</html>"), Answer(json=["Ada"]), said(200, data={"number": "Ada"}), said(200)],
)
def test_nonsense_is_transient_and_masked(neocrm: Neocrm, adapter: CRMAdapter, reply: Answer) -> None:
    neocrm.answers["POST"] = reply
    outcomes = adapter.deliver(LEADS[:1])
    assert told(outcomes) == [(Status.TRANSIENT, "malformed_reply")]
    assert "Ada" not in (outcomes[0].message or "")


@pytest.mark.parametrize(
    "reply", [Answer(400, json={"error": "invalid_grant"}), Answer(json={"error_code": 20000001}), Answer(404)]
)
def test_a_refused_login_is_told_without_its_secrets(neocrm: Neocrm, adapter: CRMAdapter, reply: Answer) -> None:
    neocrm.answers["token"] = reply
    with pytest.raises(AccessError, match="refuses the login") as caught:
        adapter.deliver(LEADS)
    assert not [secret for secret in ("passw0rd", "s3cret", "who") if secret in str(caught.value).split()]


@pytest.mark.parametrize("reply", [Answer(503), Answer(429), Answer(body=b"<html>maintenance</html>")])
def test_a_login_that_fails_in_passing_is_transient(neocrm: Neocrm, adapter: CRMAdapter, reply: Answer) -> None:
    neocrm.answers["token"] = reply
    outcomes = adapter.deliver(LEADS)
    assert {(outcome.status, outcome.sent) for outcome in outcomes} == {(Status.TRANSIENT, False)}


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("https://api.xiaoshouyi.com", "https://login.xiaoshouyi.com/auc/oauth2/token"),
        ("https://api-p10.xiaoshouyi.com", "https://login-p10.xiaoshouyi.com/auc/oauth2/token"),
        ("http://127.0.0.1:8090", "http://127.0.0.1:8090/auc/oauth2/token"),
        ("https://apiary.example:8443", "https://apiary.example:8443/auc/oauth2/token"),
    ],
)
def test_where_the_login_is(url: str, login: str) -> None:
    assert _login_address(url) == login


def test_a_number_stands_for_a_checkbox(adapter: CRMAdapter) -> None:
    assert adapter.same("x", True, 1)
    assert adapter.same("x", False, 0)
    assert not adapter.same("x", True, 0)


def test_the_client_id_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"settings\.client_id"):
        registry.build(TARGET.model_copy(update={"settings": {}}), Endpoint("https://api.example"))
