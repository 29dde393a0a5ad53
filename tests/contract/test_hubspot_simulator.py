"""The simulated HubSpot is as strict as the published API."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.calls import CONTACTS, Client
from tests.support.simulators import Simulator

KEY = "leadsync_external_id"


@pytest.fixture
def client(hubspot: Simulator) -> Client:
    return Client(hubspot)


def entry(external_id: str, **properties: Any) -> dict[str, Any]:
    return {"id": external_id, "idProperty": KEY, "objectWriteTraceId": f"t-{external_id}", "properties": properties}


def upsert(client: Client, *inputs: dict[str, Any]) -> Any:
    return client.call("POST", f"{CONTACTS}/batch/upsert", {"inputs": list(inputs)})


def read(client: Client, *ids: str, archived: bool = False, **changes: Any) -> Any:
    body = {"idProperty": KEY, "properties": [KEY, "city"], "propertiesWithHistory": [], **changes}
    found = client.call("POST", f"{CONTACTS}/batch/read", body | {"inputs": [{"id": i} for i in ids]},
                        **({"archived": "true"} if archived else {}))  # fmt: skip
    return found


def archive(client: Client, *ids: str) -> Any:
    return client.call("POST", f"{CONTACTS}/batch/archive", {"inputs": [{"id": i} for i in ids]})


@pytest.mark.parametrize(
    "family", ["/crm/v3/objects/contacts", "/crm/objects/2025-09/contacts", "/crm/objects/2026-03/0-1",
               "/crm/objects/2026-09/contacts"],
)  # fmt: skip
def test_all_versions_upsert(client: Client, hubspot: Simulator, family: str) -> None:
    reply = client.call("POST", f"{family}/batch/upsert", {"inputs": [entry("A:1", city="Berlin")]})
    document = reply.json()
    assert (reply.status_code, document["status"]) == (200, "COMPLETE")
    (result,) = document["results"]
    assert result["new"] is True
    assert result["archived"] is False
    assert result["properties"].items() >= {KEY: "A:1", "city": "Berlin", "hs_object_id": result["id"]}.items()
    assert hubspot.records() == {"A:1": {KEY: "A:1", "city": "Berlin"}}


@pytest.mark.parametrize("path", ["/crm/objects/2024-01/contacts/batch/upsert", "/crm/v3/objects/contacts/batch/merge"])
def test_unknown_paths_are_not_found(client: Client, path: str) -> None:
    assert client.call("POST", path, {"inputs": []}).status_code == 404


def test_results_are_told_apart_by_key_and_not_by_place(client: Client) -> None:
    upsert(client, entry("A:2"))
    results = upsert(client, entry("A:1"), entry("A:2"), entry("A:3")).json()["results"]
    assert {item["properties"][KEY]: item["new"] for item in results} == {"A:1": True, "A:2": False, "A:3": True}
    assert [item["properties"][KEY] for item in results] != ["A:1", "A:2", "A:3"]


def test_a_hundred_is_the_most(client: Client, hubspot: Simulator) -> None:
    inputs = [entry(f"A:{number}") for number in range(101)]
    assert upsert(client, *inputs).status_code == 400
    assert hubspot.records() == {}
    assert upsert(client, *inputs[:100]).status_code == 200
    assert read(client, *(f"A:{number}" for number in range(101))).status_code == 400
    assert archive(client, *(str(number) for number in range(101))).status_code == 400


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"id": None}, "[id]"),
        ({"id": 5}, "[id]"),
        ({"idProperty": None}, "[idProperty]"),
        ({"idProperty": "city"}, "non-unique"),
        ({"idProperty": "no_such"}, "non-unique"),
        ({"idProperty": "hs_object_id"}, "non-unique"),
        ({"properties": None}, "[properties]"),
        ({"properties": {"city": {"a": 1}}}, "a property's value"),
        ({"properties": {"city": ["a"]}}, "a property's value"),
        ({"properties": {"no_such": "a"}}, '"no_such" does not exist'),
        ({"objectWriteTraceId": 7}, "objectWriteTraceId"),
        ({"id": "A:1"}, "Duplicate IDs"),
    ],
)
def test_one_malformed_input_refuses_the_batch(
    client: Client, hubspot: Simulator, wrong: dict[str, Any], said: str
) -> None:
    reply = upsert(client, entry("A:1", city="x"), entry("A:2") | wrong)
    assert reply.status_code == 400
    document = reply.json()
    assert (document["status"], document["category"]) == ("error", "VALIDATION_ERROR")
    assert said in document["message"]
    assert document["correlationId"]
    assert hubspot.journal() == []


def test_an_unknown_property_is_named(client: Client) -> None:
    (detail,) = upsert(client, entry("A:1", no_such="x")).json()["errors"]
    assert (detail["code"], detail["context"]) == ("PROPERTY_DOESNT_EXIST", {"propertyName": ["no_such"]})


@pytest.mark.parametrize("body", [None, [], {}, {"inputs": {}}, {"inputs": ["A:1"]}])
def test_other_bodies_are_refused(client: Client, body: Any) -> None:
    assert client.call("POST", f"{CONTACTS}/batch/upsert", body).status_code == 400


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("email", "nobody", "INVALID_EMAIL"),
        ("email", "a b@example.com", "INVALID_EMAIL"),
        ("lifecyclestage", "unheard of", "INVALID_OPTION"),
        ("leadsync_deleted", "perhaps", "INVALID_OPTION"),
        ("leadsync_answers", "x" * 65_537, "PROPERTY_VALUE_TOO_LONG"),
        ("createdate", "2026-01-01", "READ_ONLY_VALUE"),
    ],
)
def test_an_invalid_value_is_attributed_by_trace_id(
    client: Client, hubspot: Simulator, name: str, value: str, code: str
) -> None:
    reply = upsert(client, entry("A:1", city="x"), entry("A:2", **{name: value}))
    document = reply.json()
    assert (reply.status_code, document["numErrors"]) == (207, 1)
    (error,) = document["errors"]
    assert error["context"] == {"objectWriteTraceId": ["t-A:2"]}
    assert (error["status"], error["category"]) == ("error", "VALIDATION_ERROR")
    assert (error["errors"][0]["code"], error["errors"][0]["context"]) == (code, {"propertyName": [name]})
    assert set(hubspot.records()) == {"A:1"}


def test_without_trace_ids_one_invalid_value_refuses_the_batch(client: Client, hubspot: Simulator) -> None:
    inputs = [entry("A:1", city="x"), entry("A:2", email="nobody")]
    for item in inputs:
        del item["objectWriteTraceId"]
    reply = upsert(client, *inputs)
    assert (reply.status_code, reply.json()["errors"][0]["code"]) == (400, "INVALID_EMAIL")
    assert hubspot.journal() == []


def test_values_are_kept_as_texts_and_the_empty_one_clears(client: Client, hubspot: Simulator) -> None:
    upsert(client, entry("A:1", leadsync_uid=5, leadsync_deleted=True, city="x", email=" A@Example.COM "))
    upsert(client, entry("A:1", city="", country=None))
    assert hubspot.records()["A:1"] == {
        KEY: "A:1", "leadsync_uid": "5", "leadsync_deleted": "true", "email": "a@example.com"
    }  # fmt: skip


def test_an_email_address_belongs_to_one_contact(client: Client, hubspot: Simulator) -> None:
    first = upsert(client, entry("A:1", email="a@example.com")).json()["results"][0]["id"]
    document = upsert(client, entry("A:2", email="A@example.com"), entry("A:3", email="a@example.com")).json()
    assert [(e["category"], e["message"]) for e in document["errors"]] == [
        ("CONFLICT", f"Contact already exists. Existing ID: {first}")
    ] * 2
    assert upsert(client, entry("A:1", email="a@example.com", city="x")).status_code == 200
    archive(client, first)
    assert upsert(client, entry("A:2", email="a@example.com")).status_code == 200
    assert set(hubspot.records()) == {"A:2"}


def test_contacts_are_found_by_email_too(client: Client, hubspot: Simulator) -> None:
    upsert(client, entry("A:1", email="a@example.com"))
    by_email = {"id": "A@example.com", "idProperty": "email", "properties": {"city": "Berlin"}}
    assert upsert(client, by_email).json()["results"][0]["new"] is False
    assert hubspot.records()["A:1"]["city"] == "Berlin"
    renamed = by_email | {"properties": {KEY: "A:9"}}
    upsert(client, renamed)
    assert set(hubspot.records()) == {"A:9"}


def test_a_unique_value_can_not_be_taken_over(client: Client) -> None:
    upsert(client, entry("A:1"), entry("A:2"))
    (error,) = upsert(client, entry("A:2") | {"properties": {KEY: "A:1"}}).json()["errors"]
    assert error["errors"][0]["code"] == "CONFLICTING_UNIQUE_VALUE"


def test_archived_contacts_free_their_external_id(client: Client, hubspot: Simulator) -> None:
    first = upsert(client, entry("A:1")).json()["results"][0]["id"]
    gone = archive(client, first)
    assert (gone.status_code, gone.content) == (204, b"")
    assert hubspot.records() == {}
    assert set(hubspot.records(deleted=True)) == {"A:1"}
    second = upsert(client, entry("A:1")).json()["results"][0]
    assert second["new"] is True
    assert second["id"] != first
    assert hubspot.get("records?deleted=true")["A:1"]["id"] == second["id"], "the live one is the one to show"
    assert hubspot.stats().items() >= {"records": 1, "deleted": 1, "doubled": 0}.items()
    assert archive(client, first).status_code == 204, "archiving again is no error"


def test_archive_takes_hubspot_ids_only(client: Client, hubspot: Simulator) -> None:
    upsert(client, entry("A:1"))
    assert archive(client, "A:1").status_code == 400
    assert archive(client, "999999").status_code == 204
    assert set(hubspot.records()) == {"A:1"}


def test_read_tells_what_is_missing(client: Client) -> None:
    upsert(client, entry("A:1", city="Berlin"))
    assert read(client, "A:1").status_code == 200
    reply = read(client, "A:1", "A:8", "A:9")
    document = reply.json()
    assert (reply.status_code, document["numErrors"]) == (207, 1)
    assert [item["properties"]["city"] for item in document["results"]] == ["Berlin"]
    assert document["errors"][0]["category"] == "OBJECT_NOT_FOUND"
    assert document["errors"][0]["context"] == {"ids": ["A:8", "A:9"]}
    assert read(client, "A:1", idProperty="city").status_code == 400


def test_read_by_id_and_archived_ones(client: Client) -> None:
    crm_id = upsert(client, entry("A:1", city="Berlin")).json()["results"][0]["id"]
    assert read(client, crm_id, idProperty=None).json()["results"][0]["properties"][KEY] == "A:1"
    assert read(client, "A:1", archived=True).status_code == 207
    archive(client, crm_id)
    assert read(client, "A:1").json()["results"] == []
    (found,) = read(client, "A:1", archived=True).json()["results"]
    assert (found["id"], found["archived"]) == (crm_id, True)
    assert found["archivedAt"]


def test_one_contact(client: Client) -> None:
    crm_id = upsert(client, entry("A:1/2", city="Berlin")).json()["results"][0]["id"]
    for found in (
        client.call("GET", f"{CONTACTS}/{crm_id}", properties=f"{KEY},city"),
        client.call("GET", f"{CONTACTS}/A:1%2F2", properties=f"{KEY},city", idProperty=KEY),
    ):
        assert found.json()["properties"].items() >= {KEY: "A:1/2", "city": "Berlin"}.items()
    assert client.call("GET", f"{CONTACTS}/999999999").json()["category"] == "OBJECT_NOT_FOUND"
    assert client.call("GET", f"{CONTACTS}/nobody", idProperty=KEY).status_code == 404


def test_properties_tell_which_is_unique(client: Client) -> None:
    found = client.call("GET", f"/crm/v3/properties/contacts/{KEY}").json()
    assert (found["name"], found["hasUniqueValue"], found["type"]) == (KEY, True, "string")
    everything = {item["name"]: item for item in client.call("GET", "/crm/v3/properties/contacts").json()["results"]}
    assert everything[KEY] == found
    assert everything["city"]["hasUniqueValue"] is False
    assert client.call("GET", "/crm/v3/properties/contacts/no_such").status_code == 404
    assert client.call("GET", "/crm/v3/properties/nothing").status_code == 400


def test_properties_can_be_created(client: Client, hubspot: Simulator) -> None:
    body = {"name": "score", "label": "Score", "type": "number", "fieldType": "number", "groupName": "leadsync"}
    assert client.call("POST", "/crm/v3/properties/contacts", body).status_code == 201
    assert client.call("POST", "/crm/v3/properties/contacts", body).status_code == 409
    assert client.call("POST", "/crm/v3/properties/contacts", {"name": "x"}).status_code == 400
    assert upsert(client, entry("A:1", score="1.5")).status_code == 200
    assert upsert(client, entry("A:1", score="high")).json()["errors"][0]["errors"][0]["code"] == "INVALID_DOUBLE"
    hubspot.reset()
    assert upsert(client, entry("A:1", score="1.5")).status_code == 400


@pytest.mark.parametrize("token", ["", "wrong"])
def test_wrong_tokens(client: Client, token: str) -> None:
    client.token = token
    reply = upsert(client, entry("A:1"))
    assert (reply.status_code, reply.json()["category"]) == (401, "INVALID_AUTHENTICATION")


def test_limits_are_told_apart(client: Client, hubspot: Simulator) -> None:
    headers = upsert(client, entry("A:1")).headers
    assert headers["X-HubSpot-RateLimit-Max"] == "190"
    assert headers["X-HubSpot-RateLimit-Interval-Milliseconds"] == "10000"
    assert int(headers["X-HubSpot-RateLimit-Daily-Remaining"]) == int(headers["X-HubSpot-RateLimit-Daily"]) - 1
    hubspot.faults(too_many={"next": 1})
    assert upsert(client, entry("A:1")).json()["policyName"] == "TEN_SECONDLY_ROLLING"
    hubspot.faults(quota_spent=True)
    assert upsert(client, entry("A:1")).json()["policyName"] == "DAILY"
    hubspot.faults(rate_limit={"requests": 5, "seconds": 600})
    assert upsert(client, entry("A:1")).headers["X-HubSpot-RateLimit-Remaining"] == "4"
    hubspot.faults(expire_tokens=True)
    assert upsert(client, entry("A:1")).status_code == 401
    hubspot.clear_faults()
    assert upsert(client, entry("A:1")).status_code == 200
