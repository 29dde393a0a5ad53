"""Erasing a person: afterwards no store of ours holds anything, everything else is as it was, and nothing comes back.

The searches of these tests open every sealed blob and read every row as text, on their own.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from tests.support.world import World

from demo import lead_store
from leadsync import erase as erasing
from leadsync import operation_log
from leadsync.config import Delete
from leadsync.erase import erase
from leadsync.errors import InUse, LeadsyncError, Refused, SnapshotError, Superseded, Unavailable
from leadsync.mapping import lead_key
from leadsync.models import Lead
from leadsync.sealing import Sealer
from leadsync.state import fence
from leadsync.state import operations as operation_state
from leadsync.state.operations import Operation

PERSON = "ZQAPP:77"
SIGNS = ("ZQAPP", "Zelda", "Quill", "zelda@", "139000077")
# Every table, and whether it may hold anything of a lead. A new one has to be thought about here and in traces.py.
TABLES = {
    "alembic_version": False, "alert": False, "dead_letter": True, "delivery": True, "mended_group": False,
    "operation_data": True, "operation_log": False, "reconciliation": True, "reconciliation_finding": True,
    "recovery_log": True, "retry_queue": True, "sender": False, "sync_operation": False, "watermark": False,
}  # fmt: skip


def contents(world: World) -> dict[str, list[str]]:
    """All that our stores hold, in the clear, by store."""
    found: dict[str, list[str]] = {}
    for table in TABLES:
        rows = world.state.execute(f"SELECT t::text FROM leadsync.{table} t ORDER BY 1")  # type: ignore[arg-type]  # noqa: S608
        found[table] = [row[0] for row in rows]
    for load, records in world.state.execute(
        "SELECT operation_id, records FROM leadsync.operation_data ORDER BY 1, part"
    ):
        found["operation_data"].append(world.sealer.open(records, f"operation_data:{load}").decode())
    letters = "SELECT destination_id, lead_key, message, payload FROM leadsync.dead_letter ORDER BY id"
    for destination, key, *sealed in world.state.execute(letters):
        for part, blob in zip(("message", "payload"), sealed, strict=True):
            if blob is not None:
                opened = world.sealer.open(blob, f"dead_letter:{destination}:{key}:{part}")
                found["dead_letter"].append(opened.decode())
    client = world.snapshots._redis
    keys = [key.decode() for key in client.scan_iter("leadsync:*:snapshot:*")]  # the rest are counters
    keys = sorted(key for key in keys if not key.endswith(":writer"))  # a number
    found["snapshot"] = [world.sealer.open(client.get(key), key).decode() for key in keys]
    found["redis"] = keys
    return found


def holding(world: World) -> set[str]:
    """The stores in which there is any sign of the person."""
    return {store for store, texts in contents(world).items() for text in texts if any(sign in text for sign in SIGNS)}


def insert(world: World, email: str | None = "zelda@example.com") -> None:
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, phone, email, answers) "
        "VALUES ('ZQAPP', 77, E'Zelda\\tQuill', '+86 139000077', %s, '{\"q\": \"Quill\\n\"}')",
        (email,),
    )


def others(world: World, count: int = 30) -> None:
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, phone) "
        "SELECT 'ASDAD', n, 'Lead ' || n, '+86 77' || n FROM generate_series(1, %s) n",
        (count,),
    )


def delivered_and_deleted(world: World) -> None:
    """The person came, was delivered, was deleted, and the delete was delivered."""
    others(world)
    insert(world)
    world.run()
    lead_store.delete(world.hive, "ZQAPP", 77)
    world.run()


def dossier(world: World) -> None:
    """Traces in every store, and others of other leads beside them; then the person is deleted."""
    others(world)
    world.hive.execute("UPDATE customer SET email = 'no address' WHERE uid = 5")
    insert(world, email="zelda@nowhere@")
    world.run()
    assert set(world.dead("hubspot")) == {"ASDAD:5", PERSON}
    world.state.execute(
        "WITH found AS (INSERT INTO leadsync.reconciliation"
        " (destination_id, run_id, until, sample_start, sample_width, vanished, repair, state, cursor)"
        " SELECT destination_id, 'run', now(), 0, 1, true, false, 'failed', '{ZQAPP,77}' FROM leadsync.watermark"
        "  WHERE destination = 'hubspot' RETURNING id)"
        " INSERT INTO leadsync.reconciliation_finding (reconciliation_id, kind, external_id, lead_key, fields, crm_ids)"
        " SELECT id, 'missing', %s, %s, '{}', '{}' FROM found",
        (PERSON, lead_key(PERSON)),
    )
    world.hive.execute("UPDATE customer SET email = 'zelda@example.com' WHERE appkey = 'ZQAPP'")
    lead_store.update(world.hive, "ASDAD", 6, "Newer", None, None)
    world.run()
    world.hive.execute("UPDATE customer SET name = 'Zelda Quill' WHERE appkey = 'ZQAPP'")
    tried = world.extract("run")
    world.snapshot(tried)
    world.simulators["hubspot"].faults(server_error={"rate": 1})
    with pytest.raises(Unavailable):
        world.load(tried, "hubspot")
    world.simulators["hubspot"].clear_faults()
    died = world.extract("run")
    world.snapshot(died)
    world.snapshots._redis.delete(f"leadsync:leads:snapshot:{died.snapshot_id}:manifest")
    world.run()
    lead_store.delete(world.hive, "ZQAPP", 77)
    world.run()


def certificates(world: World) -> list[dict[str, Any]]:
    query = "SELECT message, details FROM leadsync.recovery_log WHERE kind = 'erased' ORDER BY id"
    return [{"message": message, **details} for message, details in world.state.execute(query)]


def sends_nothing_more(world: World) -> bool:
    """Whether runs, backfills and the clearing of all that ever ran leave the CRMs as they are."""
    before = {name: len(simulator.journal()) for name, simulator in world.simulators.items()}
    world.run()
    world.run(since="2020-01-01T00:00:00Z")
    for row in world.state.execute("SELECT sync_id::text FROM leadsync.sync_operation").fetchall():
        operation = operation_state.read(world.state, row[0])
        assert operation is not None
        for name in operation.destinations:
            try:
                world.load(operation, name)
            except (SnapshotError, Superseded):
                continue
    return before == {name: len(simulator.journal()) for name, simulator in world.simulators.items()}


# What is erased, and what is not ------------------------------------------------------------------------------------


def test_nothing_of_the_person_is_left_and_all_else_is_as_it_was(world: World) -> None:
    dossier(world)
    assert holding(world) == {store for store, holds in TABLES.items() if holds} | {"snapshot"}
    before = contents(world)
    loads = {row[0] for row in world.state.execute("SELECT sync_id::text FROM leadsync.sync_operation")}
    statements = {load: operation_log.read(world.state, world.sealer, load) for load in loads}

    removed = erase(world.clients, world.pipeline, [PERSON], "admin")

    assert holding(world) == set()
    after = contents(world)
    for table in ("sync_operation", "operation_log", "watermark"):  # counts and sums among them
        assert after[table] == before[table]
    key = str(lead_key(PERSON))
    for table in ("delivery", "dead_letter", "retry_queue"):
        assert [row for row in after[table] if key not in row] == [
            row for row in before[table] if key not in row and not any(sign in row for sign in SIGNS)
        ]
    assert len([row for row in after["delivery"] if key in row]) == 2
    for load, entries in statements.items():
        rest = [
            {**entry, "data": [change for change in entry["data"] if not any(sign in change for sign in SIGNS)]}
            for entry in entries
        ]
        assert operation_log.read(world.state, world.sealer, load) == rest
    assert set(world.dead("hubspot")) == {"ASDAD:5"}
    assert [kind for kind in world.recovery_log() if kind != "erased"] == [
        row.split(",")[5] for row in before["recovery_log"]
    ]

    (certificate,) = certificates(world)
    assert certificate["lead_key"] == key
    assert certificate["asked_by"] == "admin"
    assert "a second search found nothing" in certificate["message"]
    assert removed == {"leads": 1, "removed": certificate["removed"]}
    assert set(certificate["removed"]) == set(removed["removed"]) == {
        "dead_letter", "delivery", "operation_data", "reconciliation_finding", "recovery_log", "retry_queue",
        "snapshot",
    }  # fmt: skip

    world.hive.execute("DELETE FROM customer WHERE appkey = 'ZQAPP'")
    assert sends_nothing_more(world)
    assert holding(world) == set()
    for name in world.simulators:
        world.assert_in_step(name)


def test_a_named_lead_gives_way_to_its_key_in_the_recovery_log(world: World) -> None:
    delivered_and_deleted(world)
    near = ["ZQAPP:770", "AZQAPP:77", "B:ZQAPP:77", "ZQAPP:77:1"]
    details = {"external_ids": [PERSON, *near], "by": {PERSON: 1}, "count": 77}
    world.state.execute(
        "INSERT INTO leadsync.recovery_log (pipeline, kind, message, details) VALUES ('leads', 'replay', %s, %s)",
        (f"replayed {PERSON}.", psycopg.types.json.Jsonb(details)),
    )
    erase(world.clients, world.pipeline, [PERSON])
    key = str(lead_key(PERSON))
    query = "SELECT message, details FROM leadsync.recovery_log WHERE kind = 'replay'"
    assert world.state.execute(query).fetchone() == (
        f"replayed {key}.", {"external_ids": [key, *near], "by": {key: 1}, "count": 77},
    )  # fmt: skip


def test_several_leads_of_awkward_names(world: World) -> None:
    names = [("A:B\\", 1), ("tab\tnew\nline\x0b", 2), ("emoji 😀", 3), ("plain", 4), ("", 5), ("%s' OR true --", 6)]
    others(world)
    for appkey, uid in names:
        world.hive.execute("INSERT INTO customer (appkey, uid, name) VALUES (%s, %s, 'Quill')", (appkey, uid))
    world.run()
    for appkey, uid in names:
        lead_store.delete(world.hive, appkey, uid)
    world.run()
    ids = [row[0] for row in world.state.execute(
        "SELECT DISTINCT external_id FROM leadsync.delivery WHERE external_id NOT LIKE 'ASDAD:%%'", ()
    )]  # fmt: skip
    assert len(ids) == len(names)
    assert erase(world.clients, world.pipeline, ids)["leads"] == len(names)
    assert holding(world) == set()
    assert len(certificates(world)) == len(names)


def test_a_destination_that_has_left_the_pipeline_file(world: World) -> None:
    others(world)
    insert(world)
    world.run()
    world.pipeline = world.pipeline.model_copy(update={"destinations": world.pipeline.destinations[:1]})
    lead_store.delete(world.hive, "ZQAPP", 77)
    world.run()
    erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == set()


def test_another_pipeline_keeps_its_own(world: World) -> None:
    delivered_and_deleted(world)
    world.state.execute("INSERT INTO leadsync.watermark (pipeline, destination) VALUES ('other', 'hubspot')")
    world.state.execute(
        "INSERT INTO leadsync.delivery (destination_id, lead_key, sequence, external_id) "
        "SELECT destination_id, %s, 1, %s FROM leadsync.watermark WHERE pipeline = 'other'",
        (lead_key(PERSON), PERSON),
    )
    erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == {"delivery"}


def test_again_is_well_and_says_that_nothing_was_left(world: World) -> None:
    delivered_and_deleted(world)
    erase(world.clients, world.pipeline, [PERSON])
    assert erase(world.clients, world.pipeline, [PERSON]) == {"leads": 1, "removed": {}}
    assert [certificate["removed"] == {} for certificate in certificates(world)] == [False, True]


def test_one_that_died_half_way_is_finished_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dossier(world)
    monkeypatch.setattr(erasing, "REMOVE_RETRIES", "SELECT 1/0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        erase(world.clients, world.pipeline, [PERSON])
    assert certificates(world) == []
    assert "retry_queue" in holding(world)
    monkeypatch.undo()
    erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == set()
    assert len(certificates(world)) == 1


def test_the_certificate_says_that_the_lead_store_still_has_the_row(world: World) -> None:
    delivered_and_deleted(world)
    erase(world.clients, world.pipeline, [PERSON])
    world.hive.execute("DELETE FROM customer WHERE appkey = 'ZQAPP'")
    erase(world.clients, world.pipeline, [PERSON])
    assert [certificate["lead_store"] for certificate in certificates(world)] == ["deleted row", "gone"]


def test_every_table_was_thought_about(world: World) -> None:
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'leadsync'"
    assert {row[0] for row in world.state.execute(query)} == set(TABLES)


# What is refused ----------------------------------------------------------------------------------------------------


def refused(world: World, *external_ids: str, error: type[LeadsyncError] = Refused) -> str:
    """Why an erasure is refused; nothing may have changed."""
    before = contents(world)
    with pytest.raises(error) as caught:
        erase(world.clients, world.pipeline, list(external_ids))
    assert contents(world) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("external_id", "because"),
    [
        ("ASDAD:1", "ASDAD:1 is alive in the lead store: delete it there, let a run of leads_sync deliver the delete"),
        ("ASDAD:999", "no store of Leadsync holds anything of ASDAD:999: is it spelled right?"),
        ("ASDAD:01", "there is no lead ASDAD:01: the lead store writes it ASDAD:1"),
        ("ASDAD:one", "can't be a lead: its parts do not fit the key columns"),
        ("ASDAD:9" + "9" * 30, "can't be a lead"),
        ("ASDAD\x00:1", "can't be a lead"),
        ("ASDAD", "it is made of appkey, uid, joined by `:`"),
        ("ASDAD:1:2", "it is made of appkey, uid"),
        ("ASDAD:\\1", "it is made of appkey, uid"),
        ("", "an external id is a text such as"),
    ],
)
def test_a_lead_that_may_not_be_erased_or_does_not_exist(world: World, external_id: str, because: str) -> None:
    delivered_and_deleted(world)
    assert because in refused(world, PERSON, external_id)  # and so the other is not erased either
    assert holding(world)


def test_a_delete_that_no_run_has_delivered(world: World) -> None:
    others(world)
    insert(world)
    world.run()
    lead_store.delete(world.hive, "ZQAPP", 77)
    assert "hubspot has not got so far as the delete of ZQAPP:77 yet" in refused(world, PERSON)
    world.run(destinations=["hubspot"])
    assert "salesforce has not got so far" in refused(world, PERSON)
    world.run()
    erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == set()


def test_a_delete_in_doubt_is_settled_by_the_crm(world: World) -> None:
    """The delete was claimed, and it is not known whether it arrived: the CRM is asked."""
    delivered_and_deleted(world)
    world.state.execute("UPDATE leadsync.delivery SET digest = NULL")
    with world.adapter("salesforce") as adapter:
        adapter.deliver([Lead(PERSON, {"LastName": "Quill", "Company": "ZQAPP"})])
        assert "salesforce still holds ZQAPP:77, whose delete was not delivered" in refused(world, PERSON)
        adapter.deliver([Lead(PERSON, {})], delete=True)
    erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == set()


@pytest.mark.parametrize("row", ["is there", "is gone"])
def test_a_crm_that_only_marks_deleted_leads(world: World, row: str) -> None:
    target = world.target("salesforce")
    marks = Delete(mode="field", field="City", value="gone")
    world.pipeline = world.pipeline.model_copy(
        update={"destinations": (world.target("hubspot"), target.model_copy(update={"on_delete": marks}))}
    )
    delivered_and_deleted(world)
    assert world.simulators["salesforce"].records()[PERSON]["City"] == "gone"
    if row == "is gone":  # then nobody can tell any more whether the mark was delivered
        world.hive.execute("DELETE FROM customer WHERE appkey = 'ZQAPP'")
        assert "salesforce still holds ZQAPP:77" in refused(world, PERSON)
    else:
        erase(world.clients, world.pipeline, [PERSON])
        assert holding(world) == set()


def test_a_lead_that_vanished_from_the_lead_store(world: World) -> None:
    """No run can deliver its delete, so a person does it in the CRM; then the CRM's word is enough."""
    others(world)
    insert(world)
    world.run()
    world.hive.execute("DELETE FROM customer WHERE appkey = 'ZQAPP'")
    for name in world.simulators:
        assert f"{name} still holds ZQAPP:77" in refused(world, PERSON)
        with world.adapter(name) as adapter:
            adapter.deliver([Lead(PERSON, {})], delete=True)
    erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == set()
    assert sends_nothing_more(world)


def test_a_crm_that_has_to_be_asked_and_is_away(world: World) -> None:
    others(world)
    insert(world)
    world.run()
    world.hive.execute("DELETE FROM customer WHERE appkey = 'ZQAPP'")
    world.simulators["hubspot"].stop()
    try:
        refused(world, PERSON, error=Unavailable)
    finally:
        world.simulators["hubspot"].start()


def test_a_snapshot_that_may_still_be_loaded(world: World) -> None:
    delivered_and_deleted(world)
    backfill = world.extract("backfill-1", since="2020-01-01T00:00:00Z")
    world.snapshot(backfill)
    assert "needed by the backfill backfill-1, which is not committed" in refused(world, PERSON, error=InUse)
    for name in world.simulators:
        world.load(backfill, name)
    world.commit(backfill)
    erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == set()


def test_a_snapshot_that_a_recovery_loads(world: World) -> None:
    delivered_and_deleted(world)
    row = world.state.execute(
        "SELECT snapshot_id::text, upper_bound, sequence, rows_read FROM leadsync.sync_operation ORDER BY started_at"
    ).fetchone()
    assert row is not None
    recovery = Operation(
        str(uuid4()), row[0], "leads", "recover", None, row[1], list(world.simulators), False, row[2], row[3]
    )
    operation_state.open_operation(world.state, recovery, "recover-1")
    assert "needed by the recover recover-1" in refused(world, PERSON, error=InUse)
    for name in world.simulators:
        world.load(recovery, name)
    world.commit(recovery)
    erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == set()


def test_a_run_that_failed_and_whose_window_a_later_one_delivered_holds_up_nothing(world: World) -> None:
    others(world)
    insert(world)
    failed = world.extract("failed")
    world.snapshot(failed)
    world.run()
    lead_store.delete(world.hive, "ZQAPP", 77)
    world.run()
    erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == set()
    with pytest.raises(SnapshotError, match="clear the task `extract`"):
        world.load(failed, "hubspot")
    assert sends_nothing_more(world)


def test_a_load_under_way_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered_and_deleted(world)
    monkeypatch.setattr(fence.wait_for_load, "__kwdefaults__", {"patience": 0.0, "sleep": lambda seconds: None})
    query = "SELECT destination_id FROM leadsync.watermark WHERE destination = 'salesforce'"
    (number,) = world.state.execute(query).fetchone() or (0,)
    with psycopg.connect(world.state.info.dsn, autocommit=True) as load, fence.hold(load, number, 1.0):
        assert "a load of this destination has held its lock" in refused(world, PERSON, error=Unavailable)
    erase(world.clients, world.pipeline, [PERSON])


@pytest.mark.parametrize("often", ["once", "always"])
def test_what_is_settled_meanwhile_is_removed_too(world: World, monkeypatch: pytest.MonkeyPatch, often: str) -> None:
    delivered_and_deleted(world)
    wait, waits = fence.wait_for_load, []
    row = world.state.execute("SELECT operation_id, records FROM leadsync.operation_data ORDER BY 1").fetchone()
    assert row is not None
    assert "Zelda" in world.sealer.open(row[1], f"operation_data:{row[0]}").decode()

    def settles(state: psycopg.Connection[Any], destination: int) -> None:
        wait(state, destination)
        waits.append(destination)
        if often == "always" or len(waits) == 4:  # after the snapshots were dropped
            place = {"load": row[0], "part": 1000 + len(waits), "records": row[1]}
            state.execute("INSERT INTO leadsync.operation_data VALUES (%(load)s, %(part)s, %(records)s)", place)

    monkeypatch.setattr(fence, "wait_for_load", settles)
    if often == "once":
        erase(world.clients, world.pipeline, [PERSON])
        assert len(waits) == 6  # of two destinations: before the search, and in two rounds
    else:
        with pytest.raises(InUse, match="new traces keep coming: pause leads_sync"):
            erase(world.clients, world.pipeline, [PERSON])
        assert certificates(world) == []
        monkeypatch.undo()
        erase(world.clients, world.pipeline, [PERSON])
    assert holding(world) == set()


def test_what_a_lost_key_has_sealed_can_not_be_searched(world: World) -> None:
    delivered_and_deleted(world)
    world.state.execute(
        "UPDATE leadsync.operation_data SET records = %s WHERE operation_id = 1",
        (Sealer("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").seal(b"{}\n", "operation_data:1"),),
    )
    with pytest.raises(SnapshotError, match="sealed with a key that LEADSYNC_ENCRYPTION_KEY does not list"):
        erase(world.clients, world.pipeline, [PERSON])
    assert certificates(world) == []


# The command line ---------------------------------------------------------------------------------------------------


def command(world: World, *arguments: str) -> tuple[int, str, str]:
    """`python -m leadsync erase` with the connections of the world: exit status, output, complaint."""
    state, hive, client = world.state.info, world.hive.info, world.snapshots._redis
    redis_address = client.connection_pool.connection_kwargs
    connections: dict[str, dict[str, Any]] = {
        "LEADSYNC_DB": {"conn_type": "postgres", "host": state.host, "port": state.port, "schema": state.dbname},
        "LEAD_STORE": {"conn_type": "postgres", "host": hive.host, "port": hive.port, "schema": hive.dbname},
        "LEADSYNC_REDIS": {"conn_type": "redis", "host": "127.0.0.1", "port": redis_address["port"]},
    }
    for name in ("LEADSYNC_DB", "LEAD_STORE"):
        connections[name]["login"] = "postgres"
    include = Path(__file__).parents[2] / "include"
    with tempfile.TemporaryDirectory(prefix="leadsync-test-") as home:
        done = subprocess.run(
            [sys.executable, "-m", "leadsync", "erase", *arguments],
            env={
                **{f"AIRFLOW_CONN_{name}": json.dumps(connection) for name, connection in connections.items()},
                "AIRFLOW_HOME": home,
                "HOME": home,
                "LOGNAME": "tester",
                "LEADSYNC_ENCRYPTION_KEY": base64.b64encode(bytes(32)).decode(),
                "PYTHONPATH": str(include),
            },
            cwd=home, capture_output=True, text=True, check=False,
        )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_command_line_erases_and_says_who_asked(world: World) -> None:
    delivered_and_deleted(world)
    status, _, complaint = command(world, "leads", "ASDAD:1", PERSON)
    assert status == 1
    assert complaint.splitlines()[-1].startswith("ASDAD:1 is alive in the lead store: delete it there")
    status, _, complaint = command(world, "clients", PERSON)
    assert status == 1
    assert complaint.splitlines()[-1] == "`pipeline`: there is no 'clients'; allowed: leads"
    assert holding(world)
    status, output, complaint = command(world, "leads", PERSON)
    assert status == 0, complaint
    assert json.loads(output.splitlines()[-1])["leads"] == 1
    assert not any(sign in output + complaint for sign in SIGNS)
    assert holding(world) == set()
    assert certificates(world)[0]["asked_by"] == "tester (command line)"
