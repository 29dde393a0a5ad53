"""How a process that goes over hundreds of thousands of leads treats its memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE = 1 << 18  # bytes


@contextmanager
def for_many_leads() -> Iterator[None]:
    """Leads come and go without a cycle among them: to look for one after every few hundred is wasted work.

    Chunks, bodies and replies go back to the system as soon as they are freed. By itself glibc comes to keep those of
    several megabytes, a heap for each thread; it is told once and for all. Other libraries have no such habit.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
