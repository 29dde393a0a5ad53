"""The simulated Odoo refuses what Odoo refuses, and keeps what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.simulators import Simulator, Simulators, running_simulator

COLUMNS = ["id", "name", "city"]
NAMES = [["module", "=", "leadsync"], ["model", "=", "crm.lead"]]


class Client:
    """Calls one simulator by both of its APIs."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.password = simulator.client_secret
        self.database = "demo"

    def rpc(self, service: str, method: str, *arguments: Any) -> dict[str, Any]:
        params = {"service": service, "method": method, "args": arguments}
        body = {"jsonrpc": "2.0", "method": "call", "id": 5, "params": params}
        reply = requests.post(f"{self.simulator.url}/jsonrpc", json=body, timeout=10)
        assert reply.status_code == 200
        document: dict[str, Any] = reply.json()
        assert (document["jsonrpc"], document["id"]) == ("2.0", 5)
        return document

    def execute(self, model: str, method: str, *placed: Any, uid: int = 2, **named: Any) -> dict[str, Any]:
        return self.rpc("object", "execute_kw", self.database, uid, self.password, model, method, placed, named)

    def load(self, *rows: list[Any], fields: list[str] = COLUMNS) -> Any:
        return self.execute("crm.lead", "load", fields, rows, context={"tracking_disable": True})["result"]

    def json2(self, path: str, *, database: str | None = None, token: str | None = None, **body: Any) -> Any:
        headers = {"Authorization": f"bearer {self.password if token is None else token}"}
        headers |= {} if database is None else {"X-Odoo-Database": database}
        return requests.post(f"{self.simulator.url}/json/2/{path}", json=body, headers=headers, timeout=10)


@pytest.fixture
def odoo(simulators: Simulators) -> Simulator:
    simulators["odoo"].reset()
    return simulators["odoo"]


@pytest.fixture
def client(odoo: Simulator) -> Client:
    return Client(odoo)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Simulator]:
    with running_simulator("odoo", tmp_path / "data") as simulator:
        yield simulator


def fault(document: dict[str, Any]) -> str:
    return str(document["error"]["data"]["name"])


def test_a_login_tells_the_number_of_the_user(client: Client, odoo: Simulator) -> None:
    def authenticate(login: str, password: str, database: str = "demo") -> dict[str, Any]:
        return client.rpc("common", "authenticate", database, login, password, {})

    assert authenticate(odoo.client_id, odoo.client_secret)["result"] == 2
    assert authenticate(odoo.client_id, "wrong")["result"] is False
    assert authenticate("who", odoo.client_secret)["result"] is False
    assert fault(authenticate(odoo.client_id, odoo.client_secret, "other")) == "psycopg2.OperationalError"


def test_every_call_has_its_credentials_checked(client: Client, odoo: Simulator) -> None:
    assert fault(client.execute("crm.lead", "search_count", [], uid=3)) == "odoo.exceptions.AccessDenied"
    odoo.faults(expire_tokens=True)
    assert fault(client.execute("crm.lead", "fields_get", [], [])) == "odoo.exceptions.AccessDenied"
    odoo.faults()
    client.password = "wrong"
    assert fault(client.execute("crm.lead", "fields_get", [], [])) == "odoo.exceptions.AccessDenied"


def test_a_load_writes_by_external_id(client: Client, odoo: Simulator) -> None:
    first = client.load(["leadsync.A:1", "Li", "Berlin"], ["leadsync.A:2", "Wu", ""])
    assert first == {"ids": first["ids"], "messages": [], "nextrow": 0}
    again = client.load(["leadsync.A:2", "Wu", "Köln"], ["leadsync.A:1", "Li", ""])
    assert again["ids"] == first["ids"][::-1]
    assert {key: record.get("city") for key, record in odoo.records().items()} == {"A:1": None, "A:2": "Köln"}
    assert [change["action"] for change in odoo.journal()] == ["create", "create", "update", "update"]


@pytest.mark.parametrize(
    ("row", "said", "field"),
    [
        (["leadsync.A:9", "", "x"], "Missing required value", "name"),
        (["leadsync.A 9", "Li", "x"], "cannot contain spaces", None),
    ],
)
def test_one_bad_row_undoes_a_load(client: Client, odoo: Simulator, row: list[str], said: str, field: str) -> None:
    loaded = client.load(["leadsync.A:1", "Li", "x"], row)
    assert loaded["ids"] is False
    assert [message.get("field") for message in loaded["messages"] if message["record"] == 1] == [field]
    assert said in loaded["messages"][-1]["message"]
    assert odoo.records() == {}


def test_the_first_record_is_named_for_what_is_anothers_fault(client: Client) -> None:
    loaded = client.load(["leadsync.A:1", "Li", "x"], ["leadsync.A 2", "Li", "x"])
    assert [message["record"] for message in loaded["messages"]] == [0, 1]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("color", "red", "integer"),
        ("expected_revenue", "much", "number"),
        ("x_leadsync_updated_at", "2026-01-31T09:30:00+00:00", "datetime"),
        ("priority", "urgent", "selection"),
        ("team_id", "Nobody", "No matching record"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(client: Client, name: str, value: str, said: str) -> None:
    (message,) = client.load(["leadsync.A:1", "Li", value], fields=["id", "name", name])["messages"]
    assert (message["type"], message["record"], message["field"]) == ("error", 0, name)
    assert said in message["message"]


def test_a_number_that_is_too_large_names_no_field(client: Client) -> None:
    (message,) = client.load(["leadsync.A:1", "Li", str(2**31)], fields=["id", "name", "color"])["messages"]
    assert "field" not in message


def test_values_that_are_no_texts_break_a_load(client: Client) -> None:
    assert (
        fault(client.execute("crm.lead", "load", ["id", "color"], [["leadsync.A:1", 5]])) == "builtins.AttributeError"
    )


def test_more_than_ten_errors_end_a_load(client: Client) -> None:
    loaded = client.load(*[[f"leadsync.A:{number}", "", "x"] for number in range(40)])
    assert len(loaded["messages"]) == 11
    assert loaded["messages"][-1]["type"] == "warning"


def test_what_does_not_exist_is_named(client: Client) -> None:
    unknown = client.execute("crm.lead", "load", ["id", "no_such"], [["leadsync.A:1", "x"]])
    assert (fault(unknown), "no_such" in unknown["error"]["data"]["message"]) == ("builtins.ValueError", True)
    assert fault(client.execute("no.such", "load", [], [])) == "odoo.exceptions.UserError"
    assert fault(client.execute("crm.lead", "explode")) == "builtins.AttributeError"
    assert fault(client.execute("crm.lead", "load", ["id"])) == "builtins.TypeError"
    assert fault(client.execute("crm.lead", "load", ["id"], [], limit=3)) == "builtins.TypeError"


def test_records_are_read_archived_and_deleted(client: Client, odoo: Simulator) -> None:
    one, two = client.load(["leadsync.A:1", "Li", ""], ["leadsync.A:2", "Wu", ""])["ids"]
    read = client.execute("crm.lead", "read", [one, two, 999], ["name", "city", "color", "team_id"])["result"]
    assert read[0] == {"id": one, "name": "Li", "city": False, "color": 0, "team_id": False}
    assert [row["id"] for row in read] == [one, two], "a record that is not there is skipped"
    assert client.execute("crm.lead", "write", [one], {"active": False})["result"] is True
    assert odoo.records()["A:1"]["active"] is False
    assert fault(client.execute("crm.lead", "write", [999], {"active": False})) == "odoo.exceptions.MissingError"
    assert client.execute("crm.lead", "unlink", [one])["result"] is True
    assert set(odoo.records()) == {"A:2"}
    names = [*NAMES, ["name", "in", ["A:1", "A:2"]]]
    found = client.execute("ir.model.data", "search_read", names, ["name", "res_id"])["result"]
    assert [(row["name"], row["res_id"]) for row in found] == [("A:2", two)], "the name goes with its record"
    assert client.execute("ir.model.data", "search_count", names)["result"] == 1
    other = [["module", "=", "other"], *names[1:]]
    assert client.execute("ir.model.data", "search_count", other)["result"] == 0


def test_json2_has_real_status_codes(client: Client, odoo: Simulator) -> None:
    good = client.json2("crm.lead/load", database="demo", fields=COLUMNS, data=[["leadsync.A:1", "Li", "x"]])
    assert (good.status_code, good.json()["messages"]) == (200, [])
    assert set(odoo.records()) == {"A:1"}
    refused = client.json2("crm.lead/load", fields=COLUMNS, data=[["leadsync.A:2", "", "x"]])
    assert (refused.status_code, refused.json()["ids"]) == (200, False)
    statuses = {
        "no key": client.json2("crm.lead/search_count", token="", domain=[]),
        "wrong key": client.json2("crm.lead/search_count", token="wrong", domain=[]),
        "database": client.json2("crm.lead/search_count", database="other", domain=[]),
        "model": client.json2("no.such/search_count", domain=[]),
        "missing": client.json2("crm.lead/load", fields=COLUMNS),
        "unknown": client.json2("crm.lead/load", fields=COLUMNS, data=[], limit=1),
        "field": client.json2("crm.lead/read", ids=[1], fields=["no_such"]),
        "gone": client.json2("crm.lead/write", ids=[999], vals={"active": False}),
    }
    assert {name: reply.status_code for name, reply in statuses.items()} == {
        "no key": 401, "wrong key": 401, "database": 404, "model": 404, "missing": 422, "unknown": 422, "field": 500,
        "gone": 404,
    }  # fmt: skip
    assert statuses["model"].json()["name"] == "werkzeug.exceptions.NotFound"


def test_other_paths_and_methods(client: Client, odoo: Simulator) -> None:
    assert client.json2("crm.lead").status_code == 404
    assert requests.get(f"{odoo.url}/jsonrpc", timeout=10).status_code == 405
    assert requests.post(f"{odoo.url}/jsonrpc", data=b"no json", timeout=10).status_code == 400


def test_it_fails_on_demand(client: Client, odoo: Simulator) -> None:
    row = ["leadsync.A:1", "Li", "x"]
    odoo.faults(lose_reply={"next": 1})
    with pytest.raises(requests.ConnectionError):
        client.load(row)
    assert set(odoo.records()) == {"A:1"}
    odoo.faults(reject={"external_ids": ["A:1"], "message": "not today"})
    assert client.load(row)["messages"][0]["message"] == "not today"
    odoo.faults(reject={"external_ids": ["A:1"]}, whole_batch=True)
    assert fault(client.execute("crm.lead", "load", COLUMNS, [row])) == "odoo.exceptions.ValidationError"
    for faults, status in (({"too_many": {"next": 1, "retry_after": 7}}, 429), ({"server_error": {"next": 1}}, 503),
                           ({"quota_spent": True}, 429)):  # fmt: skip
        odoo.faults(**faults)
        assert client.json2("crm.lead/search_count", domain=[["id", "in", []]]).status_code == status
    odoo.faults(down=True)
    with pytest.raises(requests.ConnectionError):
        client.load(row)


def test_what_was_accepted_survives_a_crash(own: Simulator) -> None:
    (crm_id,) = Client(own).load(["leadsync.A:1", "Li", "x"])["ids"]
    before = own.records(), own.journal()
    own.kill()
    own.start()
    assert (own.records(), own.journal()) == before
    assert Client(own).load(["leadsync.A:1", "Li", "y"])["ids"] == [crm_id]
