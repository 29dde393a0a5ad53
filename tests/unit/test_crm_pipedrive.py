"""Replies of Pipedrive's that its simulator does not give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.http import RequestFailed
from leadsync.errors import AccessError, QuotaExceeded
from leadsync.models import Lead, Outcome, Status

LEADS = [Lead(f"A:{number}", {"name": "Ada"}) for number in range(1, 4)]
HTML = b"<html>gateway</html>"


def done(data: Any, **more: Any) -> Answer:
    return Answer(json={"success": True, "data": data, "additional_data": more or None})


def refusal(status: int, words: str, code: str | None = None) -> Answer:
    return Answer(status, {"success": False, "error": words, "code": code})


def person(crm_id: int, external_id: str | None, **more: Any) -> dict[str, Any]:
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return {"id": crm_id, "name": "Ada", "custom_fields": {"ext": external_id}, "add_time": made, **more}


class Pipedrive:
    """An account without persons, whose answers to some requests are a test's."""

    def __init__(self, script: Scripted) -> None:
        self.fields: list[dict[str, Any]] = [{"field_code": "ext", "field_type": "varchar", "is_custom_field": True}]
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.requests: list[Request] = []
        script.respond = self.respond

    def respond(self, request: Request) -> Answer:
        path, _, query = request.path.partition("?")
        if path == "/api/v2/personFields":
            return done(self.fields)
        self.requests.append(request)
        name = "search" if "itemSearch" in path else "ids" if "ids=" in query else path.removeprefix("/api/v2/persons")
        answer = self.answers.get(f"{request.method} {name}")
        return answer() if answer else done([])


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


@pytest.fixture
def crm(script: Scripted) -> Pipedrive:
    return Pipedrive(script)


@pytest.fixture
def adapter(script: Scripted, crm: Pipedrive) -> Iterator[CRMAdapter]:
    target = destination(
        adapter="pipedrive", object="persons", on_delete="delete", settings={"requests_per_second": 1000}
    )
    made = registry.build(target, Endpoint(script.url, password="t"))
    made.http.sleep = lambda seconds: None
    yield made
    made.close()


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


def test_the_token_goes_in_its_own_header(crm: Pipedrive, adapter: CRMAdapter) -> None:
    crm.answers["POST "] = lambda: done(person(1, "A:1"))
    adapter.deliver(LEADS[:1])
    assert len(crm.requests) == 3
    for request in crm.requests:
        assert request.headers["x-api-token"] == "t"
        assert "Authorization" not in request.headers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal(400, "Validation failed: name: bad", "ERR_SCHEMA_VALIDATION_FAILED"),
         (Status.REJECTED, "ERR_SCHEMA_VALIDATION_FAILED")),
        (refusal(400, "Bad request"), (Status.REJECTED, "400")),
        (refusal(422, "No"), (Status.REJECTED, "422")),
        (Answer(400, body=HTML), (Status.TRANSIENT, "malformed_reply")),
        (Answer(413, body=HTML), (Status.REJECTED, "413")),
        (Answer(body=HTML), (Status.TRANSIENT, "malformed_reply")),
        (Answer(json={"success": False, "error": "internal"}), (Status.TRANSIENT, "malformed_reply")),
        (Answer(json={"success": True, "data": {}}), (Status.TRANSIENT, "malformed_reply")),
        (Answer(403, body=HTML), (Status.TRANSIENT, "403")),
        (refusal(500, "Internal Server Error", "ERR_UNKNOWN"), (Status.TRANSIENT, "500")),
        (refusal(429, "Rate limit exceeded"), (Status.TRANSIENT, "429")),
    ],
)  # fmt: skip
def test_what_an_answer_to_a_new_person_means(
    crm: Pipedrive, adapter: CRMAdapter, answer: Answer, expected: tuple[Status, str]
) -> None:
    crm.answers["POST "] = lambda: answer
    assert told(adapter.deliver(LEADS[:1])) == [expected]


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (refusal(402, "Payment required"), AccessError, "account is not open"),
        (refusal(403, "Forbidden"), AccessError, "denies access"),
        (refusal(403, "Limit reached", "feature_capping_persons_limit"), QuotaExceeded, "feature_capping_persons"),
        (refusal(400, "Validation failed: name: Parameter 'name' is not allowed for this request"),
         AccessError, "'name'"),
        (refusal(410, "Gone"), AccessError, "nothing at this address"),
        (Answer(429, {"success": False}, headers={"x-daily-ratelimit-token-remaining": "0"}),
         QuotaExceeded, "tokens for today"),
        (done(person(1, None)), AccessError, "does not keep the external id"),
    ],
)  # fmt: skip
def test_what_is_not_about_the_lead_ends_the_load(
    crm: Pipedrive, adapter: CRMAdapter, answer: Answer, error: type[Exception], said: str
) -> None:
    crm.answers["POST "] = lambda: answer
    with pytest.raises(error, match=said):
        adapter.deliver(LEADS)
    assert [request.method for request in crm.requests].count("POST") == 1


def test_a_visitor_can_not_forge_an_error_of_the_set_up(crm: Pipedrive, adapter: CRMAdapter) -> None:
    for typed in ("Parameter 'name'", "; name: Parameter 'name'", "Validation failed: name: Parameter 'name'"):
        words = f"Validation failed: name: '{typed} is not allowed for this request' is bad"
        crm.answers["POST "] = lambda words=words: refusal(400, words)  # type: ignore[misc]
        assert told(adapter.deliver(LEADS[:1])) == [(Status.REJECTED, "400")]


def test_a_field_is_named_as_the_destination_names_it(crm: Pipedrive, adapter: CRMAdapter) -> None:
    for path, field in (("emails.0.value", "email"), ("custom_fields.ext", "ext"), ("name", "name")):
        crm.answers["POST "] = lambda path=path: refusal(400, f"Validation failed: {path}: is bad")  # type: ignore[misc]
        (outcome,) = adapter.deliver(LEADS[:1])
        assert outcome.field == field


@pytest.mark.parametrize(("left", "expected"), [("49", [(3600.0, True)]), ("51", []), ("", []), ("many", [])])
def test_others_keep_their_share_of_the_tokens(
    crm: Pipedrive, adapter: CRMAdapter, left: str, expected: list[tuple[float, bool]]
) -> None:
    heard: list[tuple[float, bool]] = []
    adapter.http.throttled = lambda seconds, spent: heard.append((seconds, spent))
    headers = {"x-daily-ratelimit-token-limit": "1000", "x-daily-ratelimit-token-remaining": left}
    crm.answers["POST "] = lambda: Answer(json={"success": True, "data": person(1, "A:1")}, headers=headers)
    assert told(adapter.deliver(LEADS[:1])) == [(Status.CREATED, None)]
    assert heard == expected


def test_what_the_search_found_may_lie_one_level_deeper(crm: Pipedrive, adapter: CRMAdapter) -> None:
    crm.answers["GET search"] = lambda: done([{"result_score": 1.2, "item": {"id": 7, "type": "person"}}])
    crm.answers["GET ids"] = lambda: done([person(7, "A:1")])
    assert [record.crm_id for record in adapter.fetch(["A:1"])["A:1"]] == ["7"]
    crm.answers["GET search"] = lambda: done([{"result_score": 1.2}])
    with pytest.raises(RequestFailed, match="left records out"):
        adapter.fetch(["A:1"])


def test_a_found_record_that_holds_another_id_is_not_written_to(crm: Pipedrive, adapter: CRMAdapter) -> None:
    crm.answers["GET search"] = lambda: done([{"id": 7}])
    crm.answers["GET ids"] = lambda: done([person(7, "a:1")])
    crm.answers["POST "] = lambda: done(person(8, "A:1"))
    assert told(adapter.deliver(LEADS[:1])) == [(Status.CREATED, None)]


@pytest.mark.parametrize("gone", [refusal(404, "Person not found"), done(person(7, "A:1", is_deleted=True))])
def test_a_found_record_that_is_gone_is_not_left_out(crm: Pipedrive, adapter: CRMAdapter, gone: Answer) -> None:
    crm.answers["GET search"] = lambda: done([{"id": 7}])
    crm.answers["GET /7"] = lambda: gone
    assert adapter.fetch(["A:1"]) == {"A:1": []}
    crm.answers["GET /7"] = lambda: done(person(7, "A:1"))
    with pytest.raises(RequestFailed, match="left records out"):
        adapter.fetch(["A:1"])


def test_a_record_that_was_deleted_meanwhile_is_no_error_of_the_rest(crm: Pipedrive, adapter: CRMAdapter) -> None:
    crm.answers["GET "] = lambda: done([person(2, "A:2"), person(1, "A:1")])
    crm.answers["PATCH /1"] = crm.answers["DELETE /1"] = lambda: refusal(404, "Person not found")
    crm.answers["PATCH /2"] = crm.answers["DELETE /2"] = lambda: done({"id": 2})
    assert told(adapter.deliver(LEADS[:2])) == [(Status.TRANSIENT, "not_found"), (Status.UPDATED, None)]
    assert told(adapter.deliver(LEADS[:2], delete=True)) == [(Status.DELETED, None)] * 2


def test_a_gateway_that_finds_nothing_does_not_make_a_lead_deleted(crm: Pipedrive, adapter: CRMAdapter) -> None:
    crm.answers["GET "] = lambda: done([person(1, "A:1")])
    crm.answers["DELETE /1"] = lambda: Answer(404, body=HTML)
    with pytest.raises(AccessError, match="nothing at this address"):
        adapter.deliver(LEADS[:1], delete=True)


def test_records_that_are_not_new_any_more_end_the_look_at_the_newest(crm: Pipedrive, adapter: CRMAdapter) -> None:
    old = person(1, "A:1", add_time="2020-01-01T00:00:00Z")
    crm.answers["GET "] = lambda: done([person(2, "A:2"), old], next_cursor="more")
    assert [len(found) for found in adapter.fetch(["A:1", "A:2"]).values()] == [0, 1]
    assert [request.path.partition("?")[0] for request in crm.requests].count("/api/v2/persons") == 1


def test_a_cursor_that_leads_nowhere_is_not_followed_for_ever(crm: Pipedrive, adapter: CRMAdapter) -> None:
    crm.answers["GET "] = lambda: done([person(2, "A:2")], next_cursor="again")
    with pytest.raises(RequestFailed, match="left records out"):
        adapter.fetch(["A:1"])


def test_a_wrong_address_is_not_taken_for_a_missing_lead(script: Scripted, adapter: CRMAdapter) -> None:
    script.respond = lambda request: Answer(404, body=HTML)
    with pytest.raises(AccessError, match="nothing at this address"):
        adapter.deliver(LEADS)


def test_a_field_that_is_no_custom_one_can_not_hold_the_external_id(crm: Pipedrive, adapter: CRMAdapter) -> None:
    crm.fields = [{"field_code": "ext", "field_type": "varchar", "is_custom_field": False}]
    with pytest.raises(AccessError, match="'ext'"):
        adapter.check()
