"""Microsoft's own client works against the simulated Dataverse: so that is to be believed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.dataverse_client import ClientError, DataverseClient, running_client
from tests.support.simulators import Simulator, Simulators

KEY = "new_leadsyncid"
GUID = "0db30dbd-509d-4da1-bbc0-453e47e128ea"


@pytest.fixture(scope="module")
def started(simulators: Simulators) -> Iterator[DataverseClient]:
    with running_client(simulators["dynamics365"]) as client:
        yield client


@pytest.fixture
def crm(simulators: Simulators) -> Simulator:
    simulators["dynamics365"].reset()
    return simulators["dynamics365"]


@pytest.fixture
def client(started: DataverseClient, crm: Simulator) -> DataverseClient:
    return started


def item(external_id: str, **fields: Any) -> dict[str, Any]:
    return {"alternate_key": {KEY: external_id}, "record": fields}


def create(client: DataverseClient, *external_ids: str) -> list[str]:
    records = [{KEY: external_id, "lastname": "Li"} for external_id in external_ids]
    ids: list[str] = client.call("records.create", "lead", records)
    return ids


def test_creates_one_and_many_and_reads_them(client: DataverseClient, crm: Simulator) -> None:
    one = client.call("records.create", "lead", {KEY: "A:1", "LastName": "Köln", "leadsourcecode": "Source 8"})
    two, three = create(client, "A:2", "O'Neill")
    assert {name: held["leadid"] for name, held in crm.records().items()} == {"A:1": one, "A:2": two, "O'Neill": three}
    read = client.call("records.retrieve", "lead", one, select=["lastname", "leadsourcecode"])
    assert read["data"] == {"leadid": one, "lastname": "Köln", "leadsourcecode": 8}, "the label became its number"
    assert read["etag"].startswith('W/"')
    assert client.call("records.retrieve", "lead", two)["data"]["createdon"]
    assert client.call("records.retrieve", "lead", GUID) is None


def test_upserts_one_and_many_by_alternate_key(client: DataverseClient, crm: Simulator) -> None:
    client.call("records.upsert", "lead", [item("E1", lastname="Li")])
    client.call("records.upsert", "lead", [item("E1", address1_city="Berlin")])
    client.call("records.upsert", "lead", [item("E1", lastname="Han"), item("E'2", lastname="Bo"), item("E3")])
    held = {name: (each.get("lastname"), each.get("address1_city")) for name, each in crm.records().items()}
    assert held == {"E1": ("Han", "Berlin"), "E'2": ("Bo", None), "E3": (None, None)}
    assert [change["action"] for change in crm.journal()] == ["create", "update", "update", "create", "create"]


def test_lists(client: DataverseClient) -> None:
    ids = dict(zip("ABC", create(client, "A", "B", "C"), strict=True))
    client.call("records.update", "lead", ids["C"], {"address1_city": "Berlin"})

    def listed(**options: Any) -> list[str]:
        found = client.call("records.list", "lead", select=[KEY], **options)
        # The client fills in a record's `id` only where it asked for that record; the row has the id under its name.
        assert [row["data"]["leadid"] for row in found] == [ids[row["data"][KEY]] for row in found]
        return [row["data"][KEY] for row in found]

    assert listed(orderby=[f"{KEY} desc"]) == ["C", "B", "A"]
    assert listed(orderby=["address1_city", f"{KEY} desc"], count=True) == ["B", "A", "C"]
    assert listed(orderby=["address1_city desc", KEY], top=2) == ["C", "A"]
    assert listed(filter=f"{KEY} eq 'a' or address1_city eq 'BERLIN'", orderby=[KEY]) == ["A", "C"]
    assert listed(filter=f"{KEY} eq 'nobody'") == []


def test_updates_one_and_many(client: DataverseClient, crm: Simulator) -> None:
    one, two = create(client, "A", "B")
    client.call("records.update", "lead", one, {"address1_city": "Berlin"})
    client.call("records.update", "lead", [one, two], {"jobtitle": "CEO"})
    client.call("records.update", "lead", [one, two], [{"lastname": "Han"}, {"lastname": None}])
    fields = ("address1_city", "jobtitle", "lastname")
    held = {name: [each.get(field) for field in fields] for name, each in crm.records().items()}
    assert held == {"A": ["Berlin", "CEO", "Han"], "B": [None, "CEO", None]}
    for absent in (GUID, [one, GUID]):
        with pytest.raises(ClientError) as caught:
            client.call("records.update", "lead", absent, {"lastname": "Nobody"})
        assert (caught.value.status, caught.value.code) == (404, "0x80040217")
    assert {each.get("lastname") for each in crm.records().values()} == {"Han", None}, "neither made nor half done"


def test_deletes(client: DataverseClient, crm: Simulator) -> None:
    one, two, three = create(client, "A", "B", "C")
    client.call("records.delete", "lead", one)
    assert set(crm.records()) == {"B", "C"}
    client.call("records.delete", "lead", [two, three], use_bulk_delete=False)
    assert crm.records() == {}
    with pytest.raises(ClientError) as caught:
        client.call("records.delete", "lead", one)
    assert (caught.value.status, caught.value.code) == (404, "0x80040217")


def test_batches(client: DataverseClient, crm: Simulator) -> None:
    (known,) = create(client, "A")
    operations = [
        ["create", "lead", {KEY: "B", "lastname": "Bo"}],
        ["upsert", "lead", [item("C", lastname="x" * 51)]],
        ["update", "lead", known, {"lastname": "Han"}],
        ["retrieve", "lead", known],
        ["delete", "lead", known],
    ]
    answers = client.call("batch", *operations, continue_on_error=True)
    assert [answer["status_code"] for answer in answers] == [204, 400, 204, 200, 204]
    assert answers[0]["entity_id"] == crm.records()["B"]["leadid"]
    assert answers[1]["error_code"] == "0x80044331"
    assert answers[3]["data"]["lastname"] == "Han"
    assert set(crm.records()) == {"B"}


@pytest.mark.parametrize(
    ("operation", "argument", "status", "code", "said"),
    [
        ("create", {"no_such_column": "x"}, 400, "0x80048d19", "The property 'no_such_column' does not exist"),
        ("upsert", [item("E2", no_such_column="x")], 400, "0x80048d19", "The property 'no_such_column'"),
        ("upsert", [item("E2"), item("E3", no_such_column="x")], 400, "0x80048d19", "The property 'no_such_column'"),
        ("upsert", [item("A:2")], 400, "0x80060888", "Error in query syntax"),
        ("create", {KEY: "a:1"}, 412, "0x80060892", "already exists"),
    ],
)
def test_tells_what_is_wrong_with_a_record(
    client: DataverseClient, crm: Simulator, operation: str, argument: Any, status: int, code: str, said: str
) -> None:
    create(client, "A:1")
    with pytest.raises(ClientError, match=said) as caught:
        client.call(f"records.{operation}", "lead", argument)
    assert (caught.value.kind, caught.value.status, caught.value.code) == ("HttpError", status, code)
    assert set(crm.records()) == {"A:1"}


def test_tells_what_is_wrong_with_a_query(client: DataverseClient) -> None:
    for options in ({"select": ["nope"]}, {"filter": "nope eq 1"}, {"orderby": ["nope"]}):
        with pytest.raises(ClientError, match="Could not find a property named 'nope'") as caught:
            client.call("records.list", "lead", **options)
        assert (caught.value.kind, caught.value.status) == ("HttpError", 400)
    with pytest.raises(ClientError, match="Unable to resolve entity set") as caught:
        client.call("records.list", "no_such_table")
    assert caught.value.kind == "MetadataError"


def test_tells_when_to_come_back(client: DataverseClient, crm: Simulator) -> None:
    crm.faults(too_many={"next": 1, "retry_after": 7})
    with pytest.raises(ClientError) as caught:
        client.call("records.create", "lead", {KEY: "A"})
    assert (caught.value.status, caught.value.code) == (429, "0x80072322")
    assert (caught.value.told["is_transient"], caught.value.told["details"]["retry_after"]) == (True, 7)
    assert crm.records() == {}


def test_a_wrong_secret(crm: Simulator) -> None:
    with running_client(crm, "wrong") as client, pytest.raises(ClientError, match="AADSTS7000215") as caught:
        create(client, "A")
    assert caught.value.kind == "ClientAuthenticationError"
    assert crm.stats()["requests"] == 2, "where to log in, and the login"


def test_a_token_that_has_ended(crm: Simulator) -> None:
    with running_client(crm) as client:
        create(client, "A")
        crm.faults(expire_tokens=True)
        with pytest.raises(ClientError) as caught:
            create(client, "B")
    assert (caught.value.kind, caught.value.status) == ("HttpError", 401)
    assert set(crm.records()) == {"A"}
