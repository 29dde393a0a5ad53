"""What a vendor's sliding window sees."""

from __future__ import annotations

from bisect import bisect_left


def busiest(arrivals: list[float], seconds: float) -> int:
    """Requests in the fullest half-open window of so many seconds."""
    ordered = sorted(arrivals)
    return max(bisect_left(ordered, start + seconds) - place for place, start in enumerate(ordered))
