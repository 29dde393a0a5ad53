"""The tasks of a run as `runtime` has them, on plain addresses instead of Airflow's connections. Run in a worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import redis
import requests  # noqa: F401 - imported before a worker is forked, for it takes long

from leadsync import comparison, groups, operations, parking, patience, repair, snapshot
from leadsync import reconcile as reconciliations
from leadsync import recover as recoveries
from leadsync import replay as replays
from leadsync.clients import Clients
from leadsync.config import Pipeline, load_pipeline
from leadsync.crm import http, registry, salesforce_bulk
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.hubspot import HubSpot
from leadsync.crm.salesforce import Salesforce
from leadsync.errors import LeftBehind
from leadsync.reconcile_request import Request
from leadsync.request import read_request
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore
from leadsync.source import APPLICATION_NAME, LeadStore
from leadsync.state import fence

# Seconds. A request may be under way for 3 × connect + 2 × read = 1.75 s at most: what the generator holds up, it holds
# up for less, since a request that lands later than that can't be told from a live one by anybody.
SETTINGS: dict[str, Any] = {"connect_timeout": 0.25, "read_timeout": 0.5, "requests_per_second": 1000}
ADAPTERS = {"salesforce": {"bulk_above": 1, "bulk_timeout": 2}}

SHIPPED = load_pipeline(Path(__file__).parents[2] / "include" / "pipelines" / "leads.yaml")
PIPELINE: Pipeline = SHIPPED.model_copy(
    update={
        "destinations": tuple(
            target.model_copy(
                update={
                    "settings": {**SETTINGS, **ADAPTERS.get(target.adapter, {})},
                    "in_flight": 3,
                    "max_rejected_floor": 5,
                }
            )
            for target in SHIPPED.destinations
        ),
        "patience": 0.2,
        "catch_up_rows": 7,
        "shard_rows": 5,
        "max_shards": 3,
    }
)

Opened = Mapping[str, Any]


def make_small() -> None:
    """Sizes and times at which a few dozen leads and some seconds hold every case."""
    snapshot.CHUNK_BYTES = 200  # two leads
    groups.GROUP_ROWS = 4
    replays.SLICE = repair.BATCH = 4
    reconciliations.PAGE = 5
    comparison.PAUSES = (0.1, 0.3)
    HubSpot.max_batch = Salesforce.max_batch = 3
    http.FIRST_WAIT = salesforce_bulk.FIRST_WAIT = salesforce_bulk.LONGEST_WAIT = 0.05
    salesforce_bulk.READ_WAITS = (0.05, 0.05)
    fence.CHECK_SECONDS = 0.5
    parking.WAIT = timedelta(seconds=0.5)
    patience.LOOK_SECONDS = 0.1


def extract(setup: Mapping[str, Any], run_id: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    request = read_request(PIPELINE, parameters)
    with _clients(setup) as clients, clients.open_store() as store:
        opened = operations.open_run(clients, store, PIPELINE, run_id, request)
    found = [{"sync_id": each.sync_id, "destinations": each.destinations} for each in opened.operations]
    return {"operations": found, "parked": opened.parked, "destinations": request.destinations}


def take_snapshot(setup: Mapping[str, Any], opened: Opened) -> dict[str, int]:
    """In how many shards each destination is loaded."""
    with _clients(setup) as clients, clients.open_store() as store:
        sync_ids = [operation["sync_id"] for operation in opened["operations"]]
        return operations.take_snapshots(clients, store, PIPELINE, sync_ids)


def load(setup: Mapping[str, Any], opened: Opened, destination: str, shard: int) -> dict[str, int] | None:
    """The counts; None where the destination is parked, or left behind."""
    with _clients(setup) as clients:
        if destination in opened["parked"]:
            operations.probe(clients, PIPELINE, destination)
            return None
        operation = next(each for each in opened["operations"] if destination in each["destinations"])
        try:
            return operations.load(clients, PIPELINE, operation["sync_id"], destination, shard)
        except LeftBehind:
            return None


def commit(setup: Mapping[str, Any], opened: Opened) -> None:
    with _clients(setup) as clients:
        operations.commit(clients, PIPELINE, [operation["sync_id"] for operation in opened["operations"]])


def replay(setup: Mapping[str, Any], run_id: str, destination: str) -> None:
    with _clients(setup) as clients:
        parameters = {"destinations": [destination], "all": True}
        for item in replays.choose(clients.state, PIPELINE, parameters, "chaos"):
            replays.run(clients, PIPELINE, run_id, item, "chaos")


def choose_snapshots(setup: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    with _clients(setup) as clients:
        return recoveries.choose(clients, PIPELINE, parameters)


def recover(setup: Mapping[str, Any], run_id: str, item: Mapping[str, Any]) -> None:
    with _clients(setup) as clients:
        recoveries.run(clients, PIPELINE, run_id, item, "chaos")


def reconcile(setup: Mapping[str, Any], run_id: str, destination: str) -> dict[str, int]:
    with _clients(setup) as clients:
        whole = Request(sample=1, repair=True)
        return reconciliations.run(clients, PIPELINE, destination, run_id, whole)


@contextmanager
def _clients(setup: Mapping[str, Any]) -> Iterator[Clients]:
    @contextmanager
    def open_store() -> Iterator[LeadStore]:
        with _connect(setup["hive"]) as connection:
            yield LeadStore(connection, PIPELINE.source)

    @contextmanager
    def open_adapter(destination: str) -> Iterator[CRMAdapter]:
        target = next(target for target in PIPELINE.destinations if target.name == destination)
        with closing(registry.build(target, Endpoint(**setup["crms"][destination]))) as adapter:
            yield adapter

    with _connect(setup["state"]) as state, redis.Redis(port=setup["redis"]) as client:
        sealer = Sealer(",".join(setup["keys"]))
        yield Clients(state, sealer, SnapshotStore(client, sealer, PIPELINE.name, 3600), open_store, open_adapter)


def _connect(dsn: str) -> psycopg.Connection[Any]:
    return psycopg.connect(dsn, autocommit=True, application_name=APPLICATION_NAME, options="-c timezone=UTC")
