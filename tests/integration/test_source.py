"""The lead store on a real PostgreSQL: the safe bound, the window, what is refused."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leadsync import copytext
from leadsync.config import Source
from leadsync.errors import SourceError
from leadsync.source import APPLICATION_NAME, RING, Buffer, LeadStore, Sample, Window

Connection = psycopg.Connection[Any]
TABLE = """
CREATE TABLE customer (appkey text, uid bigint, name text, update_time timestamptz NOT NULL, changed bigint,
                       is_delete boolean NOT NULL DEFAULT false, PRIMARY KEY (appkey, uid));
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.update_time := now(); NEW.changed := floor(extract(epoch FROM now())); RETURN NEW; END';
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION stamp();
"""
UPSERT = """
INSERT INTO customer (appkey, uid, name) VALUES ('A', %s, %s)
ON CONFLICT (appkey, uid) DO UPDATE SET name = excluded.name
"""


def source(**more: Any) -> Source:
    columns = ("appkey", "uid", "name", "update_time", "changed", "is_delete")
    base = {"table": "customer", "key": ("appkey", "uid"), "watermark": "update_time", "columns": columns}
    return Source.model_validate({**base, **more})


@pytest.fixture
def writer(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE)
        yield connection


@pytest.fixture
def reader(database: str, writer: Connection) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True, application_name=APPLICATION_NAME) as connection:
        yield connection


def parsed(rows: Iterable[Buffer]) -> list[list[str | None]]:
    return [copytext.parse_line(line) for line in b"".join(rows).decode().split("\n")[:-1]]


def uids(store: LeadStore, window: Window) -> list[int]:
    return [int(row[1] or 0) for row in parsed(store.stream(window))]


def test_the_bound_stops_at_the_oldest_open_transaction(reader: Connection, writer: Connection) -> None:
    store = LeadStore(reader, source())
    with writer.transaction():
        (start,) = writer.execute("SELECT now()").fetchone() or (None,)
        writer.execute(UPSERT, (1, "late"))
        reader.execute("SELECT pg_sleep(0.06)")  # past the margin
        bound = store.bound()
        assert bound.upper == start
        assert bound.pid == writer.info.backend_pid
    assert uids(store, Window(None, bound.upper)) == []


@pytest.mark.parametrize(("kind", "step"), [("epoch_s", timedelta(seconds=1)), ("timestamptz", timedelta(0))])
def test_windows_meet_without_gap_or_overlap(
    reader: Connection, writer: Connection, kind: str, step: timedelta
) -> None:
    column = "changed" if kind == "epoch_s" else "update_time"
    store = LeadStore(reader, source(watermark=column, watermark_kind=kind))
    writer.execute(UPSERT, (1, "x"))
    (at,) = writer.execute("SELECT update_time FROM customer").fetchone() or (None,)
    at = at.replace(microsecond=0) if step else at
    assert uids(store, Window(None, at)) == []
    assert uids(store, Window(at, at + timedelta(seconds=1))) == [1]
    assert uids(store, Window(at + timedelta(seconds=1), at + timedelta(seconds=2))) == []


def test_a_prepared_transaction_is_seen(reader: Connection, writer: Connection) -> None:
    with writer.transaction():
        writer.execute(UPSERT, (1, "x"))
        writer.execute("PREPARE TRANSACTION 't'")
    assert LeadStore(reader, source()).bound().prepared == 1
    writer.execute("COMMIT PREPARED 't'")
    assert LeadStore(reader, source()).bound().prepared == 0


def test_roles_that_never_write_do_not_hold_it_back(reader: Connection, writer: Connection) -> None:
    with writer.transaction():
        writer.execute("SELECT 1")
        assert LeadStore(reader, source(ignore_roles=("postgres",))).bound().pid is None


def test_a_lag_is_taken_from_the_sources_clock(reader: Connection) -> None:
    upper = LeadStore(reader, source(bound="lag", lag=60)).bound().upper
    assert timedelta(seconds=59) < datetime.now(UTC) - upper < timedelta(seconds=70)


def test_leads_are_read_again_by_key(reader: Connection, writer: Connection) -> None:
    writer.execute(UPSERT, (1, "tab\tand\\N"))
    rows = parsed(LeadStore(reader, source()).read([("A", "1"), ("A'; --", "2")]))
    assert [row[:3] for row in rows] == [["A", "1", "tab\tand\\N"]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"table": "nothing"}, "connection lead_store: there is no table nothing"),
        ({"columns": ("appkey", "uid", "update_time", "phone")}, "no column phone; it has appkey, uid"),
        ({"watermark_kind": "epoch_s"}, "update_time is timestamp with time zone, but `watermark_kind`"),
        ({"key": ("appkey",)}, r"the key columns \(appkey\) of customer are not unique"),
    ],
)
def test_a_source_that_can_not_be_used_says_why(reader: Connection, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(SourceError, match=expected):
        LeadStore(reader, source(**change)).check()


def test_missing_rights_name_the_remedy(database: str, writer: Connection) -> None:
    role = "weak"
    writer.execute(f"CREATE ROLE {role} LOGIN")
    with psycopg.connect(database.replace("postgres@", f"{role}@"), autocommit=True) as connection:
        with pytest.raises(SourceError, match="no right to read; run: GRANT SELECT ON customer TO <role>"):
            LeadStore(connection, source()).check()
        writer.execute(f"GRANT SELECT ON customer TO {role}")
        with pytest.raises(SourceError, match="run: GRANT pg_read_all_stats TO <role>"):
            LeadStore(connection, source()).check()
        writer.execute(f"GRANT pg_read_all_stats TO {role}")
        LeadStore(connection, source()).check()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), steps=st.integers(10, 60))
def test_no_change_is_missed_whatever_commits_late(
    database: str, reader: Connection, writer: Connection, monkeypatch: pytest.MonkeyPatch, seed: int, steps: int
) -> None:
    """Concurrent transactions commit, roll back and commit late in random order; the table is polled all along."""
    # Everything here happens within milliseconds: the margin alone would hide a wrong bound.
    monkeypatch.setattr("leadsync.source.MARGIN", timedelta(0))
    chance = random.Random(seed)  # noqa: S311 (a test's dice)
    writer.execute("TRUNCATE customer")
    store, seen, lower, version = LeadStore(reader, source()), {}, None, 0
    writers = [psycopg.connect(database) for _ in range(4)]
    try:
        for _ in range(steps):
            one = chance.choice(writers)
            action = chance.random()
            if action < 0.6:
                # Each writer has leads of its own, so that none waits for another's row lock.
                version += 1
                one.execute(UPSERT, (writers.index(one) * 10 + chance.randrange(3), str(version)))
            elif action < 0.75:
                one.commit()
            elif action < 0.85:
                one.rollback()
            else:
                upper = store.bound().upper
                for row in parsed(store.stream(Window(lower, upper))):
                    seen[row[1]] = row[2]
                lower = upper
    finally:
        for one in writers:
            chance.choice((one.commit, one.rollback))()
            one.close()
    for row in parsed(store.stream(Window(lower, store.bound().upper))):
        seen[row[1]] = row[2]
    assert seen == {str(uid): name for uid, name in writer.execute("SELECT uid, name FROM customer")}


@pytest.mark.parametrize(
    ("kind", "column"), [("timestamptz", "update_time"), ("epoch_s", "changed")], ids=["timestamptz", "epoch_s"]
)
def test_whether_a_window_from_a_watermark_on_holds_a_lead(
    reader: Connection, writer: Connection, kind: str, column: str
) -> None:
    writer.execute(UPSERT, (1, "x"))
    (at,) = writer.execute("SELECT date_trunc('second', update_time) FROM customer").fetchone() or (None,)
    store = LeadStore(reader, source(watermark=column, watermark_kind=kind))
    second = timedelta(seconds=1)
    for watermark, awaits in ((None, True), (at - second, True), (at, True), (at + second, False)):
        assert store.awaits(("A", "1"), watermark) is awaits
    assert store.awaits(("A", "2"), None) is False
    back = LeadStore(reader, source(watermark=column, watermark_kind=kind, bound="lag", lag=1, lookback=60))
    assert back.awaits(("A", "1"), at + 59 * second) is True
    assert back.awaits(("A", "1"), at + 62 * second) is False


KEYS = [("A", 1), ("A", 10), ("A", 9), ("a'; --", 2), ("b\\", 3), ("Ä \t\n", 4), ("😀", 5), ("", 6)]


def keys(lines: list[str]) -> list[tuple[str, int]]:
    return [(row[0] or "", int(row[1] or 0)) for row in map(copytext.parse_line, lines)]


def test_a_scan_goes_over_every_lead_once_in_the_order_of_the_key(reader: Connection, writer: Connection) -> None:
    for appkey, uid in KEYS:
        writer.execute("INSERT INTO customer (appkey, uid) VALUES (%s, %s)", (appkey, uid))
    store, window, after = LeadStore(reader, source()), Window(None, datetime.now(UTC) + timedelta(hours=1)), None
    seen: list[tuple[str, int]] = []
    while lines := store.scan(after, 3, window, Sample()):
        seen += keys(lines)
        after = [seen[-1][0], str(seen[-1][1])]
    assert seen == sorted(KEYS)
    assert reader.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    asked = [(appkey, str(uid)) for appkey, uid in [*KEYS, ("A", 2), ("nobody", 1)]]
    assert store.present(asked) == set(asked[:-2])
    assert store.present([]) == set()
    with pytest.raises(SourceError, match="does not fit the types of the key columns") as caught:
        store.present([("A", "Ada Lovelace")])
    assert "Ada" not in str(caught.value)


def test_samples_part_the_leads_and_recent_ones_are_in_all_of_them(reader: Connection, writer: Connection) -> None:
    writer.execute("INSERT INTO customer (appkey, uid) SELECT 'A', n FROM generate_series(1, 400) n")
    writer.execute("ALTER TABLE customer DISABLE TRIGGER stamp")
    writer.execute("UPDATE customer SET update_time = '2026-01-01Z' WHERE uid > 5")
    writer.execute("ALTER TABLE customer ENABLE TRIGGER stamp")
    store, window = LeadStore(reader, source()), Window(None, datetime.now(UTC) + timedelta(hours=1))
    width, parts = RING // 4, []
    for start in (RING - width // 2, width // 2, width // 2 + width, width // 2 + 2 * width):  # the first goes round
        parts.append(keys(store.scan(None, 1000, window, Sample(start, width))))
    assert sorted(lead for part in parts for lead in part) == [("A", n) for n in range(1, 401)]
    assert all(60 < len(part) < 140 for part in parts)
    assert store.scan(None, 1000, window, Sample(0, 0)) == []
    recent = Sample(0, 0, datetime.now(UTC) - timedelta(hours=1))
    assert keys(store.scan(None, 1000, window, recent)) == [("A", n) for n in range(1, 6)]
    epoch = LeadStore(reader, source(watermark="changed", watermark_kind="epoch_s"))
    assert len(epoch.scan(None, 1000, window, recent)) == 400


def test_a_lead_that_is_read_by_its_key_may_have_to_be_in_a_window(reader: Connection, writer: Connection) -> None:
    writer.execute("INSERT INTO customer (appkey, uid) VALUES ('A', 1), ('A', 2)")
    store, now = LeadStore(reader, source()), datetime.now(UTC)
    for window, found in (None, 1), (Window(None, now + timedelta(hours=1)), 1), (Window(None, now - timedelta(1)), 0):
        assert len(list(store.read([("A", "1"), ("A", "7")], window))) == found
