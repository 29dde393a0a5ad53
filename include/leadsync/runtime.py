"""Airflow's side of Leadsync: connections become clients, parameters a request, errors a reaction.

With `watcher.py`, all of the package that imports Airflow. Each function named after a task is that task's whole work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import redis
from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.providers.redis.hooks.redis import RedisHook
from airflow.sdk import BaseHook, CronDataIntervalTimetable, Param, RetryPolicy, Variable
from airflow.sdk.configuration import conf
from airflow.sdk.definitions.retry_policy import RetryDecision
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowSkipException

from leadsync import operations, transport
from leadsync.budget import Budget, Lane
from leadsync.clients import Clients
from leadsync.config import Destination, Pipeline, Source, load_pipeline
from leadsync.crm import registry
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.crm.tokens import TokenStore
from leadsync.dry_run import dry_run
from leadsync.errors import (
    ConfigError,
    FailNow,
    LeadsyncError,
    LeftBehind,
    TryAgain,
    Unavailable,
)
from leadsync.request import Request, moment, read_request
from leadsync.sealing import Sealer
from leadsync.snapshot import AGAIN, SnapshotStore
from leadsync.source import APPLICATION_NAME, LeadStore, Window
from leadsync.windows import BEGINNING

STATE = "leadsync_db"
REDIS = "leadsync_redis"
ALERTS = "leadsync_alerts"
# The pipeline files.
PIPELINES = Path(os.environ.get("LEADSYNC_PIPELINES") or Path(__file__).parents[1] / "pipelines")
KEY_VARIABLE = "leadsync_encryption_key"
TOKEN_VARIABLE = "leadsync_metrics_token"  # noqa: S105 the name of one
LONGEST_WAIT = timedelta(minutes=15)
LONGEST_LABEL = 200  # characters; Airflow keeps 250

Context = Mapping[str, Any]
Skip = AirflowSkipException  # raised where there is nothing to do


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
        "destinations": _destinations([pipeline]),
        "resend": Param(False, type="boolean", description="Send also what the ledger shows as delivered."),
        "dry_run": Param(False, type="boolean", description="Send and write nothing, only report what would happen."),
    }


def target_parameters() -> dict[str, Param]:
    """Those with which the DAGs that serve all pipelines ask for one of them."""
    pipelines = known_pipelines()
    names: list[str | None] = [pipeline.name for pipeline in pipelines]
    default = names[0] if len(names) == 1 else None
    options = names if default else [None, *names]
    return {
        "pipeline": Param(default, type=["null", "string"], enum=options, description="Whose leads."),
        "destinations": _destinations(pipelines),
    }


def _destinations(pipelines: Sequence[Pipeline]) -> Param:
    names = sorted({target.name for pipeline in pipelines for target in pipeline.destinations})
    return Param(
        None,
        type=["null", "array"],
        items={"type": "string", "enum": names},
        examples=names,
        description="Only these CRMs; empty: all.",
    )


def known_pipelines() -> list[Pipeline]:
    """All pipelines whose file is right; what is wrong with another one is the import error of its own DAG."""
    found = []
    for path in sorted(PIPELINES.glob("*.yaml")):
        with suppress(ConfigError):
            found.append(load_pipeline(path))
    return found


def asked(run: Any) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline that a person chose, and the parameters."""
    conf, pipelines = dict(run.conf or {}), {pipeline.name: pipeline for pipeline in known_pipelines()}
    name = conf.get("pipeline") or (next(iter(pipelines)) if len(pipelines) == 1 else None)
    if name not in pipelines:
        raise ConfigError(f"`pipeline`: choose one of {', '.join(pipelines)}")
    return pipelines[name], conf


def extract(pipeline: Pipeline, context: Context) -> dict[str, Any]:
    """Plans the windows of the run and opens a sync operation for each; what it returns goes to all other tasks.

    `operations`: of each `sync_id` (None in a dry run), `lower`, `upper` and `destinations`; `parked`: the leads that
    wait, by destination; `destinations`: all that `load` is mapped over.
    """
    run = context["dag_run"]
    request = _request(pipeline, run)
    with clients(pipeline) as using, using.open_store() as store:
        names = {
            "kind": "run" if request.since is None else "backfill",
            "destinations": list(request.destinations),
            "resend": request.resend,
            "dry_run": request.dry_run,
        }
        if request.dry_run:
            plans = operations.look(using, store, pipeline, request)
            return {
                **names,
                "operations": [_window(None, each.window, each.destinations) for each in plans],
                "parked": {},
            }
        opened = operations.open_run(using, store, pipeline, run.run_id, request)
        found = [_window(each.sync_id, Window(each.lower, each.upper), each.destinations) for each in opened.operations]
        return {**names, "operations": found, "parked": opened.parked}


def snapshot(pipeline: Pipeline, opened: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keeps the windows' rows in Redis; returns what `load` is mapped over: each destination, in as many shards as the
    size of its window calls for (`destination`, `shard`, and the `label` of the task instance).
    """
    shards: dict[str, int] = {}
    if not opened["dry_run"]:
        with clients(pipeline) as using, using.open_store() as store:
            sync_ids = [operation["sync_id"] for operation in opened["operations"]]
            shards = operations.take_snapshots(using, store, pipeline, sync_ids)
    return [
        {"destination": name, "shard": shard, "label": name if of == 1 else f"{name} {shard + 1}/{of}"}
        for name in opened["destinations"]
        for of in [shards.get(name, 1)]
        for shard in range(of)
    ]


def load(pipeline: Pipeline, opened: Mapping[str, Any], work: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Delivers the snapshot, or a shard of it, to one destination and returns the counts; what stands out goes into the
    label.

    A destination that is parked is probed instead, and its task instance skipped; so is that of one left behind.
    """
    destination, label = work["destination"], work["label"]
    with clients(pipeline, _lane(opened, context)) as using:
        if destination in opened["parked"]:
            waiting, because = opened["parked"][destination], operations.probe(using, pipeline, destination)
            state = (
                f"parked ({because}), {waiting} leads wait" if because else "well again, catches up from the next run"
            )
            context["label"] = f"{destination}: {state}"[:LONGEST_LABEL]
            raise AirflowSkipException(context["label"])
        operation = next(each for each in opened["operations"] if destination in each["destinations"])
        if opened["dry_run"]:
            context["label"] = f"{destination} (dry run)"
            window = Window(moment("lower", operation), moment("upper", operation) or BEGINNING)
            with using.open_store() as store:
                return dry_run(using.state, store, pipeline, destination, window, resend=opened["resend"])
        try:
            counts = operations.load(using, pipeline, operation["sync_id"], destination, work["shard"])
        except LeftBehind as left:
            context["label"] = str(left)[:LONGEST_LABEL] if label == destination else f"{label}: left behind"
            raise AirflowSkipException(context["label"]) from None
        if counts["dead"]:
            context["label"] = f"{label}: {counts['dead']} dead letters"
        return dict(counts)


def _lane(opened: Mapping[str, Any], context: Any) -> Lane:
    if opened["kind"] == "backfill":
        return Lane.BULK
    return Lane.RETRY if context["ti"].try_number > 1 else Lane.NEW


def commit_watermark(pipeline: Pipeline, opened: Mapping[str, Any]) -> dict[str, str]:
    """Moves the watermarks to the ends of the windows, once every load of the run has succeeded; returns what moved."""
    if opened["dry_run"]:
        return {}
    with clients(pipeline) as using:
        moved = operations.commit(using, pipeline, [operation["sync_id"] for operation in opened["operations"]])
        return {name: upper.isoformat() for name, upper in moved.items()}


def _window(sync_id: str | None, window: Window, destinations: Sequence[str]) -> dict[str, Any]:
    lower = window.lower.isoformat() if window.lower else None
    return {"sync_id": sync_id, "lower": lower, "upper": window.upper.isoformat(), "destinations": list(destinations)}


def _request(pipeline: Pipeline, run: Any) -> Request:
    conf = dict(run.conf or {})
    unknown = sorted(set(conf) - set(parameters(pipeline)))
    if unknown:
        raise ConfigError(f"unknown parameter {unknown[0]!r}; allowed: {', '.join(parameters(pipeline))}")
    if run.run_type == "backfill":
        # Each run of Airflow's own backfill takes its data interval as its window.
        interval = {"since": run.data_interval_start.isoformat(), "until": run.data_interval_end.isoformat()}
        conf = {**conf, **interval}
    return read_request(pipeline, conf)


@contextmanager
def _adapter(pipeline: Pipeline, lane: Lane, destination: str) -> Iterator[CRMAdapter]:
    target = next((target for target in pipeline.destinations if target.name == destination), None)
    if target is None:
        raise ConfigError(f"the pipeline file has no destination {destination!r} any more; clear `extract` of this run")
    with redis_client() as client:
        budget, tokens = Budget(client, lane), TokenStore(client, sealer())
        with (
            closing(registry.build(target, endpoint(target), budget=budget, tokens=tokens)) as adapter,
            adapter.meter.kept(client, pipeline.name, destination),
        ):
            yield adapter


def endpoint(target: Destination) -> Endpoint:
    """What the destination's connection says."""
    connection = _connection(target.conn_id)
    if not connection.host:
        raise ConfigError(f"connection {target.conn_id} has no host: give it the CRM's address")
    address = connection.host if "://" in connection.host else f"https://{connection.host}"
    if connection.port:
        address = f"{address}:{connection.port}"
    return Endpoint(
        url=address,
        login=connection.login or "",
        password=connection.password or "",
        extra=connection.extra_dejson,
    )


@contextmanager
def clear_errors() -> Iterator[None]:
    """Names database errors by their reaction. Their texts may quote leads: only class and code go on."""
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
def database(conn_id: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit. Raises ConfigError or Unavailable when there is none to be had."""
    found = _connection(conn_id)
    transport.check_postgres(f"connection {conn_id}", found.host, found.extra_dejson.get("sslmode"))
    # Our statements are short, but some look so dear to the planner that compiling them would take longer than they do.
    options = f"-c application_name={APPLICATION_NAME} -c timezone=UTC -c jit=off {transport.SERVER_LIVENESS}"
    found.extra = json.dumps({**transport.LIVENESS, **found.extra_dejson})
    hook = PostgresHook(conn_id, connection=found, options=options)
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
        ("does not match host name", "the server's certificate is of another host"),
        ("certificate verify failed", "the authority of the server's certificate is not the one in `sslrootcert`"),
        ("root certificate file", "`sslrootcert` names no file that can be read"),
        ("does not support SSL", "the server speaks no TLS"),
    ):
        if sign in text:
            return ConfigError(f"connection {conn_id}: {remedy}; mend the connection, then clear this task")
    return Unavailable(f"connection {conn_id}: the PostgreSQL server can't be reached")


@contextmanager
def lead_store(source: Source) -> Iterator[LeadStore]:
    """The lead store, on a connection of its own."""
    with database(source.connection) as connection:
        yield LeadStore(connection, source)


@contextmanager
def state_database() -> Iterator[psycopg.Connection[Any]]:
    """Leadsync's own database, in autocommit; its errors are named by their reaction on the way out."""
    with clear_errors(), database(STATE) as state:
        yield state


@contextmanager
def clients(pipeline: Pipeline, lane: Lane = Lane.BULK, again: str = AGAIN) -> Iterator[Clients]:
    """All that a task works with, its requests in this lane; errors of databases leave it named by their reaction.

    `again` is what a person does when a snapshot is lost.
    """
    with state_database() as state, redis_client() as client:
        sealing = sealer()
        snapshots = SnapshotStore(client, sealing, pipeline.name, round(pipeline.snapshot_ttl_hours * 3600), again)
        lend = partial(lead_store, pipeline.source)
        yield Clients(state, sealing, snapshots, lend, partial(_adapter, pipeline, lane))


@contextmanager
def redis_client() -> Iterator[redis.Redis]:
    """Connects at the first command."""
    found = _connection(REDIS)
    transport.check_redis(f"connection {REDIS}", found.host, found.extra_dejson)
    hook: Any = RedisHook(REDIS)
    client: redis.Redis = hook.get_conn()
    try:
        yield client
    finally:
        client.close()


def sealer() -> Sealer:
    """With the keys of the environment or of Airflow's variable."""
    return Sealer(os.environ.get("LEADSYNC_ENCRYPTION_KEY") or Variable.get(KEY_VARIABLE, default=""))


def metrics_token() -> str:
    """What Prometheus shows when it scrapes, from the environment or Airflow's variable; empty: there is none."""
    return os.environ.get("LEADSYNC_METRICS_TOKEN") or str(Variable.get(TOKEN_VARIABLE, default=""))


def alert_addresses() -> str:
    """Where alerts go, as the connection's password has them; empty where there is none."""
    try:
        return str(BaseHook.get_connection(ALERTS).password or "")
    except AirflowNotFoundException:
        return ""


def page_address() -> str:
    """Of the page in Airflow's UI; only its path where Airflow does not know its own address."""
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/plugin/leadsync"
