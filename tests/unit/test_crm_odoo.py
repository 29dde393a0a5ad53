"""Replies of Odoo's that its simulator does not give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.http import RequestFailed
from leadsync.errors import AccessError, ConfigError
from leadsync.models import Lead, Outcome, Status

LEADS = [Lead(f"A:{number}", {"name": "Ada"}) for number in range(3)]
SETTINGS = {"database": "demo", "requests_per_second": 1000}
FIELDS = {"name": {"type": "char"}, "active": {"type": "boolean"}}
CONFLICT = "could not serialize access due to concurrent update\n"


def target(**settings: Any) -> Any:
    return destination(
        adapter="odoo", object="crm.lead", external_id_field="id", on_delete="delete", settings={**SETTINGS, **settings}
    )


class Odoo:
    """Answers each method as a test says; the rest as an Odoo that is empty."""

    def __init__(self, script: Scripted) -> None:
        self.methods: dict[str, Any] = {
            "authenticate": 7, "fields_get": FIELDS, "search_read": [], "search_count": 0, "read": [], "unlink": True,
        }  # fmt: skip
        self.calls: list[tuple[str, list[Any]]] = []
        script.respond = self.respond

    def respond(self, request: Request) -> Answer:
        params = orjson.loads(request.body)["params"]
        method, placed = params["method"], params["args"]
        if method == "execute_kw":
            method, placed = placed[4], placed[5]
        self.calls.append((method, placed))
        answer = self.methods[method]
        if isinstance(answer, list) and answer and isinstance(answer[0], Answer):
            answer = answer.pop(0)
        if callable(answer):
            answer = answer(placed)
        return answer if isinstance(answer, Answer) else result(answer)


def result(value: Any) -> Answer:
    return Answer(json={"jsonrpc": "2.0", "id": 1, "result": value})


def fault(name: str, message: str = "no") -> Answer:
    data = {"name": name, "message": message, "debug": "Traceback", "arguments": [], "context": {}}
    return Answer(
        json={"jsonrpc": "2.0", "id": 1, "error": {"code": 200, "message": "Odoo Server Error", "data": data}}
    )


def refused(*messages: dict[str, Any]) -> Answer:
    return result({"ids": False, "messages": [{"type": "error", **message} for message in messages]})


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


@pytest.fixture
def odoo(script: Scripted) -> Odoo:
    return Odoo(script)


@pytest.fixture
def adapter(script: Scripted) -> Iterator[CRMAdapter]:
    made = registry.build(target(), Endpoint(script.url, "who", "s3cret"))
    made.http.sleep = lambda seconds: None
    yield made
    made.close()


def test_a_conflict_is_transient_and_the_others_are_sent_again(odoo: Odoo, adapter: CRMAdapter) -> None:
    odoo.methods["load"] = [
        refused({"message": CONFLICT, "record": 1}),
        result({"ids": [4, 6], "messages": [], "nextrow": 0}),
    ]
    passing = (Status.TRANSIENT, "SerializationFailure")
    assert told(adapter.deliver(LEADS)) == [(Status.CREATED, None), passing, (Status.CREATED, None)]
    assert [row[0] for row in odoo.calls[-1][1][1]] == ["leadsync.A:0", "leadsync.A:2"]


@pytest.mark.parametrize(
    "name", ["psycopg2.errors.SerializationFailure", "psycopg2.errors.DeadlockDetected", "psycopg2.OperationalError",
             "odoo.exceptions.MissingError", "odoo.sql_db.PoolError"],
)  # fmt: skip
def test_what_passes_is_transient(odoo: Odoo, adapter: CRMAdapter, name: str) -> None:
    odoo.methods["load"] = fault(name, "no")
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, name.rpartition(".")[2])] * 3


def test_a_refusal_that_names_no_lead_is_halved(odoo: Odoo, adapter: CRMAdapter) -> None:
    def load(placed: list[Any]) -> Answer:
        names = [row[0] for row in placed[1]]
        if "leadsync.A:2" in names:
            return refused({"message": "the name of Ada is no name"})
        return result({"ids": [int(name[-1]) + 1 for name in names], "messages": []})

    odoo.methods["load"] = load
    outcomes = adapter.deliver(LEADS)
    assert told(outcomes) == [(Status.CREATED, None)] * 2 + [(Status.REJECTED, "load")]
    assert outcomes[2].field == "name"


def test_a_refusal_that_names_no_lead_for_a_conflict_is_transient(odoo: Odoo, adapter: CRMAdapter) -> None:
    odoo.methods["load"] = refused({"message": CONFLICT})
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "SerializationFailure")] * 3


@pytest.mark.parametrize("ids", [[1], [], [1, 2, 3, 4]])
def test_ids_that_are_not_as_many_as_the_leads_tell_nothing(odoo: Odoo, adapter: CRMAdapter, ids: list[int]) -> None:
    odoo.methods["load"] = result({"ids": ids, "messages": []})
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "missing_from_reply")] * 3


@pytest.mark.parametrize(
    "reply",
    [Answer(body=b"<html>a proxy for Ada</html>"), Answer(json={"jsonrpc": "2.0", "id": 1}), result(["Ada"]),
     result({"ids": "Ada"}), Answer(400, body=b"Ada")],
)  # fmt: skip
def test_nonsense_is_transient_and_masked(odoo: Odoo, adapter: CRMAdapter, reply: Answer) -> None:
    odoo.methods["load"] = reply
    outcomes = adapter.deliver(LEADS)
    assert told(outcomes) == [(Status.TRANSIENT, "malformed_reply")] * 3
    assert not [outcome for outcome in outcomes if "Ada" in (outcome.message or "")]


@pytest.mark.parametrize(
    ("name", "message", "said"),
    [
        ("odoo.exceptions.AccessError", "You are not allowed to create Ada", "denies access .*'ir.model.data'"),
        ("odoo.exceptions.AccessDenied", "Access Denied", "refuses the login"),
        ("builtins.KeyError", "'name'", "does not know or open 'name'"),
        ("builtins.ValueError", "Invalid field 'name' on model 'crm.lead'", "does not know or open 'name'"),
        ("odoo.exceptions.ValidationError", 'Unknown field "name" in "crm.lead"', "does not know or open 'name'"),
        ("odoo.exceptions.UserError", "Object crm.lead doesn't exist", "does not know or open 'crm.lead'"),
        ("psycopg2.OperationalError", 'FATAL:  database "demo" does not exist\n', "has no database 'demo'"),
    ],
)
def test_what_is_no_fault_of_the_leads(odoo: Odoo, adapter: CRMAdapter, name: str, message: str, said: str) -> None:
    odoo.methods["load"] = fault(name, message)
    with pytest.raises(AccessError, match=said) as caught:
        adapter.deliver(LEADS)
    assert "Ada" not in str(caught.value)


@pytest.mark.parametrize(
    "message",
    ["You are not allowed to create 'Lead' (crm.lead) records.", "Due to security restrictions, you are not allowed",
     "Unknown error during import: <class 'odoo.exceptions.AccessError'>: ('Sorry',)"],
)  # fmt: skip
def test_missing_rights_are_no_fault_of_the_leads_that_are_named(odoo: Odoo, adapter: CRMAdapter, message: str) -> None:
    odoo.methods["load"] = refused({"message": message, "record": 0}, {"message": message, "record": 1})
    with pytest.raises(AccessError, match="denies access"):
        adapter.deliver(LEADS)


def test_a_fault_that_nobody_knows_is_transient(odoo: Odoo, adapter: CRMAdapter) -> None:
    odoo.methods["load"] = fault("builtins.MemoryError")
    assert told(adapter.deliver(LEADS)) == [(Status.TRANSIENT, "MemoryError")] * 3


def test_a_request_that_is_too_large_is_halved(odoo: Odoo, adapter: CRMAdapter) -> None:
    odoo.methods["load"] = lambda placed: (
        result({"ids": [1], "messages": []}) if len(placed[1]) == 1 else Answer(413, body=b"<html>too large</html>")
    )
    assert told(adapter.deliver(LEADS)) == [(Status.CREATED, None)] * 3


def test_a_name_whose_record_went_away_is_made_anew_and_told_so(odoo: Odoo, adapter: CRMAdapter) -> None:
    odoo.methods["search_read"] = result([{"id": 9, "name": "A:0", "res_id": 4}, {"id": 8, "name": "A:1", "res_id": 5}])
    odoo.methods["load"] = result({"ids": [4, 50, 51], "messages": []})
    assert told(adapter.deliver(LEADS)) == [(Status.UPDATED, None), (Status.CREATED, None), (Status.CREATED, None)]


def test_a_name_whose_record_went_away_is_no_live_record(odoo: Odoo, adapter: CRMAdapter) -> None:
    names = [{"id": 9, "name": "A:0", "res_id": 4}, {"id": 8, "name": "A:1", "res_id": 5}]
    odoo.methods |= {"search_read": names, "read": [{"id": 4, "name": False}]}
    odoo.methods["search_count"] = lambda placed: result(2 if placed[0][0][0] == "module" else 1)
    found = adapter.fetch(["A:0", "A:1"])
    assert [record.fields for record in found["A:0"]] == [{"name": None}]
    assert found["A:1"] == []
    odoo.methods["search_count"] = 2  # it is there after all: the reply was not whole
    with pytest.raises(RequestFailed, match="left records out"):
        adapter.fetch(["A:0", "A:1"])


def test_a_record_that_may_not_be_deleted_stands_alone(odoo: Odoo, adapter: CRMAdapter) -> None:
    def names(placed: list[Any]) -> Answer:
        return result([{"id": 9, "name": name, "res_id": int(name[-1]) + 1} for name in placed[0][2][2]])

    odoo.methods["search_read"] = names
    odoo.methods["search_count"] = lambda placed: result(len(placed[0][2][2]))
    odoo.methods["unlink"] = lambda placed: (
        fault("odoo.exceptions.UserError", "an invoice is linked to it") if 2 in placed[0] else result(True)
    )
    assert told(adapter.deliver(LEADS, delete=True)) == [
        (Status.DELETED, None), (Status.REJECTED, "UserError"), (Status.DELETED, None)
    ]  # fmt: skip


def test_a_failed_login_sent_no_lead(odoo: Odoo, adapter: CRMAdapter) -> None:
    odoo.methods["authenticate"] = Answer(503)
    outcomes = adapter.deliver(LEADS)
    assert {(outcome.status, outcome.code, outcome.sent) for outcome in outcomes} == {
        (Status.TRANSIENT, "503", False)
    }  # fmt: skip


@pytest.mark.parametrize("api", ["jsonrpc", "json2"])
def test_an_odoo_without_this_api_is_told(script: Scripted, api: str) -> None:
    script.answers = [Answer(404, body=b"<html>not found</html>")]
    with pytest.raises(AccessError, match="has nothing at this address"):
        registry.build(target(api=api), Endpoint(script.url, "who", "s3cret")).check()


def test_json2_has_the_key_and_the_database_in_its_headers(script: Scripted) -> None:
    script.answers = [Answer(json={})]
    adapter = registry.build(target(api="json2"), Endpoint(f"{script.url}/proxied", password="k3y"))
    with pytest.raises(AccessError, match="fields_get"):
        adapter.check()
    (request,) = script.requests
    assert request.path == "/proxied/json/2/crm.lead/fields_get"
    assert request.headers["Authorization"] == "Bearer k3y"
    assert request.headers["X-Odoo-Database"] == "demo"


def test_json_rpc_sends_no_authorization_header(odoo: Odoo, adapter: CRMAdapter, script: Scripted) -> None:
    adapter.check()
    assert [request.headers.get("Authorization") for request in script.requests] == [None] * len(script.requests)


@pytest.mark.parametrize(
    "settings", [{"database": ""}, {"database": "a\r\nb"}, {"api": "soap"}, {"module": "lead sync"}, {"module": "a.b"}]
)
def test_settings_that_can_not_be_right(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"settings.{next(iter(settings))}"):
        registry.build(target(**settings), Endpoint("https://odoo.example"))
