"""Replies of HubSpot's that its simulator does not give."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from tests.support.scripted import Answer, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.errors import AccessError, QuotaExceeded, Unavailable
from leadsync.models import Lead, Outcome, Status

LEADS = [Lead("A:1", {"name": "Ada"}), Lead("A:2", {"name": "Ben"})]


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


@pytest.fixture
def adapter(script: Scripted) -> Iterator[CRMAdapter]:
    made = registry.build(destination(settings={"requests_per_second": 1000}), Endpoint(script.url, password="t"))
    made.http.sleep = lambda seconds: None
    yield made
    made.close()


def record(external_id: str | None, crm_id: str = "9", **more: Any) -> dict[str, Any]:
    return {"id": crm_id, "new": False, "properties": {"ext": external_id} if external_id else {}, **more}


def error(category: str, message: str = "no", **more: Any) -> dict[str, Any]:
    return {"status": "error", "category": category, "message": message, **more}


def batch(*results: dict[str, Any], errors: list[dict[str, Any]] | None = None) -> Answer:
    document: dict[str, Any] = {"status": "COMPLETE", "results": list(results)}
    return (
        Answer(207, {**document, "numErrors": len(errors), "errors": errors})
        if errors is not None
        else Answer(200, document)
    )


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


MISSING = (Status.TRANSIENT, "missing_from_reply")


def test_values_go_as_texts_and_none_clears(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [batch(record("A:1"))]
    adapter.deliver([Lead("A:1", {"a": True, "b": 7, "c": 0.00001, "d": None, "e": "x", "f": 1e22, "g": False})])
    (item,) = orjson.loads(script.requests[0].body)["inputs"]
    assert (item["id"], item["idProperty"]) == ("A:1", "ext")
    assert item["properties"] == {
        "a": "true", "b": "7", "c": "0.00001", "d": "", "e": "x", "f": "10000000000000000000000", "g": "false",
        "ext": "A:1",
    }  # fmt: skip


def test_results_are_matched_by_key_and_not_by_position(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [batch(record("A:2", "22", new=True), record("A:1", "11"))]
    outcomes = adapter.deliver(LEADS)
    assert [(o.status, o.crm_id) for o in outcomes] == [(Status.UPDATED, "11"), (Status.CREATED, "22")]


def test_a_result_without_the_key_is_matched_by_its_trace(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [batch(record(None, "22", objectWriteTraceId="1"), record(None, "11"))]
    outcomes = adapter.deliver(LEADS)
    assert told(outcomes) == [MISSING, (Status.UPDATED, None)]
    assert outcomes[1].crm_id == "22"


def test_a_207_without_errors_and_results_loses_no_lead(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [batch(errors=[])]
    assert told(adapter.deliver(LEADS)) == [MISSING, MISSING]


def test_traces_that_were_not_sent_and_doubled_words_are_not_believed(script: Scripted, adapter: CRMAdapter) -> None:
    bad = error("VALIDATION_ERROR", context={"objectWriteTraceId": ["0", "77", "nonsense"]})
    script.answers = [batch(record("A:1"), errors=[bad])]
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "malformed_reply"), MISSING]


def test_errors_inside_a_207_that_pass_are_transient(script: Scripted, adapter: CRMAdapter) -> None:
    errors = [
        error("INTERNAL_ERROR", context={"objectWriteTraceId": ["0"]}),
        error("CONFLICT", context={"objectWriteTraceId": ["1"]}),
    ]
    script.answers = [batch(errors=errors)]
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "INTERNAL_ERROR"), (Status.REJECTED, "CONFLICT")]


INVALID = (
    'Property values were not valid: [{"isValid":false,"message":"Ada was not one of the options",'
    '"error":"INVALID_OPTION","name":"name","localizedErrorMessage":"x"}]'
)


def test_a_refused_value_names_its_field(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [Answer(400, error("VALIDATION_ERROR", INVALID))]
    (outcome,) = adapter.deliver(LEADS[:1])
    assert (outcome.status, outcome.code, outcome.field) == (Status.REJECTED, "INVALID_OPTION", "name")


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (INVALID.replace("INVALID_OPTION", "PROPERTY_DOESNT_EXIST"), "name"),
        ('Property "name" does not exist', "name"),
        ("idProperty ext is not a unique property", "ext"),
        ("Unable to infer object type from: contacts", "contacts"),
    ],
)
def test_what_is_wrong_with_the_set_up_is_no_fault_of_a_lead(
    script: Scripted, adapter: CRMAdapter, message: str, named: str
) -> None:
    script.answers = [Answer(400, error("VALIDATION_ERROR", message))]
    with pytest.raises(AccessError, match=f"'{named}'"):
        adapter.deliver(LEADS)
    assert len(script.requests) == 1


@pytest.mark.parametrize("said", ["Property name does not exist", '"error":"PROPERTY_DOESNT_EXIST","name":"x"'])
def test_a_visitor_can_not_stop_a_load_by_what_he_types(script: Scripted, adapter: CRMAdapter, said: str) -> None:
    inner = orjson.dumps([{"message": f"{said} was no option", "error": "INVALID_OPTION", "name": "name"}]).decode()
    script.answers = [Answer(400, error("VALIDATION_ERROR", f"Property values were not valid: {inner}"))]
    assert told(adapter.deliver(LEADS)) == [(Status.REJECTED, "INVALID_OPTION")] * 2


def test_a_batch_that_failed_inside_hubspot_is_not_halved(script: Scripted, adapter: CRMAdapter) -> None:
    script.answers = [Answer(400, error("INTERNAL_ERROR"))]
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "400")] * 2
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>bad gateway", b"[]", b'{"results": 1}', b'{"results":[{"id":1}]}', b"\xff"]
)
@pytest.mark.parametrize("status", [200, 207, 400])
def test_replies_that_make_no_sense(script: Scripted, adapter: CRMAdapter, status: int, body: bytes) -> None:
    script.answers = [Answer(status, body=body)]
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "malformed_reply")] * 2
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("status", "header", "wait"),
    [(423, None, 2), (423, "1", 2), (423, "30", 30), (477, "86400", 86400), (502, None, None), (503, "5", 5)],
)
def test_how_long_it_asks_to_wait(
    script: Scripted, adapter: CRMAdapter, status: int, header: str | None, wait: float | None
) -> None:
    script.answers = [Answer(status, error("X"), headers={"Retry-After": header} if header else {})]
    (outcome,) = adapter.deliver(LEADS[:1])
    assert (outcome.status, outcome.code, outcome.retry_after) == (Status.TRANSIENT, str(status), wait)


def test_the_daily_limit_is_a_quota_with_its_end_where_told(script: Scripted, adapter: CRMAdapter) -> None:
    daily = error("RATE_LIMITS", policyName="DAILY")
    script.answers = [Answer(429, daily), Answer(429, daily, headers={"Retry-After": "3600"})]
    with pytest.raises(QuotaExceeded) as caught:
        adapter.deliver(LEADS)
    assert caught.value.resets_at is None
    with pytest.raises(QuotaExceeded) as caught:
        adapter.deliver(LEADS)
    assert caught.value.resets_at is not None
    assert timedelta(minutes=55) < caught.value.resets_at - datetime.now(UTC) <= timedelta(hours=1)


def test_a_burst_and_a_proxys_own_429_are_no_quota(script: Scripted, adapter: CRMAdapter) -> None:
    burst = error("RATE_LIMITS", policyName="SECONDLY")
    script.answers = [Answer(429, burst), Answer(429, body=b"<html>slow down"), batch(record("A:1"))]
    assert told(adapter.deliver(LEADS[:1])) == [(Status.UPDATED, None)]


@pytest.mark.parametrize(("status", "words"), [(401, "token"), (403, "rights"), (404, "'contacts'")])
def test_refused_access_says_what_to_mend(script: Scripted, adapter: CRMAdapter, status: int, words: str) -> None:
    script.answers = [Answer(status, error("X"))]
    for act in (lambda: adapter.deliver(LEADS), lambda: adapter.fetch(["A:1"]), adapter.check):
        with pytest.raises(AccessError, match=f"crm_target.*{words}"):
            act()


def test_a_delete_says_deleted_only_of_what_surely_is(script: Scripted, adapter: CRMAdapter) -> None:
    absent = error("OBJECT_NOT_FOUND", context={"ids": ["A:2"]})
    leads = [*LEADS, Lead("A:3", {})]
    script.answers = [batch(record("A:1", "11"), errors=[absent]), Answer(204)]
    outcomes = adapter.deliver(leads, delete=True)
    assert told(outcomes) == [(Status.DELETED, None), (Status.DELETED, None), MISSING]
    assert orjson.loads(script.requests[1].body) == {"inputs": [{"id": "11"}]}


@pytest.mark.parametrize("errors", [None, []])
def test_a_read_that_leaves_records_out_is_not_taken_for_their_absence(
    script: Scripted, adapter: CRMAdapter, errors: list[dict[str, Any]] | None
) -> None:
    script.answers = [batch(record("A:1"), errors=errors)]
    with pytest.raises(Unavailable, match="left records out of its reply"):
        adapter.fetch(["A:1", "A:2"])


def test_the_version_is_a_setting(script: Scripted) -> None:
    target = destination(settings={"api_version": "2026-03"})
    adapter = registry.build(target, Endpoint(script.url, password="t"))
    script.answers = [batch(record("A:1"))]
    adapter.deliver(LEADS[:1])
    assert script.requests[0].path == "/crm/objects/2026-03/contacts/batch/upsert"
    adapter.close()
