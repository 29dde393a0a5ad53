"""Schema and ledger on a real PostgreSQL."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString

import psycopg
import pytest

from leadsync.errors import LeadsyncError, SchemaError
from leadsync.mapping import lead_key
from leadsync.models import Digest
from leadsync.state import ledger, migration, schema

LEAD, NEW, OLD = Digest(bytes([1]) * 16), Digest(bytes([2]) * 16), Digest(bytes([3]) * 16)
Connection = psycopg.Connection[Any]


def claim(state: Connection, sequence: int, digest: Digest, **more: bool) -> ledger.Claims:
    with state.transaction():
        return ledger.claim(state, 1, sequence, [(LEAD, digest, "ASDAD:1")], ids=True, **more)


def sends(claims: ledger.Claims) -> bool:
    return not claims.kept


def settle(state: Connection, sequence: int, digest: Digest) -> None:
    with state.transaction():
        ledger.settle(state, 1, sequence, [(LEAD, digest, "crm-1", False)])


def test_an_old_schema_names_the_command(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(SchemaError, match="no Leadsync tables yet; run: python -m leadsync migrate"):
            schema.check(connection)
        migration.migrate(database)
        migration.migrate(database)
        schema.check(connection)
        connection.execute("UPDATE leadsync.alembic_version SET version_num = 'x'")
        with pytest.raises(SchemaError, match="are at revision x, this code needs .*; run: python -m leadsync migrate"):
            schema.check(connection)
        connection.execute("UPDATE leadsync.alembic_version SET version_num = '0001'")
        migration.migrate(database, "base")


def test_the_newest_revision_is_alembics() -> None:
    assert schema.newest() == migration.newest()


def test_a_new_lead_is_claimed_sent_and_then_unchanged(state: Connection) -> None:
    claims = claim(state, 1, NEW)
    assert sends(claims)
    assert claims.crm_ids == {}
    settle(state, 1, NEW)
    assert claim(state, 2, NEW).unchanged == {LEAD}
    assert claim(state, 3, NEW, resend=True).crm_ids == {LEAD: "crm-1"}


def test_the_sequence_of_an_unchanged_lead_is_written_too(state: Connection) -> None:
    claim(state, 1, NEW)
    settle(state, 1, NEW)
    claim(state, 5, NEW)
    assert claim(state, 4, OLD).overtaken == {LEAD}


def test_a_newer_claim_in_doubt_is_not_overtaken(state: Connection) -> None:
    claim(state, 5, NEW)
    assert claim(state, 4, OLD).in_doubt == {LEAD}
    settle(state, 4, OLD)  # of no effect: the claim is another's
    assert claim(state, 5, NEW).crm_ids == {LEAD: None}


def test_a_claim_clears_the_hash_so_that_a_revert_after_a_lost_reply_is_sent(state: Connection) -> None:
    claim(state, 1, OLD)
    settle(state, 1, OLD)
    claim(state, 2, NEW)  # the reply to this one is lost
    assert claim(state, 3, OLD).crm_ids == {LEAD: "crm-1"}


def test_a_dry_run_claims_nothing(state: Connection) -> None:
    assert sends(claim(state, 9, NEW, dry_run=True))
    assert state.execute("SELECT count(*) FROM leadsync.delivery").fetchone() == (0,)


def test_each_lead_of_a_chunk_has_its_own_verdict_and_its_own_crm_id(state: Connection) -> None:
    """An id that went to another lead would change that one's record."""
    keys = [lead_key(str(number)) for number in range(50)]
    assert keys != sorted(keys)
    same, changed, overtaken, doubtful, new = (keys[first : first + 10] for first in range(0, 50, 10))
    nameless = changed[0]  # delivered, but no delivery has told its id
    ids = {key: None if key == nameless else f"crm-{number}" for number, key in enumerate(keys)}

    def claims(sequence: int, leads: list[Digest], digest: Digest, **more: bool) -> ledger.Claims:
        with state.transaction():
            return ledger.claim(state, 1, sequence, [(key, digest, key.hex()) for key in leads], **more)

    def settles(sequence: int, leads: list[Digest], digest: Digest) -> None:
        with state.transaction():
            ledger.settle(state, 1, sequence, [(key, digest, ids[key], False) for key in leads])

    claims(1, same, NEW)
    settles(1, same, NEW)
    claims(1, changed, OLD)
    settles(1, changed, OLD)
    claims(9, [*overtaken, *doubtful], OLD)
    settles(9, overtaken, OLD)
    found = claims(2, keys, NEW, ids=True)
    assert found.unchanged == set(same)
    assert found.overtaken == set(overtaken)
    assert found.in_doubt == set(doubtful)
    assert found.crm_ids == {key: ids[key] for key in changed}
    assert not found.kept & set(new)


@pytest.mark.parametrize("write", ["UPDATE leadsync.delivery SET external_id = NULL", "DELETE FROM leadsync.delivery"])
def test_a_row_that_somebody_else_writes_meanwhile_is_claimed_all_the_same(
    state: Connection, write: LiteralString
) -> None:
    """An erasure does so, without the destination's lock. Nothing may go out that is not claimed."""
    claim(state, 1, OLD)
    settle(state, 1, OLD)
    with psycopg.connect(state.info.dsn) as eraser, ThreadPoolExecutor(1) as load:
        eraser.execute(write)
        claimed = load.submit(claim, state, 2, NEW)
        wait_for_a_lock(state.info.dsn)
        eraser.commit()
        assert sends(claimed.result(10))
    row = state.execute("SELECT sequence, digest, external_id FROM leadsync.delivery").fetchone()
    assert row == (2, None, "ASDAD:1")


def test_a_key_that_two_rows_have_is_an_error_with_the_remedy(state: Connection) -> None:
    claim(state, 1, OLD)
    with pytest.raises(LeadsyncError, match="source.key has to be unique"), state.transaction():
        ledger.claim(state, 1, 2, [(LEAD, NEW, "ASDAD:1"), (LEAD, OLD, "ASDAD:1")])


def wait_for_a_lock(dsn: str) -> None:
    """Until somebody waits for a row."""
    waits = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
    )
    with psycopg.connect(dsn, autocommit=True) as observer:
        until = time.monotonic() + 10
        while observer.execute(waits).fetchone() != (True,):
            assert time.monotonic() < until, "nobody waits for a lock"
            time.sleep(0.01)


def test_leads_are_looked_up_by_key_whatever_the_planner_believes(state: Connection) -> None:
    """It believes that the ledger is empty, for nobody has told it otherwise."""
    state.execute("ALTER TABLE leadsync.delivery SET (autovacuum_enabled = false)")
    leads = [(lead_key(str(number)), NEW, str(number)) for number in range(3000)]
    with state.transaction():
        ledger.claim(state, 1, 1, leads)
    values = {"destination": 1, "sequence": 2, "resend": False, "ids": False, "lead_keys": [LEAD], "sequences": [1]}
    with state.transaction():
        for statement in (ledger.BY_KEY, ledger.CLAIMS, ledger.SETTLEMENTS):
            state.execute(statement)
        for statement in (ledger.COMPARE, ledger.CLAIM, ledger.SETTLE, ledger.DISTRUST):
            lines = [line for (line,) in state.execute(f"EXPLAIN {statement}", values)]  # type: ignore[arg-type]
            scans = [place for place, line in enumerate(lines) if "Scan" in line and " on delivery" in line]
            assert scans, lines
            for place in scans:
                found = lines[place : place + 2]
                assert "Index Scan using delivery_pkey" in found[0] or "Tid Scan" in found[0], lines
                assert "lead_key = " in found[1] or "ctid = " in found[1], lines


def test_migrations_keep_what_is_there(database: str) -> None:
    """From the first schema to the newest, back and forth again, with an operation that was extracted twice."""
    migration.migrate(database, "0001")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("""
            INSERT INTO leadsync.watermark (pipeline, destination) VALUES ('leads', 'hubspot');
            INSERT INTO leadsync.sync_operation
                   (sync_id, pipeline, run_id, attempt_id, kind, upper_bound, destinations)
            VALUES (gen_random_uuid(), 'leads', 'run-1', gen_random_uuid(), 'run', now(), '{hubspot}');
            INSERT INTO leadsync.operation_log (sync_id, attempt_id, destination_id, delivered)
            SELECT sync_id, attempt_id, 1, 2 FROM leadsync.sync_operation
             UNION ALL SELECT sync_id, gen_random_uuid(), 1, 1 FROM leadsync.sync_operation;
            INSERT INTO leadsync.retry_queue (destination_id, attempt_id, lead_key, external_id, chunk, attempts)
            SELECT 1, attempt_id, gen_random_uuid(), 'A:1', 0, 1 FROM leadsync.sync_operation;
        """)
        migration.migrate(database)
        joined = "SELECT delivered, external_id FROM leadsync.operation_log JOIN leadsync.retry_queue USING (sync_id)"
        assert connection.execute(joined).fetchall() == [(2, "A:1")]
        assert connection.execute("SELECT count(*) FROM leadsync.operation_log").fetchone() == (2,)
        migration.migrate(database, "0001")
        migration.migrate(database)
        assert connection.execute(joined).fetchall() == [(2, "A:1")]
        migration.migrate(database, "base")
        assert connection.execute("SELECT to_regclass('leadsync.watermark')").fetchone() == (None,)


def test_the_migration_knows_where_each_destination_began(database: str) -> None:
    """Its first run tells; without one its watermark stands there yet."""
    migration.migrate(database, "0003")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("""
            INSERT INTO leadsync.watermark (pipeline, destination, watermark)
            VALUES ('leads', 'all', '2026-03-01Z'), ('leads', 'late', '2026-03-01Z'), ('leads', 'new', '2026-02-02Z');
            INSERT INTO leadsync.sync_operation
                   (sync_id, snapshot_id, pipeline, run_id, kind, lower_bound, upper_bound, destinations, started_at)
            VALUES (gen_random_uuid(), gen_random_uuid(), 'leads', 'r1', 'backfill', '2020-01-01Z', now(),
                    '{all,late,new}', '2026-01-01Z'),
                   (gen_random_uuid(), gen_random_uuid(), 'leads', 'r2', 'run', NULL, now(), '{all}', '2026-01-02Z'),
                   (gen_random_uuid(), gen_random_uuid(), 'leads', 'r3', 'run', '2026-02-01Z', now(), '{late}', now()),
                   (gen_random_uuid(), gen_random_uuid(), 'leads', 'r4', 'run', '2026-02-20Z', now(), '{all,late}',
                    now() + interval '1 s');
        """)
        migration.migrate(database)
        began = "SELECT destination, starts_at::date::text FROM leadsync.watermark ORDER BY destination_id"
        assert connection.execute(began).fetchall() == [("all", None), ("late", "2026-02-01"), ("new", "2026-02-02")]
        migration.migrate(database, "0003")
        migration.migrate(database)
        assert connection.execute(began).fetchall() == [("all", None), ("late", "2026-02-01"), ("new", "2026-02-02")]
