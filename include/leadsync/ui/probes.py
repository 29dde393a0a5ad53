"""Asks services that may be slow or away, beside the requests: none of them waits for a lead store that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import psycopg
import redis

from leadsync.errors import LeadsyncError

T = TypeVar("T")

FRESH = 5.0  # seconds; an answer that is younger is given again
PATIENCE = 0.1  # seconds that a request waits for a new answer


@dataclass(frozen=True, slots=True)
class Seen(Generic[T]):
    """The last answer, None before the first one; `problem` is why there is no newer one. `age` in seconds."""

    value: T | None
    age: float | None
    problem: str | None


class Probe(Generic[T]):
    """One question, asked at most every few seconds and by one thread at a time.

    `slow`: of what changes slowly and is worth waiting for, such as a day's sums; it is asked ten times less often.
    """

    def __init__(self, *, slow: bool = False) -> None:
        self._times = 10 if slow else 1
        self._lock = threading.Lock()
        self._value: T | None = None
        self._at: float | None = None
        self._problem: str | None = None
        self._asked = float("-inf")
        self._running: threading.Event | None = None

    def look(self, ask: Callable[[], T]) -> Seen[T]:
        """The answer, as new as it can be without waiting long."""
        with self._lock:
            if self._running is None and time.monotonic() - self._asked > FRESH * self._times:
                self._running = threading.Event()
                threading.Thread(target=self._ask, args=(ask, self._running), daemon=True).start()
            running, known = self._running, self._at is not None
        if running is not None:
            # Where an earlier answer will do, nobody waits for a slow one.
            running.wait(PATIENCE * (self._times if not known else 1))
        with self._lock:
            age = None if self._at is None else time.monotonic() - self._at
            return Seen(self._value, age, self._problem)

    def _ask(self, ask: Callable[[], T], done: threading.Event) -> None:
        value, problem = None, "failed"
        try:
            value, problem = ask(), ""
        except LeadsyncError as error:
            problem = str(error)
        except (psycopg.Error, redis.RedisError) as error:  # whose texts may quote data
            problem = type(error).__name__
        finally:
            with self._lock:
                self._asked, self._problem, self._running = time.monotonic(), problem or None, None
                if not problem:
                    self._value, self._at = value, self._asked
            done.set()
