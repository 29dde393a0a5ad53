"""The page with Airflow's connections; the plugin file adds Airflow's permissions and mounts it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from fastapi import FastAPI

from leadsync import runtime
from leadsync.config import Pipeline
from leadsync.ui.access import Backend, User
from leadsync.ui.app import create_app

__all__ = ["User", "make"]


def make(authenticate: Callable[..., User]) -> FastAPI:
    """The page as an app of its own. `authenticate` is a FastAPI dependency that gives the user or raises 401."""
    backend = Backend(
        state=runtime.state_database,
        source=lambda pipeline: runtime.database(pipeline.source.connection),
        redis=runtime.redis_client,
        sealer=runtime.sealer,
        pipelines=_pipelines,
        endpoint=runtime.endpoint,
        metrics_token=runtime.metrics_token,
    )
    return create_app(backend, authenticate)


def _pipelines() -> list[Pipeline]:
    """Read again only when a file has changed: every request asks."""
    return _read(tuple((path.name, path.stat().st_mtime_ns) for path in sorted(runtime.PIPELINES.glob("*.yaml"))))


@lru_cache(maxsize=1)
def _read(files: tuple[tuple[str, int], ...]) -> list[Pipeline]:
    return runtime.known_pipelines()
