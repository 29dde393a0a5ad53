"""The simulated Fxiaoke refuses what the documented API refuses, always in a 200."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pytest
import requests

from tests.support.simulators import Simulator, Simulators

KEY = "leadsync_id__c"


class Client:
    """Plain calls, as any client could make them."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.headers: dict[str, str] = {}

    def post(self, path: str, document: Any, headers: Mapping[str, str] | None = None, **params: str) -> dict[str, Any]:
        params = {"thirdTraceId": str(uuid.uuid4()), **params}
        reply = requests.post(
            self.simulator.url + path, json=document, params=params, timeout=10,
            headers=self.headers if headers is None else headers,
        )  # fmt: skip
        assert reply.status_code == 200
        answer: dict[str, Any] = reply.json()
        assert answer["traceId"]
        return answer

    def log_in(self, **changes: Any) -> dict[str, Any]:
        simulator = self.simulator
        body = {
            "appId": simulator.client_id, "appSecret": simulator.client_secret, "permanentCode": simulator.token,
            "grantType": "app_secret",
        }  # fmt: skip
        return self.post("/oauth2.0/token", body | changes, headers={})

    def data(self, verb: str, **data: Any) -> dict[str, Any]:
        return self.post(f"/cgi/crm/v2/data/{verb}", {"triggerWorkFlow": False, "data": data})

    def create(self, external_id: str, **fields: Any) -> dict[str, Any]:
        return self.data(
            "create", object_data={"dataObjectApiName": "LeadsObj", "name": "Li", KEY: external_id, **fields}
        )

    def update(self, crm_id: str, **fields: Any) -> dict[str, Any]:
        return self.data("update", object_data={"dataObjectApiName": "LeadsObj", "_id": crm_id, **fields})

    def query(self, *filters: Any, **changes: Any) -> dict[str, Any]:
        info = {"limit": 100, "offset": 0, "filters": list(filters), "orders": [], "fieldProjection": None}
        return self.data("query", dataObjectApiName="LeadsObj", search_query_info=info | changes)


@pytest.fixture
def fxiaoke(simulators: Simulators) -> Simulator:
    simulators["fxiaoke"].reset()
    return simulators["fxiaoke"]


@pytest.fixture
def client(fxiaoke: Simulator) -> Client:
    made = Client(fxiaoke)
    login = made.log_in()
    made.headers = {"Authorization": f"Bearer {login['accessToken']}", "x-fs-ea": login["ea"], "x-fs-userid": "1000"}
    return made


def condition(name: str, operator: str, *values: Any) -> dict[str, Any]:
    return {"field_name": name, "operator": operator, "field_values": list(values)}


def test_the_same_token_is_given_again(client: Client) -> None:
    first, second = client.log_in(), client.log_in()
    assert first["accessToken"] == second["accessToken"]
    assert 7190 <= first["expiresIn"] <= 7200


@pytest.mark.parametrize("wrong", [{"appId": "x"}, {"appSecret": "x"}, {"permanentCode": None}, {"grantType": "x"}])
def test_wrong_logins(client: Client, wrong: dict[str, Any]) -> None:
    assert client.log_in(**wrong)["errorCode"] == 10006


def test_ten_logins_a_minute(client: Client) -> None:
    codes = [client.log_in()["errorCode"] for _ in range(10)]
    assert codes == [0] * 9 + [14001], "the fixture's was the first"


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"Authorization": None}, 20017), ({"Authorization": "Bearer x"}, 20016), ({"x-fs-ea": "x"}, 20016),
     ({"x-fs-ea": None}, 20016), ({"x-fs-userid": "7"}, 20012), ({"x-fs-userid": None}, 20012)],
)  # fmt: skip
def test_who_is_not_let_in(client: Client, changes: dict[str, str | None], code: int) -> None:
    client.headers = {name: value for name, value in (client.headers | changes).items() if value is not None}
    assert client.query()["errorCode"] == code


def test_a_request_has_to_name_itself(client: Client) -> None:
    body = {"includeDetail": False, "data": {"apiName": "LeadsObj"}}
    assert client.post("/cgi/crm/v2/object/describe", body, thirdTraceId="1")["errorCode"] == 32000


def test_records_are_created_updated_queried_and_made_invalid(client: Client, fxiaoke: Simulator) -> None:
    crm_id = client.create("A:1", company="X", uid__c="12")["dataId"]
    assert client.update(crm_id, company="", uid__c=None, email="a@example.com")["errorCode"] == 0
    assert fxiaoke.records()["A:1"] == {"name": "Li", KEY: "A:1", "email": "a@example.com"}
    data = client.query(condition(KEY, "IN", "A:1", "A:2"), fieldProjection=["_id", "name", "company"])["data"]
    assert data == {"dataList": [{"_id": crm_id, "name": "Li"}], "total": 1, "limit": 100, "offset": 0}
    assert client.data("invalid", dataObjectApiName="LeadsObj", object_data_id=crm_id)["errorCode"] == 0
    assert client.query()["data"]["dataList"] == []
    for refused in (
        client.update(crm_id, name="Li"), client.data("invalid", dataObjectApiName="LeadsObj", object_data_id=crm_id)
    ):  # fmt: skip
        assert refused["errorCode"] == 32000
    assert client.create("A:1")["errorCode"] == 0, "an invalid record holds no external id"


@pytest.mark.parametrize(
    "fields",
    [{"uid__c": 12}, {"uid__c": "x"}, {"updated_at__c": "1700000000000"}, {"updated_at__c": True}, {"company": 7},
     {"deleted__c": "true"}, {"email": "nobody"}, {"name": None}, {"name": "x" * 101}, {"_id": "0" * 24}],
)  # fmt: skip
def test_what_is_refused_changes_nothing(client: Client, fxiaoke: Simulator, fields: dict[str, Any]) -> None:
    assert client.create("A:1", **fields)["errorCode"] == 32000
    assert fxiaoke.journal() == []


def test_the_external_id_is_unique(client: Client) -> None:
    client.create("A:1")
    assert client.create("A:1")["errorCode"] == 32000
    other = client.create("A:2")["dataId"]
    assert client.update(other, **{KEY: "A:1"})["errorCode"] == 32000


def test_an_unknown_field_is_dropped_without_a_word(client: Client, fxiaoke: Simulator) -> None:
    assert client.create("A:1", no_such_field="x")["errorCode"] == 0
    assert "no_such_field" not in fxiaoke.records()["A:1"]


def test_an_owner_is_not_changed_by_an_update(client: Client) -> None:
    crm_id = client.create("A:1", owner=["1000"])["dataId"]
    assert client.update(crm_id, owner=["1001"])["errorCode"] == 32000


@pytest.mark.parametrize(
    "changes",
    [{"limit": 101}, {"limit": 0}, {"limit": "10"}, {"offset": 50}, {"filters": {}}, {"orders": None},
     {"filters": [condition("no_such_field", "EQ", "x")]}, {"filters": [condition("name", "NE", "x")]},
     {"filters": [{"field_name": "name", "operator": "EQ", "field_values": "x"}]}],
)  # fmt: skip
def test_malformed_queries(client: Client, changes: dict[str, Any]) -> None:
    client.create("A:1")
    assert client.query(**changes)["errorCode"] == 32000


def test_pages_by_id(client: Client) -> None:
    ids = [client.create(f"A:{number}")["dataId"] for number in range(5)]
    order = [{"fieldName": "_id", "isAsc": True}]
    data = client.query(condition("_id", "GT", ids[1]), limit=2, orders=order)["data"]
    assert ([record["_id"] for record in data["dataList"]], data["total"]) == (ids[2:4], 3)


@pytest.mark.parametrize("verb", ["create", "update", "query", "invalid"])
@pytest.mark.parametrize("document", [[], {}, {"data": []}, {"data": {"object_data": []}}, {"data": {}}])
def test_other_bodies_are_refused(client: Client, verb: str, document: Any) -> None:
    assert client.post(f"/cgi/crm/v2/data/{verb}", document)["errorCode"] == 32000


def test_the_description_has_every_field(client: Client) -> None:
    body = {"includeDetail": False, "data": {"apiName": "LeadsObj"}}
    fields = client.post("/cgi/crm/v2/object/describe", body)["data"]["describe"]["fields"]
    assert (fields[KEY]["is_unique"], fields["company"]["is_unique"]) == (True, False)
    assert {name: fields[name]["type"] for name in ("uid__c", "updated_at__c", "deleted__c")} == {
        "uid__c": "number", "updated_at__c": "date_time", "deleted__c": "true_or_false",
    }  # fmt: skip
    body["data"] = {"apiName": "AccountObj"}
    assert client.post("/cgi/crm/v2/object/describe", body)["errorCode"] == 32000


def test_throttling_quota_and_unknown_paths_are_told_in_a_200(client: Client, fxiaoke: Simulator) -> None:
    fxiaoke.faults(too_many={"next": 1})
    assert client.query()["errorCode"] == 30004
    fxiaoke.faults(quota_spent=True)
    assert client.query()["errorCode"] == 30002
    fxiaoke.clear_faults()
    assert client.data("merge")["errorCode"] == 10006


def test_half_a_page_keeps_its_total(client: Client, fxiaoke: Simulator) -> None:
    for number in range(4):
        client.create(f"A:{number}")
    fxiaoke.faults(half_page={"next": 1})
    data = client.query()["data"]
    assert (len(data["dataList"]), data["total"]) == (2, 4)


def test_ended_tokens_and_rejected_records(client: Client, fxiaoke: Simulator) -> None:
    fxiaoke.faults(reject={"external_ids": ["A:1"], "message": "not today"})
    assert client.create("A:1")["errorMessage"] == "not today"
    fxiaoke.faults(expire_tokens=True)
    assert client.query()["errorCode"] == 20016
    client.headers["Authorization"] = f"Bearer {client.log_in()['accessToken']}"
    assert client.query()["errorCode"] == 0
