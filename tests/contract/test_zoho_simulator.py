"""The simulated Zoho CRM is as strict as the documented API, and as careless where Zoho is."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.support.simulators import Simulator, Simulators

KEY = "Leadsync_Id"
API = "/crm/v8"
EXTERNAL = {"X-EXTERNAL": f"Leads.{KEY}"}


class Client:
    """Calls the simulator with a token."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.token = self.log_in().json()["access_token"]

    def log_in(self, **changes: str) -> requests.Response:
        form = {
            "grant_type": "refresh_token",
            "client_id": self.simulator.client_id,
            "client_secret": self.simulator.client_secret,
            "refresh_token": self.simulator.token,
        }
        return requests.post(f"{self.simulator.url}/oauth/v2/token", data=form | changes, timeout=10)

    def call(
        self, method: str, path: str, document: Any = None, *, scheme: str = "Zoho-oauthtoken", **headers: str
    ) -> requests.Response:
        sent = {"Authorization": f"{scheme} {self.token}", **headers}
        return requests.request(method, self.simulator.url + API + path, json=document, headers=sent, timeout=10)

    def upsert(self, *records: Any, **more: Any) -> requests.Response:
        body = {"data": list(records), "duplicate_check_fields": [KEY], "trigger": [], **more}
        return self.call("POST", "/Leads/upsert", body, **EXTERNAL)

    def query(self, text: str) -> requests.Response:
        return self.call("POST", "/coql", {"select_query": text})


def lead(external_id: Any, **fields: Any) -> dict[str, Any]:
    return {KEY: external_id, "Last_Name": "Li", "Company": "X", **fields}


def code(reply: requests.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["code"]


def codes(reply: requests.Response) -> list[str]:
    return [result["code"] for result in reply.json()["data"]]


@pytest.fixture
def crm(simulators: Simulators) -> Simulator:
    simulators["zoho"].reset()
    return simulators["zoho"]


@pytest.fixture
def client(crm: Simulator) -> Client:
    return Client(crm)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"client_secret": "x"}, "invalid_client"),
        ({"client_id": "x"}, "invalid_client"),
        ({"refresh_token": "x"}, "invalid_code"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
    ],
)
def test_wrong_logins_come_as_successes(client: Client, wrong: dict[str, str], error: str) -> None:
    reply = client.log_in(**wrong)
    assert (reply.status_code, reply.json()) == (200, {"error": error})


def test_tokens_end_and_are_no_bearer_tokens(client: Client, crm: Simulator) -> None:
    assert client.upsert(lead("E1")).status_code == 200
    assert code(client.call("GET", "/settings/fields?module=Leads", scheme="Bearer")) == (401, "INVALID_TOKEN")
    crm.faults(expire_tokens=True)
    assert code(client.upsert(lead("E1"))) == (401, "INVALID_TOKEN")
    assert Client(crm).upsert(lead("E1")).status_code == 200


def test_results_are_in_order_with_ids_and_actions(client: Client, crm: Simulator) -> None:
    first = client.upsert(lead("E1"), lead("E2", Email="nobody"), lead("E3"))
    assert (first.status_code, codes(first)) == (207, ["SUCCESS", "INVALID_DATA", "SUCCESS"])
    second = client.upsert(lead("E3"), lead("E4"))
    assert [result["action"] for result in second.json()["data"]] == ["update", "insert"]
    assert second.json()["data"][0]["details"]["id"] == first.json()["data"][2]["details"]["id"]
    assert second.json()["data"][0]["duplicate_field"] == KEY
    assert set(crm.records()) == {"E1", "E3", "E4"}


@pytest.mark.parametrize(
    ("fields", "error", "details"),
    [
        ({"Last_Name": None}, "MANDATORY_NOT_FOUND", {"api_name": "Last_Name"}),
        ({"Company": " "}, "MANDATORY_NOT_FOUND", {"api_name": "Company"}),
        ({"City": "x" * 101}, "INVALID_DATA", {"api_name": "City", "maximum_length": 100}),
        ({"City": 5}, "INVALID_DATA", {"api_name": "City", "expected_data_type": "text"}),
        ({"Email": "nobody"}, "INVALID_DATA", {"api_name": "Email", "expected_data_type": "email"}),
        ({"Phone": "+49*170"}, "INVALID_DATA", {"api_name": "Phone", "expected_data_type": "phone"}),
        ({"No_of_Employees": "5"}, "INVALID_DATA", {"api_name": "No_of_Employees", "expected_data_type": "integer"}),
        ({"Email_Opt_Out": "no"}, "INVALID_DATA", {"api_name": "Email_Opt_Out", "expected_data_type": "boolean"}),
        ({"Updated_At": "2026-01-01"}, "INVALID_DATA", {"api_name": "Updated_At", "expected_data_type": "datetime"}),
        ({"Updated_At": "2026-01-01T00:00:00.5Z"}, "INVALID_DATA",
         {"api_name": "Updated_At", "expected_data_type": "datetime"}),
        ({"Lead_Source": "Anywhere"}, "INVALID_DATA", {"api_name": "Lead_Source", "expected_data_type": "picklist"}),
    ],
)  # fmt: skip
def test_an_invalid_record_stands_alone(
    client: Client, crm: Simulator, fields: dict[str, Any], error: str, details: dict[str, Any]
) -> None:
    reply = client.upsert(lead("E1"), lead("E2", **fields))
    assert codes(reply) == ["SUCCESS", error]
    assert reply.json()["data"][1]["details"] == details
    assert set(crm.records()) == {"E1"}


def test_all_bad(client: Client, crm: Simulator) -> None:
    assert client.upsert(lead("E1", Email="nobody"), 5).status_code == 202
    crm.faults(whole_batch=True)
    assert code(client.upsert(lead("E1"), lead("E2", Email="nobody"))) == (400, "INVALID_DATA")
    assert crm.journal() == []


def test_unknown_fields_are_dropped_without_a_word(client: Client, crm: Simulator) -> None:
    assert codes(client.upsert(lead("E1", Nowhere="x", Full_Name="x"))) == ["SUCCESS"]
    assert crm.records()["E1"] == {KEY: "E1", "Last_Name": "Li", "Company": "X"}


def test_an_upsert_changes_only_what_it_names(client: Client, crm: Simulator) -> None:
    client.upsert(lead("E1", City="Berlin", Phone="1"))
    client.upsert({KEY: "E1", "City": None})
    assert crm.records()["E1"] == {KEY: "E1", "Last_Name": "Li", "Company": "X", "Phone": "1"}
    assert codes(client.upsert({KEY: "E1", "Last_Name": None})) == ["MANDATORY_NOT_FOUND"]


def test_without_fields_to_check_the_address_decides(client: Client, crm: Simulator) -> None:
    client.upsert(lead("E1", Email="li@example.com"))
    reply = client.call("POST", "/Leads/upsert", {"data": [lead("E2", Email="li@example.com")]})
    assert reply.json()["data"][0]["duplicate_field"] == "Email"
    assert set(crm.records()) == {"E2"}, "two people have become one"


def test_the_external_id_is_unique(client: Client, crm: Simulator) -> None:
    assert client.call("POST", "/Leads", {"data": [lead("E1")]}).status_code == 201
    reply = client.call("POST", "/Leads", {"data": [lead("E1")]})
    assert codes(reply) == ["DUPLICATE_DATA"]
    assert reply.json()["data"][0]["details"]["api_name"] == KEY
    assert crm.stats()["doubled"] == 0


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"data": []}, "MANDATORY_NOT_FOUND"),
        ({"data": [lead(f"E{n}") for n in range(101)]}, "LIMIT_EXCEEDED"),
        ({"duplicate_check_fields": ["City"]}, "INVALID_DATA"),
        ({"duplicate_check_fields": []}, "INVALID_DATA"),
        ({"trigger": "none"}, "INVALID_DATA"),
    ],
)
def test_other_bodies_are_refused(client: Client, crm: Simulator, more: dict[str, Any], error: str) -> None:
    assert code(client.upsert(lead("E1"), **more)) == (400, error)
    assert code(client.call("POST", "/Leads/upsert", [])) == (400, "INVALID_DATA")
    assert crm.journal() == []


def test_unknown_modules_paths_and_external_fields(client: Client) -> None:
    body = {"data": [lead("E1")]}
    assert code(client.call("POST", "/Nothing/upsert", body)) == (400, "INVALID_MODULE")
    assert code(client.call("GET", "/settings/fields?module=Nothing")) == (400, "INVALID_MODULE")
    assert code(client.call("PATCH", "/Leads/1", body)) == (405, "INVALID_REQUEST_METHOD")
    assert code(client.call("GET", "/")) == (404, "INVALID_URL_PATTERN")
    wrong = {"X-EXTERNAL": "Leads.City"}
    assert code(client.call("POST", "/Leads/upsert", body, **wrong)) == (400, "INVALID_DATA")


def test_deletes_by_id_and_by_external_id(client: Client, crm: Simulator) -> None:
    first, second, _ = (
        result["details"]["id"] for result in client.upsert(lead("E1"), lead("E2"), lead("E3")).json()["data"]
    )
    reply = client.call("DELETE", f"/Leads?ids={first},{second},1,{first}&wf_trigger=false")
    assert codes(reply) == ["SUCCESS", "SUCCESS", "INVALID_DATA", "INVALID_DATA"]
    assert client.call("GET", "/Leads/E3", **EXTERNAL).json()["data"][0][KEY] == "E3"
    assert codes(client.call("DELETE", "/Leads/E3", **EXTERNAL)) == ["SUCCESS"]
    assert client.call("GET", f"/Leads/{first}").status_code == 204
    assert crm.records() == {}
    assert set(crm.records(deleted=True)) == {"E1", "E2", "E3"}
    assert code(client.call("DELETE", "/Leads")) == (400, "REQUIRED_PARAM_MISSING")
    assert codes(client.upsert(lead("E1"))) == ["SUCCESS"]


def test_queries(client: Client, crm: Simulator) -> None:
    client.upsert(lead("A:1", City="Berlin"), lead("O'Neill"), lead("C"))
    reply = client.query(
        "select id, Leadsync_Id, City, Deleted from Leads where Leadsync_Id in ('A:1', 'O''Neill', 'x') limit 200"
    )
    assert reply.json()["info"] == {"count": 2, "more_records": False}
    assert [(row[KEY], row["City"], row["Deleted"]) for row in reply.json()["data"]] == [
        ("A:1", "Berlin", False), ("O'Neill", None, False)
    ]  # fmt: skip
    assert client.query("select id from Leads where Leadsync_Id in ('x')").status_code == 204
    limited = client.query("select id from Leads where Leadsync_Id in ('A:1', 'C') limit 1").json()
    assert limited["info"] == {"count": 1, "more_records": True}
    crm.faults(half_page={"next": 1})
    half = client.query("select id from Leads where Leadsync_Id in ('A:1', 'C')").json()
    assert (half["info"]["count"], len(half["data"])) == (2, 1)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "SYNTAX_ERROR"),
        ("select id from Leads where Leadsync_Id in ()", "SYNTAX_ERROR"),
        ("select id from Leads where Leadsync_Id in ('a'b')", "SYNTAX_ERROR"),
        ("delete from Leads where Leadsync_Id in ('a')", "SYNTAX_ERROR"),
        ("select id from Nothing where Leadsync_Id in ('a')", "INVALID_QUERY"),
        ("select Nowhere from Leads where Leadsync_Id in ('a')", "INVALID_QUERY"),
        ("select id from Leads where Nowhere in ('a')", "INVALID_QUERY"),
        (" ".join(("select id from Leads where Leadsync_Id in (", ", ".join(["'a'"] * 51), ")")), "LIMIT_EXCEEDED"),
    ],
)
def test_bad_queries(client: Client, text: str, error: str) -> None:
    assert code(client.query(text)) == (400, error)


def test_the_fields_say_which_is_unique(client: Client) -> None:
    fields = {
        field["api_name"]: field for field in client.call("GET", "/settings/fields?module=Leads").json()["fields"]
    }
    assert [name for name, field in fields.items() if field["unique"]] == [KEY]
    assert fields[KEY]["external"] == {"type": "org", "show": True}
    assert not fields["Full_Name"]["operation_type"]["api_update"]


def test_throttling_and_credits(client: Client, crm: Simulator) -> None:
    crm.faults(too_many={"next": 1})
    reply = client.upsert(lead("E1"))
    assert code(reply) == (429, "TOO_MANY_REQUESTS")
    assert "X-API-CREDITS-REMAINING" not in reply.headers
    crm.faults(quota_spent=True)
    reply = client.upsert(lead("E1"))
    assert (*code(reply), reply.headers["X-API-CREDITS-REMAINING"]) == (429, "LIMIT_EXCEEDED", "0")
    assert client.log_in().status_code == 200
