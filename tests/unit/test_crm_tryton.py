"""Replies of Tryton's that the server of the contract tests is not brought to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.tryton_layout import same_contact
from leadsync.errors import AccessError, Unavailable
from leadsync.models import Lead, Status

LEADS = [Lead("A:1", {"name": "Ada"}), Lead("A:2", {"name": "Ben"})]
TARGET: dict[str, Any] = {
    "adapter": "tryton", "object": "party.party", "external_id_field": "code", "on_delete": "archive",
}  # fmt: skip
SETTINGS = {"requests_per_second": 1000}
FIELDS = {name: {"type": kind, "string": name.title()} for name, kind in (("code", "char"), ("name", "char"))}
PLAIN = {
    "common.db.login": [7, "t0ken", None], "get_preferences": {"company": 3, "language": "de"},
    "fields_get": {**FIELDS, "active": {"type": "boolean"}}, "search_count": 0, "create": [1, 2], "write": None,
    "delete": None,
}  # fmt: skip


class Server:
    """Answers by the method that is called: a result, or an `Answer`; `turns` are the answers of one, in turn."""

    def __init__(self, script: Scripted) -> None:
        self.script = script
        self.results: dict[str, Any] = dict(PLAIN)
        self.turns: dict[str, list[Any]] = {}
        script.respond = self.respond

    def respond(self, request: Request) -> Answer:
        name = self.name(request)
        result = self.turns[name].pop(0) if self.turns.get(name) else self.results[name]
        return result if isinstance(result, Answer) else Answer(json={"id": 1, "result": result})

    def name(self, request: Request) -> str:
        method: str = orjson.loads(request.body)["method"]
        return method if method.startswith("common.") else method.rpartition(".")[2]

    def called(self, name: str) -> list[Any]:
        """The parameters of every call of a method."""
        found = [request for request in self.script.requests if self.name(request) == name]
        return [orjson.loads(request.body)["params"] for request in found]


def error(*parts: Any) -> Answer:
    return Answer(json={"id": 1, "error": list(parts)})


def user_error(message: str) -> Answer:
    return error("UserError", [message, "", None])


@pytest.fixture
def server() -> Iterator[Server]:
    with running_script() as script:
        yield Server(script)


@pytest.fixture
def adapter(server: Server) -> Iterator[CRMAdapter]:
    endpoint = Endpoint(f"{server.script.url}/tryton/company", "who:ever", "s3cret")
    made = registry.build(destination(**TARGET, settings=SETTINGS), endpoint)
    made.http.sleep = lambda seconds: None
    yield made
    made.close()


def test_the_session_and_the_users_company_come_along(adapter: CRMAdapter, server: Server) -> None:
    assert [outcome.crm_id for outcome in adapter.deliver(LEADS)] == ["1", "2"]
    requests = server.script.requests
    assert {request.path for request in requests} == {"/tryton/company/rpc/"}
    # base64 of `who ever:7:t0ken`: a colon in the login would be taken for a separator.
    assert {request.headers.get("Authorization") for request in requests[1:]} == {"Session d2hvIGV2ZXI6Nzp0MGtlbg=="}
    assert server.called("create")[0][-1] == {"company": 3, "language": "en"}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (error("ConcurrencyException", "Records were modified"), "ConcurrencyException"),
        (error("division by zero", ""), "500"),
        (error(), "malformed_reply"),
        (error({"what": "ever"}), "malformed_reply"),
        (Answer(json={"id": 1}), "malformed_reply"),
        (Answer(json={"id": 1, "result": "no ids"}), "malformed_reply"),
        (Answer(body=b"<html>Private Person"), "malformed_reply"),
        (Answer(504, {}), "504"),
        (Answer(json={"id": 1, "result": [1]}), "missing_from_reply"),
    ],
)
def test_what_may_pass(adapter: CRMAdapter, server: Server, answer: Answer, code: str) -> None:
    server.results["create"] = answer
    outcomes = adapter.deliver(LEADS)
    assert {(outcome.status, outcome.code) for outcome in outcomes} == {(Status.TRANSIENT, code)}
    assert len(server.called("create")) == 1, "what failed as a whole was cut into halves"


@pytest.mark.parametrize(
    ("answer", "code"),
    [(error("UserWarning", ["similar", "Looks like another party", ""]), "UserWarning"), (Answer(413, {}), "413")],
)
def test_what_is_the_leads(adapter: CRMAdapter, server: Server, answer: Answer, code: str) -> None:
    server.turns["create"] = [answer, answer, [5]]
    outcomes = adapter.deliver(LEADS)
    assert [outcome.status for outcome in outcomes] == [Status.REJECTED, Status.CREATED]
    assert outcomes[0].code == code


def test_who_was_faster_is_found_at_the_next_try(adapter: CRMAdapter, server: Server) -> None:
    server.results["create"] = user_error("The code on party must be unique.")
    server.results["search_read"] = [{"id": 9, "code": "A:1", "name": "Ada", "active": 1}]
    server.turns["search_count"] = [0, 1]
    (outcome,) = adapter.deliver(LEADS[:1])
    assert (outcome.status, outcome.code) == (Status.TRANSIENT, "changed_meanwhile")
    server.results["search_count"] = 1
    assert adapter.deliver(LEADS[:1])[0].status is Status.UPDATED
    assert server.called("write")[0][:2] == [[9], {"name": "Ada"}]


def test_doubles_are_told_written_and_archived_together(adapter: CRMAdapter, server: Server) -> None:
    server.results["search_count"] = 2
    server.results["search_read"] = [{"id": i, "code": "A:1", "name": "Ada", "active": True} for i in (8, 9)]
    assert [record.crm_id for record in adapter.fetch(["A:1"])["A:1"]] == ["8", "9"]
    assert adapter.deliver(LEADS[:1])[0].status is Status.UPDATED
    assert server.called("write")[0][:4] == [[8], {"name": "Ada"}, [9], {"name": "Ada"}]
    assert adapter.deliver(LEADS[:1], delete=True)[0].status is Status.DELETED
    assert server.called("write")[1][:2] == [[8, 9], {"active": False}]


def test_a_button_is_pressed_when_a_delete_is_refused(server: Server) -> None:
    target = destination(
        **{**TARGET, "object": "sale.opportunity", "on_delete": "delete"},
        settings={**SETTINGS, "cancel_button": "cancel"},
    )
    server.results |= {"search_count": 1, "search_read": [{"id": 8, "code": "A:1", "active": True}], "cancel": "reload"}
    server.turns["delete"] = [user_error('To delete opportunity "8", you must cancel it.')]
    adapter = registry.build(target, Endpoint(f"{server.script.url}/db", "who", "s3cret"))
    for _ in range(2):
        assert adapter.deliver(LEADS[:1], delete=True)[0].status is Status.DELETED
    changes = [name for request in server.script.requests if (name := server.name(request)) in ("cancel", "delete")]
    assert changes == ["delete", "cancel", "delete", "delete"]
    adapter.close()


def test_a_reading_that_is_refused_is_about_rights(adapter: CRMAdapter, server: Server) -> None:
    server.results["search_count"] = user_error('You are not allowed to read records "1" of "Party" because of Ada')
    with pytest.raises(AccessError, match="denies access") as caught:
        adapter.deliver(LEADS)
    assert "Ada" not in str(caught.value)


def test_a_module_that_allows_line_breaks_leaves_nothing_of_the_check(adapter: CRMAdapter, server: Server) -> None:
    server.results["create"] = [4]
    with pytest.raises(AccessError, match="does not refuse the same 'code'"):
        adapter.check()
    assert [params[0] for params in server.called("delete")] == [[4], [4]]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(401, body=b""), "correct login and password"),
        (Answer(404, body=b"<html>"), "Tryton 8.0 or newer"),
        (Answer(405, body=b"<html>"), "Tryton 8.0 or newer"),
        (error("LoginException", ["sms_code", "Enter the code", "char"]), "by name and password alone"),
    ],
)
def test_a_refused_login_is_not_tried_twice(adapter: CRMAdapter, server: Server, answer: Answer, said: str) -> None:
    server.results["common.db.login"] = answer
    for _ in range(2):
        with pytest.raises(AccessError, match=said) as caught:
            adapter.deliver(LEADS)
        assert "s3cret" not in str(caught.value)
    assert len(server.script.requests) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(429, body=b"<html>"), "429"),
        (Answer(503, body=b"<html>"), "503"),
        (Answer(body=b"<html>t0ken"), "malformed_reply"),
        (Answer(json={"id": 1, "result": [7]}), "malformed_reply"),
        (error("database is busy", ""), "malformed_reply"),
    ],
)
def test_a_login_that_may_pass_is_tried_again(adapter: CRMAdapter, server: Server, answer: Answer, code: str) -> None:
    server.turns["common.db.login"] = [answer]
    outcomes = adapter.deliver(LEADS)
    assert {(each.status, each.code, each.sent, each.message) for each in outcomes} == {
        (Status.TRANSIENT, code, False, None)
    }
    assert {outcome.status for outcome in adapter.deliver(LEADS)} == {Status.CREATED}


def test_a_session_that_is_refused_again_is_an_access_error(adapter: CRMAdapter, server: Server) -> None:
    server.results["create"] = Answer(401, body=b"")
    with pytest.raises(AccessError, match="refuses the credentials"):
        adapter.deliver(LEADS)
    assert len(server.called("common.db.login")) == 2


def test_fetch_raises_for_what_is_left_open(adapter: CRMAdapter, server: Server) -> None:
    server.results |= {"search_count": 2, "search_read": [{"id": 1, "code": "A:1", "name": "Ada", "active": True}]}
    with pytest.raises(Unavailable, match="left records out"):
        adapter.fetch(["A:1", "A:2"])
    server.results["search_read"] = Answer(413, {})
    with pytest.raises(Unavailable, match="makes no sense"):
        adapter.fetch(["A:1", "A:2"])


@pytest.mark.parametrize(
    ("type_", "sent", "held", "same"),
    [
        ("email", "Zoe@Example.ORG", "Zoe@example.org", True),
        ("email", "zoe@example.org", "zoe@example.com", False),
        ("phone", "0170 123456", "+49 170 123456", True),
        ("mobile", "+49-170-123456", "+49 170 123456", True),
        ("phone", "0170 123456", "+49 170 123457", False),
        ("phone", "456", "+49 170 123456", False),
        ("website", "0170123456", "+49170123456", False),
    ],
)
def test_contacts_as_trytons_optional_packages_write_them(type_: str, sent: str, held: str, same: bool) -> None:
    assert same_contact(type_, sent, held) is same
