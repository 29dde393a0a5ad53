"""What all simulators share: they keep what they accepted, fail on demand, and say what they hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.contract.calls import KEY, Client
from tests.support.servers import free_port
from tests.support.simulators import INCLUDE, Simulator, Simulators, running_simulator

KINDS = ("hubspot", "salesforce")


@pytest.fixture(params=KINDS)
def simulator(request: pytest.FixtureRequest, simulators: Simulators) -> Simulator:
    simulators[request.param].reset()
    return simulators[request.param]


@pytest.fixture
def client(simulator: Simulator) -> Client:
    return Client(simulator)


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A simulator that a test may end."""
    with running_simulator(request.param) as simulator:
        yield simulator


def post(simulator: Simulator, what: str, **arguments: object) -> requests.Response:
    return requests.post(f"{simulator.url}/_demo/{what}", timeout=10, **arguments)  # type: ignore[arg-type]


def test_what_was_accepted_survives_a_crash(own: Simulator) -> None:
    Client(own).upsert("A:1", "A:2")
    before = own.records(), own.journal()
    own.kill()
    with pytest.raises(requests.ConnectionError):
        own.stats()
    own.start()
    assert (own.records(), own.journal()) == before
    assert set(before[0]) == {"A:1", "A:2"}
    Client(own).upsert("A:2", "A:3")
    assert [change["action"] for change in own.journal()] == ["create", "create", "update", "create"]


def test_it_ends_in_order_on_sigterm(own: Simulator) -> None:
    with requests.Session() as idle:
        idle.get(f"{own.url}/_demo/health", timeout=5)
        assert own.stop() == 0


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("hubspot", "DEMO_CRM_TOKEN"), ("salesforce", "DEMO_CRM_CLIENT_ID and DEMO_CRM_CLIENT_SECRET")],
)
def test_it_asks_for_the_credentials_that_it_needs(kind: str, missing: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEMO_CRM_")}
    command = [sys.executable, "-m", "demo.crm", kind, "--port", str(free_port()), "--data", str(tmp_path / "data")]
    ended = subprocess.run(
        command, env=environment | {"PYTHONPATH": str(INCLUDE)}, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 2
    assert f"set {missing}" in ended.stderr
    assert not (tmp_path / "data").exists()


def test_the_journal_has_every_change_in_order(simulator: Simulator, client: Client) -> None:
    key = KEY[simulator.kind]
    client.upsert("A:1")
    client.upsert("A:1", "A:2")
    journal = simulator.journal()
    assert [(entry["action"], entry["external_id"]) for entry in journal] == [
        ("create", "A:1"), ("update", "A:1"), ("create", "A:2")
    ]  # fmt: skip
    assert [entry["fields"][key] for entry in journal] == ["A:1", "A:1", "A:2"]
    assert simulator.journal(after=journal[0]["seq"]) == journal[1:]
    assert simulator.get(f"journal?after={journal[0]['seq']}&limit=1") == journal[1:2]
    assert [entry["seq"] for entry in journal] == sorted({entry["seq"] for entry in journal})


def test_long_lists_are_whole(simulator: Simulator, client: Client) -> None:
    ids = [f"A:{number}" for number in range(2_300)]
    for first in range(0, len(ids), 100):
        client.upsert(*ids[first : first + 100])
    assert set(simulator.records()) == set(ids)
    assert [entry["external_id"] for entry in simulator.journal()] == ids
    assert simulator.stats() == {
        "records": 2_300, "deleted": 0, "doubled": 0, "journal": 2_300, "requests": simulator.stats()["requests"],
        "by_status": {"200": simulator.stats()["requests"]},
    }  # fmt: skip


def test_an_upsert_changes_only_the_fields_that_it_names(simulator: Simulator, client: Client) -> None:
    first, second = ("phone", "city") if simulator.kind == "hubspot" else ("Phone", "City")
    client.upsert("A:1", **{first: "1", second: "Berlin"})
    client.upsert("A:1", **{second: None})
    record = simulator.records()["A:1"]
    assert record[first] == "1"
    assert second not in record


def test_a_lost_reply_leaves_the_change(simulator: Simulator, client: Client) -> None:
    simulator.faults(lose_reply={"next": 1})
    with pytest.raises(requests.ConnectionError):
        client.upsert("A:1")
    assert set(simulator.records()) == {"A:1"}
    assert simulator.stats()["by_status"]["dropped"] == 1
    assert client.upsert("A:1").status_code == 200
    assert simulator.stats()["doubled"] == 0


def test_a_malformed_reply_leaves_the_change(simulator: Simulator, client: Client) -> None:
    simulator.faults(malformed={"next": 1})
    with pytest.raises(ValueError, match="Expecting value"):
        client.upsert("A:1").json()
    assert set(simulator.records()) == {"A:1"}


@pytest.mark.parametrize(
    ("fault", "status"),
    [({"too_many": {"next": 2}}, 429), ({"server_error": {"next": 2}}, 503),
     ({"server_error": {"next": 2, "status": 500}}, 500)],
)  # fmt: skip
def test_faults_count_down_and_change_nothing(
    simulator: Simulator, client: Client, fault: dict[str, object], status: int
) -> None:
    simulator.faults(**fault)
    assert [client.upsert("A:1").status_code for _ in range(3)] == [status, status, 200]
    assert simulator.get("faults")["active"] == {}
    assert len(simulator.journal()) == 1


def test_throttling_says_when_to_come_back(simulator: Simulator, client: Client) -> None:
    simulator.faults(too_many={"rate": 1, "retry_after": 7})
    assert client.upsert("A:1").headers["Retry-After"] == "7"
    simulator.faults(too_many={"rate": 1})
    assert "Retry-After" not in client.upsert("A:1").headers


def test_a_rate_strikes_some_requests(simulator: Simulator, client: Client) -> None:
    simulator.faults(server_error={"rate": 0.5})
    statuses = [client.upsert("A:1").status_code for _ in range(40)]
    assert {200, 503} == set(statuses)
    simulator.faults(server_error={"rate": 0.5})
    assert [client.upsert("A:1").status_code for _ in range(40)] == statuses, "it is not the same in every run"


def test_the_rolling_window_is_full_at_its_limit(simulator: Simulator, client: Client) -> None:
    simulator.faults(rate_limit={"requests": 3, "seconds": 600})
    assert [client.upsert("A:1").status_code for _ in range(4)] == [200, 200, 200, 429]


def test_a_rate_limit_of_the_command_line_holds_until_it_is_switched_off(own: Simulator) -> None:
    own.stop()
    own.start("--rate-limit", "1")
    client = Client(own)
    assert [client.upsert("A:1").status_code for _ in range(2)] == [200, 429]
    own.reset()
    assert [client.upsert("A:1").status_code for _ in range(2)] == [200, 429]
    own.faults(rate_limit=None)
    assert [client.upsert("A:1").status_code for _ in range(2)] == [200, 200]


def test_down_drops_every_connection_but_the_demos(simulator: Simulator, client: Client) -> None:
    simulator.faults(down=True)
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            client.upsert("A:1")
    assert simulator.get("health") == {"status": "ok"}
    simulator.clear_faults()
    assert client.upsert("A:1").status_code == 200


def test_rejected_records_are_the_same_ones_each_time(simulator: Simulator, client: Client) -> None:
    ids = [f"A:{number}" for number in range(60)]
    simulator.faults(reject={"rate": 0.3, "message": "not today"})
    assert "not today" in client.upsert(*ids).text
    accepted = set(simulator.records())
    assert 0 < len(accepted) < len(ids)
    client.upsert(*ids)
    assert set(simulator.records()) == accepted
    simulator.faults(reject={"external_ids": ["A:1"]})
    client.upsert(*ids)
    assert set(simulator.records()) == accepted | set(ids) - {"A:1"}


def test_a_batch_refused_as_a_whole_changes_nothing(simulator: Simulator, client: Client) -> None:
    simulator.faults(reject={"external_ids": ["A:3"]}, whole_batch=True)
    assert client.upsert("A:1", "A:2", "A:3").status_code == 400
    assert simulator.journal() == []


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"no_such": True}, "no_such"),
        ({"too_many": {}}, "either `next` or `rate`"),
        ({"too_many": {"next": 1, "rate": 1}}, "either `next` or `rate`"),
        ({"reject": {"rate": 2}}, "reject.rate"),
        ([], "not a JSON object"),
    ],
)
def test_unknown_faults_are_refused_and_the_known_named(simulator: Simulator, faults: object, said: str) -> None:
    simulator.faults(latency=0)
    reply = post(simulator, "faults", json=faults)
    assert reply.status_code == 400
    assert said in reply.json()["error"]
    assert set(reply.json()["allowed"]) == set(simulator.get("faults")["catalogue"])
    assert simulator.get("faults")["active"] == {"latency": 0}, "what was refused changed something"


def test_every_fault_is_described_with_an_example_that_works(simulator: Simulator) -> None:
    for name, about in simulator.get("faults")["catalogue"].items():
        assert about["description"]
        simulator.faults(**{name: about["example"]})


def test_reset_forgets_everything(simulator: Simulator, client: Client) -> None:
    client.upsert("A:1")
    simulator.faults(latency=0)
    simulator.reset()
    assert simulator.records(deleted=True) == {}
    assert simulator.journal() == []
    assert simulator.get("faults")["active"] == {}
    assert simulator.stats() == {
        "records": 0, "deleted": 0, "doubled": 0, "journal": 0, "requests": 0, "by_status": {}
    }  # fmt: skip


def test_reset_drops_what_is_under_way(simulator: Simulator, client: Client) -> None:
    simulator.faults(latency=2)
    before = simulator.stats()["requests"]  # a login among them
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.upsert, "A:1")
        while simulator.stats()["requests"] == before:
            time.sleep(0.01)
        simulator.reset()
        with pytest.raises(requests.RequestException):
            late.result()
    assert simulator.records() == {}
    assert simulator.stats()["requests"] == 0


@pytest.mark.parametrize("what", ["faults", "reset"])
def test_pages_of_other_sites_can_not_change_it(simulator: Simulator, client: Client, what: str) -> None:
    client.upsert("A:1")
    assert post(simulator, what, json={}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert set(simulator.records()) == {"A:1"}


def test_the_page_runs_its_own_script_only(simulator: Simulator) -> None:
    reply = requests.get(simulator.url, timeout=5)
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert len(re.findall("<script", reply.text)) == 1
    assert not re.findall(
        r"innerHTML|insertAdjacentHTML|document\.write|outerHTML|(?:src|href)=\"(?!data:)", reply.text
    )


def test_the_overview_shows_the_latest_first(simulator: Simulator, client: Client) -> None:
    client.upsert("A:1", "A:2", "<b>A:3</b>")
    client.upsert("A:1")
    overview = simulator.get("overview")
    assert [record["external_id"] for record in overview["records"]] == ["A:1", "<b>A:3</b>", "A:2"]
    assert [change["external_id"] for change in overview["journal"]] == ["A:1", "<b>A:3</b>", "A:2", "A:1"]


def test_nothing_that_was_sent_is_logged(own: Simulator) -> None:
    client = Client(own)
    client.upsert("A:1", **{"phone" if own.kind == "hubspot" else "Phone": "+49 170 0000"})
    client.call("POST", "/crm/v3/objects/contacts/batch/upsert", {"inputs": "Private Person"})
    own.stop()
    log = own.log.read_text()
    assert not [word for word in ("A:1", "+49", "Private", "POST", client.token) if word in log]
