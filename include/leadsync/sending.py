"""Sends batches from several threads: carefully until the CRM has proved well, and no further once it is not."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType

import structlog

from leadsync import tracing
from leadsync.crm.base import CRMAdapter
from leadsync.errors import FenceLost, LeadsyncError
from leadsync.models import Lead, Outcome, Status
from leadsync.state.fence import Fence

log = structlog.get_logger(__name__)

# So many batches in a row that failed as a whole mean that the CRM is unavailable.
FAILURES_IN_A_ROW = 3
# The request as a whole failed, whatever was in it; so does any code that is an HTTP status.
REQUEST_FAILURES = {"timeout", "connection", "malformed_reply"}


class _Ended(FenceLost):
    """Nothing more is sent in this try; why is known already."""


class Sender:
    """A pool of senders for one load; the adapter asks it before every request."""

    def __init__(self, adapter: CRMAdapter, fence: Fence, in_flight: int) -> None:
        self._fence = fence
        self._stopping = threading.Event()
        self.adapter = adapter
        adapter.before_request = self.before_request
        self._trace = tracing.here()
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="sender")
        self._careful = threading.Lock()
        self._lock = threading.Lock()
        self._failures = 0
        self.ending = False  # no further batch is begun; those that are under way are finished
        self.proven = False  # a batch got through in this try of the load
        self.error: Exception | None = None  # why nothing more is sent: access, quota, fence, or a defect
        self.unavailable = False  # nothing more is sent, since the CRM does not take anything

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        if error is not None:
            self._fence.abandon()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.adapter.at_work:
            self._end_work()

    @property
    def stopped(self) -> bool:
        """Whether nothing more is sent in this try."""
        return self.unavailable or self.error is not None

    def before_request(self) -> None:
        """Raises FenceLost when nothing more may be sent."""
        if self._stopping.is_set() or self.stopped:
            raise _Ended("the load has ended; nothing more is sent")
        self._fence.check()

    def send(self, leads: Sequence[Lead], *, delete: bool) -> Future[list[Outcome]]:
        """Queues one batch; its outcomes are in the order of the leads, and none when it was not tried."""
        return self._pool.submit(self._send, leads, delete)

    def finish(self, batches: Iterable[Future[list[Outcome]]], meanwhile: Callable[[], object] = lambda: None) -> None:
        """Waits until batches are through; keeps the fence confirmed, and calls `meanwhile` every now and then."""
        pending = set(batches)
        while pending:
            _, pending = wait(pending, timeout=1.0)
            self._fence.confirm()
            meanwhile()

    def _end_work(self) -> None:
        """The load gives up: what the CRM was handed and is still at work on ends here, or by whoever comes next."""
        self._fence.left_at_work()
        self.adapter.before_request = self._fence.confirm
        try:
            if self.adapter.end_work():
                self._fence.unanswered()
        except LeadsyncError as error:
            log.warning("left at work", reason=str(error))
        else:
            self._fence.left_at_work(False)

    def _send(self, leads: Sequence[Lead], delete: bool) -> list[Outcome]:
        name = self.adapter.destination.name
        with tracing.span("batch", self._trace, destination=name, leads=len(leads), delete=delete) as span:
            outcomes = self._carefully(leads, delete)
            if span.is_recording():
                tracing.note(span, **Counter(outcome.status.value for outcome in outcomes))
        return outcomes

    def _carefully(self, leads: Sequence[Lead], delete: bool) -> list[Outcome]:
        if not self.proven:
            # One at a time until one got through: an outage then costs few leads an attempt.
            with self._careful:
                if not self.proven:
                    return self._deliver(leads, delete)
        return self._deliver(leads, delete)

    def _deliver(self, leads: Sequence[Lead], delete: bool) -> list[Outcome]:
        if self.stopped or self.ending:
            return []
        try:
            outcomes = self.adapter.deliver(leads, delete=delete)
        except _Ended:
            return []
        except LeadsyncError as error:
            with self._lock:
                self.error = self.error or error
            return []
        with self._lock:
            if not all(request_failed(outcome) for outcome in outcomes):
                self.proven, self._failures = True, 0
            else:
                self._failures += 1
                refused = not any(outcome.sent for outcome in outcomes)
                self.unavailable = self.unavailable or refused or self._failures >= FAILURES_IN_A_ROW
        return outcomes


def request_failed(outcome: Outcome) -> bool:
    """Whether the request as a whole failed, not just this lead."""
    return outcome.status is Status.TRANSIENT and (
        outcome.code is not None and (outcome.code.isdigit() or outcome.code in REQUEST_FAILURES)
    )
