"""Replies of Dataverse's that its simulator does not give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson
import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.http import RequestFailed
from leadsync.errors import AccessError, Unavailable
from leadsync.models import Lead, Outcome, Record, Status

LEADS = [Lead("A:1", {"name": "Ada"}), Lead("A:2", {"name": "Ben"})]
TARGET = destination(
    adapter="dynamics365", object="account", external_id_field="new_ext", on_delete="delete",
    settings={"requests_per_second": 1000},
)  # fmt: skip
TABLE = {"LogicalName": "account", "EntitySetName": "accounts", "PrimaryIdAttribute": "accountid"}
GUIDS = ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"]


def parts(*answers: tuple[int, Any] | tuple[int, Any, str]) -> Answer:
    """A batch of status, document or None, and further header lines."""
    text = b""
    for status, document, *more in answers:
        body = b"" if document is None else orjson.dumps(document)
        head = "\r\n".join([f"HTTP/1.1 {status} X", "OData-Version: 4.0", *more])
        text += b"--b\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        text += head.encode() + b"\r\n\r\n" + body + b"\r\n"
    return Answer(body=text + b"--b--\r\n", headers={"Content-Type": "multipart/mixed; boundary=b"})


def error(code: str, message: str = "no") -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def found(*external_ids: str, count: int | None = None) -> tuple[int, Any]:
    rows = [{"accountid": GUIDS[int(e[-1]) - 1], "new_ext": e} for e in external_ids]
    return 200, {"@odata.count": len(rows) if count is None else count, "value": rows}


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


@pytest.fixture
def adapter(script: Scripted) -> Iterator[CRMAdapter]:
    extra = {"token_url": f"{script.url}/login"}
    made = registry.build(TARGET, Endpoint(script.url, "key", "s3cret", extra))
    made.http.sleep = lambda seconds: None
    yield made
    made.close()


def play(script: Scripted, *, table: Answer | None = None, bulk: Answer | None = None, batches: list[Answer]) -> None:
    """Answers by what is asked for; the batches in turn."""
    left = iter(batches)

    def respond(request: Request) -> Answer:
        if request.path == "/login":
            return Answer(json={"access_token": "t0ken"})
        if "EntityDefinitions" in request.path:
            return table or Answer(json=TABLE)
        if request.path.endswith("UpsertMultiple"):
            return bulk or Answer(204)
        return next(left)

    script.respond = respond


def test_an_upsert_is_what_the_contract_says(script: Scripted, adapter: CRMAdapter) -> None:
    play(script, batches=[parts(found("A:2"))])
    outcomes = adapter.deliver(LEADS)
    assert [(o.status, o.crm_id) for o in outcomes][1] == (Status.UPDATED, GUIDS[1])
    assert outcomes[0].status is Status.CREATED
    login, table, look, write = script.requests
    assert parse_qs(login.body.decode()) == {
        "grant_type": ["client_credentials"], "client_id": ["key"], "client_secret": ["s3cret"],
        "scope": [f"{script.url}/.default"],
    }  # fmt: skip
    assert table.path.startswith("/api/data/v9.2/EntityDefinitions(LogicalName='account')?$select=")
    assert (look.method, look.path) == ("POST", "/api/data/v9.2/$batch")
    assert look.headers["Prefer"] == "odata.continue-on-error"
    assert "$filter=new_ext eq 'A:1' or new_ext eq 'A:2' HTTP/1.1" in unquote(look.body.decode())
    assert (write.method, write.headers["OData-Version"]) == ("POST", "4.0")
    kind = "Microsoft.Dynamics.CRM.account"
    assert orjson.loads(write.body)["Targets"] == [
        {"@odata.type": kind, "@odata.id": f"accounts({outcomes[0].crm_id})", "name": "Ada", "new_ext": "A:1"},
        {"@odata.type": kind, "@odata.id": f"accounts({GUIDS[1]})", "name": "Ben", "new_ext": "A:2"},
    ]


def test_the_login_of_a_tenant() -> None:
    made = registry.build(TARGET, Endpoint("https://x.crm.dynamics.com", "key", "s3cret", {"tenant": "a b/c"}))
    url = made.credentials._url  # type: ignore[attr-defined]
    assert url == "https://login.microsoftonline.com/a%20b%2Fc/oauth2/v2.0/token"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "0x80044331", Status.REJECTED),
        (400, "0x80040265", Status.REJECTED),
        (404, "0x80040217", Status.REJECTED),  # a plug-in that misses some other record
        (412, "0x80060892", Status.TRANSIENT),
        (412, "0x80060882", Status.TRANSIENT),
        (400, "0x80044150", Status.TRANSIENT),
        (400, "0x80040255", Status.TRANSIENT),
        (500, "0x80040216", Status.TRANSIENT),
        (429, "0x80072321", Status.TRANSIENT),
        (503, "", Status.TRANSIENT),
    ],
)
def test_an_error_of_one_lead(script: Scripted, adapter: CRMAdapter, status: int, code: str, expected: Status) -> None:
    failure = (status, error(code, "the name is wrong"), "Retry-After: 7")
    play(script, bulk=Answer(400, error("0x80044331")), batches=[parts(found()), parts(failure, (204, None))])
    first, second = adapter.deliver(LEADS)
    assert (first.status, first.code, first.field) == (expected, code or str(status), "name")
    assert first.retry_after == (7 if expected is Status.TRANSIENT else None)
    assert second.status is Status.CREATED


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "0x80040220", "no privilege"),
        (400, "0x0", "Could not find a property named 'name' on type 'Microsoft.Dynamics.CRM.account'."),
        (400, "0x80048d19", "An undeclared property 'name' which only has property annotations was found"),
    ],
)
def test_what_is_no_fault_of_a_lead_stops_all(
    script: Scripted, adapter: CRMAdapter, status: int, code: str, message: str
) -> None:
    for bulk, singles in (
        (Answer(status, error(code, message)), []),
        (Answer(400, error("0x80044331")), [parts((status, error(code, message)), (204, None))]),
    ):
        play(script, bulk=bulk, batches=[parts(found()), *singles])
        with pytest.raises(AccessError):
            adapter.deliver(LEADS)


def test_what_a_visitor_typed_is_no_missing_field(script: Scripted, adapter: CRMAdapter) -> None:
    typed = "The property 'name' does not exist on type"
    message = (
        "Error identified in Payload provided by the user for Entity :'accounts', see the help  ---->  InnerException "
        f": Microsoft.OData.ODataException: Cannot convert the literal '{typed}' to the expected type 'Edm.Int32'."
    )
    failure = (400, error("0x80048d19", message))
    play(script, bulk=Answer(400, failure[1]), batches=[parts(found()), parts(failure, (204, None))])
    assert told(adapter.deliver(LEADS)) == [(Status.REJECTED, "0x80048d19"), (Status.CREATED, None)]


@pytest.mark.parametrize("answers", [[], [(204, None)], [(204, None)] * 3], ids=["none", "too few", "too many"])
def test_a_batch_of_another_length_is_nobodys(
    script: Scripted, adapter: CRMAdapter, answers: list[tuple[int, Any]]
) -> None:
    play(script, bulk=Answer(400, error("0x80044331")), batches=[parts(found()), parts(*answers)])
    assert {status for status, _ in told(adapter.deliver(LEADS))} == {Status.TRANSIENT}
    play(script, batches=[parts(found("A:1", "A:2")), parts(*answers)])
    assert {status for status, _ in told(adapter.deliver(LEADS, delete=True))} == {Status.TRANSIENT}


def test_a_delete_that_fails_is_no_delete(script: Scripted, adapter: CRMAdapter) -> None:
    answers = [(404, error("0x80040217")), (400, error("0x80040265", "a plug-in"))]
    play(script, batches=[parts(found("A:1", "A:2")), parts(*answers)])
    assert told(adapter.deliver(LEADS, delete=True)) == [(Status.DELETED, None), (Status.REJECTED, "0x80040265")]


def test_a_size_that_is_refused_halves_the_batch(script: Scripted, adapter: CRMAdapter) -> None:
    play(script, bulk=Answer(413, body=b"<html>too large</html>"), batches=[parts(found())] * 3)
    assert told(adapter.deliver(LEADS)) == [(Status.REJECTED, "413")] * 2
    assert len([r for r in script.requests if r.path.endswith("UpsertMultiple")]) == 3


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (parts(found("A:1", count=2)), "left records out"),
        (parts(), "left records out|makes no sense"),
        (parts((503, None)), "503"),
        (parts((200, {"value": []})), "makes no sense"),
        (parts((200, {"@odata.count": 1, "value": [{"new_ext": "A:1"}]})), "makes no sense"),
        (Answer(200, {"value": []}), "makes no sense"),
        (Answer(body=b"--b--\r\n", headers={"Content-Type": "multipart/mixed"}), "makes no sense"),
    ],
)
def test_a_reading_that_leaves_ids_in_the_open_is_none(
    script: Scripted, adapter: CRMAdapter, answer: Answer, expected: str
) -> None:
    play(script, batches=[answer])
    with pytest.raises(RequestFailed, match=expected):
        adapter.fetch(["A:1"])


def test_a_reading_takes_no_record_of_another_case(script: Scripted, adapter: CRMAdapter) -> None:
    rows = [{"accountid": GUIDS[0], "new_ext": "a:1"}, {"accountid": GUIDS[1], "new_ext": "A:1", "name": "Ada"}]
    play(script, batches=[parts((200, {"@odata.count": 2, "value": rows}))])
    assert adapter.fetch(["A:1"]) == {"A:1": [Record("A:1", GUIDS[1], {"name": "Ada"})]}


def test_many_long_ids_take_several_queries_in_one_request(script: Scripted, adapter: CRMAdapter) -> None:
    ids = [f"{'ü' * 300}:{number}" for number in range(100)]

    def answer(request: Request) -> Answer:
        return parts(*[found()] * request.body.count(b"GET "))

    play(script, batches=[])
    respond: Callable[[Request], Answer] = script.respond  # type: ignore[assignment]
    script.respond = lambda request: answer(request) if request.path.endswith("$batch") else respond(request)
    assert adapter.fetch(ids) == {external_id: [] for external_id in ids}
    (look,) = [request for request in script.requests if request.path.endswith("$batch")]
    lines = [line for line in look.body.split(b"\r\n") if line.startswith(b"GET ")]
    assert len(lines) > 2
    assert max(map(len, lines)) < 65_536


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([], "there is none"),
        ([{"KeyAttributes": ["new_ext"], "EntityKeyIndexStatus": "Pending"}], "Pending"),
        ([{"KeyAttributes": ["new_ext", "name"], "EntityKeyIndexStatus": "Active"}], "there is none"),
    ],
)
def test_check_wants_an_active_key_of_its_own(
    script: Scripted, adapter: CRMAdapter, keys: list[Any], expected: str
) -> None:
    columns = [
        {"LogicalName": name, "IsValidForCreate": True, "IsValidForUpdate": True} for name in ("new_ext", "name")
    ]
    play(script, table=Answer(json={**TABLE, "Attributes": columns, "Keys": keys}), batches=[])
    with pytest.raises(AccessError, match=expected):
        adapter.check()


@pytest.mark.parametrize(
    ("answer", "error_class", "expected"),
    [
        (Answer(404, body=b"<html>no</html>"), AccessError, "check the connection's address"),
        (Answer(404, error("0x80060888")), AccessError, "'account'"),
        (Answer(400, error("0x80060888")), AccessError, "'account'"),
        (Answer(403, error("0x80040220")), AccessError, "denies access"),
        (Answer(500, error("0x80044150")), Unavailable, "0x80044150"),
        (Answer(200, body=b"<html>hello</html>"), Unavailable, "makes no sense"),
        (Answer(200, {"LogicalName": "account"}), Unavailable, "makes no sense"),
    ],
)
def test_a_table_that_can_not_be_described(
    script: Scripted, adapter: CRMAdapter, answer: Answer, error_class: type[Exception], expected: str
) -> None:
    play(script, table=answer, batches=[])
    with pytest.raises(error_class, match=expected):
        adapter.fetch(["A:1"])


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"access_token": 5}'])
def test_a_login_that_makes_no_sense_passes(script: Scripted, adapter: CRMAdapter, body: bytes) -> None:
    script.answers = [Answer(body=body)]
    (outcome,) = adapter.deliver(LEADS[:1])
    assert (outcome.status, outcome.code, outcome.sent) == (Status.TRANSIENT, "malformed_reply", False)
    assert outcome.message is None
