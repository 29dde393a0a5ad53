"""What can befall a worker from inside: it dies at a chosen point, or its clock is off."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from typing import Any

import psycopg
import redis

from leadsync import parking, request
from leadsync.crm import http


def die_at(point: int) -> None:
    """Ends this process (SIGKILL) at its n-th point: before and after each statement, commit, command and request."""
    lock = threading.Lock()
    passed = 0

    def pass_by() -> None:
        nonlocal passed
        with lock:
            passed += 1
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            pass_by()
            result = function(*positional, **named)
            pass_by()
            return result

        return call

    whole = psycopg.Connection.transaction

    @contextmanager
    def transaction(connection: Any) -> Iterator[Any]:
        with whole(connection) as inside:
            yield inside
            pass_by()
        pass_by()

    psycopg.Connection.execute = guarded(psycopg.Connection.execute)  # type: ignore[method-assign]
    psycopg.Connection.transaction = transaction  # type: ignore[assignment]
    redis.Redis.execute_command = guarded(redis.Redis.execute_command)  # type: ignore[method-assign]
    http.HTTPClient.send = guarded(http.HTTPClient.send)  # type: ignore[method-assign]


def shift_clock(seconds: float) -> None:
    """The wall clock of this process is `seconds` off; the monotonic clock and the servers' clocks are not."""
    if not seconds:
        return
    real_time = time.time
    offset = timedelta(seconds=seconds)

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + offset

    time.time = lambda: real_time() + seconds
    for module in (parking, request, http):
        module.datetime = Shifted  # type: ignore[attr-defined]
