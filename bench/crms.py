"""What a benchmark asks and tells its CRM (crm/crm.c), beside what Leadsync sends to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import requests


@dataclass(frozen=True)
class CRM:
    """One of the CRMs."""

    url: str

    def reset(self, **options: float) -> None:
        """Forgets what was counted; sets the options."""
        wanted = {"latency_ms": 0, "limit": 0, "window_s": 10, **options}
        for what in ("_reset", "_config?" + "&".join(f"{name}={value}" for name, value in wanted.items())):
            requests.post(f"{self.url}/{what}", timeout=5).raise_for_status()

    def stats(self) -> dict[str, Any]:
        """What it has counted."""
        found: dict[str, Any] = requests.get(f"{self.url}/_stats", timeout=5).json()
        return found

    def expect(self, rows: int, keysum: str) -> dict[str, Any]:
        """What it has counted. Raises SystemExit unless every lead arrived once, and no request had to be refused."""
        stats = self.stats()
        if (stats["records"], stats["keysum"], stats["refused"]) != (rows, keysum, 0):
            raise SystemExit(f"not every one of {rows} leads arrived once: {stats}")
        return stats
