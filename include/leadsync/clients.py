"""The open connections and factories that every verb works with; `runtime` makes them of Airflow's connections."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psycopg

from leadsync.crm.base import CRMAdapter
from leadsync.sealing import Sealer
from leadsync.snapshot import SnapshotStore
from leadsync.source import LeadStore


@dataclass(frozen=True, slots=True)
class Clients:
    """For one pipeline and one task. `state` is Leadsync's own database, in autocommit.

    `open_store` connects to the lead store and `open_adapter` makes a destination's adapter, each when it is needed.
    """

    state: psycopg.Connection[Any]
    sealer: Sealer
    snapshots: SnapshotStore
    open_store: Callable[[], AbstractContextManager[LeadStore]]
    open_adapter: Callable[[str], AbstractContextManager[CRMAdapter]]
