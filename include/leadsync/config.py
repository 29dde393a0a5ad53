"""The pipeline file: `include/pipelines/<name>.yaml` read into frozen models.

Every mistake in a file is reported at once, in one `ConfigError` whose lines name file, line, field, the
problem and what is allowed. Nothing here connects to anything, so it is safe while a DAG is parsed.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from croniter import croniter
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from leadsync.errors import ConfigError

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
TRANSFORMS = Literal["trim", "lower", "upper", "digits", "iso8601", "epoch_ms", "integer", "number", "boolean", "json"]
Scalar = str | int | float | bool | None
LONGEST_DAYS = 36_500


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FieldMapping(_Model):
    """Where the value of one CRM field comes from: a column (or a path inside a JSON column) or a constant."""

    column: str | None = Field(None, description="that the value is read from; `phone: mobile` is short for this alone")
    path: str | None = Field(None, description="dotted path inside a json or jsonb column, such as utm.source")
    constant: Scalar = Field(None, description="in place of `column`: the same for every lead")
    default: Scalar = Field(None, description="used where the column is NULL or empty")
    transform: tuple[TRANSFORMS, ...] = Field((), description="one, or a list that is gone through in order")
    max_length: int | None = Field(None, gt=0, description="longer texts are cut")
    required: bool = Field(False, description="a lead without a value becomes a dead letter")

    @field_validator("transform", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> FieldMapping:
        if (self.column is None) == ("constant" not in self.model_fields_set):
            raise ValueError("needs exactly one of `column` and `constant`")
        if self.path and self.column is None:
            raise ValueError("`path` needs `column`")
        return self


class Source(_Model):
    """The lead store: its Airflow connection, table and columns."""

    connection: str = Field("lead_store", description="id of the Airflow connection")
    table: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?$",
        description="with its schema where the search path does not lead there",
    )
    key: tuple[str, ...] = Field(min_length=1, description="columns of a unique key; together the external id")
    watermark: str = Field(description="column that grows with every change")
    watermark_kind: Literal["timestamptz", "timestamp", "epoch_s", "epoch_ms"] = Field(
        "timestamptz", description="its type; the last two are whole numbers of seconds or milliseconds since 1970"
    )
    timezone: str = Field("UTC", description="in which a `timestamp` without zone is written")
    deleted: str | None = Field(None, description="soft-delete column: true, or a number other than 0")
    columns: tuple[str, ...] = Field(min_length=1, description="all columns that are read")
    lookup: tuple[str, ...] = Field(
        (), description="columns by which the page finds a lead, such as phone and e-mail; give each an index"
    )
    bound: Literal["transactions", "lag"] = Field(
        "transactions",
        description="up to where it is safe to read: to the oldest open transaction, or `lag` seconds behind the clock "
        "(replicas, and stores whose application stamps the time)",
    )
    lag: float = Field(0.0, ge=0, description="seconds behind the source's clock, with `bound: lag`")
    lookback: float = Field(0.0, ge=0, description="seconds that every window reaches back, with `bound: lag`")
    ignore_roles: tuple[str, ...] = Field((), description="roles that surely never write the table")

    @model_validator(mode="after")
    def _columns_are_listed(self) -> Source:
        for what, names in (
            ("key", self.key),
            ("watermark", (self.watermark,)),
            ("deleted", (self.deleted,)),
            ("lookup", self.lookup),
        ):
            for name in names:
                if name is not None and name not in self.columns:
                    raise ValueError(f"`{what}` names the column {name!r}, which `columns` does not list")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("`columns` lists a column twice")
        if self.bound == "lag" and self.lag <= 0:
            raise ValueError("`bound: lag` needs a `lag` above 0 seconds")
        if self.bound == "transactions" and (self.lag or self.lookback):
            raise ValueError("`lag` and `lookback` belong to `bound: lag`")
        return self


class Delete(_Model):
    """What a soft delete in the lead store does in the CRM."""

    mode: Literal["delete", "archive", "field"] = Field(
        "delete",
        description="which of them an adapter knows is on its page; `on_delete: archive` is short for this alone",
    )
    field: str | None = Field(None, description="with `mode: field`: the CRM's field that marks a deleted lead")
    value: Scalar = Field(None, description="with `mode: field`: what is written there")

    @model_validator(mode="after")
    def _field_is_named(self) -> Delete:
        if (self.mode == "field") != (self.field is not None):
            raise ValueError("`field` (and `value`) belong to `mode: field`, which needs them")
        return self


class Destination(_Model):
    """One configured CRM target."""

    name: str = ""
    adapter: str = Field(description="kind of CRM: a name from the README's table")
    connection: str = Field("", description="id of the Airflow connection; empty: `crm_` and the destination's name")
    object: str = Field(description="of the CRM, such as contacts or Lead")
    external_id_field: str = Field(description="field of the CRM, unique there, that holds the lead's key")
    fields: dict[str, FieldMapping] = Field(min_length=1, description="field of the CRM → where its value comes from")
    route: dict[str, tuple[Scalar, ...]] = Field(
        default_factory=dict, description="column → values; a lead is routed here when every column matches"
    )
    on_delete: Delete = Delete.model_validate({})
    start: Literal["beginning", "now"] | AwareDatetime = Field(
        "beginning", description="from which changes on a new destination is filled"
    )
    in_flight: int = Field(8, ge=1, le=64, description="requests under way at once")
    max_rejected: float = Field(0.5, gt=0, le=1, description="above this share of rejected leads a load fails")
    park_after: int = Field(3, ge=1, description="failed runs in a row after which it takes no part until it is well")
    max_rejected_floor: int = Field(20, ge=1, description="so many rejected leads are needed for that")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of the adapter: see its page")
    record_url: str | None = Field(
        None,
        pattern=r"^(https?://[^{}\s]+|\{url\})[^{}\s]*\{id\}[^{}\s]*$",
        description="a record in the CRM's own pages, such as {url}/{id}: {url} is the connection's address",
    )
    crm_owned: tuple[str, ...] = Field(
        (), description="fields that people change in the CRM: comparing leaves them alone, a load still writes them"
    )

    @field_validator("fields", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: {"column": v} if isinstance(v, str) else v for k, v in value.items()}
        return value

    @field_validator("route", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v if isinstance(v, list | tuple) else (v,) for k, v in value.items()}
        return value

    @field_validator("on_delete", mode="before")
    @classmethod
    def _delete_short_form(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _owned_are_fields(self) -> Destination:
        for name in self.crm_owned:
            if name not in self.fields:
                raise ValueError(f"`crm_owned` names {name!r}, which is no field; fields: {', '.join(self.fields)}")
        return self

    @property
    def conn_id(self) -> str:
        """The Airflow connection with address and credentials."""
        return self.connection or f"crm_{self.name}"


def _is_cron(value: str) -> str:
    if not croniter.is_valid(value):
        raise ValueError(f"{value!r} is no cron expression")
    return value


Cron = Annotated[str, AfterValidator(_is_cron)]


class Schedule(_Model):
    """When the pipeline runs: as soon as there are changes, and beside that at fixed times."""

    watch: float | None = Field(
        1.0, ge=0.1, le=3600, description="seconds between two looks for changes in the lead store; null: nobody looks"
    )
    cron: Cron | None = Field(
        "* * * * *",
        description="as Airflow reads it: tries again what failed, and Airflow's own backfills; null: never",
    )
    start: AwareDatetime = Field(
        datetime(2026, 1, 1, tzinfo=UTC),
        description="no scheduled run, and none of a backfill of Airflow's, lies before it",
    )


class Retention(_Model):
    """How long Leadsync keeps what it has done. Open dead letters, the ledger and certificates of erasure stay."""

    snapshot_keep_hours: float = Field(
        default=72,
        gt=0,
        description="hours for which the snapshot of a sync operation that is done is kept for a recovery, at most "
        "`snapshot_ttl_hours`; three days, so that what broke on Friday evening can be recovered on Monday",
    )
    operation_log_days: float = Field(
        default=90,
        gt=0,
        le=LONGEST_DAYS,
        description="days after its last sign of life that a sync operation and its log stay",
    )
    dead_letter_days: float = Field(
        default=90, gt=0, le=LONGEST_DAYS, description="days that a resolved dead letter stays"
    )
    recovery_log_days: float = Field(default=365, gt=0, le=LONGEST_DAYS, description="days that a line of it stays")


class Reconcile(_Model):
    """The nightly comparison of the CRMs with the lead store and the ledger.

    It looks at every lead that changed of late, and at a part of all others that moves on from night to night: with
    these defaults every lead is looked at within twenty nights, for a twentieth of the requests of a full comparison.
    """

    cron: Cron | None = Field("17 3 * * *", description="in UTC; null: by hand only")
    recent_days: float = Field(2, ge=0, description="leads that changed within so many days are all looked at")
    sample: float = Field(0.05, ge=0, le=1, description="share of the other leads that one night looks at")
    repair: bool = Field(False, description="whether what is wrong is also mended")


class Alerts(_Model):
    """When people are told; null (or false) switches one off. Redis is everybody's: the strictest limit counts."""

    behind_minutes: float | None = Field(
        15, gt=0, description="age of the oldest change that a destination has not got; not while it is parked"
    )
    parked: bool = Field(True, description="a destination takes no part in runs, for it keeps failing")
    dead_letters: int | None = Field(10, ge=1, le=10_000, description="so many open ones of a destination")
    quota_left: float | None = Field(
        0.1, gt=0, le=0.5, description="share that is left of a limit of an hour or longer, or of what the CRM tells"
    )
    held_back_minutes: float | None = Field(
        10, gt=0, description="for which an open or prepared transaction has held the watermark back"
    )
    unreachable: bool = Field(True, description="the lead store, or Redis, does not answer")
    redis_memory: float | None = Field(0.8, gt=0, le=1, description="share of `maxmemory` that is used")
    redis_unsafe: bool = Field(True, description="Redis may evict snapshots, or its last write to disk failed")
    calm_minutes: float = Field(
        3, ge=0, description="for which a condition has to be over, and clearly so, before its end is told"
    )


class Pipeline(_Model):
    """One source table and its destinations."""

    name: str = ""
    source: Source
    schedule: Schedule = Schedule.model_validate({})
    reconcile: Reconcile = Reconcile.model_validate({})
    destinations: Annotated[
        tuple[Destination, ...], Field(min_length=1, description="the CRMs, each under the name that it is known by")
    ]
    patience: float | None = Field(
        10,
        ge=0,
        description="seconds that changes for the other destinations wait for one that is slow; then it is left "
        "behind, and catches up beside them; null: they wait until it is done",
    )
    catch_up_rows: int = Field(50_000, ge=1, description="rows a run for a destination that lags behind the others")
    shard_rows: int = Field(
        50_000, ge=1, description="rows of a window for one task of a destination; more are shared among several"
    )
    max_shards: int = Field(4, ge=1, le=64, description="tasks that load one destination at once, at most")
    snapshot_ttl_hours: float = Field(168, gt=0, description="hours after which a snapshot is gone in any case")
    retention: Retention = Retention()
    alerts: Alerts = Alerts.model_validate({})

    @field_validator("destinations", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return [{"name": k, **v} if isinstance(v, dict) else v for k, v in value.items()]
        return value

    @model_validator(mode="after")
    def _names_and_columns(self) -> Pipeline:
        columns = set(self.source.columns)
        for target in self.destinations:
            if not NAME.fullmatch(target.name):
                raise ValueError(f"destination {target.name!r}: a name is lower case letters, digits and _")
            named = [(f"fields.{f}", m.column) for f, m in target.fields.items() if m.column]
            for where, column in named + [("route", c) for c in target.route]:
                if column not in columns:
                    raise ValueError(
                        f"destinations.{target.name}.{where}: no column {column!r}; "
                        f"allowed: {', '.join(self.source.columns)}"
                    )
        return self

    @model_validator(mode="after")
    def _retention_fits(self) -> Pipeline:
        keep, hours = self.retention, self.snapshot_ttl_hours
        if "snapshot_keep_hours" in keep.model_fields_set and keep.snapshot_keep_hours > hours:
            raise ValueError(f"`retention.snapshot_keep_hours` is above `snapshot_ttl_hours`, which is {hours:g}")
        if keep.operation_log_days * 24 < hours:
            raise ValueError(
                f"`retention.operation_log_days` is below `snapshot_ttl_hours`: a snapshot needs its sync operation, "
                f"so at least {hours / 24:g} days"
            )
        return self

    @property
    def snapshot_keep_hours(self) -> float:
        """Hours for which the snapshot of a sync operation that is done is kept."""
        return min(self.retention.snapshot_keep_hours, self.snapshot_ttl_hours)


def load_pipeline(path: Path) -> Pipeline:
    """The pipeline that a file describes; its name is the file's. Raises ConfigError for anything wrong."""
    if not NAME.fullmatch(path.stem):
        raise ConfigError(f"{path.name}: the file's name is the pipeline's: lower case letters, digits and _")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        data = loader.construct_document(node) if node else None
    except OSError as error:
        raise ConfigError(f"{path.name}: can't be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date or number that there is not
        raise ConfigError(f"{path.name}: not valid YAML: {error}") from None
    except (RecursionError, AttributeError):  # AttributeError: PyYAML's for a text that is tagged as a time and is none
        raise ConfigError(f"{path.name}: not valid YAML: nested too deeply, or a wrong `!!timestamp`") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}: expected a mapping with `source` and `destinations`")
    try:
        return Pipeline.model_validate({**data, "name": path.stem})
    except ValidationError as error:
        lines = [_explain(path.name, node, problem) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def load_pipelines(folder: Path) -> list[Pipeline]:
    """All pipelines of a folder, by name. Raises ConfigError for the first wrong file."""
    return [load_pipeline(path) for path in sorted(folder.glob("*.yaml"))]


def _explain(file: str, root: yaml.Node | None, problem: Any) -> str:
    keys = [part for part in problem["loc"] if isinstance(part, str | int)]
    line, where = _locate(root, keys)
    message = problem["msg"].removeprefix("Value error, ")
    return f"{file}:{line}: {'.'.join(where) or 'file'}: {message}"


def _locate(node: yaml.Node | None, keys: list[str | int]) -> tuple[int, list[str]]:
    """Line (from 1) of the deepest node that the keys lead to, and the keys as the file spells them."""
    line, names = (node.start_mark.line + 1 if node else 1), []
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pairs = list(node.value)
            # Destinations are written as a mapping by name and validated as a list.
            found = [p for p in pairs if p[0].value == key] or (
                [pairs[key]] if isinstance(key, int) and 0 <= key < len(pairs) else []
            )
            if found:
                names.append(str(found[0][0].value))
                line, node = found[0][0].start_mark.line + 1, found[0][1]
                continue
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and 0 <= key < len(node.value):
            names.append(str(key))
            node = node.value[key]
            line = node.start_mark.line + 1
            continue
        names.append(str(key))
        node = None
    return line, names
