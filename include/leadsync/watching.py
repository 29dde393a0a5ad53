"""Looks whether the lead store holds changes that no run goes over yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from leadsync.source import LeadStore, Window
from leadsync.state import operations

# A run that was called for and did not come (the DAG is paused, or its run fails in `extract`) is called for again.
CALL_AGAIN_SECONDS = 60.0


@dataclass
class Watch:
    """One pipeline's. It calls once for what a run can read now, and again when that run has fixed its window."""

    state: psycopg.Connection[Any]
    store: LeadStore
    pipeline: str
    clock: Callable[[], float] = time.monotonic
    _called: tuple[tuple[datetime, datetime] | None, float] | None = field(default=None, init=False)

    def look(self) -> bool:
        """Whether a run is called for now.

        What an open transaction holds back is no reason: a run could not read it either. Nor is what a run has failed
        to deliver: that is for Airflow's retries and the next run at a fixed time.
        """
        newest = operations.newest_run(self.state, self.pipeline)
        if self._called is not None:
            before, at = self._called
            if before == newest and self.clock() < at + CALL_AGAIN_SECONDS:
                return False
        covered = newest[0] if newest else None
        bound = self.store.bound()
        if bound.prepared or (covered is not None and covered >= bound.upper):
            return False
        if not self.store.count(Window(covered, bound.upper), at_most=1):
            return False
        self._called = newest, self.clock()
        return True
