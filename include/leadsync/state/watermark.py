"""How far each destination is in step with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg

# A destination appears with its first run. Its start is fixed then: NULL is the beginning.
REGISTER: LiteralString = """
INSERT INTO leadsync.watermark (pipeline, destination, watermark)
VALUES (%(pipeline)s, %(destination)s, %(start)s)
ON CONFLICT (pipeline, destination) DO NOTHING
"""

READ: LiteralString = """
SELECT destination, destination_id, watermark
  FROM leadsync.watermark
 WHERE pipeline = %(pipeline)s AND destination = ANY (%(destinations)s)
"""

# It only advances, for all destinations that took part at once.
ADVANCE: LiteralString = """
UPDATE leadsync.watermark
   SET watermark = greatest(watermark, %(upper)s), updated_at = now()
 WHERE pipeline = %(pipeline)s AND destination = ANY (%(destinations)s)
"""


@dataclass(frozen=True, slots=True)
class Watermark:
    """One destination's place; `at` None is before the first row."""

    destination: str
    destination_id: int
    at: datetime | None


def register(connection: psycopg.Connection[Any], pipeline: str, destination: str, start: datetime | None) -> None:
    """Makes the destination known; one that is known keeps its watermark."""
    connection.execute(REGISTER, {"pipeline": pipeline, "destination": destination, "start": start})


def read(connection: psycopg.Connection[Any], pipeline: str, destinations: Sequence[str]) -> dict[str, Watermark]:
    """The watermarks of the destinations that are known, by name."""
    rows = connection.execute(READ, {"pipeline": pipeline, "destinations": list(destinations)})
    return {name: Watermark(name, number, at) for name, number, at in rows}


def advance(connection: psycopg.Connection[Any], pipeline: str, destinations: Sequence[str], upper: datetime) -> None:
    """Moves the watermarks to `upper`, never back."""
    connection.execute(ADVANCE, {"pipeline": pipeline, "destinations": list(destinations), "upper": upper})
