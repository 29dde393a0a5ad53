"""The simulated Salesforce is as strict as the documented API."""

from __future__ import annotations

import re
from typing import Any

import pytest
import requests

from tests.contract.calls import DATA, LEADS, Client
from tests.support.simulators import Simulator

KEY = "Leadsync_Id__c"
LEAD = f"{DATA}/sobjects/Lead"


@pytest.fixture
def client(salesforce: Simulator) -> Client:
    return Client(salesforce)


def record(external_id: str | None, **fields: Any) -> dict[str, Any]:
    return {"attributes": {"type": "Lead"}, KEY: external_id, "LastName": "Li", "Company": "X", **fields}


def upsert(client: Client, *records: dict[str, Any], all_or_none: bool = False, path: str = LEADS) -> Any:
    return client.call("PATCH", path, {"allOrNone": all_or_none, "records": list(records)})


def query(client: Client, text: str, service: str = "query") -> Any:
    return client.call("GET", f"{DATA}/{service}", q=text)


def codes(reply: Any) -> list[str | None]:
    """The first status code of each record of a collection, None where it went well."""
    return [None if item["success"] else item["errors"][0]["statusCode"] for item in reply.json()]


def test_a_login_tells_where_to_go(client: Client, salesforce: Simulator) -> None:
    document = client.log_in().json()
    assert document["instance_url"] == salesforce.url
    assert document["token_type"] == "Bearer"
    assert document["issued_at"].isdigit()
    assert document["access_token"] != client.token, "each login has a token of its own"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [({"client_secret": "x"}, "invalid_client"), ({"client_id": "x"}, "invalid_client_id"),
     ({"grant_type": "password"}, "unsupported_grant_type")],
)  # fmt: skip
def test_wrong_logins(client: Client, wrong: dict[str, str], error: str) -> None:
    reply = client.log_in(**wrong)
    assert (reply.status_code, reply.json()["error"]) == (400, error)


def test_a_login_with_basic_authentication(salesforce: Simulator) -> None:
    reply = requests.post(
        f"{salesforce.url}/services/oauth2/token", data={"grant_type": "client_credentials"}, timeout=5,
        auth=(salesforce.client_id, salesforce.client_secret),
    )  # fmt: skip
    assert reply.status_code == 200


def test_tokens_end(client: Client, salesforce: Simulator) -> None:
    assert upsert(client, record("A:1")).status_code == 200
    salesforce.faults(expire_tokens=True)
    reply = upsert(client, record("A:1"))
    assert (reply.status_code, reply.json()[0]["errorCode"]) == (401, "INVALID_SESSION_ID")
    assert upsert(Client(salesforce), record("A:1")).status_code == 200


def test_the_daily_limit_is_no_bad_login(client: Client, salesforce: Simulator) -> None:
    salesforce.faults(quota_spent=True)
    reply = upsert(client, record("A:1"))
    assert (reply.status_code, reply.json()[0]["errorCode"]) == (403, "REQUEST_LIMIT_EXCEEDED")
    assert client.log_in().status_code == 200


def test_every_reply_tells_the_usage(client: Client) -> None:
    replies = [upsert(client, record("A:1")), query(client, "nonsense"), client.call("GET", f"{DATA}/limits")]
    usage = [re.fullmatch(r"api-usage=(\d+)/(\d+)", reply.headers["Sforce-Limit-Info"]) for reply in replies]
    used = [int(found[1]) for found in usage if found]
    assert used == [used[0], used[0] + 1, used[0] + 2]
    assert replies[2].json()["DailyApiRequests"].keys() == {"Max", "Remaining"}


def test_results_are_in_order_with_18_character_ids(client: Client, salesforce: Simulator) -> None:
    first = upsert(client, record("A:1"), record("A:2", LastName=None), record("A:3")).json()
    assert [item["success"] for item in first] == [True, False, True]
    assert all(re.fullmatch(r"00Q\w{15}", item["id"]) for item in (first[0], first[2]))
    assert first[0]["id"] != first[2]["id"]
    second = upsert(client, record("A:3"), record("A:4")).json()
    assert [(item["created"], item["errors"]) for item in second] == [(False, []), (True, [])]
    assert second[0]["id"] == first[2]["id"]
    assert set(salesforce.records()) == {"A:1", "A:3", "A:4"}


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"LastName": ""}, "REQUIRED_FIELD_MISSING", ["LastName"]),
        ({"LastName": " ", "Company": None}, "REQUIRED_FIELD_MISSING", ["LastName", "Company"]),
        ({"City": "x" * 41}, "STRING_TOO_LONG", ["City"]),
        ({"Email": "nobody"}, "INVALID_EMAIL_ADDRESS", ["Email"]),
        ({"Uid__c": "many"}, "INVALID_TYPE_ON_FIELD_IN_RECORD", ["Uid__c"]),
        ({"Uid__c": True}, "INVALID_TYPE_ON_FIELD_IN_RECORD", ["Uid__c"]),
        ({"Uid__c": 10**18}, "NUMBER_OUTSIDE_VALID_RANGE", ["Uid__c"]),
        ({"Updated_At__c": "yesterday"}, "INVALID_TYPE_ON_FIELD_IN_RECORD", ["Updated_At__c"]),
        ({"Updated_At__c": "2026-01-01T00:00:00"}, "INVALID_TYPE_ON_FIELD_IN_RECORD", ["Updated_At__c"]),
        ({"Deleted__c": "perhaps"}, "INVALID_TYPE_ON_FIELD_IN_RECORD", ["Deleted__c"]),
        ({"City": {"a": 1}}, "INVALID_TYPE_ON_FIELD_IN_RECORD", ["City"]),
        ({"CreatedDate": "2026-01-01T00:00:00Z"}, "INVALID_FIELD_FOR_INSERT_UPDATE", ["CreatedDate"]),
        ({KEY: None}, "MISSING_ARGUMENT", [KEY]),
    ],
)
def test_an_invalid_record_stands_alone(
    client: Client, salesforce: Simulator, fields: dict[str, Any], code: str, named: list[str]
) -> None:
    reply = upsert(client, record("A:1"), record("A:2", **{k: v for k, v in fields.items() if k != KEY}) | fields)
    assert codes(reply) == [None, code]
    assert reply.json()[1]["errors"][0]["fields"] == named
    assert set(salesforce.records()) == {"A:1"}


def test_a_required_field_can_not_be_cleared_later(client: Client, salesforce: Simulator) -> None:
    upsert(client, record("A:1"))
    only = {"attributes": {"type": "Lead"}, KEY: "A:1"}
    assert codes(upsert(client, only | {"City": "Berlin"})) == [None]
    assert codes(upsert(client, only | {"LastName": None})) == ["REQUIRED_FIELD_MISSING"]
    assert salesforce.records()["A:1"] == {KEY: "A:1", "LastName": "Li", "Company": "X", "City": "Berlin"}


def test_one_external_id_twice_in_a_request_is_refused(client: Client, salesforce: Simulator) -> None:
    reply = upsert(client, record("A:1"), record("A:2"), record("A:1"))
    assert codes(reply) == ["DUPLICATE_VALUE", None, "DUPLICATE_VALUE"]
    assert set(salesforce.records()) == {"A:2"}


def test_all_or_none(client: Client, salesforce: Simulator) -> None:
    reply = upsert(client, record("A:1"), record("A:2", LastName=None), all_or_none=True)
    assert codes(reply) == ["ALL_OR_NONE_OPERATION_ROLLED_BACK", "REQUIRED_FIELD_MISSING"]
    assert salesforce.journal() == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"attributes": None}, "INVALID_FIELD"),
        ({"attributes": {}}, "INVALID_FIELD"),
        ({"attributes": {"type": "Contact"}}, "INVALID_TYPE"),
        ({"Id": "00QHs0000000001AAA"}, "INVALID_FIELD"),
        ({"No_Such__c": 1}, "INVALID_FIELD"),
    ],
)
def test_a_malformed_record_refuses_the_request(
    client: Client, salesforce: Simulator, wrong: dict[str, Any], code: str
) -> None:
    reply = upsert(client, record("A:1"), record("A:2") | wrong)
    assert (reply.status_code, reply.json()[0]["errorCode"]) == (400, code)
    assert salesforce.journal() == []


@pytest.mark.parametrize(
    "body", [None, [], {}, {"records": []}, {"records": [1]}, {"allOrNone": "no", "records": [record("A:1")]},
             {"records": [record("A:1")], "externalId": "x"}, {"records": [record(f"A:{n}") for n in range(201)]}],
)  # fmt: skip
def test_other_bodies_are_refused(client: Client, salesforce: Simulator, body: Any) -> None:
    assert client.call("PATCH", LEADS, body).status_code == 400
    assert salesforce.journal() == []


@pytest.mark.parametrize(
    "path", [LEADS.replace("v62.0", "v45.0"), LEADS.replace("Lead/", "Contact/"), LEADS.replace(KEY, "City"),
             f"{DATA}/jobs/query"],
)  # fmt: skip
def test_unknown_paths_are_not_found(client: Client, path: str) -> None:
    reply = upsert(client, record("A:1"), path=path)
    assert (reply.status_code, reply.json()[0]["errorCode"]) == (404, "NOT_FOUND")


def test_deletes_by_id(client: Client, salesforce: Simulator) -> None:
    first, second = (item["id"] for item in upsert(client, record("A:1"), record("A:2")).json())
    nobody = first[:6] + "00zzzzzzz"
    ids = ",".join([first, second[:15], first, nobody, "short", first[:15] + "ZZZ"])
    reply = client.call("DELETE", f"{DATA}/composite/sobjects", ids=ids, allOrNone="false")
    assert codes(reply) == [
        None, None, "ENTITY_IS_DELETED", "INVALID_CROSS_REFERENCE_KEY", "MALFORMED_ID", "MALFORMED_ID"
    ]  # fmt: skip
    assert [item["id"] for item in reply.json()[:2]] == [first, second]
    assert salesforce.records() == {}
    assert set(salesforce.records(deleted=True)) == {"A:1", "A:2"}
    too_many = ",".join([first] * 201)
    assert client.call("DELETE", f"{DATA}/composite/sobjects", ids=too_many).status_code == 400


def test_deletes_all_or_none(client: Client, salesforce: Simulator) -> None:
    first = upsert(client, record("A:1")).json()[0]["id"]
    ids = f"{first},{first[:6]}00zzzzzzz"
    client.call("DELETE", f"{DATA}/composite/sobjects", ids=ids, allOrNone="true")
    assert set(salesforce.records()) == {"A:1"}


def test_a_deleted_record_waits_in_the_recycle_bin(client: Client, salesforce: Simulator) -> None:
    first = upsert(client, record("A:1")).json()[0]["id"]
    client.call("DELETE", f"{LEAD}/{KEY}/A:1")
    again = upsert(client, record("A:1")).json()[0]
    assert (again["created"], again["id"] != first) == (True, True)
    everything = query(client, "SELECT Id, IsDeleted FROM Lead WHERE Leadsync_Id__c = 'A:1'", "queryAll").json()[
        "records"
    ]
    assert {item["Id"]: item["IsDeleted"] for item in everything} == {first: True, again["id"]: False}
    assert query(client, "SELECT Id FROM Lead WHERE Leadsync_Id__c = 'A:1'").json()["totalSize"] == 1
    assert salesforce.stats()["doubled"] == 0


def test_one_record_by_external_id(client: Client, salesforce: Simulator) -> None:
    path = f"{LEAD}/{KEY}/A%2F1%3Aé"
    fields = {"LastName": "Li", "Company": "X", "Updated_At__c": "2026-01-01T01:00:00.5+01:00"}
    created = client.call("PATCH", path, fields)
    assert (created.status_code, created.json()["created"]) == (201, True)
    assert client.call("PATCH", path, {"City": "Berlin"}).status_code == 200
    assert set(salesforce.records()) == {"A/1:é"}
    found = client.call("GET", path).json()
    assert found.items() >= {KEY: "A/1:é", "City": "Berlin", "Updated_At__c": "2026-01-01T00:00:00.500+0000",
                             "Deleted__c": False, "Id": created.json()["id"], "Name": "Li"}.items()  # fmt: skip
    assert client.call("GET", f"{LEAD}/{found['Id'][:15]}", fields="City").json()["City"] == "Berlin"
    assert client.call("PATCH", path, {KEY: "A:2"}).json()[0]["errorCode"] == "INVALID_FIELD"
    assert client.call("PATCH", path, {"Email": "nobody"}).json()[0]["fields"] == ["Email"]
    assert client.call("DELETE", path).status_code == 204
    assert client.call("DELETE", path).json()[0]["errorCode"] == "NOT_FOUND"
    assert client.call("GET", path).status_code == 404
    assert client.call("POST", path, {}).status_code == 405


def test_queries(client: Client) -> None:
    upsert(client, record("A:1", City="Berlin", Uid__c=1), record("a:1", City="berlin", Uid__c=2),
           record("O'Neill\\", Updated_At__c="2026-01-02T00:00:00Z"))  # fmt: skip

    def found(where: str) -> list[str]:
        reply = query(client, " ".join(("SELECT Leadsync_Id__c FROM Lead", where)))
        assert reply.status_code == 200, reply.text
        return [item[KEY] for item in reply.json()["records"]]

    assert found(f"WHERE {KEY} IN ('A:1', 'x', 'O\\'Neill\\\\')") == ["A:1", "O'Neill\\"]
    assert found(f"WHERE {KEY} NOT IN ('A:1')") == ["a:1", "O'Neill\\"]
    assert found("WHERE City = 'BERLIN'") == ["A:1", "a:1"], "only the external id tells upper from lower case"
    assert found("WHERE City = null") == ["O'Neill\\"]
    assert found("WHERE City != 'Berlin'") == ["O'Neill\\"]
    assert found("WHERE Uid__c > 1 AND IsDeleted = false") == ["a:1"]
    assert found("WHERE Updated_At__c >= 2026-01-01T00:00:00Z") == ["O'Neill\\"]
    assert found("ORDER BY Uid__c DESC LIMIT 2") == ["a:1", "A:1"]
    assert found("ORDER BY Uid__c") == ["O'Neill\\", "A:1", "a:1"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "MALFORMED_QUERY"),
        ("SELECT * FROM Lead", "MALFORMED_QUERY"),
        ("SELECT Id FROM Lead WHERE City = 'x' OR City = 'y'", "MALFORMED_QUERY"),
        ("SELECT Id FROM Lead WHERE City = 'x", "MALFORMED_QUERY"),
        ("SELECT Id FROM Lead WHERE City IN ()", "MALFORMED_QUERY"),
        ("SELECT Id FROM Lead WHERE City = x", "MALFORMED_QUERY"),
        ("SELECT Id FROM Lead LIMIT many", "MALFORMED_QUERY"),
        ("SELECT Id FROM Lead WHERE City = '\\x'", "MALFORMED_QUERY"),
        ("SELECT Id FROM Contact", "INVALID_TYPE"),
        ("SELECT No_Such__c FROM Lead", "INVALID_FIELD"),
        ("SELECT Id FROM Lead WHERE No_Such__c = 1", "INVALID_FIELD"),
        ("SELECT Id FROM Lead WHERE City > 5", "INVALID_FIELD"),
        ("SELECT Id FROM Lead WHERE Uid__c IN ('5')", "INVALID_FIELD"),
        ("SELECT Id FROM Lead WHERE Updated_At__c > '2026-01-01T00:00:00Z'", "INVALID_FIELD"),
        ("SELECT Id FROM Lead WHERE IsDeleted = 1", "INVALID_FIELD"),
    ],
)
def test_bad_queries(client: Client, text: str, code: str) -> None:
    upsert(client, record("A:1", City="Berlin"))
    reply = query(client, text)
    assert (reply.status_code, reply.json()[0]["errorCode"]) == (400, code)


def test_a_query_is_read_page_by_page(client: Client) -> None:
    ids = [f"A:{number}" for number in range(2_100)]
    for first in range(0, len(ids), 200):
        client.upsert(*ids[first : first + 200])
    page = query(client, "SELECT Leadsync_Id__c FROM Lead").json()
    assert (page["totalSize"], page["done"], len(page["records"])) == (2_100, False, 2_000)
    rest = client.call("GET", page["nextRecordsUrl"]).json()
    assert rest["done"] is True
    assert [item[KEY] for item in page["records"] + rest["records"]] == ids
    assert client.call("GET", f"{DATA}/query/01gnosuch-2000").json()[0]["errorCode"] == "INVALID_QUERY_LOCATOR"


def test_a_url_has_an_end(client: Client) -> None:
    assert query(client, "x" * 16_400).status_code == 414


def test_describe(client: Client) -> None:
    fields = {item["name"]: item for item in client.call("GET", f"{LEAD}/describe").json()["fields"]}
    assert {name for name, field in fields.items() if field["externalId"] and field["unique"]} == {KEY}
    assert (fields["City"]["type"], fields["City"]["length"]) == ("string", 40)
    assert {name for name, field in fields.items() if not field["nillable"] and field["createable"]} == {
        "LastName", "Company"
    }  # fmt: skip
    assert client.call("GET", f"{DATA}/sobjects/Nothing/describe").status_code == 404
