"""APIs described by settings that no simulator speaks: one record a request, errors in a 200, and replies that lie."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any
from urllib.parse import unquote

import orjson
import pytest
import yaml
from tests.support.scripted import Answer, Request, Scripted, running_script

from leadsync.config import Destination
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.errors import AccessError, ConfigError, QuotaExceeded, Unavailable
from leadsync.models import Lead, Outcome, Status

# As plain as an API can be: a record has an address made of the external id.
PLAIN: dict[str, Any] = yaml.safe_load("""
requests_per_second: 1000
upsert: {method: PUT, path: "/{object}/{external_id}", body: "{fields}", results: {id: id}}
delete: {method: DELETE, path: "/{object}/{external_id}", absent_status: 404}
fetch: {method: GET, path: "/{object}/{external_id}", key: "{external_id_field}", id: id, absent_status: 404}
check: {method: GET, path: "/{object}"}
errors: {code: code, message: message, field: field, transient: LOCKED, setup: NO_FIELD, quota: SPENT}
""")
# Everything in a 200, by position, with a list of ids in the body.
BATCH: dict[str, Any] = yaml.safe_load("""
requests_per_second: 1000
upsert:
  method: POST
  path: /upsert
  max_batch: 10
  body: {leads: "{leads}"}
  each: {key: "{external_id}", "...": "{fields}"}
  results: {items: data.list, id: id, success: ok, code: why, created: did, created_is: insert}
delete:
  method: POST
  path: /delete
  max_batch: 10
  body: {keys: "{external_ids}"}
  results: {items: data.list, key: key, success: ok, code: why}
fetch:
  method: POST
  path: /query
  max_batch: 10
  body: {keys: "{external_ids}"}
  items: data.list
  key: "{external_id_field}"
  id: id
  complete: true
check: {method: GET, path: /fields, fields: data.fields, before_upsert: true}
errors: {code: code, message: text, success: 0, throttled: [9], expired: 7, quota: 8, setup: [5], gone: GONE}
""")


# An API that has no upsert, and finds records by a search.
SINGLE: dict[str, Any] = yaml.safe_load("""
requests_per_second: 1000
create:
  method: POST
  path: /leads
  body: {"...": "{fields}", "{external_id_field}": "{external_id}"}
  results: {id: id, code: error}
update: {method: PATCH, path: "/leads/{id}", body: "{fields}"}
delete: {method: DELETE, path: "/leads/{id}", absent_status: 404}
fetch:
  method: POST
  path: /search
  max_batch: 20
  body: {in: "{external_ids}"}
  items: found
  key: "{external_id_field}"
  id: id
  total: total
check: {method: GET, path: /leads}
errors: {code: error}
""")


def destination(settings: Any, **changes: Any) -> Destination:
    plain = {
        "name": "target", "adapter": "rest", "object": "leads", "external_id_field": "ext", "fields": {"name": "name"}
    }  # fmt: skip
    return Destination.model_validate({**plain, "settings": settings, **changes})


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


Build = Callable[..., CRMAdapter]


@pytest.fixture
def build(script: Scripted) -> Iterator[Build]:
    made: list[CRMAdapter] = []

    def build(settings: Any, endpoint: Endpoint | None = None, **changes: Any) -> CRMAdapter:
        adapter = registry.build(destination(settings, **changes), endpoint or Endpoint(script.url, "me", "s3cret"))
        adapter.http.sleep = lambda seconds: None
        made.append(adapter)
        return adapter

    yield build
    for adapter in made:
        adapter.close()


def told(outcomes: list[Outcome]) -> list[tuple[Status, str | None]]:
    return [(outcome.status, outcome.code) for outcome in outcomes]


LEADS = [Lead("A:1", {"name": "Ada"}), Lead("A:2", {"name": "Ben"})]


class PlainAPI:
    """Keeps records under their external ids."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, Any]] = {}

    def __call__(self, request: Request) -> Answer:
        key = unquote(request.path.partition("/leads/")[2])
        if request.method == "PUT":
            fields = orjson.loads(request.body)
            if "@" in fields["name"]:
                return Answer(422, {"code": "INVALID", "message": f"name: {fields['name']}", "field": "name"})
            status = 200 if key in self.records else 201
            self.records[key] = {"ext": key, "id": len(self.records) + 1, **fields}
            return Answer(status, self.records[key])
        if not key:
            return Answer(200, [])
        if key not in self.records:
            return Answer(404, {"code": "UNKNOWN"})
        return Answer(204) if request.method == "DELETE" and self.records.pop(key) else Answer(200, self.records[key])


def test_one_record_a_request(script: Scripted, build: Build) -> None:
    api = PlainAPI()
    script.respond = api
    adapter = build(PLAIN)
    adapter.check()
    leads = [*LEADS, Lead("ä/ ?", {"name": "Zoë"}), Lead("A:bad", {"name": "x@y"})]
    rejected = (Status.REJECTED, "INVALID")
    assert told(adapter.deliver(leads)) == [(Status.CREATED, None)] * 3 + [rejected]
    outcomes = adapter.deliver(leads)
    assert told(outcomes) == [(Status.UPDATED, None)] * 3 + [rejected]
    assert [outcome.field for outcome in outcomes] == [None, None, None, "name"]
    found = adapter.fetch(["ä/ ?", "A:9"])
    assert found["A:9"] == []
    assert [(r.external_id, r.fields) for r in found["ä/ ?"]] == [("ä/ ?", {"name": "Zoë"})]
    assert told(adapter.deliver([*LEADS, Lead("A:9", {})], delete=True)) == [(Status.DELETED, None)] * 3
    assert set(api.records) == {"ä/ ?"}


class SearchAPI:
    """Numbers its records; of a record in `hidden` no search knows yet."""

    def __init__(self, *, unique: bool = True) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.unique = unique
        self.hidden = 0  # so many searches find nothing
        self.down_at = ""  # the name of a lead at which the API breaks

    def __call__(self, request: Request) -> Answer:
        verb, number = request.method, request.path.rpartition("/")[2]
        document = orjson.loads(request.body) if request.body else {}
        if number == "search":
            found = [each for each in self.records.values() if each["ext"] in document["in"]]
            self.hidden -= 1
            return Answer(200, {"found": found, "total": len(found)} if self.hidden < 0 else {"found": [], "total": 0})
        if verb == "GET":
            return Answer(200, [])
        if self.down_at and document.get("name") == self.down_at:
            return Answer(503)
        if "@" in document.get("name", ""):
            return Answer(400, {"error": "INVALID"})
        if verb == "POST":
            if self.unique and any(each["ext"] == document["ext"] for each in self.records.values()):
                return Answer(409, {"error": "TAKEN"})
            number = str(len(self.records) + 1)
            self.records[number] = {"id": int(number), **document}
            return Answer(200, {"id": int(number)})
        if number not in self.records:
            return Answer(404, {"error": "UNKNOWN"})
        if verb == "DELETE":
            del self.records[number]
        else:
            self.records[number] |= document
        return Answer(204)


def test_without_an_upsert_records_are_looked_up_first(script: Scripted, build: Build) -> None:
    api = SearchAPI()
    script.respond = api
    adapter = build(SINGLE)
    leads = [*LEADS, Lead("A:bad", {"name": "x@y"}), Lead("A:3", {"name": "Cid"})]
    rejected = (Status.REJECTED, "INVALID")
    assert told(adapter.deliver(leads)) == [(Status.CREATED, None)] * 2 + [rejected, (Status.CREATED, None)]
    leads[0] = Lead("A:1", {"name": "Eve"})
    outcomes = adapter.deliver(leads)
    assert told(outcomes) == [(Status.UPDATED, None)] * 2 + [rejected, (Status.UPDATED, None)]
    assert [outcome.crm_id for outcome in outcomes] == ["1", "2", None, "3"]
    assert {each["ext"]: each["name"] for each in api.records.values()} == {"A:1": "Eve", "A:2": "Ben", "A:3": "Cid"}
    assert told(adapter.deliver(LEADS, delete=True)) == [(Status.DELETED, None)] * 2
    assert {owner: len(found) for owner, found in adapter.fetch(["A:1", "A:3"]).items()} == {"A:1": 0, "A:3": 1}


def test_a_create_that_is_refused_for_a_record_that_is_there_updates_it(script: Scripted, build: Build) -> None:
    api = SearchAPI()
    script.respond = api
    adapter = build(SINGLE)
    adapter.deliver(LEADS)
    api.hidden = 1
    assert told(adapter.deliver([Lead("A:1", {"name": "Eve"})])) == [(Status.UPDATED, None)]
    assert api.records["1"]["name"] == "Eve"
    assert len(api.records) == 2


def test_a_broken_api_is_not_hammered_and_what_was_done_is_told(script: Scripted, build: Build) -> None:
    api = SearchAPI()
    script.respond = api
    api.down_at = "Ben"
    outcomes = build(SINGLE).deliver([*LEADS, Lead("A:3", {"name": "Cid"})])
    assert told(outcomes) == [(Status.CREATED, None), (Status.TRANSIENT, "503"), (Status.TRANSIENT, "503")]
    assert [outcome.sent for outcome in outcomes] == [True, True, False]
    assert len(script.requests) == 3


def test_all_records_of_a_doubled_lead_are_updated(script: Scripted, build: Build) -> None:
    api = SearchAPI(unique=False)
    script.respond = api
    api.records = {"1": {"id": 1, "ext": "A:1", "name": "x"}, "2": {"id": 2, "ext": "A:1", "name": "y"}}
    assert told(build(SINGLE).deliver(LEADS[:1])) == [(Status.UPDATED, None)]
    assert [each["name"] for each in api.records.values()] == ["Ada", "Ada"]


def test_a_proxys_404_is_no_absence(script: Scripted, build: Build) -> None:
    script.answers = [Answer(404, body=b"<html>no such site</html>")]
    adapter = build(PLAIN)
    for act in (lambda: adapter.deliver(LEADS, delete=True), lambda: adapter.fetch(["A:1"])):
        with pytest.raises(AccessError, match="crm_target"):
            act()


def test_a_404_where_nothing_says_what_it_means_is_no_absence(script: Scripted, build: Build) -> None:
    settings = deepcopy(PLAIN)
    del settings["delete"]["absent_status"]
    script.answers = [Answer(404, {"code": "UNKNOWN"})]
    with pytest.raises(AccessError, match="'leads'"):
        build(settings).deliver(LEADS, delete=True)


def test_an_id_that_would_name_the_collection_is_never_sent(script: Scripted, build: Build) -> None:
    script.answers = [Answer(204)]
    outcomes = build(PLAIN).deliver([Lead("..", {}), Lead("", {})], delete=True)
    assert told(outcomes) == [(Status.REJECTED, "unsendable_id")] * 2
    assert script.requests == []


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        ({}, "Authorization", "Bearer s3cret"),
        ({"scheme": "api_key", "header": "X-Token"}, "X-Token", "s3cret"),
        ({"scheme": "basic"}, "Authorization", f"Basic {base64.b64encode(b'me:s3cret').decode()}"),
    ],
)
def test_what_opens_the_door(script: Scripted, build: Build, auth: dict[str, str], header: str, value: str) -> None:
    script.answers = [Answer(200, {}), Answer(401, {})]
    adapter = build({**PLAIN, "auth": auth})
    adapter.check()
    assert script.requests[0].headers[header] == value
    with pytest.raises(AccessError, match="401") as caught:
        adapter.check()
    assert "s3cret" not in str(caught.value)
    assert len(script.requests) == 2


def test_a_login_is_made_once_and_renewed_once(script: Scripted, build: Build) -> None:
    auth = {"scheme": "client_credentials", "token_path": "/token", "scope": "leads"}
    script.answers = [
        Answer(200, {"access_token": "t1"}), Answer(200, {}), Answer(401), Answer(200, {"access_token": "t2"}),
        Answer(200, {}), Answer(401), Answer(400, {"error": "invalid_client s3cret"}),
    ]  # fmt: skip
    adapter = build({**PLAIN, "auth": auth})
    adapter.check()
    adapter.check()
    assert script.requests[0].body == b"grant_type=client_credentials&client_id=me&client_secret=s3cret&scope=leads"
    assert [r.headers.get("Authorization") for r in script.requests] == [
        None, "Bearer t1", "Bearer t1", None, "Bearer t2",
    ]  # fmt: skip
    for _ in range(2):  # what was refused is not tried again
        with pytest.raises(AccessError, match="refuses the login") as caught:
            adapter.check()
        assert "s3cret" not in str(caught.value)
    assert len(script.requests) == 7


FIELDS = Answer(200, {"code": 0, "data": {"fields": [{"name": "ext"}, {"name": "name"}]}})


def results(*items: Any, code: int = 0) -> Answer:
    return Answer(200, {"code": code, "data": {"list": list(items)}})


def test_errors_in_a_200(script: Scripted, build: Build) -> None:
    adapter = build(BATCH)
    script.answers = [
        FIELDS, Answer(200, {"code": 9}), results({"ok": True, "id": 1, "did": "insert"}, {"ok": False, "why": "BAD"})
    ]  # fmt: skip
    outcomes = adapter.deliver(LEADS)  # 9: throttled, and waited out
    assert told(outcomes) == [(Status.CREATED, None), (Status.REJECTED, "BAD")]
    assert outcomes[0].crm_id == "1"
    script.answers = [Answer(200, {"code": 3, "text": "no"})]
    assert told(adapter.deliver(LEADS)) == [(Status.REJECTED, "3")] * 2
    script.answers = [Answer(200, {"code": 8})]
    with pytest.raises(QuotaExceeded):
        adapter.deliver(LEADS)
    script.answers = [Answer(200, {"code": 7})]
    with pytest.raises(AccessError, match="token"):
        adapter.deliver(LEADS)
    script.answers = [Answer(200, {"code": 5, "text": "name is unknown"})]
    with pytest.raises(AccessError, match="'name'"):
        adapter.deliver(LEADS)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(200, body=b"<html>hello"), "malformed_reply"),
        (Answer(200, {"code": 0}), "malformed_reply"),
        (results({}, {}), "malformed_reply"),
        (results({"ok": True}), "missing_from_reply"),
        (results(1, "x"), "malformed_reply"),
    ],
)
def test_replies_that_make_no_sense_are_transient(script: Scripted, build: Build, answer: Answer, code: str) -> None:
    script.answers = [FIELDS, answer]
    outcomes = build(BATCH).deliver(LEADS)
    assert {(outcome.status, outcome.code) for outcome in outcomes} == {(Status.TRANSIENT, code)}


def test_a_field_that_would_be_dropped_without_a_word_is_named(script: Scripted, build: Build) -> None:
    adapter = build(BATCH)
    script.answers = [FIELDS]
    with pytest.raises(AccessError, match="'shoe_size'"):
        adapter.deliver([Lead("A:1", {"name": "Ada", "shoe_size": 9})])
    assert [request.path for request in script.requests] == ["/fields"]


def test_a_delete_says_deleted_only_of_what_surely_is(script: Scripted, build: Build) -> None:
    adapter = build(BATCH)
    leads = [*LEADS, Lead("A:3", {}), Lead("A:4", {})]
    script.answers = [
        results({"key": "A:2", "ok": False, "why": "GONE"}, {"key": "A:1", "ok": True}, {"key": "A:4", "ok": False})
    ]
    assert told(adapter.deliver(leads, delete=True)) == [
        (Status.DELETED, None), (Status.DELETED, None), (Status.TRANSIENT, "missing_from_reply"),
        (Status.REJECTED, None),
    ]  # fmt: skip


@pytest.mark.parametrize("record", [{"id": 1}, {"ext": "A:1"}, "x"])
def test_a_record_that_nobody_can_attribute_is_no_answer(script: Scripted, build: Build, record: Any) -> None:
    script.answers = [results(record)]
    with pytest.raises(Unavailable, match="left records out"):
        build(BATCH).fetch(["A:1"])


def test_all_records_of_a_doubled_lead_are_deleted(script: Scripted, build: Build) -> None:
    settings = deepcopy(BATCH)
    settings["delete"] |= {"body": {"ids": "{ids}"}, "results": {"items": "data.list", "key": "id", "success": "ok"}}
    adapter = build(settings)
    found = results({"ext": "A:1", "id": 5}, {"ext": "A:1", "id": 6}, {"ext": "A:2", "id": 7}, {"ext": "a:1", "id": 9})
    script.answers = [found, results(*({"id": number, "ok": True} for number in (7, 5)))]
    assert told(adapter.deliver(LEADS, delete=True)) == [
        (Status.TRANSIENT, "missing_from_reply"), (Status.DELETED, None),
    ]  # fmt: skip
    assert orjson.loads(script.requests[1].body) == {"ids": ["5", "6", "7"]}


def test_texts_only(script: Scripted, build: Build) -> None:
    script.answers = [Answer(200, {"id": 1})]
    build({**PLAIN, "texts": True}).deliver([Lead("A:1", {"a": 1.50, "b": True, "c": None})])
    assert orjson.loads(script.requests[0].body) == {"a": "1.5", "b": "true", "c": ""}


def changed(settings: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy = deepcopy(settings)
    *parents, last = path.split(".")
    at = copy
    for name in parents:
        at = at[name]
    at[last] = value
    return copy


@pytest.mark.parametrize(
    ("settings", "path", "value", "said"),
    [
        (PLAIN, "upsert.path", "leads", "settings.upsert.path: String should match"),
        (PLAIN, "upsert.path", "/leads/{uid}", r"settings.upsert: .*`path`: \{uid\} has no meaning here; allowed: ext"),
        (PLAIN, "upsert.body", {"a": 1}, r"settings.upsert: .*needs \{fields\}"),
        (PLAIN, "upsert.path", "/leads", r"settings.upsert: .*needs \{external_id\}"),
        (PLAIN, "upsert.method", "SEND", "settings.upsert.method: Input should be"),
        (PLAIN, "upsert.headers", {"authorization": "x"}, "settings.upsert: .*belongs into the connection"),
        (PLAIN, "upsert.body", "{leads}", "settings.upsert: .*give both or neither"),
        (PLAIN, "upsert.results.idd", "x", "settings.upsert.results.idd: Extra inputs"),
        (PLAIN, "upsert.results.id", "{leads}", r"settings.upsert.results.id: .*\{leads\} has no meaning"),
        (PLAIN, "delete.path", "/leads", r"settings.delete: .*needs \{id\} or"),
        (PLAIN, "delete.path", "/{id}/{external_id}", "settings.delete: .*not by both"),
        (PLAIN, "delete", None, "settings: .*`delete` is needed for `on_delete: delete`"),
        (PLAIN, "fetch.complete", True, "settings.fetch: .*exactly one of"),
        (PLAIN, "auth", {"scheme": "client_credentials"}, "settings.auth: .*token_path"),
        (PLAIN, "check.unique", "x", "settings.check: .*need `fields`"),
        (PLAIN, "upsert", None, "settings: .*needs `upsert`, or else `create` and `update`"),
        (PLAIN, "create", SINGLE["create"], "settings: .*needs `upsert`, or else"),
        (SINGLE, "update", None, "settings: .*needs `upsert`, or else"),
        (SINGLE, "update.path", "/leads", r"settings.update: .*needs \{id\}"),
        (SINGLE, "create.path", "/{id}", r"settings.create: .*`path`: \{id\} has no meaning"),
        (SINGLE, "create", {**BATCH["upsert"], "results": None}, "settings: .*take one lead a request"),
        (BATCH, "upsert.body", {"x": "{external_id}"}, r"settings.upsert: .*`body`: \{external_id\} has no meaning"),
        (BATCH, "upsert.each", {"x": "{id}"}, r"settings.upsert: .*`each`: \{id\} has no meaning"),
        (BATCH, "fetch", {**BATCH["fetch"], "complete": False, "absent_status": 404}, "needs `max_batch: 1`"),
    ],
)
def test_a_mistake_names_its_setting(settings: dict[str, Any], path: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"destinations.target.{said}" if said.startswith("settings") else said):
        registry.check_destination(destination(changed(settings, path, value)))


def test_no_delete_is_needed_where_a_field_marks_it(build: Build) -> None:
    settings = deepcopy(PLAIN)
    del settings["delete"]
    build(settings, on_delete={"mode": "field", "field": "gone", "value": True})
