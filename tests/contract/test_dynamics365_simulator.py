"""The simulated Dataverse is as strict as the documented Web API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import requests

from leadsync.crm.http import Reply
from leadsync.crm.odata import read_batch, write_batch
from tests.support.simulators import Simulator, Simulators

KEY = "new_leadsyncid"
DATA = "/api/data/v9.2"
KIND = "Microsoft.Dynamics.CRM.lead"
GUID = "0db30dbd-509d-4da1-bbc0-453e47e128ea"
OTHER = "1db30dbd-509d-4da1-bbc0-453e47e128ea"


class Client:
    """Calls the simulator with a token."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.token = self.log_in().json()["access_token"]

    def log_in(self, **changes: str) -> requests.Response:
        form = {
            "grant_type": "client_credentials",
            "client_id": self.simulator.client_id,
            "client_secret": self.simulator.client_secret,
            "scope": f"{self.simulator.url}/.default",
        }
        return requests.post(self.simulator.endpoint.extra["token_url"], data=form | changes, timeout=10)

    def call(self, method: str, path: str, document: Any = None, **headers: str) -> requests.Response:
        sent = {"Authorization": f"Bearer {self.token}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return requests.request(method, self.simulator.url + DATA + path, json=document, headers=sent, timeout=10)

    def batch(self, *parts: tuple[str, str, Any], prefer: str = "odata.continue-on-error") -> requests.Response:
        kind, body = write_batch([(method, f"{DATA}{path}", document) for method, path, document in parts])
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind, "Prefer": prefer}
        return requests.post(f"{self.simulator.url}{DATA}/$batch", data=body, headers=headers, timeout=10)

    def upsert(self, *targets: Any) -> requests.Response:
        return self.call("POST", "/leads/Microsoft.Dynamics.CRM.UpsertMultiple", {"Targets": list(targets)})


def target(external_id: str, **fields: Any) -> dict[str, Any]:
    return {"@odata.type": KIND, "@odata.id": f"leads({KEY}='{external_id}')", "lastname": "Li", **fields}


def code(reply: requests.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def answers(reply: requests.Response) -> list[Reply]:
    return read_batch(Reply(reply.status_code, reply.headers, reply.content))


def statuses(reply: requests.Response) -> Sequence[int]:
    return [answer.status for answer in answers(reply)]


@pytest.fixture
def crm(simulators: Simulators) -> Simulator:
    simulators["dynamics365"].reset()
    return simulators["dynamics365"]


@pytest.fixture
def client(crm: Simulator) -> Client:
    return Client(crm)


@pytest.mark.parametrize(
    ("wrong", "status", "error"),
    [
        ({"client_secret": "x"}, 401, "invalid_client"),
        ({"client_id": "x"}, 400, "unauthorized_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"scope": "everything"}, 400, "invalid_scope"),
    ],
)
def test_wrong_logins(client: Client, wrong: dict[str, str], status: int, error: str) -> None:
    reply = client.log_in(**wrong)
    assert (reply.status_code, reply.json()["error"]) == (status, error)


def test_tokens_end(client: Client, crm: Simulator) -> None:
    assert client.upsert(target("E1")).status_code == 204
    crm.faults(expire_tokens=True)
    reply = client.upsert(target("E1"))
    assert reply.status_code == 401
    assert reply.headers["WWW-Authenticate"].startswith("Bearer authorization_uri=")
    assert Client(crm).upsert(target("E1")).status_code == 204


def test_upsert_multiple_tells_nothing(client: Client, crm: Simulator) -> None:
    reply = client.upsert(target("E1"), target("E''2", address1_city="Köln"))
    assert (reply.status_code, reply.content) == (204, b"")
    client.upsert(target("E1", lastname="Han"), {"@odata.type": f"#{KIND}", "@odata.id": f"leads({GUID})", KEY: "E:3"})
    assert {name: held.get("lastname") for name, held in crm.records().items()} == {
        "E1": "Han", "E'2": "Li", "E:3": None
    }  # fmt: skip
    assert crm.records()["E:3"]["leadid"] == GUID
    assert [change["action"] for change in crm.journal()] == ["create", "create", "update", "create"]


@pytest.mark.parametrize(
    ("bad", "status", "error"),
    [
        (target("E2", lastname="x" * 51), 400, "0x80044331"),
        (target("E2", leadsourcecode=99), 400, "0x8004431a"),
        (target("E2", leadsourcecode="8"), 400, "0x80048d19"),
        (target("E2", numberofemployees=10**9), 400, "0x8004432f"),
        (target("E2", lastname=5), 400, "0x80048d19"),
        (target("E2", donotemail="no"), 400, "0x80048d19"),
        (target("E2", new_updatedat="yesterday"), 400, "0x80048d19"),
        (target("E2", new_updatedat="2026-01-01T00:00:00"), 400, "0x80048d19"),
        (target("E2", no_such_column="x"), 400, "0x80048d19"),
        (target("E1"), 400, "0x80040237"),
        (target("E2") | {"@odata.id": f"leads({GUID})", KEY: "e1"}, 412, "0x80060892"),
        (target("E2", **{KEY: "E2"}), 400, "0x80040216"),
        (target("A:2"), 400, "0x80060888"),
        (target("E2") | {"@odata.id": "leads(lastname='Li')"}, 400, "0x80060888"),
        (target("E2") | {"@odata.id": "accounts(1)"}, 400, "0x80060888"),
        ({KEY: "E2", "lastname": "Li"}, 400, "0x80048d19"),
        (5, 400, "0x80048d19"),
    ],
)
def test_one_bad_record_rolls_all_back(client: Client, crm: Simulator, bad: Any, status: int, error: str) -> None:
    assert code(client.upsert(target("E0"), target("E1"), bad)) == (status, error)
    assert crm.journal() == []


def test_a_batch_goes_on_after_an_error_only_when_told(client: Client, crm: Simulator) -> None:
    parts = [
        ("PATCH", f"/leads({GUID})", {KEY: "A:1", "lastname": "Li"}),
        ("PATCH", f"/leads({OTHER})", {KEY: "A:2", "lastname": "x" * 51}),
        ("PATCH", f"/leads({KEY}='E3')", {"lastname": "Han"}),
    ]
    stopped = client.batch(*parts, prefer="")
    assert (stopped.status_code, statuses(stopped)) == (400, [204, 400])
    assert set(crm.records()) == {"A:1"}
    went_on = client.batch(*parts)
    assert (went_on.status_code, statuses(went_on)) == (200, [204, 400, 204])
    assert set(crm.records()) == {"A:1", "E3"}
    assert answers(went_on)[2].headers["Odata-Entityid"].endswith(f"/leads({KEY}=%27E3%27)")


def test_a_batch_has_a_form_and_an_end(client: Client, crm: Simulator) -> None:
    url, token = f"{crm.url}{DATA}/$batch", f"Bearer {client.token}"
    kind, body = write_batch([("PATCH", f"{DATA}/leads({GUID})", {KEY: "A:1"})])
    for wrong_kind, wrong_body in (
        ("application/json", body),
        (kind, body[:-10]),
        (kind, b""),
        (kind, body.replace(b"application/http", b"text/plain")),
        (kind, body.replace(b": binary", b": base64")),
        (kind, body.replace(b" HTTP/1.1", b"")),
    ):
        headers = {"Authorization": token, "Content-Type": wrong_kind}
        assert requests.post(url, data=wrong_body, headers=headers, timeout=10).status_code == 400
    assert client.batch(*[("GET", f"/leads({GUID})", None)] * 1001).status_code == 400
    assert crm.journal() == []
    assert statuses(client.batch(("POST", "/$batch", {}), ("GET", "/nothing", None))) == [400, 404]


def test_single_records(client: Client, crm: Simulator) -> None:
    path = f"/leads({GUID})"
    created = client.call("PATCH", f"{path}?$select=leadid", {KEY: "A:1", "lastname": "Li"},
                          Prefer="return=representation")  # fmt: skip
    assert (created.status_code, created.json()["leadid"]) == (201, GUID)
    updated = client.call("PATCH", path, {"new_updatedat": "2026-01-31T10:30:00.9+01:00"},
                          Prefer="return=representation")  # fmt: skip
    assert (updated.status_code, updated.json()["new_updatedat"]) == (200, "2026-01-31T09:30:00Z")
    assert updated.json()["lastname"] == "Li"
    assert client.call("PATCH", path, {"lastname": None}).status_code == 204
    assert "lastname" not in crm.records()["A:1"]
    assert code(client.call("PATCH", f"/leads({OTHER})", {}, If_Match="*")) == (404, "0x80040217")
    assert code(client.call("PATCH", path, {}, If_None_Match="*")) == (412, "0x80040237")
    assert code(client.call("PATCH", f"/leads({OTHER})", {KEY: "a:1 "})) == (412, "0x80060892")
    assert code(client.call("GET", f"/leads({KEY}='E1')")) == (404, "0x80060891")
    assert code(client.call("GET", "/leads(1)")) == (400, "0x80060888")
    assert client.call("DELETE", path).status_code == 204
    assert code(client.call("DELETE", path)) == (404, "0x80040217")
    assert crm.records() == {}


def test_queries(client: Client) -> None:
    for number, (external_id, city) in enumerate((("A:1", "Berlin"), ("O'Neill", "berlin"), ("C", None))):
        client.call("PATCH", f"/leads({number}{GUID[1:]})", {KEY: external_id, "address1_city": city})

    def found(condition: str) -> list[str]:
        reply = client.call("GET", f"/leads?$select={KEY}&$count=true&$filter={requests.utils.quote(condition)}")
        assert reply.status_code == 200, reply.text
        assert reply.json()["@odata.count"] == len(reply.json()["value"])
        return sorted(row[KEY] for row in reply.json()["value"])

    assert found(f"{KEY} eq 'a:1' or {KEY} eq 'O''Neill'") == ["A:1", "O'Neill"], "case does not count"
    assert found("address1_city eq 'BERLIN'") == ["A:1", "O'Neill"]
    assert found("address1_city eq null") == ["C"]
    assert found("address1_city ne null") == ["A:1", "O'Neill"]
    assert found(f"({KEY} eq 'C' or {KEY} eq 'A:1') and address1_city ne 'Berlin'") == ["C"]
    for wrong in ("new_leadsyncid", "(new_leadsyncid eq 'A'", "new_leadsyncid like 'A'", "no_such eq 1", "'"):
        assert code(client.call("GET", f"/leads?$filter={requests.utils.quote(wrong)}")) == (400, "0x0")
    assert code(client.call("GET", "/leads?$orderby=lastname up")) == (400, "0x0")
    many = " or ".join([f"{KEY} eq 'A:1'"] * 501)
    (answer,) = answers(client.batch(("GET", f"/leads?$filter={requests.utils.quote(many)}", None)))
    assert answer.status == 400


def test_half_a_page_says_how_many_there_were(client: Client, crm: Simulator) -> None:
    client.upsert(target("E1"), target("E2"))
    crm.faults(half_page={"next": 1})
    page = client.call("GET", "/leads?$count=true").json()
    assert (page["@odata.count"], len(page["value"])) == (2, 1)


def test_the_definition_of_the_table(client: Client) -> None:
    expand = "Attributes($select=LogicalName,IsValidForUpdate),Keys($select=KeyAttributes,EntityKeyIndexStatus)"
    table = client.call("GET", f"/EntityDefinitions(LogicalName='lead')?$select=EntitySetName&$expand={expand}").json()
    assert table.keys() == {"EntitySetName", "Attributes", "Keys"}
    assert table["Keys"] == [{"KeyAttributes": [KEY], "EntityKeyIndexStatus": "Active"}]
    assert {"LogicalName": "createdon", "IsValidForUpdate": False} in table["Attributes"]
    assert client.call("GET", "/EntityDefinitions(LogicalName='nothing')").status_code == 404
    assert client.call("GET", "/EntityDefinitions?$filter=LogicalName eq 'nothing'").json() == {"value": []}


def test_unknown_sets_and_actions(client: Client) -> None:
    for method, path in (
        ("GET", "/accounts"), ("PATCH", f"/accounts({GUID})"), ("POST", "/leads/Microsoft.Dynamics.CRM.NoSuchAction")
    ):  # fmt: skip
        assert code(client.call(method, path, {})) == (404, "0x8006088a")
    assert client.call("GET", "/leads", OData_Version="3.0").status_code == 400


def test_throttling_and_the_entitlement(client: Client, crm: Simulator) -> None:
    crm.faults(too_many={"next": 1, "retry_after": 7})
    reply = client.upsert(target("E1"))
    assert (*code(reply), reply.headers["Retry-After"]) == (429, "0x80072322", "7")
    crm.faults(quota_spent=True)
    assert int(client.upsert(target("E1")).headers["Retry-After"]) > 3600
    assert client.log_in().status_code == 200
