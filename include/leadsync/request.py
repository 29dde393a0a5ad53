"""What a run was asked to do: its parameters, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from leadsync.config import Pipeline
from leadsync.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Request:
    """What a run was asked to do; `since` makes it a backfill, which moves no watermark.

    `named` tells that a person chose the destinations: they then take part even when they are parked.
    """

    since: datetime | None = None
    until: datetime | None = None
    destinations: tuple[str, ...] = ()
    named: bool = False
    resend: bool = False
    dry_run: bool = False


def read_request(pipeline: Pipeline, parameters: Mapping[str, Any]) -> Request:
    """The parameters of a run, checked. Raises ConfigError that says which one is wrong and what is allowed."""
    since, until = moment("since", parameters), moment("until", parameters)
    if until is not None and since is None:
        raise ConfigError("`until` needs `since`: together they are the window of a backfill")
    if since is not None and until is not None and since >= until:
        raise ConfigError(f"`since` ({since.isoformat()}) must be before `until` ({until.isoformat()})")
    if since is not None and since > datetime.now(UTC):
        raise ConfigError(f"`since` ({since.isoformat()}) is in the future: there is nothing to deliver yet")
    flags = {flag: bool(parameters.get(flag)) for flag in ("resend", "dry_run")}
    destinations, named = chosen_destinations(pipeline, parameters)
    return Request(since, until, destinations, named=named, **flags)


def chosen_destinations(pipeline: Pipeline, parameters: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """The destinations that take part, in the order of the pipeline file, and whether a person named them."""
    names = [target.name for target in pipeline.destinations]
    wanted = tuple(parameters.get("destinations") or ())
    for name in wanted:
        if name not in names:
            raise ConfigError(f"`destinations`: there is no {name!r}; allowed: {', '.join(names)}")
    return tuple(name for name in names if name in wanted or not wanted), bool(wanted)


def check_names(parameters: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raises ConfigError for a parameter that there is not: a slip of the pen must not mean "all"."""
    for name in sorted(set(parameters) - set(allowed)):
        raise ConfigError(f"unknown parameter {name!r}; allowed: {', '.join(allowed)}")


def moment(name: str, parameters: Mapping[str, Any]) -> datetime | None:
    """A time among parameters, None where there is none. Raises ConfigError without an offset."""
    value = parameters.get(name)
    if value is None or value == "":
        return None
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise ConfigError(f"`{name}` is not an RFC 3339 time such as 2026-01-31T09:30:00+08:00") from None
    if found.tzinfo is None:
        raise ConfigError(f"`{name}` has no offset: write it as 2026-01-31T09:30:00+08:00 or …Z")
    return found
