"""The simulated EspoCRM does what EspoCRM does, above all what it does without a word."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.support.simulators import Simulator, Simulators

KEY = "cLeadsyncId"


class Client:
    def __init__(self, simulator: Simulator) -> None:
        self.url = f"{simulator.url}/api/v1/"
        self.headers = {"X-Api-Key": simulator.token}

    def call(self, method: str, path: str, body: Any = None, headers: Any = (), **params: Any) -> requests.Response:
        sent = {**self.headers, **dict(headers)}
        return requests.request(method, self.url + path, json=body, params=params, headers=sent, timeout=10)

    def create(self, external_id: str, headers: Any = (), **fields: Any) -> requests.Response:
        return self.call("POST", "Lead", {KEY: external_id, "lastName": "Li", **fields}, headers)

    def find(self, *external_ids: str, **params: Any) -> Any:
        where = {"where[0][type]": "in", "where[0][attribute]": KEY, "where[0][value][]": list(external_ids)}
        return self.call("GET", "Lead", **where, **params).json()


@pytest.fixture
def crm(simulators: Simulators) -> Simulator:
    simulators["espocrm"].reset()
    return simulators["espocrm"]


@pytest.fixture
def client(crm: Simulator) -> Client:
    return Client(crm)


def test_a_lead_is_created_read_updated_and_deleted(client: Client, crm: Simulator) -> None:
    created = client.create("A:1", addressCity="Berlin").json()
    assert (created["name"], created["status"], created["description"]) == ("Li", "New", None)
    path = f"Lead/{created['id']}"
    for method in ("PUT", "PATCH"):
        assert client.call(method, path, {"addressCity": method}).json()["addressCity"] == method
    assert client.call("GET", path).json()["lastName"] == "Li"
    assert client.call("DELETE", path).json() is True
    assert client.call("GET", path).status_code == 404
    assert client.call("PATCH", path, {}).headers["X-Status-Reason"].endswith("not found.")
    assert crm.records() == {}
    assert [change["action"] for change in crm.journal()] == ["create", "update", "update", "delete"]


def test_the_external_id_is_not_unique(client: Client, crm: Simulator) -> None:
    client.create("A:1", firstName="a")
    client.create("A:1", firstName="b")
    assert client.find("A:1")["total"] == 2
    assert crm.stats()["doubled"] == 1


def test_unknown_fields_and_ids_are_dropped_without_a_word(client: Client) -> None:
    reply = client.create("A:1", id="mine", noSuchField="x", createdAt="2020-01-01 00:00:00")
    assert reply.status_code == 200
    assert reply.json()["id"] != "mine"
    assert "noSuchField" not in reply.json()
    assert not reply.json()["createdAt"].startswith("2020")


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [
        ("emailAddress", "nobody", "emailAddress"),
        ("emailAddress", "a b@example.com", "emailAddress"),
        ("phoneNumber", "+49/170", "valid"),
        ("phoneNumber", "1" * 37, "valid"),
        ("source", "unheard of", "valid"),
        ("accountName", "<b>", "pattern"),
        ("cAppkey", "x" * 101, "maxLength"),
        ("cUid", "12", "valid"),
        ("cConsentAt", "2026-01-31T09:30:00.123Z", "valid"),
        ("lastName", "", "required"),
    ],
)
def test_an_invalid_value_is_named(client: Client, crm: Simulator, name: str, value: str, check: str) -> None:
    reply = client.create("A:1", **{name: value})
    field = "name" if check == "required" else name
    assert reply.status_code == 400
    assert reply.headers["X-Status-Reason"].startswith("Field validation failure; entityType: Lead")
    assert reply.json()["messageTranslation"]["data"] == {"field": field, "type": check}
    assert crm.journal() == []


def test_varchars_are_trimmed_texts_are_not_and_times_become_utc(client: Client, crm: Simulator) -> None:
    client.create(" A:1 ", addressCity="\tBerlin ", cAnswers=" x ", cConsentAt="2026-01-31T10:30:00+01:00", cUid=5)
    record = crm.records()["A:1"]
    assert (record["addressCity"], record["cAnswers"], record["cUid"]) == ("Berlin", " x ", 5)
    assert record["cConsentAt"] == "2026-01-31 09:30:00"


def test_duplicates_by_name_or_address_are_refused_unless_the_check_is_skipped(client: Client) -> None:
    client.create("A:1", firstName="Ada", emailAddress="a@example.com")
    for fields in ({"emailAddress": "a@example.com"}, {"firstName": "Ada"}):
        reply = client.create("A:2", **fields)
        assert (reply.status_code, reply.headers["X-Status-Reason"]) == (409, "duplicate")
        assert [record[KEY] for record in reply.json()] == ["A:1"]
    assert client.create("A:2", {"X-Skip-Duplicate-Check": "true"}, emailAddress="a@example.com").status_code == 200


def test_a_list_counts_selects_and_cuts(client: Client) -> None:
    for number in range(5):
        client.create(f"A:{number}", cAnswers="x" * 10_001)
    page = client.find("A:1", "A:2", "A:3", "A:9", select=f"id,{KEY}", maxSize=2, offset=1)
    assert page["total"] == 3
    assert [set(record) for record in page["list"]] == [{"id", KEY}] * 2
    assert [record[KEY] for record in page["list"]] == ["A:2", "A:3"]
    assert len(client.find("A:1")["list"][0]["cAnswers"]) == 10_000
    assert client.call("GET", "Lead").json()["total"] == 5


@pytest.mark.parametrize(
    ("params", "status", "said"),
    [
        ({"maxSize": 201}, 403, "Max size should not exceed 200"),
        ({"where[0][type]": "in", "where[0][attribute]": "noSuch"}, 400, "Not existing attribute 'noSuch'"),
        ({"where[0][type]": "resembles", "where[0][attribute]": KEY}, 400, "Unknown where item type"),
    ],
)
def test_a_wrong_search_is_refused(client: Client, params: dict[str, Any], status: int, said: str) -> None:
    reply = client.call("GET", "Lead", **params)
    assert reply.status_code == status
    assert said in reply.headers["X-Status-Reason"]


def test_metadata_and_rights(client: Client) -> None:
    fields = client.call("GET", "Metadata", key="entityDefs.Lead.fields").json()
    assert fields[KEY] == {"type": "varchar", "maxLength": 255, "isCustom": True}
    assert fields["createdAt"]["readOnly"] is True
    assert client.call("GET", "Metadata", key="entityDefs.NoSuch.fields").json() is None
    assert client.call("GET", "Metadata").json()["entityDefs"]["Lead"]["fields"] == fields
    assert client.call("GET", "App/user").json()["acl"]["table"]["Lead"]["read"] == "all"
    assert client.call("GET", "NoSuch").status_code == 404


def test_wrong_keys(client: Client, crm: Simulator) -> None:
    client.headers = {"X-Api-Key": "wrong"}
    reply = client.create("A:1")
    assert (reply.status_code, reply.content) == (401, b"")
    client.headers = {"X-Api-Key": crm.token, "Authorization": f"Bearer {crm.token}"}
    assert client.create("A:1").status_code == 400
    assert crm.journal() == []


def test_faults(client: Client, crm: Simulator) -> None:
    client.create("A:1")
    crm.faults(reject={"external_ids": ["A:2"]})
    assert client.create("A:2").status_code == 400
    crm.faults(half_page={"next": 1})
    assert client.find("A:1")["list"] == []
    assert client.find("A:1")["total"] == 1
    crm.faults(expire_tokens=True)
    assert client.create("A:2").status_code == 401
    crm.faults(quota_spent=True)
    assert client.create("A:2").headers["Retry-After"] == "3600"
    assert set(crm.records()) == {"A:1"}
