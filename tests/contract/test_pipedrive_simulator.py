"""The simulated Pipedrive is as strict as the published API, and as vague as its search."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.support.simulators import Simulator, Simulators

KEY = "3339fe67e9a9406d52bbdf177157fc4aa07d3d69"
CITY = "852356669e0270244002c417b8d6fd91e363368f"
BUDGET = "55871649a6a1b5a694730e82607a2eb1c10a9e1e"
LEAD_KEY = "e411ee487cebbbc613cff2ae273c4b94f7878dc0"


class Client:
    def __init__(self, simulator: Simulator) -> None:
        self.url = f"{simulator.url}/api"
        self.token = simulator.token

    def call(self, method: str, path: str, body: Any = None, **params: Any) -> requests.Response:
        headers = {"x-api-token": self.token}
        return requests.request(method, self.url + path, json=body, params=params, headers=headers, timeout=10)

    def person(self, external_id: str, custom: Any = (), **fields: Any) -> requests.Response:
        body = {"name": "Li", "custom_fields": {KEY: external_id, **dict(custom)}, **fields}
        return self.call("POST", "/v2/persons", body)

    def lead(self, external_id: str, **fields: Any) -> requests.Response:
        return self.call("POST", "/v1/leads", {"title": "Li", "person_id": 1, LEAD_KEY: external_id, **fields})

    def search(self, term: str, field: str = KEY, kind: str = "person", **params: Any) -> requests.Response:
        query = {"term": term, "field": field, "entity_type": kind, "match": "exact", **params}
        return self.call("GET", "/v2/itemSearch/field", **query)


@pytest.fixture
def crm(simulators: Simulators) -> Simulator:
    simulators["pipedrive"].reset()
    return simulators["pipedrive"]


@pytest.fixture
def client(crm: Simulator) -> Client:
    return Client(crm)


def test_a_person_is_created_read_updated_and_deleted(client: Client, crm: Simulator) -> None:
    created = client.person("A:1", {CITY: "Berlin"}, emails=[{"value": "a@example.com"}]).json()
    assert created["success"] is True
    person = created["data"]
    assert person["custom_fields"].items() >= {KEY: "A:1", CITY: "Berlin", BUDGET: None}.items()
    assert person["emails"] == [{"value": "a@example.com", "primary": True, "label": "work"}]
    path = f"/v2/persons/{person['id']}"
    changed = client.call("PATCH", path, {"custom_fields": {CITY: None}}).json()["data"]
    assert (changed["name"], changed["custom_fields"][CITY], changed["custom_fields"][KEY]) == ("Li", None, "A:1")
    assert client.call("DELETE", path).json()["data"] == {"id": person["id"]}
    assert client.call("GET", path).json()["data"]["is_deleted"] is True
    assert client.call("PATCH", path, {}).status_code == client.call("DELETE", path).status_code == 404
    assert crm.records() == {}
    assert [change["action"] for change in crm.journal()] == ["create", "update", "delete"]


def test_a_lead_has_custom_fields_beside_the_others_and_shows_those_with_a_value(client: Client) -> None:
    reply = client.lead("A:1")
    assert reply.status_code == 201
    lead = reply.json()["data"]
    assert lead[LEAD_KEY] == "A:1"
    assert [name for name in lead if len(name) == 40] == [LEAD_KEY]
    path = f"/v1/leads/{lead['id']}"
    assert client.call("PATCH", path, {"is_archived": True}).json()["data"]["is_archived"] is True
    assert client.call("GET", "/v1/leads").json()["data"] is None
    assert [each["id"] for each in client.call("GET", "/v1/leads/archived").json()["data"]] == [lead["id"]]
    assert client.call("DELETE", path).json()["data"] == {"id": lead["id"]}
    assert client.call("GET", path).status_code == 404


def test_the_external_id_is_not_unique(client: Client, crm: Simulator) -> None:
    client.person("A:1")
    client.person("A:1")
    assert len(client.search("A:1").json()["data"]) == 2
    assert crm.stats()["doubled"] == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": ""}, "name: "),
        ({"name": None}, "name: "),
        ({"org_id": "7"}, "org_id: must be an integer"),
        ({"visible_to": True}, "visible_to: must be an integer"),
        ({"emails": "a@example.com"}, "emails: must be an array"),
        ({"emails": [{"value": ""}]}, "emails.0.value: "),
        ({"email": "a@example.com"}, "Parameter 'email' is not allowed for this request"),
        ({KEY: "A:1"}, f"Parameter '{KEY}' is not allowed for this request"),
        ({"custom_fields": {"0" * 40: "x"}}, f"Parameter 'custom_fields.{'0' * 40}' is not allowed for this request"),
        ({"custom_fields": {CITY: 7}}, f"custom_fields.{CITY}: must be a string"),
        ({"custom_fields": {CITY: "x" * 256}}, f"custom_fields.{CITY}: is too long"),
        ({"custom_fields": {BUDGET: "7"}}, f"custom_fields.{BUDGET}: must be a number"),
        ({"custom_fields": []}, "custom_fields: must be an object"),
    ],
)
def test_what_is_not_of_its_type_is_refused_and_named(
    client: Client, crm: Simulator, fields: dict[str, Any], said: str
) -> None:
    reply = client.person("A:1", **fields)
    document = reply.json()
    assert (reply.status_code, document["success"], document["code"]) == (400, False, "ERR_SCHEMA_VALIDATION_FAILED")
    assert document["error"].startswith("Validation failed: ")
    assert said in document["error"]
    assert crm.journal() == []


def test_a_name_and_a_link_are_required(client: Client) -> None:
    assert client.call("POST", "/v2/persons", {"custom_fields": {KEY: "A:1"}}).status_code == 400
    assert client.lead("A:1", person_id=None).status_code == 400
    assert client.call("POST", "/v1/leads", {"person_id": 1}).status_code == 400
    assert client.call("POST", "/v2/persons", []).status_code == 400


def test_one_address_is_the_primary_one(client: Client) -> None:
    entries = [{"value": "a"}, {"value": "b", "primary": True, "label": "home"}, {"value": "c", "primary": True}]
    found = client.person("A:1", phones=entries).json()["data"]["phones"]
    assert [(entry["value"], entry["primary"], entry["label"]) for entry in found] == [
        ("a", False, "work"), ("b", True, "home"), ("c", False, "work")
    ]  # fmt: skip


def test_the_search_is_exact_and_of_one_field_and_kind(client: Client) -> None:
    one = client.person("A:1", {CITY: "A:2"}).json()["data"]["id"]
    client.person("a:1")
    lead = client.lead("A:1").json()["data"]["id"]
    assert client.search("A:1").json()["data"] == [{"id": one, KEY: "A:1"}]
    assert client.search("A:2").json()["data"] == []
    assert [each["id"] for each in client.search("A:2", CITY).json()["data"]] == [one]
    assert client.search("A:1", LEAD_KEY, "lead").json()["data"] == [{"id": lead, LEAD_KEY: "A:1"}]
    assert client.search("A:1", "0" * 40).status_code == 400
    assert client.search("A:1", kind="nothing").status_code == 400
    assert client.search("").status_code == 400


def test_the_search_lags_behind_when_told_to(client: Client, crm: Simulator) -> None:
    old = client.person("A:1").json()["data"]["id"]
    crm.faults(search_lag=300)
    assert client.search("A:1").json()["data"] == []
    crm.faults()
    client.call("DELETE", f"/v2/persons/{old}")
    assert client.search("A:1").json()["data"] == []
    crm.faults(search_lag=300)
    assert [each["id"] for each in client.search("A:1").json()["data"]] == [old]


def test_persons_are_listed_by_ids_or_in_order_by_cursor(client: Client, crm: Simulator) -> None:
    ids = [client.person(f"A:{number}").json()["data"]["id"] for number in range(5)]
    client.lead("A:1")
    page = client.call("GET", "/v2/persons", limit=2, sort_by="add_time", sort_direction="desc").json()
    found = [person["id"] for person in page["data"]]
    while cursor := page["additional_data"]["next_cursor"]:
        order = {"sort_by": "add_time", "sort_direction": "desc"}
        page = client.call("GET", "/v2/persons", limit=2, cursor=cursor, **order).json()
        found += [person["id"] for person in page["data"]]
    assert found == ids[::-1]
    client.call("DELETE", f"/v2/persons/{ids[0]}")
    listed = client.call("GET", "/v2/persons", ids=f"{ids[0]},{ids[1]},{ids[3]},999999").json()["data"]
    assert [person["id"] for person in listed] == [ids[1], ids[3]]
    crm.faults(half_page={"next": 1})
    assert len(client.call("GET", "/v2/persons", ids=f"{ids[1]},{ids[3]}").json()["data"]) == 1


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v2/persons", {"limit": 501}),
        ("/v2/persons", {"limit": "many"}),
        ("/v2/persons", {"cursor": "nonsense"}),
        ("/v2/persons", {"ids": ",".join(map(str, range(101)))}),
        ("/v2/persons", {"ids": "1,x"}),
        ("/v2/persons", {"sort_by": "name"}),
        ("/v2/persons/x", {}),
        ("/v1/leads", {"sort": "add_time"}),
        ("/v1/leads", {"start": "x"}),
        ("/v1/leads/1", {}),
    ],
)
def test_a_wrong_question_is_refused(client: Client, path: str, params: dict[str, Any]) -> None:
    reply = client.call("GET", path, **params)
    assert (reply.status_code, reply.json()["success"]) == (400, False)


def test_leads_are_listed_by_start(client: Client) -> None:
    ids = [client.lead(f"A:{number}").json()["data"]["id"] for number in range(3)]
    page = client.call("GET", "/v1/leads", limit=2, sort="add_time DESC").json()
    pagination = page["additional_data"]["pagination"]
    assert (pagination["more_items_in_collection"], pagination["next_start"]) == (True, 2)
    rest = client.call("GET", "/v1/leads", limit=2, start=2, sort="add_time DESC").json()
    assert rest["additional_data"]["pagination"]["more_items_in_collection"] is False
    assert [lead["id"] for lead in page["data"] + rest["data"]] == ids[::-1]


def test_fields_are_described_by_key_and_type(client: Client) -> None:
    for path, key in (("/v2/personFields", KEY), ("/v2/dealFields", LEAD_KEY)):
        fields = {field["field_code"]: field for field in client.call("GET", path).json()["data"]}
        assert (fields[key]["field_type"], fields[key]["is_custom_field"]) == ("varchar", True)
        assert fields["id"]["is_custom_field"] is False


def test_tokens_and_limits(client: Client, crm: Simulator) -> None:
    headers = client.person("A:1").headers
    left, limit = (int(headers[f"x-daily-ratelimit-token-{what}"]) for what in ("remaining", "limit"))
    assert 0 < left < limit
    crm.faults(too_many={"next": 1})
    throttled = client.person("A:1")
    assert (throttled.status_code, throttled.json()["success"]) == (429, False)
    assert throttled.headers["x-daily-ratelimit-token-remaining"] != "0"
    crm.faults(quota_spent=True)
    spent = client.person("A:1")
    assert (spent.status_code, spent.headers["x-daily-ratelimit-token-remaining"]) == (429, "0")


def test_wrong_tokens(client: Client, crm: Simulator) -> None:
    crm.faults(expire_tokens=True)
    assert client.person("A:1").status_code == 401
    crm.faults()
    client.token = "wrong"
    reply = client.person("A:1")
    assert (reply.status_code, reply.json()["errorCode"]) == (401, 401)
    bearer = {"Authorization": f"Bearer {crm.token}"}
    assert requests.get(f"{client.url}/v2/persons", headers=bearer, timeout=10).status_code == 401
    assert crm.journal() == []
