"""The task of the DAG `leadsync_alerts`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import redis
import structlog

from leadsync import alerts, figures, messaging, metering, redis_state, runtime
from leadsync.config import Pipeline
from leadsync.errors import ConfigError, Unavailable
from leadsync.figures import SourceState
from leadsync.metering import Reading
from leadsync.redis_state import RedisState

log = structlog.get_logger(__name__)


def check(context: runtime.Context) -> dict[str, Any]:
    """Checks everything once and tells what has started and ended (alerts.py), or sends the test that was asked for.

    Fails, once all is kept and told that can be, when an address is wrong or can't be reached.
    """
    conf = dict(context["dag_run"].conf or {})
    if unknown := sorted(set(conf) - {"test"}):
        raise ConfigError(f"unknown parameter {unknown[0]!r}; allowed: test")
    addresses, wrong = messaging.addresses(runtime.alert_addresses())
    if conf.get("test"):
        done = _test(addresses)
    else:
        done = _check(addresses)
        if not addresses:
            log.warning("nobody is told", reason=f"there is no connection {runtime.ALERTS}, or it has no password")
    if wrong:
        raise wrong
    return {**done, "addresses": len(addresses)}


def _check(addresses: list[messaging.Address]) -> dict[str, Any]:
    pipelines = runtime.known_pipelines()
    unread = {path.stem for path in runtime.PIPELINES.glob("*.yaml")} - {pipeline.name for pipeline in pipelines}

    def ask_redis() -> tuple[RedisState, Mapping[tuple[str, str], Reading]]:
        names = [(pipeline.name, target.name) for pipeline in pipelines for target in pipeline.destinations]
        try:
            with runtime.redis_client() as client:
                return redis_state.ask(client, pipelines, runtime.endpoint), metering.read(client, names)
        except redis.RedisError as error:
            raise Unavailable(f"connection {runtime.REDIS}: {type(error).__name__}") from None

    with runtime.state_database() as state:
        return alerts.check(state, pipelines, unread, _ask_store, ask_redis, addresses, runtime.page_address())


def _ask_store(pipeline: Pipeline, marks: Mapping[str, datetime | None]) -> SourceState:
    with runtime.clear_errors(), runtime.database(pipeline.source.connection) as connection:
        connection.execute("SET statement_timeout = '30s'")
        return figures.source_state(connection, pipeline, marks)


def _test(addresses: list[messaging.Address]) -> dict[str, Any]:
    if not addresses:
        raise ConfigError(f"there is no connection {runtime.ALERTS} with an address as its password: docs/running.md")
    body = f"This is a test. Alerts come like this one. All of it: {runtime.page_address()}"
    failed = [each.name for each in addresses if not each.send("Leadsync: test", body, good=True)]
    if failed:
        raise Unavailable(f"{', '.join(failed)} of connection {runtime.ALERTS} took no message")
    return {"messages": len(addresses)}
