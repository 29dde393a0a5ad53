"""The services that several views look at, each through a probe that all of them share: Redis and the lead stores."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from threading import Lock
from typing import Annotated

from fastapi import Depends, Request

from leadsync import metering, redis_state
from leadsync.config import Pipeline
from leadsync.figures import SourceState, Target
from leadsync.metering import Reading
from leadsync.redis_state import RedisState
from leadsync.ui import lead_store
from leadsync.ui.access import Backend, Uses
from leadsync.ui.probes import Probe, Seen

Readings = Mapping[tuple[str, str], Reading]


class Services:
    """For one app; thread-safe."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = Lock()
        self._redis: Probe[RedisState] = Probe()
        self._counters: Probe[Readings] = Probe()
        self._stores: dict[str, Probe[SourceState]] = {}

    def redis(self) -> Seen[RedisState]:
        """Its memory, and what is left of the accounts' budgets."""
        return self._redis.look(self._ask_redis)

    def counters(self) -> Seen[Readings]:
        """What the loads have counted, by pipeline and destination, and of the pipelines themselves (no name)."""
        return self._counters.look(self._read_counters)

    def store(self, pipeline: Pipeline, known: Mapping[str, Target]) -> Seen[SourceState]:
        """What a lead store tells of the destinations that are `known`, by name."""
        with self._lock:
            probe = self._stores.setdefault(pipeline.name, Probe())
        marks = {target.name: known[target.name].watermark for target in pipeline.destinations if target.name in known}
        return probe.look(partial(lead_store.ask, self._backend, pipeline, marks))

    def _ask_redis(self) -> RedisState:
        with self._backend.redis() as client:
            return redis_state.ask(client, self._backend.pipelines(), self._backend.endpoint)

    def _read_counters(self) -> Readings:
        pipelines = self._backend.pipelines()
        names = [
            (each.name, name) for each in pipelines for name in ("", *(target.name for target in each.destinations))
        ]
        with self._backend.redis() as client:
            return metering.read(client, names)


def _services(request: Request, backend: Uses) -> Services:
    if not hasattr(request.app.state, "services"):
        request.app.state.services = Services(backend)
    services: Services = request.app.state.services
    return services


Watching = Annotated[Services, Depends(_services)]
