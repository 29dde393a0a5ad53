"""The spans of a run: what they are below, what they tell, and that they tell nothing of a lead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import redis
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from tests.support.simulators import Simulator
from tests.support.world import World

from leadsync import tracing
from leadsync.errors import Unavailable


@pytest.fixture
def world(database: str, state: psycopg.Connection[Any], valkey: redis.Redis, hubspot: Simulator) -> Iterator[World]:
    world = World(database, state, valkey, {"hubspot": hubspot})
    world.hive.execute(
        "INSERT INTO customer (appkey, uid, name, phone) SELECT 'SPAN', n, 'Secret', '+86139' "
        "FROM generate_series(1, 250) n"
    )
    yield world
    world.hive.close()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where finished spans end up; Airflow sets such a provider up before a task runs."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", provider.get_tracer("leadsync"))
    return exporter


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == f"leadsync.{name}"]


def test_batches_lie_below_their_load(world: World, spans: InMemorySpanExporter) -> None:
    operation = world.extract()
    world.snapshot(operation)
    world.load(operation, "hubspot")
    (snapshot,), (load,), batches = named(spans, "snapshot"), named(spans, "load"), named(spans, "batch")
    assert snapshot.attributes is not None
    assert load.attributes is not None
    assert load.context is not None
    assert (snapshot.attributes["leadsync.rows"], snapshot.attributes["leadsync.sync_id"]) == (250, operation.sync_id)
    told = [load.attributes[f"leadsync.{name}"] for name in ("sync_id", "destination", "delivered", "dead")]
    assert told == [operation.sync_id, "hubspot", 250, 0]
    assert [batch.parent and batch.parent.span_id for batch in batches] == [load.context.span_id] * 3
    assert sum(int(str((batch.attributes or {})["leadsync.created"])) for batch in batches) == 250
    assert "Secret" not in str([span.to_json() for span in spans.get_finished_spans()])


def test_a_load_that_fails_names_the_class_of_its_error(world: World, spans: InMemorySpanExporter) -> None:
    operation = world.extract()
    world.snapshot(operation)
    world.simulators["hubspot"].faults(down=True)
    with pytest.raises(Unavailable):
        world.load(operation, "hubspot")
    (load,) = named(spans, "load")
    assert (load.status.status_code, load.status.description) == (StatusCode.ERROR, "Unavailable")
    assert not load.events
