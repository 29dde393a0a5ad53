"""What the tests of reconciliation share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from demo import lead_store
from leadsync import reconcile
from leadsync.clients import Clients
from leadsync.crm.base import CRMAdapter
from leadsync.reconcile_request import Request
from tests.contract.calls import CONTACTS, Client
from tests.support.world import World

ALL = Request(sample=1)
REPAIR = Request(sample=1, repair=True)
NAME = {"hubspot": "firstname", "salesforce": "LastName"}


def fill(world: World, count: int, appkey: str = "A:B") -> None:
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, phone, email, answers) "
        "SELECT %s, n, ' Lead ' || n, '+49 ' || n, %s || n || '@Example.org', '{\"q\": \"a\\\\nb\"}' "
        "FROM generate_series(1, %s) n",
        (appkey, f"{appkey[0]}Lead", count),
    )


def check(
    world: World, crm: str, request: Request = ALL, run_id: str | None = None, *, clients: Clients | None = None
) -> dict[str, int]:
    """One reconciliation; only what is not 0."""
    run_id = run_id or f"manual-{datetime.now(UTC).isoformat()}"
    counts = reconcile.run(clients or world.clients, world.pipeline, crm, run_id, request)
    return {name: count for name, count in counts.items() if count}


def findings(world: World) -> dict[str, tuple[str, list[str], bool]]:
    """Of the last reconciliation: external id → kind, fields, whether it is repaired."""
    query = """
        SELECT external_id, kind, fields, repaired_at IS NOT NULL FROM leadsync.reconciliation_finding
         WHERE reconciliation_id = (SELECT max(id) FROM leadsync.reconciliation)
    """
    return {row[0]: (row[1], row[2], row[3]) for row in world.state.execute(query)}


def last(world: World) -> dict[str, Any]:
    """The row of the last reconciliation."""
    cursor = world.state.execute("SELECT * FROM leadsync.reconciliation ORDER BY id DESC LIMIT 1")
    assert cursor.description is not None
    return dict(zip([column.name for column in cursor.description], cursor.fetchone() or (), strict=True))


def delete_in(world: World, crm: str, external_id: str) -> None:
    """As a person does in the CRM."""
    client = Client(world.simulators[crm])
    crm_id = world.simulators[crm].get("records")[external_id]["id"]
    if crm == "hubspot":
        reply = client.call("POST", f"{CONTACTS}/batch/archive", {"inputs": [{"id": crm_id}]})
    else:
        reply = client.call("DELETE", f"/services/data/v62.0/sobjects/Lead/{crm_id}")
    assert reply.ok


def write_in(world: World, crm: str, external_id: str, name: str) -> None:
    company = {"Company": "A:B"} if crm == "salesforce" else {}
    assert Client(world.simulators[crm]).upsert(external_id, **{NAME[crm]: name, **company}).ok


def silently(world: World, statement: str) -> None:
    """Changes the lead store without the trigger that stamps the time of the change, as a restored backup does."""
    world.hive.execute("ALTER TABLE customer DISABLE TRIGGER stamp_update_time")
    world.hive.execute(statement)  # type: ignore[arg-type]
    world.hive.execute("ALTER TABLE customer ENABLE TRIGGER stamp_update_time")


def tamper(world: World, crm: str) -> dict[str, str]:
    """Makes a difference of every kind; external id → kind."""
    world.run()
    delete_in(world, crm, "A\\:B:1")
    write_in(world, crm, "A\\:B:2", "By hand")
    silently(world, "UPDATE customer SET name = 'Unseen' WHERE uid = 3")
    lead_store.delete(world.hive, "A:B", 4)
    world.run()
    write_in(world, crm, "A\\:B:4", "Came back")
    silently(world, "INSERT INTO customer (appkey, uid, name, update_time) VALUES ('A:B', 105, 'New', '2026-01-01Z')")
    world.hive.execute("DELETE FROM customer WHERE uid = 6")
    return {
        "A\\:B:1": "wrongly_deleted", "A\\:B:2": "changed_by_hand", "A\\:B:3": "stale", "A\\:B:4": "wrongly_alive",
        "A\\:B:105": "missing", "A\\:B:6": "hard_deleted",
    }  # fmt: skip


def watched(world: World, watch: Callable[[Sequence[str]], object]) -> Clients:
    """Clients that say which records are about to be read."""

    @contextmanager
    def open_adapter(name: str) -> Iterator[CRMAdapter]:
        with world.adapter(name) as adapter:
            fetch = adapter.fetch

            def watching(external_ids: Sequence[str]) -> Any:
                watch(external_ids)
                return fetch(external_ids)

            adapter.fetch = watching  # type: ignore[method-assign]
            yield adapter

    return replace(world.clients, open_adapter=open_adapter)
