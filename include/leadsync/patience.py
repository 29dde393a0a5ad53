"""For how long the other CRMs of a run wait for one that is slow.

A run ends with its slowest load, and what changes meanwhile waits for the next run. So a load looks now and then
whether others of its run are done and changes wait for them; it then begins no further batch and is left behind: its
watermark stays, those of the others move on, and it catches up from its own in the next runs (windows.py). What it has
delivered by then is unchanged to them, so each of them gets further.
"""

from __future__ import annotations

import time

import psycopg

from leadsync.clients import Clients
from leadsync.config import Pipeline
from leadsync.errors import LeadsyncError
from leadsync.source import Window
from leadsync.state import operations
from leadsync.state.operations import Operation

LOOK_SECONDS = 5.0  # between two looks; a look connects to the lead store


class Patience:
    """The others' patience with one try of a load. Without others, or outside of ordinary runs, it never ends."""

    def __init__(self, clients: Clients, pipeline: Pipeline, operation: Operation, destination_id: int) -> None:
        alone = operation.kind != "run" or len(pipeline.destinations) == 1
        self._seconds = None if alone else pipeline.patience
        self._clients = clients
        self._operation = operation
        self._id = destination_id
        # From the start of this try on: one that works off what failed before gets its time, too.
        self._next = time.monotonic() + (self._seconds or 0.0)

    def ended(self) -> bool:
        """Whether the load is to be left behind. Outside of a transaction only."""
        if self._seconds is None or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + LOOK_SECONDS
        others = operations.others(self._clients.state, self._operation.sync_id, self._id)
        return others is not None and others.waited >= self._seconds and self._changes_wait(others)

    def _changes_wait(self, others: operations.Others) -> bool:
        """Whether the lead store holds what the next run could read."""
        try:
            with self._clients.open_store() as store:
                bound = store.bound()
                return not bound.prepared and store.count(Window(others.upper, bound.upper), at_most=1) > 0
        except (LeadsyncError, psycopg.Error):
            return False  # it can't be read, so nobody waits
