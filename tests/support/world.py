"""A whole world for tests of the load: lead store, state, snapshots and simulated CRMs, without Airflow."""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import redis

from demo import lead_store
from leadsync import operations
from leadsync.clients import Clients
from leadsync.config import Destination, Pipeline, load_pipeline
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter
from leadsync.mapping import Mapper
from leadsync.request import read_request
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore
from leadsync.source import LeadStore
from leadsync.state import operations as state_operations
from tests.support.simulators import Simulator

SHIPPED = load_pipeline(Path(__file__).parents[2] / "include" / "pipelines" / "leads.yaml")
KEY = base64.b64encode(bytes(32)).decode()
SETTINGS = {"read_timeout": 1, "connect_timeout": 0.25, "requests_per_second": 1000}


class World:
    """Runs operations step by step, as the DAG does."""

    def __init__(
        self, dsn: str, state: psycopg.Connection[Any], client: redis.Redis, simulators: dict[str, Simulator]
    ) -> None:
        self.dsn = dsn
        self.state = state
        self.simulators = simulators
        self.sealer = Sealer(KEY)
        self.redis = client
        self.hive = psycopg.connect(dsn, autocommit=True)
        targets = [
            target.model_copy(update={"settings": SETTINGS, "max_rejected_floor": 5})
            for target in SHIPPED.destinations
            if target.name in simulators
        ]
        self.pipeline: Pipeline = SHIPPED.model_copy(update={"destinations": tuple(targets)})
        self.snapshots = SnapshotStore(client, self.sealer, self.pipeline.name, 3600)
        lead_store.create(dsn)

    @contextmanager
    def store(self) -> Iterator[LeadStore]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            yield LeadStore(connection, self.pipeline.source)

    def fill(self, appkey: str, count: int) -> None:
        """Adds leads to the lead store, numbered from 1 on."""
        self.hive.execute(
            "INSERT INTO customer (appkey, uid, name) SELECT %s, n, 'Lead ' || n FROM generate_series(1, %s) n",
            (appkey, count),
        )

    def fill_with_people(self, count: int) -> None:
        """Adds leads that have an address and a number as well."""
        self.hive.execute(
            "INSERT INTO customer (appkey, uid, name, email, phone) SELECT 'ASDAD', n, 'Lead ' || n, "
            "'lead' || n || '@example.com', '13800' || lpad(n::text, 6, '0') FROM generate_series(1, %s) n",
            (count,),
        )

    def settle(self) -> None:
        """Waits until what was written just now lies below the safe bound."""
        row = self.hive.execute("SELECT clock_timestamp()").fetchone()
        with self.store() as store:
            while row and store.bound().upper <= row[0]:
                time.sleep(0.01)

    @contextmanager
    def adapter(self, destination: str) -> Iterator[CRMAdapter]:
        adapter = registry.build(self.target(destination), self.simulators[destination].endpoint)
        with closing(adapter), adapter.meter.kept(self.redis, self.pipeline.name, destination):
            yield adapter

    @property
    def clients(self) -> Clients:
        return Clients(self.state, self.sealer, self.snapshots, self.store, self.adapter)

    @contextmanager
    def others(self) -> Iterator[Clients]:
        """Clients of their own, for a thread or a process beside the test's."""
        with psycopg.connect(self.state.info.dsn, autocommit=True) as state:
            sealer = Sealer(KEY)
            snapshots = SnapshotStore(self.redis, sealer, self.pipeline.name, 3600)
            yield Clients(state, sealer, snapshots, self.store, self.adapter)

    @contextmanager
    def process(self, work: Callable[[Clients], object]) -> Iterator[int]:
        """Does work in a process of its own and yields its pid; killed at the end, if it has not ended."""
        child = os.fork()
        if child == 0:
            try:
                with self.others() as clients:
                    work(clients)
            finally:
                os._exit(0)
        try:
            yield child
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def open(self, run_id: str | None = None, **parameters: Any) -> operations.Opened:
        request = read_request(self.pipeline, parameters)
        self.settle()
        with self.store() as store:
            return operations.open_run(self.clients, store, self.pipeline, run_id or str(uuid4()), request)

    def extract(self, run_id: str | None = None, **parameters: Any) -> operations.Operation:
        """The one operation of a run whose destinations are in step with each other."""
        (operation,) = self.open(run_id, **parameters).operations
        return operation

    def snapshot(self, *opened: operations.Operation) -> dict[str, int]:
        """In how many shards each destination loads."""
        with self.store() as store:
            sync_ids = [operation.sync_id for operation in opened]
            return operations.take_snapshots(self.clients, store, self.pipeline, sync_ids)

    def end(self, operation: operations.Operation) -> datetime:
        """Of its window; it moves on until the snapshot is taken."""
        found = state_operations.read(self.state, operation.sync_id)
        assert found is not None
        return found.upper

    def load(self, operation: operations.Operation, destination: str, shard: int = 0) -> dict[str, int]:
        return operations.load(self.clients, self.pipeline, operation.sync_id, destination, shard)

    def commit(self, *opened: operations.Operation) -> None:
        operations.commit(self.clients, self.pipeline, [operation.sync_id for operation in opened])

    def run(self, **parameters: Any) -> dict[str, dict[str, int]]:
        """One whole run; the counts by destination."""
        opened = self.open(**parameters).operations
        self.snapshot(*opened)
        counts = {name: self.load(operation, name) for operation in opened for name in operation.destinations}
        self.commit(*opened)
        return counts

    def target(self, name: str) -> Destination:
        return next(target for target in self.pipeline.destinations if target.name == name)

    def watermark(self, destination: str) -> datetime | None:
        query = "SELECT watermark FROM leadsync.watermark WHERE destination = %s"
        row = self.state.execute(query, (destination,)).fetchone()
        return row[0].astimezone(UTC) if row and row[0] else None

    def dead(self, destination: str) -> dict[str, str]:
        """Open dead letters: external id → reason."""
        query = """
            SELECT external_id, reason FROM leadsync.dead_letter JOIN leadsync.watermark USING (destination_id)
             WHERE destination = %s AND resolved_at IS NULL
        """
        return dict(self.state.execute(query, (destination,)).fetchall())

    def recovery_log(self) -> list[str]:
        return [row[0] for row in self.state.execute("SELECT kind FROM leadsync.recovery_log ORDER BY id")]

    def assert_in_step(self, destination: str) -> None:
        """Every record in the CRM is what the lead store says, and nothing else is there; none is doubled."""
        assert_in_step(self.pipeline, self.target(destination), self.dsn, self.simulators[destination], self.dead)


def assert_in_step(
    pipeline: Pipeline, target: Destination, dsn: str, simulator: Simulator, dead: Any = lambda name: {}
) -> None:
    """Compares every record of a simulated CRM with the lead store; dead letters are left out."""
    mapper = Mapper(pipeline.source, target)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        columns = ", ".join(f"{column}::text" for column in pipeline.source.columns)
        rows = connection.execute(f"SELECT {columns} FROM customer").fetchall()  # type: ignore[arg-type]  # noqa: S608
    wanted = {}
    for row in rows:
        row = [{"true": "t", "false": "f"}.get(value, value) for value in row]
        if mapper.external_id(row) in dead(target.name):
            continue
        mapped = mapper.map(row)
        if mapper.routed(row) and not mapped.delete:
            wanted[mapped.external_id] = {k: v for k, v in mapped.fields.items() if v not in (None, "")}
    key = target.external_id_field
    records = simulator.records()
    found = {
        external_id: {name: value for name, value in fields.items() if name != key}
        for external_id, fields in records.items()
        if external_id not in dead(target.name)
    }
    missing, extra = set(wanted) - set(found), set(found) - set(wanted)
    assert not missing, f"{len(missing)} leads are missing in {target.name}: {sorted(missing)[:5]}"
    assert not extra, f"{len(extra)} records too many in {target.name}: {sorted(extra)[:5]}"
    stale = [external_id for external_id in wanted if wanted[external_id] != found[external_id]]
    assert not stale, f"{len(stale)} stale in {target.name}: {wanted[stale[0]]} is {found[stale[0]]}"
    assert simulator.get("stats")["doubled"] == 0
