"""Replies of EspoCRM's that its simulator does not give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.scripted import Answer, Request, Scripted, running_script
from tests.unit.test_crm_base import destination

from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.http import RequestFailed
from leadsync.errors import AccessError
from leadsync.models import Lead, Outcome, Status

LEADS = [Lead(f"A:{number}", {"name": "Ada"}) for number in range(1, 4)]
RIGHTS = {"create": "yes", "read": "all", "edit": "all", "delete": "all"}
PROXY = Answer(400, body=b"<html>nginx</html>")


class EspoCRM:
    """Answers metadata and rights as they are here, and records by what a test puts into `answers`, in turn."""

    def __init__(self, script: Scripted) -> None:
        self.fields: Any = {"ext": {"type": "varchar"}, "name": {"type": "varchar", "maxLength": 100}}
        self.rights: Any = {"table": {"Lead": dict(RIGHTS)}, "fieldTable": {}}
        self.answers: list[Answer] = []
        self.requests: list[Request] = []
        script.respond = self.respond

    def respond(self, request: Request) -> Answer:
        path = request.path.partition("?")[0]
        if path == "/api/v1/Metadata":
            return Answer(json=self.fields)
        if path == "/api/v1/App/user":
            return Answer(json={"user": {}, "acl": self.rights})
        self.requests.append(request)
        return self.answers.pop(0)


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


@pytest.fixture
def espo(script: Scripted) -> EspoCRM:
    return EspoCRM(script)


@pytest.fixture
def adapter(script: Scripted, espo: EspoCRM) -> Iterator[CRMAdapter]:
    target = destination(
        adapter="espocrm", object="Lead", external_id_field="ext", on_delete="delete",
        settings={"requests_per_second": 1000},
    )  # fmt: skip
    made = registry.build(target, Endpoint(script.url, password="t"))
    yield made
    made.close()


def page(*records: tuple[str, str], total: int | None = None) -> Answer:
    found = [{"id": crm_id, "ext": external_id, "name": "Ada"} for crm_id, external_id in records]
    return Answer(json={"total": len(found) if total is None else total, "list": found})


def refusal(status: int, reason: str, body: Any = None) -> Answer:
    return Answer(status, body, headers={"X-Status-Reason": reason})


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


def test_the_key_goes_in_its_own_header(espo: EspoCRM, adapter: CRMAdapter) -> None:
    espo.answers = [page(), Answer(json={"id": "1"})]
    adapter.deliver(LEADS[:1])
    for request in espo.requests:
        assert request.headers["X-Api-Key"] == "t"
        assert request.headers["X-Skip-Duplicate-Check"] == "true"
        assert "Authorization" not in request.headers


def test_a_record_in_other_letters_is_another_leads(espo: EspoCRM, adapter: CRMAdapter) -> None:
    espo.answers = [page(("9", "a:1")), Answer(json={"id": "1"})]
    assert told(adapter.deliver(LEADS[:1])) == [(Status.CREATED, None)]


@pytest.mark.parametrize(
    "answers",
    [[page(("1", "A:1"), total=-2)], [page(("1", "A:1"), total=-1), page(total=-2)]],
    ids=["all of it", "in two pages"],
)
def test_a_list_that_is_not_counted_is_read_to_its_end(
    espo: EspoCRM, adapter: CRMAdapter, answers: list[Answer]
) -> None:
    espo.answers = answers
    assert [record.crm_id for record in adapter.fetch(["A:1"])["A:1"]] == ["1"]
    assert espo.answers == []


@pytest.mark.parametrize("answer", [page(total=-1), page(("1", "A:1"), total=2), page(total=1)])
def test_a_list_that_ends_early_is_no_answer(espo: EspoCRM, adapter: CRMAdapter, answer: Answer) -> None:
    espo.answers = [answer]
    with pytest.raises(RequestFailed, match="left records out"):
        adapter.fetch(["A:1"])


@pytest.mark.parametrize(
    ("action", "level"), [("create", "no"), ("read", "own"), ("read", "team"), ("edit", "own"), ("delete", "no")]
)
def test_a_role_with_less_than_all_records_is_refused(
    espo: EspoCRM, adapter: CRMAdapter, action: str, level: str
) -> None:
    espo.rights["table"]["Lead"][action] = level
    with pytest.raises(AccessError, match=f"'{action}' of 'Lead' on '{level}'"):
        adapter.check()
    with pytest.raises(AccessError):
        adapter.deliver(LEADS)
    assert espo.requests == []


@pytest.mark.parametrize(
    ("field", "rights"),
    [
        ({"type": "varchar", "readOnly": True}, {}),
        ({"type": "varchar", "readOnlyAfterCreate": True}, {}),
        ({"type": "link"}, {}),
        ({"type": "varchar"}, {"Lead": {"name": {"read": "yes", "edit": "no"}}}),
        ({"type": "varchar"}, {"Lead": {"name": {"read": "no", "edit": "yes"}}}),
    ],
    ids=["read-only", "read-only later", "written by another name", "no edit", "no read"],
)
def test_a_field_that_would_be_dropped_without_a_word_is_named(
    espo: EspoCRM, adapter: CRMAdapter, field: Any, rights: Any
) -> None:
    espo.fields["name"] = field
    espo.rights["fieldTable"] = rights
    for act in (adapter.check, lambda: adapter.deliver(LEADS), lambda: adapter.fetch(["A:1"])):
        with pytest.raises(AccessError, match="'name' of 'Lead'"):
            act()
    assert espo.requests == []


@pytest.mark.parametrize("table", [{}, {"Lead": False}, {"Lead": True}])
def test_an_entity_type_that_the_role_does_not_open_is_missing(espo: EspoCRM, adapter: CRMAdapter, table: Any) -> None:
    espo.rights["table"] = table
    with pytest.raises(AccessError, match="'Lead'"):
        adapter.check()


def test_a_link_is_written_by_its_id(espo: EspoCRM, adapter: CRMAdapter) -> None:
    espo.fields["assignedUser"] = {"type": "link"}
    espo.answers = [page(), Answer(json={"id": "1"})]
    lead = Lead("A:1", {"assignedUserId": "7"})
    assert told(adapter.deliver([lead])) == [(Status.CREATED, None)]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal(400, "Bad value."), (Status.REJECTED, "400")),
        (refusal(409, "duplicate", [{"name": "Private Person"}]), (Status.REJECTED, "409")),
        (refusal(409, "modified", {"values": {}}), (Status.TRANSIENT, "409")),
        (Answer(413, body=b"<html>too large</html>"), (Status.REJECTED, "413")),
        (PROXY, (Status.TRANSIENT, "malformed_reply")),
        (Answer(body=b"<html>log in</html>"), (Status.TRANSIENT, "malformed_reply")),
        (Answer(500), (Status.TRANSIENT, "500")),
    ],
)
def test_what_a_refusal_means(espo: EspoCRM, adapter: CRMAdapter, answer: Answer, expected: tuple[Status, str]) -> None:
    espo.answers = [page(), answer]
    outcomes = adapter.deliver(LEADS[:1])
    assert told(outcomes) == [expected]
    assert "Private Person" not in str(outcomes)


def test_a_record_that_was_deleted_meanwhile_is_no_error_of_the_rest(espo: EspoCRM, adapter: CRMAdapter) -> None:
    there = page(("1", "A:1"), ("2", "A:2"))
    for gone in (refusal(404, "Record 1 not found."), Answer(404, body=b"")):
        espo.answers = [there, gone, Answer(json={"id": "2"})]
        assert told(adapter.deliver(LEADS[:2])) == [(Status.TRANSIENT, "not_found"), (Status.UPDATED, None)]
        espo.answers = [there, gone, Answer(json=True)]
        assert told(adapter.deliver(LEADS[:2], delete=True)) == [(Status.DELETED, None)] * 2


def test_a_gateway_that_finds_nothing_does_not_make_a_lead_deleted(espo: EspoCRM, adapter: CRMAdapter) -> None:
    espo.answers = [page(("1", "A:1")), Answer(404, body=b"<html>not found</html>")]
    with pytest.raises(AccessError, match="nothing at this address"):
        adapter.deliver(LEADS[:1], delete=True)


def test_a_wrong_address_is_not_taken_for_a_missing_lead(script: Scripted, adapter: CRMAdapter) -> None:
    script.respond = lambda request: Answer(404, body=b"<html>not found</html>")
    with pytest.raises(AccessError, match="nothing at this address"):
        adapter.deliver(LEADS)


def test_a_delete_that_was_not_done_is_not_told_as_done(espo: EspoCRM, adapter: CRMAdapter) -> None:
    espo.answers = [page(("1", "A:1")), Answer(json=False)]
    assert told(adapter.deliver(LEADS[:1], delete=True)) == [(Status.TRANSIENT, "malformed_reply")]


def test_many_long_ids_are_asked_for_in_addresses_that_a_web_server_takes(espo: EspoCRM, adapter: CRMAdapter) -> None:
    ids = [f"{number}é" * 40 for number in range(10, 30)]
    espo.answers = [page() for _ in ids]
    assert set(adapter.fetch(ids)) == set(ids)
    assert max(len(request.path) for request in espo.requests) < 8_000
    assert len(espo.requests) > 1


@pytest.mark.parametrize(
    ("sent", "held", "same"),
    [
        ("Ada@example.com", "ada@example.com", True),
        ("+49 170-1234567", "+491701234567", True),
        ("+49 170-1234567", "+491701234568", False),
        ("x" * 10_005, "x" * 10_000, True),
        ("x" * 10_005, "x" * 9_999, False),
        (None, False, True),
        ("2026-01-31 09:30:00.1+00", "2026-01-31 09:30:00.9+00", False),
    ],
)
def test_what_is_the_same(adapter: CRMAdapter, sent: Any, held: Any, same: bool) -> None:
    assert adapter.same("name", sent, held) is same
