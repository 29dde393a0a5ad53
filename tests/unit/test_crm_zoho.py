"""Replies of Zoho's that its simulator does not give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import orjson
import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.http import RequestFailed
from leadsync.errors import AccessError, FailNow, QuotaExceeded, Unavailable
from leadsync.models import Lead, Outcome, Status

LEADS = [Lead("A:1", {"name": "Ada"}), Lead("A:2", {"name": "Ben"})]
TARGET = destination(
    adapter="zoho", object="Leads", external_id_field="Ext", on_delete="delete", settings={"requests_per_second": 1000}
)
FIELDS = [{"api_name": "Ext", "data_type": "text", "unique": {"casesensitive": ""}}, {"api_name": "name"}]


def done(crm_id: str = "1", action: str = "update") -> dict[str, Any]:
    return {"status": "success", "code": "SUCCESS", "action": action, "details": {"id": crm_id}, "message": "done"}


def failed(code: str, message: str = "no", **details: Any) -> dict[str, Any]:
    return {"status": "error", "code": code, "message": message, "details": details}


def rows(*external_ids: str, count: int | None = None, more: bool = False) -> Answer:
    data = [{"id": str(number), "Ext": external_id} for number, external_id in enumerate(external_ids)]
    info = {"count": len(data) if count is None else count, "more_records": more}
    return Answer(json={"data": data, "info": info})


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


def built(script: Scripted, **settings: Any) -> CRMAdapter:
    extra = {"accounts_url": f"{script.url}/", "refresh_token": "r3fresh"}
    target = TARGET.model_copy(update={"settings": {**TARGET.settings, **settings}})
    made = registry.build(target, Endpoint(script.url, "key", "s3cret", extra))
    made.http.sleep = lambda seconds: None
    return made


@pytest.fixture
def adapter(script: Scripted) -> Iterator[CRMAdapter]:
    made = built(script)
    yield made
    made.close()


def play(script: Scripted, *answers: Answer, fields: Answer | None = None) -> None:
    """Answers login and fields by what they are, and the rest in turn; the last answer stays."""
    left = list(answers)

    def respond(request: Request) -> Answer:
        if request.path.startswith("/oauth"):
            return Answer(json={"access_token": "t0ken", "expires_in": 3600})
        if "/settings/fields" in request.path:
            return fields or Answer(json={"fields": FIELDS})
        return left.pop(0) if len(left) > 1 else left[0]

    script.respond = respond


def test_an_upsert_is_what_the_contract_says(script: Scripted, adapter: CRMAdapter) -> None:
    external = [{**FIELDS[0], "external": {"type": "org", "show": True}}, FIELDS[1]]
    play(script, Answer(json={"data": [done("9", "insert")]}), fields=Answer(json={"fields": external}))
    (outcome,) = adapter.deliver([Lead("A:1", {"name": ""})])
    assert (outcome.status, outcome.crm_id) == (Status.CREATED, "9")
    login, fields, upsert = script.requests
    assert login.path == "/oauth/v2/token"
    assert parse_qs(login.body.decode()) == {
        "grant_type": ["refresh_token"], "client_id": ["key"], "client_secret": ["s3cret"],
        "refresh_token": ["r3fresh"],
    }  # fmt: skip
    assert fields.path == "/crm/v8/settings/fields?module=Leads"
    assert (upsert.method, upsert.path) == ("POST", "/crm/v8/Leads/upsert")
    assert upsert.headers["Authorization"] == "Zoho-oauthtoken t0ken"
    assert upsert.headers["X-EXTERNAL"] == "Leads.Ext"
    assert orjson.loads(upsert.body) == {
        "data": [{"name": None, "Ext": "A:1"}], "duplicate_check_fields": ["Ext"], "trigger": []
    }  # fmt: skip


def test_a_field_that_is_not_external_is_not_called_so_and_workflows_may_run(script: Scripted) -> None:
    adapter = built(script, workflows=True)
    play(script, Answer(json={"data": [done()]}))
    adapter.deliver(LEADS[:1])
    upsert = script.requests[-1]
    assert "X-EXTERNAL" not in upsert.headers
    assert "trigger" not in orjson.loads(upsert.body)
    play(script, rows("A:1"), Answer(json={"data": [done()]}))
    adapter.deliver(LEADS[:1], delete=True)
    assert script.requests[-1].path == "/crm/v8/Leads?ids=0&wf_trigger=true"
    adapter.close()


@pytest.mark.parametrize("results", [[], [done()], [done()] * 3])
def test_a_reply_of_another_length_is_nobodys(script: Scripted, adapter: CRMAdapter, results: list[Any]) -> None:
    play(script, Answer(json={"data": results}))
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "missing_from_reply")] * 2
    play(script, rows("A:1", "A:2"), Answer(json={"data": results}))
    assert told(adapter.deliver(LEADS, delete=True)) == [(Status.TRANSIENT, "missing_from_reply")] * 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (failed("RECORD_LOCKED"), Status.TRANSIENT),
        (failed("INTERNAL_ERROR"), Status.TRANSIENT),
        (failed("LIMIT_EXCEEDED"), Status.TRANSIENT),
        (failed("DUPLICATE_DATA", api_name="Ext"), Status.TRANSIENT),
        (failed("DUPLICATE_DATA", api_name="Email"), Status.REJECTED),
        (failed("MANDATORY_NOT_FOUND", api_name="Last_Name"), Status.REJECTED),
        (failed("ID_ALREADY_CONVERTED"), Status.REJECTED),
    ],
)
@pytest.mark.parametrize("http", [200, 207, 202, 400])
def test_an_error_of_one_record(
    script: Scripted, adapter: CRMAdapter, error: dict[str, Any], status: Status, http: int
) -> None:
    play(script, Answer(http, {"data": [error, done()]}))
    first, second = adapter.deliver(LEADS)
    assert (first.status, first.code, first.field) == (status, error["code"], error["details"].get("api_name"))
    assert second.status is Status.UPDATED


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (failed("NO_PERMISSION", "permission denied"), AccessError),
        (failed("INVALID_MODULE"), AccessError),
        (failed("STORAGE_SPACE_EXCEEDED"), QuotaExceeded),
    ],
)
def test_what_is_no_fault_of_a_lead_stops_all(
    script: Scripted, adapter: CRMAdapter, error: dict[str, Any], raised: type[FailNow]
) -> None:
    for answer in (Answer(json={"data": [error, done()]}), Answer(400, error), Answer(403, error)):
        play(script, answer)
        with pytest.raises(raised):
            adapter.deliver(LEADS)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(400, failed("INTERNAL_ERROR")), (Status.TRANSIENT, "400")),
        (Answer(500, failed("INTERNAL_ERROR")), (Status.TRANSIENT, "500")),
        (Answer(400, failed("INVALID_DATA", api_name="name")), (Status.REJECTED, "INVALID_DATA")),
        (Answer(400, {"message": "what?"}), (Status.TRANSIENT, "malformed_reply")),
        (Answer(400, body=b"<html>"), (Status.TRANSIENT, "malformed_reply")),
        (Answer(200, body=b"<html>"), (Status.TRANSIENT, "malformed_reply")),
        (Answer(200, failed("INVALID_DATA")), (Status.TRANSIENT, "malformed_reply")),
        (Answer(204), (Status.TRANSIENT, "malformed_reply")),
    ],
)
def test_a_reply_to_all(
    script: Scripted, adapter: CRMAdapter, answer: Answer, expected: tuple[Status, str | None]
) -> None:
    play(script, answer)
    assert told(adapter.deliver(LEADS)) == [expected, expected]


def test_scopes_that_are_missing_are_named_so(script: Scripted, adapter: CRMAdapter) -> None:
    play(script, Answer(401, failed("OAUTH_SCOPE_MISMATCH")))
    with pytest.raises(AccessError, match=r"OAUTH_SCOPE_MISMATCH.*scopes"):
        adapter.fetch(["A:1"])


@pytest.mark.parametrize(("left", "spent"), [("0", True), ("9", True), ("10", False), ("", False)])
def test_only_the_credits_tell_a_spent_quota(script: Scripted, adapter: CRMAdapter, left: str, spent: bool) -> None:
    headers = {"X-API-CREDITS-REMAINING": left} if left else {}
    play(script, Answer(429, failed("LIMIT_EXCEEDED"), headers=headers))
    if spent:
        with pytest.raises(QuotaExceeded):
            adapter.deliver(LEADS)
    else:
        assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "429")] * 2


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (rows("A:1", count=2), "left records out"),
        (rows("A:1", more=True), "left records out"),
        (Answer(json={"data": [{"Ext": "A:1"}], "info": {"count": 1, "more_records": False}}), "makes no sense"),
        (Answer(json={"data": []}), "makes no sense"),
        (Answer(body=b"<html>"), "makes no sense"),
    ],
)
def test_a_reading_that_leaves_ids_in_the_open_is_none(
    script: Scripted, adapter: CRMAdapter, answer: Answer, expected: str
) -> None:
    play(script, answer)
    with pytest.raises(RequestFailed, match=expected):
        adapter.fetch(["A:1"])


def test_a_reading_quotes_and_takes_no_record_of_another_case(script: Scripted, adapter: CRMAdapter) -> None:
    play(script, rows("o'neill", "O'Neill"))
    assert [record.crm_id for record in adapter.fetch(["O'Neill"])["O'Neill"]] == ["1"]
    assert orjson.loads(script.requests[-1].body) == {
        "select_query": "select id, Ext, name from Leads where Ext in ('O''Neill') limit 200"
    }


def test_what_is_gone_already_is_deleted(script: Scripted, adapter: CRMAdapter) -> None:
    gone, locked = failed("INVALID_DATA", "the id given seems to be invalid"), failed("RECORD_LOCKED")
    play(script, rows("A:1", "A:2"), Answer(json={"data": [gone, locked]}))
    assert told(adapter.deliver(LEADS, delete=True)) == [(Status.DELETED, None), (Status.TRANSIENT, "RECORD_LOCKED")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (Answer(204), "'Leads'"),
        (Answer(400, failed("INVALID_MODULE")), "'Leads'"),
        (Answer(400, failed("INVALID_DATA", param="module")), "'Leads'"),
        (Answer(404, body=b"<html>"), "check the connection's address"),
        (Answer(json={"fields": FIELDS[:1]}), "'name'"),
        (Answer(json={"fields": [{"api_name": "Ext", "unique": {}}, FIELDS[1]]}), "'Ext'.*not unique"),
        (
            Answer(json={"fields": [FIELDS[0], {"api_name": "name", "operation_type": {"api_update": False}}]}),
            "read only",
        ),
    ],
)
def test_check_says_what_is_wrong(script: Scripted, adapter: CRMAdapter, fields: Answer, expected: str) -> None:
    play(script, Answer(204), fields=fields)
    with pytest.raises(AccessError, match=expected):
        adapter.check()


def test_a_host_that_is_not_zohos_has_no_login_of_its_own() -> None:
    made = registry.build(TARGET, Endpoint("https://crm.example.com", "key", "s3cret", {"refresh_token": "r"}))
    with pytest.raises(AccessError, match="accounts_url"):
        made.fetch(["A:1"])
    with pytest.raises(AccessError, match="refresh_token"):
        registry.build(TARGET, Endpoint("https://www.zohoapis.eu", "key", "s3cret")).fetch(["A:1"])


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]"])
def test_a_login_that_makes_no_sense_passes(script: Scripted, adapter: CRMAdapter, body: bytes) -> None:
    script.answers = [Answer(body=body)]
    with pytest.raises(Unavailable, match="the login's reply makes no sense"):
        adapter.fetch(["A:1"])
