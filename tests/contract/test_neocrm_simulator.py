"""The simulated Neocrm refuses what Neocrm refuses, as far as that is known, and keeps what it was given."""

# ruff: noqa: S608 - queries of a simulator

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.contract.test_neocrm import OBJECTS, Client
from tests.support.simulators import Simulator, Simulators, running_simulator

KEY = "leadsyncId__c"


@pytest.fixture
def neocrm(simulators: Simulators) -> Simulator:
    simulators["neocrm"].reset()
    return simulators["neocrm"]


@pytest.fixture
def client(neocrm: Simulator) -> Client:
    return Client(neocrm)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Simulator]:
    with running_simulator("neocrm", tmp_path / "data") as simulator:
        yield simulator


def look_up(client: Client, *texts: str, columns: str = f"id,{KEY}", limit: str = "0,100", key: str = KEY) -> Any:
    listed = ",".join(f"'{text}'" for text in texts)
    return client.query(f"select {columns} from lead where {key} in ({listed}) limit {limit}")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"client_id": "other"}, "invalid_client"),
        ({"client_secret": "wrong"}, "invalid_client"),
        ({"username": "other"}, "invalid_grant"),
        ({"password": "wrong"}, "invalid_grant"),
    ],
)
def test_each_part_of_a_login_counts(client: Client, change: dict[str, str], error: str) -> None:
    reply = client.log_in(**change)
    assert (reply.status_code, reply.json()["error"]) == (400, error)


def test_without_a_token_nobody_is_let_in(client: Client) -> None:
    client.token = "wrong"
    assert client.call("GET", f"{OBJECTS}/description").status_code == 401


def test_records_are_made_read_changed_and_deleted(client: Client, neocrm: Simulator) -> None:
    crm_id = client.create("A:1", city__c="Berlin", phone="1")
    changed = client.call("PATCH", f"{OBJECTS}/{crm_id}", json={"data": {"city__c": None, "phone": "2"}})
    assert changed.json() == {"code": 200, "msg": "OK", "data": None, "errorInfo": None}
    held = client.call("GET", f"{OBJECTS}/{crm_id}").json()["data"]
    assert (held["id"], held["name"], held["phone"], held["city__c"]) == (crm_id, "Li", "2", None)
    assert client.call("DELETE", f"{OBJECTS}/{crm_id}").json()["code"] == 200
    assert neocrm.records() == {}
    assert [change["action"] for change in neocrm.journal()] == ["create", "update", "delete"]
    for method in ("GET", "PATCH", "DELETE"):
        gone = client.call(method, f"{OBJECTS}/{crm_id}", json={"data": {}})
        assert (gone.status_code, gone.json()["code"]) == (200, 2040003)


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"name": None}, 5000010, "name"),
        ({"entityType": ""}, 5000010, "entityType"),
        ({"leadsyncUpdatedAt__c": "2026-01-31"}, 5000047, "leadsyncUpdatedAt__c"),
        ({"leadsyncDeleted__c": "yes"}, 5000047, "leadsyncDeleted__c"),
        ({"city__c": 5}, 5000047, "city__c"),
        ({"city__c": "x" * 301}, 5000046, "city__c"),
    ],
)
def test_what_is_wrong_with_a_record_comes_as_200(
    client: Client, neocrm: Simulator, change: dict[str, Any], code: int, named: str
) -> None:
    data = {"name": "Li", "companyName": "X", "entityType": 1, KEY: "A:1", **change}
    reply = client.call("POST", OBJECTS, json={"data": data})
    document = reply.json()
    assert (reply.status_code, document["code"], document["data"]) == (200, code, None)
    assert named in document["msg"]
    assert neocrm.journal() == []


@pytest.mark.parametrize("body", [None, [], {}, {"data": "A:1"}, {"name": "Li"}])
def test_other_bodies_are_refused(client: Client, body: Any) -> None:
    assert client.call("POST", OBJECTS, json=body).json()["code"] == 1010001


def test_unknown_fields_are_dropped_without_a_word(client: Client, neocrm: Simulator) -> None:
    client.create("A:1", no_such="x", createdAt=1)
    assert neocrm.records()["A:1"].keys() == {"name", "companyName", "entityType", KEY}


def test_nothing_is_unique(client: Client, neocrm: Simulator) -> None:
    ids = [client.create("A:1"), client.create("A:1")]
    assert neocrm.stats()["doubled"] == 1
    assert [record["id"] for record in look_up(client, "A:1")["data"]["records"]] == ids


def test_a_query_finds_texts_without_regard_to_case(client: Client) -> None:
    client.create("A:1", city__c="Berlin")
    client.create("B:1")
    page = look_up(client, "a:1", "C:1", columns=f"id,{KEY},city__c")["data"]
    assert (page["totalSize"], page["count"]) == (1, 1)
    assert page["records"][0].items() >= {KEY: "A:1", "city__c": "Berlin"}.items()
    first = look_up(client, "a:1", "b:1", limit="0,1")["data"]
    assert (first["totalSize"], first["count"]) == (2, 1)


@pytest.mark.parametrize(
    ("xoql", "code"),
    [
        ("select * from lead", 2040001),
        (f"select id from lead where {KEY} in ('a\\'b') limit 0,10", 2040001),
        (f"select id from lead where {KEY} in ('a''b') limit 0,10", 2040001),
        (f"select id from lead where {KEY} in ('a')", 2040001),
        (f"select no_such from lead where {KEY} in ('a') limit 0,10", 2040004),
        ("select id from lead where leadsyncAnswers__c in ('a') limit 0,10", 2040002),
        (f"select id from lead where {KEY} in ('a') limit 0,3001", 2040002),
        (f"select id from nothing where {KEY} in ('a') limit 0,10", 2040005),
    ],
)
def test_bad_queries(client: Client, xoql: str, code: int) -> None:
    assert client.query(xoql)["code"] == code


def test_a_query_is_a_form(client: Client) -> None:
    reply = client.call(
        "POST", "/rest/data/v2.0/query/xoql", json={"xoql": f"select id from lead where {KEY} in ('a')"}
    )
    assert reply.json()["code"] == 1010001


def test_the_description_names_every_field(client: Client) -> None:
    fields = client.call("GET", f"{OBJECTS}/description").json()["data"]["fields"]
    assert {field["apiKey"] for field in fields if field["required"]} == {"name", "companyName", "entityType"}
    assert {field["apiKey"] for field in fields if not field["creatable"]} == {"id", "createdAt", "updatedAt"}
    assert client.call("GET", "/rest/data/v2.0/xobjects/nothing/description").json()["code"] == 2040005


def test_other_paths_and_methods(client: Client) -> None:
    assert client.call("GET", "/rest/data/v1.0/xobjects/lead").status_code == 404
    assert client.call("PUT", OBJECTS).status_code == 405


def test_it_fails_on_demand(client: Client, neocrm: Simulator) -> None:
    neocrm.faults(lose_reply={"next": 1})
    with pytest.raises(requests.ConnectionError):
        client.create("A:1")
    assert set(neocrm.records()) == {"A:1"}
    neocrm.faults(too_many={"next": 1, "retry_after": 7})
    throttled = look_up(client, "A:1")
    assert (throttled["code"], throttled["msg"]) == ("1020025", "用户访问频率超出限制")
    neocrm.faults(half_page={"next": 1})
    assert look_up(client, "A:1")["data"]["records"] == []
    neocrm.faults(reject={"external_ids": ["A:2"], "message": "not today"})
    data = {"name": "Li", "companyName": "X", "entityType": 1, KEY: "A:2"}
    assert client.call("POST", OBJECTS, json={"data": data}).json()["msg"] == "not today"
    for faults, status in (({"server_error": {"next": 1}}, 503), ({"quota_spent": True}, 429)):
        neocrm.faults(**faults)
        assert client.call("GET", f"{OBJECTS}/description").status_code == status
    neocrm.faults(expire_tokens=True)
    assert client.call("GET", f"{OBJECTS}/description").status_code == 401
    assert Client(neocrm).call("GET", f"{OBJECTS}/description").status_code == 200
    neocrm.faults(down=True)
    with pytest.raises(requests.ConnectionError):
        client.create("A:3")


def test_what_was_accepted_survives_a_crash(own: Simulator) -> None:
    Client(own).create("A:1")
    before = own.records(), own.journal()
    own.kill()
    own.start()
    assert (own.records(), own.journal()) == before
    assert Client(own).create("A:2") > 0
