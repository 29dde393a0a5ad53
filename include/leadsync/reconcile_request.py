"""What a reconciliation was asked to do: its parameters, checked, and the destinations that it goes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from croniter import croniter

from leadsync.config import Pipeline
from leadsync.errors import ConfigError
from leadsync.request import check_names, chosen_destinations, moment

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


def chosen(pipeline: Pipeline, parameters: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a person asked for, an item per destination: `pipeline`, `destination`, and the `name` for people.

    Raises ConfigError for parameters that are wrong.
    """
    read_request(pipeline, parameters)
    destinations, _ = chosen_destinations(pipeline, parameters)
    return [{"pipeline": pipeline.name, "destination": name, "name": name} for name in destinations]


def due(pipelines: Sequence[Pipeline], at: datetime) -> list[dict[str, str]]:
    """The items of the pipelines whose time it is."""
    found = [each for each in pipelines if each.reconcile.cron and croniter.match(each.reconcile.cron, at)]
    return [
        {
            "pipeline": pipeline.name,
            "destination": target.name,
            "name": target.name if len(found) == 1 else f"{pipeline.name}/{target.name}",
        }
        for pipeline in found
        for target in pipeline.destinations
    ]


def crons(pipelines: Sequence[Pipeline]) -> list[str]:
    """When any pipeline is due."""
    return sorted({pipeline.reconcile.cron for pipeline in pipelines if pipeline.reconcile.cron is not None})


def read_request(pipeline: Pipeline, parameters: Mapping[str, Any]) -> Request:
    """The parameters for one pipeline. Raises ConfigError that says which one is wrong and what is allowed."""
    check_names(parameters, PARAMETERS)
    since, until = moment("since", parameters), moment("until", parameters)
    if since is not None and until is not None and since >= until:
        raise ConfigError(f"`since` ({since.isoformat()}) must be before `until` ({until.isoformat()})")
    if since is not None and since > datetime.now(UTC):
        raise ConfigError(f"`since` ({since.isoformat()}) is in the future: there is nothing to compare yet")
    repair = parameters.get("repair")
    return Request(
        since, until, _sample(parameters.get("sample")), pipeline.reconcile.repair if repair is None else bool(repair)
    )


def _sample(value: Any) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value <= 1 or (value > 1 and value % 1 == 0)):
        raise ConfigError(
            f"`sample` is {value!r}: a share above 0 and up to 1 (1 is all leads), or a whole number of leads above 1"
        )
    return float(value)
