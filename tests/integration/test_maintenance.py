"""Retention, needless snapshots and VACUUM on the real servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from tests.support.servers import free_port
from tests.support.simulators import Simulator
from tests.support.world import World

from demo import lead_store
from leadsync import maintenance, operations
from leadsync.config import Retention
from leadsync.errors import SchemaError, SnapshotError, Superseded, Unavailable
from leadsync.snapshot import SnapshotStore
from leadsync.state import operations as operation_state
from leadsync.state import retention, vacuum
from leadsync.state.operations import Operation

SNAPSHOTS = "leadsync:*:snapshot:*"  # the other keys are counters

# Operations, by what their rows say: days ago, and whether they are to stay with 90 days of retention.
OPERATIONS: dict[str, tuple[dict[str, float], bool]] = {
    "committed": ({"started_at": 91, "snapshot_at": 91, "committed_at": 91, "start_at": 91, "end_at": 91}, False),
    "failed": ({"started_at": 91, "snapshot_at": 91, "start_at": 91, "end_at": 91}, False),
    "killed": ({"started_at": 91, "snapshot_at": 91, "start_at": 91}, False),
    "superseded": ({"started_at": 92, "superseded_at": 91, "start_at": 92}, False),
    "young": ({"started_at": 89, "snapshot_at": 89, "committed_at": 89, "start_at": 89, "end_at": 89}, True),
    "uncommitted and young": ({"started_at": 89, "snapshot_at": 89, "start_at": 89, "end_at": 89}, True),
    "late snapshot": ({"started_at": 91, "snapshot_at": 89, "start_at": 91}, True),
    "committed late": ({"started_at": 95, "snapshot_at": 95, "committed_at": 10, "start_at": 95, "end_at": 94}, True),
    "superseded late": ({"started_at": 95, "superseded_at": 10, "start_at": 95}, True),
    "cleared late": ({"started_at": 95, "committed_at": 94, "start_at": 95, "end_at": 10}, True),
}


@pytest.fixture
def world(database: str, state: psycopg.Connection[Any], valkey: redis.Redis, hubspot: Simulator) -> Iterator[World]:
    world = World(database, state, valkey, {"hubspot": hubspot})
    state.execute(
        "INSERT INTO leadsync.watermark (pipeline, destination) VALUES ('leads', 'hubspot'), ('o', 'hubspot')"
    )
    yield world
    world.hive.close()


def number(world: World, pipeline: str = "leads") -> int:
    query = "SELECT destination_id FROM leadsync.watermark WHERE pipeline = %s"
    row = world.state.execute(query, (pipeline,)).fetchone()
    assert row is not None
    return int(row[0])


def past(world: World, run_id: str, pipeline: str = "leads", records: int = 1, **days: float) -> str:
    """An operation with one load and its records, at times that are so many days ago."""
    sync_id = str(uuid4())
    world.state.execute(
        "INSERT INTO leadsync.sync_operation (sync_id, snapshot_id, pipeline, run_id, kind, upper_bound, destinations) "
        "VALUES (%(id)s, %(id)s, %(pipeline)s, %(run)s, 'run', now(), '{hubspot}')",
        {"id": sync_id, "pipeline": pipeline, "run": run_id},
    )
    load = world.state.execute(
        "INSERT INTO leadsync.operation_log (sync_id, destination_id) VALUES (%s, %s) RETURNING id",
        (sync_id, number(world, pipeline)),
    ).fetchone()
    assert load is not None
    world.state.execute(
        "INSERT INTO leadsync.operation_data SELECT %s, n, 'sealed' FROM generate_series(1, %s) n", (load[0], records)
    )
    for column, ago in days.items():
        table = "operation_log" if column in ("start_at", "end_at") else "sync_operation"
        update = f"UPDATE leadsync.{table} SET {column} = now() - %s * interval '1 day' WHERE sync_id = %s"  # noqa: S608
        world.state.execute(update, (ago, sync_id))  # type: ignore[arg-type]
    return sync_id


def runs(world: World) -> set[str]:
    """The runs of which the operation, its log and its records are there; none may be there in part."""
    found = []
    for table in ("sync_operation", "operation_log", "operation_log JOIN leadsync.operation_data ON operation_id = id"):
        rows = world.state.execute(f"SELECT DISTINCT sync_id::text FROM leadsync.{table}")  # type: ignore[arg-type]  # noqa: S608
        found.append({row[0] for row in rows})
    assert found[0] == found[1] == found[2]
    return {row[0] for row in world.state.execute("SELECT run_id FROM leadsync.sync_operation")}


def clean(world: World) -> dict[str, int]:
    return maintenance.remove_expired(world.clients, world.pipeline)


# Retention ---------------------------------------------------------------------------------------------------------


def test_operations_go_with_their_log_after_their_last_sign_of_life(world: World) -> None:
    for name, (days, _) in OPERATIONS.items():
        past(world, name, **days)
    past(world, "another pipeline's", "o", started_at=400, start_at=400, end_at=400)
    orphan = past(world, "orphan", start_at=91, end_at=91)
    world.state.execute("DELETE FROM leadsync.sync_operation WHERE sync_id = %s", (orphan,))
    counts = clean(world)
    assert runs(world) == {name for name, (_, stays) in OPERATIONS.items() if stays} | {"another pipeline's"}
    gone = sum(not stays for _, stays in OPERATIONS.values())
    assert (counts["operation_log"], counts["operation_data"]) == (gone + 1, gone + 1)
    assert counts["sync_operation"] == gone
    assert clean(world) == dict.fromkeys(counts, 0)


def test_the_days_are_those_of_the_pipeline_file(world: World) -> None:
    past(world, "old", started_at=8, committed_at=8, start_at=8, end_at=8)
    past(world, "young", started_at=6, committed_at=6, start_at=6, end_at=6)
    object.__setattr__(world.pipeline, "retention", Retention(operation_log_days=7))
    clean(world)
    assert runs(world) == {"young"}


def test_resolved_dead_letters_go_and_open_ones_stay(world: World) -> None:
    letters = {"open": None, "old": 91, "young": 89}
    for pipeline in ("leads", "o"):
        for external_id, resolved in letters.items():
            world.state.execute(
                "INSERT INTO leadsync.dead_letter (destination_id, lead_key, external_id, sequence, reason, attempts,"
                " created_at, resolved_at) VALUES (%s, gen_random_uuid(), %s, 1, 'rejected', 1,"
                " now() - interval '400 days', now() - %s * interval '1 day')",
                (number(world, pipeline), external_id, resolved),
            )
    assert clean(world)["dead_letter"] == 1
    query = "SELECT external_id FROM leadsync.dead_letter WHERE destination_id = %s"
    assert {row[0] for row in world.state.execute(query, (number(world),))} == {"open", "young"}
    assert {row[0] for row in world.state.execute(query, (number(world, "o"),))} == set(letters)


def test_the_recovery_log_keeps_certificates(world: World) -> None:
    for pipeline, kind, days in (
        ("leads", "snapshot", 366), ("leads", "dead_letter", 364), ("leads", "erased", 4000), ("o", "redis", 366),
    ):  # fmt: skip
        world.state.execute(
            "INSERT INTO leadsync.recovery_log (at, pipeline, kind, message) "
            "VALUES (now() - %s * interval '1 day', %s, %s, 'text')",
            (days, pipeline, kind),
        )
    assert clean(world)["recovery_log"] == 1
    assert set(world.recovery_log()) == {"dead_letter", "erased", "redis"}


def test_leads_stop_waiting_for_a_try_that_never_comes(world: World) -> None:
    waiting = {
        "current": past(world, "current"),
        "superseded": past(world, "superseded", superseded_at=0),
        "gone": str(uuid4()),
    }
    for name, sync_id in waiting.items():
        world.state.execute(
            "INSERT INTO leadsync.retry_queue (destination_id, sync_id, lead_key, external_id, chunk, attempts) "
            "VALUES (%s, %s, gen_random_uuid(), %s, 0, 1)",
            (number(world), sync_id, name),
        )
    assert clean(world)["retry_queue"] == 2
    assert world.state.execute("SELECT external_id FROM leadsync.retry_queue").fetchall() == [("current",)]


def test_it_goes_in_small_transactions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    monkeypatch.setattr(retention, "BATCH_OF_RECORDS", 2)
    world.state.execute("CREATE TABLE removed (what text, transaction xid8, rows int)")
    world.state.execute("""
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO removed SELECT TG_TABLE_NAME, pg_current_xact_id(), count(*) FROM gone HAVING count(*) > 0;
            RETURN NULL;
        END $$
    """)
    tables = ("operation_data", "operation_log", "sync_operation", "recovery_log")
    for table in tables:
        world.state.execute(
            f"CREATE TRIGGER note AFTER DELETE ON leadsync.{table} "  # type: ignore[arg-type]
            "REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION note()"
        )
    for n in range(7):
        past(world, str(n), records=5, started_at=91, start_at=91, end_at=91)
    world.state.execute(
        "INSERT INTO leadsync.recovery_log (at, pipeline, kind, message) "
        "SELECT now() - interval '366 days', 'leads', 'redis', 'text' FROM generate_series(1, 7)"
    )
    clean(world)
    query = "SELECT what, sum(rows), max(total) FROM (SELECT *, sum(rows) OVER (PARTITION BY transaction) AS total FROM removed) r GROUP BY 1"  # noqa: E501
    found = {what: (rows, largest) for what, rows, largest in world.state.execute(query)}
    assert found == {
        "operation_data": (35, 2), "operation_log": (7, 3), "sync_operation": (7, 3), "recovery_log": (7, 3),
    }  # fmt: skip


def test_it_refuses_tables_that_are_not_its_own(world: World) -> None:
    world.state.execute("UPDATE leadsync.alembic_version SET version_num = '0002'")
    for verb in (maintenance.remove_expired, maintenance.drop_snapshots):
        with pytest.raises(SchemaError, match="run: python -m leadsync migrate"):
            verb(world.clients, world.pipeline)


# Snapshots ---------------------------------------------------------------------------------------------------------


def taken(world: World, run_id: str, name: str = "Li", **parameters: Any) -> Operation:
    """An operation whose snapshot holds one more lead than the watermark knows."""
    lead_store.insert(world.hive, "ASDAD", name)
    operation = world.extract(run_id, **parameters)
    world.snapshot(operation)
    return operation


def done(world: World, operation: Operation, hours_ago: float = 0) -> None:
    world.load(operation, "hubspot")
    world.commit(operation)
    world.state.execute(
        "UPDATE leadsync.sync_operation SET committed_at = now() - %s * interval '1 hour' WHERE sync_id = %s",
        (hours_ago, operation.sync_id),
    )


def recovery(world: World, of: Operation) -> Operation:
    """A recovery that loads the snapshot of another operation."""
    sequence = world.state.execute(
        "SELECT sequence, rows_read FROM leadsync.sync_operation WHERE sync_id = %s", (of.sync_id,)
    ).fetchone()
    assert sequence is not None
    operation = Operation(
        str(uuid4()), of.snapshot_id, "leads", "recover", of.lower, of.upper, ["hubspot"], True, *sequence
    )
    operation_state.open_operation(world.state, operation, "recovery")
    return operation


def dropped(world: World) -> set[str]:
    """Drops what is needless and checks what it says against what Redis says."""
    before = set(world.snapshots.stored())
    client = world.snapshots._redis
    sizes = {key: client.strlen(key) for key in client.scan_iter(SNAPSHOTS)}
    counts = maintenance.drop_snapshots(world.clients, world.pipeline)
    after = set(world.snapshots.stored())
    assert (counts["dropped"], counts["kept"]) == (len(before - after), len(after))
    assert counts["freed"] == sum(sizes.values()) - sum(client.strlen(key) for key in client.scan_iter(SNAPSHOTS))
    return before - after


def test_a_committed_snapshot_is_kept_for_recoveries_and_then_dropped(world: World) -> None:
    old, young = taken(world, "old"), taken(world, "young")
    done(world, old, hours_ago=73)
    done(world, young, hours_ago=71)
    assert dropped(world) == {old.snapshot_id}
    object.__setattr__(world.pipeline, "snapshot_ttl_hours", 24.0)  # none is to be kept longer than that
    assert dropped(world) == {young.snapshot_id}


def test_a_superseded_snapshot_goes_at_once_complete_or_not(world: World, valkey: redis.Redis) -> None:
    first, second = taken(world, "run"), taken(world, "run")
    valkey.delete(f"leadsync:leads:snapshot:{second.snapshot_id}:manifest")  # its task died before it was complete
    third = taken(world, "run")
    assert dropped(world) == {first.snapshot_id, second.snapshot_id}
    with pytest.raises(Superseded):
        world.load(first, "hubspot")
    assert world.load(third, "hubspot")["delivered"] == 3
    world.commit(third)
    # Superseded after it was committed: what it delivered may have to be recovered all the same.
    world.extract("run")
    assert dropped(world) == set()


@pytest.mark.parametrize("parameters", [{}, {"since": "2020-01-01T00:00:00Z"}], ids=["run", "backfill"])
def test_a_load_that_is_cleared_late_finds_its_snapshot(world: World, parameters: dict[str, str]) -> None:
    operation = taken(world, "run", **parameters)
    world.simulators["hubspot"].faults(server_error={"rate": 1})
    with pytest.raises(Unavailable):
        world.load(operation, "hubspot")
    world.state.execute("UPDATE leadsync.sync_operation SET started_at = now() - interval '80 days'")
    assert dropped(world) == set()
    clean(world)
    world.simulators["hubspot"].clear_faults()
    assert world.load(operation, "hubspot")["delivered"] == 1
    world.commit(operation)
    world.assert_in_step("hubspot")


def test_a_recovery_keeps_the_snapshot_that_it_loads(world: World) -> None:
    operation = taken(world, "run")
    done(world, operation, hours_ago=100)
    recover = recovery(world, operation)
    assert dropped(world) == set()
    assert world.load(recover, "hubspot")["delivered"] == 1
    operations.commit(world.clients, world.pipeline, [recover.sync_id])
    assert dropped(world) == set()  # as long as the recovery itself is young
    world.state.execute("UPDATE leadsync.sync_operation SET committed_at = now() - interval '73 hours'")
    assert dropped(world) == {operation.snapshot_id}
    with pytest.raises(SnapshotError, match="is gone from Redis"):
        world.load(recovery(world, operation), "hubspot")


def test_what_the_database_does_not_know_is_left(world: World) -> None:
    operation = taken(world, "run")
    world.state.execute("DELETE FROM leadsync.sync_operation")
    assert dropped(world) == set()
    assert set(world.snapshots.stored()) == {operation.snapshot_id}


def test_redis_is_away(world: World) -> None:
    with redis.Redis(port=free_port()) as nobody:
        world.snapshots = SnapshotStore(nobody, world.sealer, "leads", 60)
        with pytest.raises(Unavailable, match="connection leadsync_redis"):
            maintenance.drop_snapshots(world.clients, world.pipeline)


# VACUUM ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bloated(state: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    """The recovery log, with more dead rows than live ones; autovacuum keeps off."""
    state.execute("ALTER TABLE leadsync.recovery_log SET (autovacuum_enabled = false)")
    state.execute(
        "INSERT INTO leadsync.recovery_log (pipeline, kind, message) "
        "SELECT 'leads', 'redis', 'text' FROM generate_series(1, %s)",
        (3 * vacuum.FLOOR,),
    )
    state.execute("DELETE FROM leadsync.recovery_log WHERE id %% 3 <> 0", ())
    return state


def dead_rows(connection: psycopg.Connection[Any]) -> int:
    connection.execute(vacuum.FLUSH)
    query = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE schemaname = 'leadsync' AND relname = 'recovery_log'"
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def test_a_table_with_many_dead_rows_is_vacuumed_and_no_other(bloated: psycopg.Connection[Any]) -> None:
    assert dead_rows(bloated) == 2 * vacuum.FLOOR
    assert maintenance.vacuum_tables(bloated) == {"recovery_log": "vacuumed"}
    assert dead_rows(bloated) == 0
    assert maintenance.vacuum_tables(bloated) == {}


def test_a_share_of_dead_rows_that_is_small_is_left_to_autovacuum(state: psycopg.Connection[Any]) -> None:
    state.execute("ALTER TABLE leadsync.recovery_log SET (autovacuum_enabled = false)")
    state.execute(
        "INSERT INTO leadsync.recovery_log (pipeline, kind, message) "
        "SELECT 'leads', 'redis', 'text' FROM generate_series(1, %s)",
        (12 * vacuum.FLOOR,),
    )
    state.execute("DELETE FROM leadsync.recovery_log WHERE id <= %s", (vacuum.FLOOR,))
    assert maintenance.vacuum_tables(state) == {}


def test_a_table_that_is_being_vacuumed_is_skipped(bloated: psycopg.Connection[Any]) -> None:
    with psycopg.connect(bloated.info.dsn) as other:  # autovacuum takes this lock
        other.execute("LOCK TABLE leadsync.recovery_log IN SHARE UPDATE EXCLUSIVE MODE")
        outcome = maintenance.vacuum_tables(bloated)
    assert "lock not available" in outcome["recovery_log"]
    assert dead_rows(bloated) == 2 * vacuum.FLOOR


def test_a_role_without_the_right_gets_a_warning(bloated: psycopg.Connection[Any]) -> None:
    bloated.execute("DROP ROLE IF EXISTS visitor")
    bloated.execute("CREATE ROLE visitor")
    bloated.execute("GRANT USAGE ON SCHEMA leadsync TO visitor")
    bloated.execute("SET ROLE visitor")
    outcome = maintenance.vacuum_tables(bloated)
    bloated.execute("RESET ROLE")
    bloated.execute("DROP OWNED BY visitor")
    bloated.execute("DROP ROLE visitor")
    assert "permission denied" in outcome["recovery_log"]
    assert dead_rows(bloated) == 2 * vacuum.FLOOR
