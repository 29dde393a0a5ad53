"""What a reconciliation was asked to do: its parameters, checked, and the pipelines and destinations it goes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from croniter import croniter

from leadsync.config import Pipeline
from leadsync.errors import ConfigError
from leadsync.request import moment

PARAMETERS = ("pipeline", "destinations", "since", "until", "sample", "repair")


@dataclass(frozen=True, slots=True)
class Request:
    """Which leads: changed in `[since, until)`, and of them a share (`sample` up to 1) or so many (above 1).

    Without any of the three it is a nightly one, as the pipeline file says.
    """

    since: datetime | None = None
    until: datetime | None = None
    sample: float | None = None
    repair: bool = False

    @property
    def nightly(self) -> bool:
        return self.since is None and self.until is None and self.sample is None


def plan(pipelines: Sequence[Pipeline], parameters: Mapping[str, Any], due: datetime | None) -> list[dict[str, str]]:
    """What a run goes over: `pipeline`, `destination`, and the `name` of both for people.

    A scheduled run takes the pipelines whose time `due` is. Raises ConfigError for parameters that are wrong.
    """
    unknown = sorted(set(parameters) - set(PARAMETERS))
    if unknown:
        raise ConfigError(f"unknown parameter {unknown[0]!r}; allowed: {', '.join(PARAMETERS)}")
    chosen = _pipelines(pipelines, parameters.get("pipeline"))
    wanted = set(parameters.get("destinations") or ())
    known = {target.name for pipeline in chosen for target in pipeline.destinations}
    for name in sorted(wanted - known):
        raise ConfigError(f"`destinations`: there is no {name!r}; allowed: {', '.join(sorted(known))}")
    for pipeline in chosen:
        read_request(pipeline, parameters)
    if due is not None:
        chosen = [pipeline for pipeline in chosen if _is_due(pipeline, due)]
    return [
        {
            "pipeline": pipeline.name,
            "destination": target.name,
            "name": target.name if len(chosen) == 1 else f"{pipeline.name}/{target.name}",
        }
        for pipeline in chosen
        for target in pipeline.destinations
        if target.name in wanted or not wanted
    ]


def read_request(pipeline: Pipeline, parameters: Mapping[str, Any]) -> Request:
    """The parameters for one pipeline. Raises ConfigError that says which one is wrong and what is allowed."""
    since, until = moment("since", parameters), moment("until", parameters)
    if since is not None and until is not None and since >= until:
        raise ConfigError(f"`since` ({since.isoformat()}) must be before `until` ({until.isoformat()})")
    if since is not None and since > datetime.now(UTC):
        raise ConfigError(f"`since` ({since.isoformat()}) is in the future: there is nothing to compare yet")
    repair = parameters.get("repair")
    return Request(
        since, until, _sample(parameters.get("sample")), pipeline.reconcile.repair if repair is None else bool(repair)
    )


def crons(pipelines: Sequence[Pipeline]) -> list[str]:
    """When pipelines are due."""
    return sorted({pipeline.reconcile.cron for pipeline in pipelines if pipeline.reconcile.cron is not None})


def _is_due(pipeline: Pipeline, at: datetime) -> bool:
    cron = pipeline.reconcile.cron
    return cron is not None and croniter.match(cron, at)


def _pipelines(pipelines: Sequence[Pipeline], name: Any) -> list[Pipeline]:
    if name is None or name == "":
        return list(pipelines)
    chosen = [pipeline for pipeline in pipelines if pipeline.name == name]
    if not chosen:
        names = ", ".join(pipeline.name for pipeline in pipelines)
        raise ConfigError(f"`pipeline`: there is no {name!r}; allowed: {names}")
    return chosen


def _sample(value: Any) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value <= 1 or (value > 1 and value % 1 == 0)):
        raise ConfigError(
            f"`sample` is {value!r}: a share above 0 and up to 1 (1 is all leads), or a whole number of leads above 1"
        )
    return float(value)
