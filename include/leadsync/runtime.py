"""Airflow's side of Leadsync: connections become clients, parameters a request, errors a reaction.

The only module that imports Airflow. Each function named after a task is that task's whole work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import redis
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.providers.redis.hooks.redis import RedisHook
from airflow.sdk import BaseHook, CronDataIntervalTimetable, Param, RetryPolicy, Variable
from airflow.sdk.definitions.retry_policy import RetryDecision
from airflow.sdk.exceptions import AirflowNotFoundException

from leadsync import operations
from leadsync.budget import Budget, Lane
from leadsync.config import Pipeline
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.dry_run import dry_run
from leadsync.errors import ConfigError, FailNow, LeadsyncError, TryAgain, Unavailable
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore
from leadsync.source import APPLICATION_NAME, LeadStore, Window

STATE = "leadsync_db"
REDIS = "leadsync_redis"
KEY_VARIABLE = "leadsync_encryption_key"
LONGEST_WAIT = timedelta(minutes=15)

Context = Mapping[str, Any]


class Reaction(RetryPolicy):
    """What is wrong until a person mends it fails at once; a CRM that said when to come back is taken at its word."""

    def evaluate(self, exception: BaseException, try_number: int, max_tries: int, context: Any = None) -> RetryDecision:
        if isinstance(exception, FailNow):
            return RetryDecision.fail(reason=type(exception).__name__)
        if isinstance(exception, TryAgain) and exception.retry_after:
            delay = min(timedelta(seconds=exception.retry_after), LONGEST_WAIT)
            return RetryDecision.retry(delay=delay, reason="Retry-After")
        return RetryDecision.default()


TASKS: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=1),
    "retry_policy": Reaction(),
}


def timetable(pipeline: Pipeline) -> CronDataIntervalTimetable | None:
    """The schedule; its data intervals are the windows of Airflow's own backfills."""
    cron = pipeline.schedule.cron
    return CronDataIntervalTimetable(cron, timezone="UTC") if cron else None


def parameters(pipeline: Pipeline) -> dict[str, Param]:
    """The trigger form."""
    names = [target.name for target in pipeline.destinations]
    return {
        "since": Param(
            None,
            type=["null", "string"],
            format="date-time",
            description="Backfill from this time on (RFC 3339 with offset). Moves no watermark.",
        ),
        "until": Param(
            None, type=["null", "string"], format="date-time", description="End of the backfill; empty: now."
        ),
        "destinations": Param(
            None,
            type=["null", "array"],
            items={"type": "string", "enum": names},
            examples=names,
            description="Only these CRMs; empty: all.",
        ),
        "resend": Param(False, type="boolean", description="Send also what the ledger shows as delivered."),
        "dry_run": Param(False, type="boolean", description="Send and write nothing, only report what would happen."),
    }


def extract(pipeline: Pipeline, context: Context) -> dict[str, Any]:
    """Opens the sync operation and fixes its window; what it returns goes to all other tasks."""
    with _clear_errors():
        run = context["dag_run"]
        request = _request(pipeline, run)
        with _database(STATE) as state, _store(pipeline) as store:
            window = operations.fix_window(state, store, pipeline, request)
            common = {
                "destinations": list(request.destinations),
                "lower": window.lower.isoformat() if window.lower else None,
                "upper": window.upper.isoformat(),
                "resend": request.resend,
                "dry_run": request.dry_run,
            }
            if request.dry_run:
                return common
            operation = operations.open_operation(state, pipeline, run.run_id, request, window)
            return {**common, "sync_id": operation.sync_id, "attempt_id": operation.attempt_id, "kind": operation.kind}


def snapshot(pipeline: Pipeline, opened: Mapping[str, Any]) -> list[str]:
    """Keeps the window's rows in Redis; returns the destinations, over which `load` is mapped."""
    destinations: list[str] = opened["destinations"]
    if opened["dry_run"]:
        return destinations
    with _clear_errors(), _database(STATE) as state, _store(pipeline) as store, _snapshots(pipeline) as snapshots:
        operations.take_snapshot(state, store, snapshots, pipeline, opened["sync_id"], opened["attempt_id"])
        return destinations


def load(pipeline: Pipeline, opened: Mapping[str, Any], destination: str, context: Any) -> dict[str, Any]:
    """Delivers the snapshot to one destination and returns the counts; what stands out goes into the label."""
    with _clear_errors(), _database(STATE) as state:
        if opened["dry_run"]:
            context["label"] = f"{destination} (dry run)"
            request = operations.read_request(pipeline, {"since": opened["lower"]})
            window = Window(request.since, operations.moment("upper", opened) or operations.BEGINNING)
            with _store(pipeline) as store:
                return dry_run(state, store, pipeline, destination, window, resend=opened["resend"])
        lane = Lane.BULK if opened["kind"] == "backfill" else Lane.NEW
        if lane is Lane.NEW and context["ti"].try_number > 1:
            lane = Lane.RETRY
        with (
            _snapshots(pipeline) as snapshots,
            _budget(lane) as budget,
            _adapter(pipeline, destination, budget) as adapter,
        ):
            counts = operations.load(
                state,
                partial(_store, pipeline),
                snapshots,
                _sealer(),
                pipeline,
                opened["sync_id"],
                opened["attempt_id"],
                destination,
                adapter,
            )
        if counts["dead"]:
            context["label"] = f"{destination}: {counts['dead']} dead letters"
        return dict(counts)


def commit_watermark(pipeline: Pipeline, opened: Mapping[str, Any]) -> dict[str, Any]:
    """Moves the watermarks to the end of the window, after every load of the run succeeded."""
    if opened["dry_run"]:
        return {"watermark_moved": False}
    with _clear_errors(), _database(STATE) as state:
        return operations.commit(state, pipeline, opened["sync_id"], opened["attempt_id"])


def _request(pipeline: Pipeline, run: Any) -> operations.Request:
    conf = dict(run.conf or {})
    unknown = sorted(set(conf) - set(parameters(pipeline)))
    if unknown:
        raise ConfigError(f"unknown parameter {unknown[0]!r}; allowed: {', '.join(parameters(pipeline))}")
    if run.run_type == "backfill":
        # Each run of Airflow's own backfill takes its data interval as its window.
        interval = {"since": run.data_interval_start.isoformat(), "until": run.data_interval_end.isoformat()}
        conf = {**conf, **interval}
    return operations.read_request(pipeline, conf)


@contextmanager
def _adapter(pipeline: Pipeline, destination: str, budget: Budget) -> Iterator[CRMAdapter]:
    target = next((target for target in pipeline.destinations if target.name == destination), None)
    if target is None:
        raise ConfigError(f"the pipeline file has no destination {destination!r} any more; clear `extract` of this run")
    connection = _connection(target.conn_id)
    if not connection.host:
        raise ConfigError(f"connection {target.conn_id} has no host: give it the CRM's address")
    address = connection.host if "://" in connection.host else f"https://{connection.host}"
    if connection.port:
        address = f"{address}:{connection.port}"
    endpoint = Endpoint(
        url=address.rstrip("/"),
        login=connection.login or "",
        password=connection.password or "",
        extra=connection.extra_dejson,
    )
    adapter = registry.build(target, endpoint, budget=budget)
    try:
        yield adapter
    finally:
        adapter.close()


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Texts of database errors may quote leads: only their class and code go on."""
    try:
        yield
    except LeadsyncError:
        raise
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise Unavailable(f"a database connection was lost ({type(error).__name__} {error.sqlstate or ''})") from None
    except psycopg.Error as error:
        raise LeadsyncError(f"the database refused a statement: {type(error).__name__} {error.sqlstate}") from None


def _connection(conn_id: str) -> Any:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise ConfigError(
            f"there is no connection {conn_id}: define it in Airflow's secrets backend, or in the environment as "
            f"AIRFLOW_CONN_{conn_id.upper()}"
        ) from None


@contextmanager
def _database(conn_id: str) -> Iterator[psycopg.Connection[Any]]:
    _connection(conn_id)
    hook = PostgresHook(conn_id, options=f"-c application_name={APPLICATION_NAME} -c timezone=UTC")
    try:
        connection: Any = hook.get_conn()
    except psycopg.OperationalError as error:
        raise _connect_error(conn_id, error) from None
    connection.autocommit = True
    with connection:
        yield connection


def _connect_error(conn_id: str, error: psycopg.OperationalError) -> LeadsyncError:
    text = str(error)
    for sign, remedy in (
        ("authentication failed", "login or password is wrong"),
        ("no password supplied", "it has no password"),
        ("does not exist", "the database or role that it names does not exist"),
        ("pg_hba.conf", "the server does not let this host in"),
    ):
        if sign in text:
            return ConfigError(f"connection {conn_id}: {remedy}; mend the connection, then clear this task")
    return Unavailable(f"connection {conn_id}: the PostgreSQL server can't be reached")


@contextmanager
def _store(pipeline: Pipeline) -> Iterator[LeadStore]:
    with _database(pipeline.source.connection) as connection:
        yield LeadStore(connection, pipeline.source)


@contextmanager
def _snapshots(pipeline: Pipeline) -> Iterator[SnapshotStore]:
    _connection(REDIS)
    hook: Any = RedisHook(REDIS)
    client: redis.Redis = hook.get_conn()
    try:
        yield SnapshotStore(client, _sealer(), pipeline.name, round(pipeline.snapshot_ttl_hours * 3600))
    finally:
        client.close()


@contextmanager
def _budget(lane: Lane) -> Iterator[Budget]:
    _connection(REDIS)
    hook: Any = RedisHook(REDIS)
    client: redis.Redis = hook.get_conn()
    try:
        yield Budget(client, lane)
    finally:
        client.close()


def _sealer() -> Sealer:
    return Sealer(os.environ.get("LEADSYNC_ENCRYPTION_KEY") or Variable.get(KEY_VARIABLE, default=""))
