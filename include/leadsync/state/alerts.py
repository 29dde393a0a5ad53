"""What is wrong now, what is over, and who has been told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString, NamedTuple

import psycopg

READ: LiteralString = """
SELECT pipeline, destination, kind, started_at, detail, calm_since, ended_at, told_start, told_end
  FROM leadsync.alert ORDER BY started_at, pipeline, destination, kind
"""

# One that was over and starts again before all were told of its end goes on: those who were told of its end are told of
# its start anew.
START: LiteralString = """
INSERT INTO leadsync.alert AS a (pipeline, destination, kind, started_at, detail)
VALUES (%(pipeline)s, %(destination)s, %(kind)s, coalesce(%(since)s, now()), %(detail)s)
ON CONFLICT (pipeline, destination, kind) DO UPDATE
   SET started_at = excluded.started_at, detail = excluded.detail, calm_since = NULL, ended_at = NULL, told_end = '{}',
       told_start = ARRAY(SELECT unnest(a.told_start) EXCEPT SELECT unnest(a.told_end))
"""

# What is so now, and since when it is well, if it is.
RENEW: LiteralString = """
UPDATE leadsync.alert SET detail = %(detail)s, calm_since = CASE WHEN %(well)s THEN coalesce(calm_since, now()) END
 WHERE pipeline = %(pipeline)s AND destination = %(destination)s AND kind = %(kind)s
"""

# Once it has been well for long enough.
END: LiteralString = """
UPDATE leadsync.alert SET detail = %(detail)s, ended_at = coalesce(calm_since, now())
 WHERE pipeline = %(pipeline)s AND destination = %(destination)s AND kind = %(kind)s
   AND now() - coalesce(calm_since, now()) >= %(calm)s
"""

# To an address that was told nothing, start and end are one message.
TOLD: LiteralString = """
UPDATE leadsync.alert
   SET told_start = CASE WHEN %(address)s = ANY (told_start) THEN told_start ELSE told_start || %(address)s::text END,
       told_end = CASE WHEN ended_at IS NULL THEN told_end ELSE told_end || %(address)s::text END
 WHERE pipeline = %(pipeline)s AND destination = %(destination)s AND kind = %(kind)s
"""

# Those that are over and of which every address has been told.
FORGET: LiteralString = "DELETE FROM leadsync.alert WHERE ended_at IS NOT NULL AND told_end @> %(addresses)s"


class Name(NamedTuple):
    """Whose it is, and of which kind: of what all pipelines share `pipeline` is empty, of a pipeline's own
    `destination`."""

    pipeline: str
    destination: str
    kind: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One of them. `ended_at` is None while it lasts, `calm_since` while it is not well again."""

    name: Name
    started_at: datetime
    detail: str
    calm_since: datetime | None
    ended_at: datetime | None
    told_start: Sequence[str]
    told_end: Sequence[str]

    def untold(self, address: str) -> bool:
        """Whether there is anything of it that this address has not been told."""
        return address not in (self.told_start if self.ended_at is None else self.told_end)


def read(connection: psycopg.Connection[Any]) -> list[Alert]:
    """All of them, the oldest first."""
    return [Alert(Name(*row[:3]), *row[3:]) for row in connection.execute(READ)]


def start(connection: psycopg.Connection[Any], name: Name, detail: str, since: datetime | None) -> None:
    """One starts, or starts again; since now where nobody knows."""
    connection.execute(START, {**name._asdict(), "detail": detail, "since": since})


def renew(connection: psycopg.Connection[Any], name: Name, detail: str, *, well: bool) -> None:
    """This is so now: still wrong or in between, or well, which is not yet the end."""
    connection.execute(RENEW, {**name._asdict(), "detail": detail, "well": well})


def end(connection: psycopg.Connection[Any], name: Name, detail: str, calm: timedelta) -> bool:
    """Ends it if it has been well for so long; whether it did."""
    return connection.execute(END, {**name._asdict(), "detail": detail, "calm": calm}).rowcount == 1


def told(connection: psycopg.Connection[Any], names: Sequence[Name], address: str) -> None:
    """This address has been told of them, as they are."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(TOLD, [{**name._asdict(), "address": address} for name in names])


def forget(connection: psycopg.Connection[Any], addresses: Sequence[str]) -> None:
    """Removes what is over and told to all of these addresses."""
    connection.execute(FORGET, {"addresses": list(addresses)})
