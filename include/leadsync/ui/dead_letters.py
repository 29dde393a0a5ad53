"""View 3: the leads that CRMs refused, by group: seen, ignored with a reason, exported. Replay is Airflow's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, LiteralString

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import StreamingResponse
from pydantic import Field, model_validator

from leadsync.config import Pipeline
from leadsync.errors import SnapshotError
from leadsync.figures import BOUND, Target
from leadsync.letters import NAMED
from leadsync.sealing import Sealer
from leadsync.state import recovery_log
from leadsync.state.dead_letters import NAMELESS
from leadsync.ui import csvtext, masking
from leadsync.ui.access import (
    Asks,
    Backend,
    Body,
    Connection,
    Reason,
    Text,
    Uses,
    database,
    one,
    require_edit,
    visible,
)  # fmt: skip
from leadsync.ui.queries import Limit, count, mark, place

router = APIRouter()

MOST_GROUPS = 100
# Letters that one request ignores; the page asks again until none is left.
AT_ONCE = 10_000

# From group to group along the index, whose size does not matter then.
GROUPS: LiteralString = """
WITH RECURSIVE step (number, name) AS (
    SELECT d.number, (SELECT error_group FROM leadsync.dead_letter
                       WHERE destination_id = d.number AND resolved_at IS NULL ORDER BY error_group LIMIT 1)
      FROM unnest(%(numbers)s::int[]) AS d (number)
    UNION ALL
    SELECT step.number, (SELECT error_group FROM leadsync.dead_letter
                          WHERE destination_id = step.number AND resolved_at IS NULL AND error_group > step.name
                          ORDER BY error_group LIMIT 1)
      FROM step WHERE step.name IS NOT NULL)
SELECT g.number, g.name, first.created_at, last.updated_at, last.id, counted.letters, m.marked_at, m.marked_by
  FROM (SELECT number, name FROM step WHERE name IS NOT NULL LIMIT %(limit)s) g
  CROSS JOIN LATERAL (SELECT created_at FROM leadsync.dead_letter
                       WHERE destination_id = g.number AND error_group = g.name AND resolved_at IS NULL
                       ORDER BY id LIMIT 1) first
  CROSS JOIN LATERAL (SELECT id, updated_at FROM leadsync.dead_letter
                       WHERE destination_id = g.number AND error_group = g.name AND resolved_at IS NULL
                       ORDER BY updated_at DESC LIMIT 1) last
  CROSS JOIN LATERAL (SELECT count(*) AS letters
                        FROM (SELECT FROM leadsync.dead_letter
                               WHERE destination_id = g.number AND error_group = g.name AND resolved_at IS NULL
                               LIMIT %(bound)s) letter) counted
  LEFT JOIN leadsync.mended_group m ON m.destination_id = g.number AND m.error_group = g.name
 ORDER BY counted.letters DESC, g.number, g.name
"""

_COLUMNS: LiteralString = """
SELECT id, destination_id, lead_key::text, external_id, sync_id::text, error_group, reason, code, field, message,
       payload, attempts, created_at, updated_at, resolved_at, resolution
  FROM leadsync.dead_letter
"""
OPEN: LiteralString = f"""{_COLUMNS}
 WHERE destination_id = %(number)s AND resolved_at IS NULL AND (%(group)s::text IS NULL OR error_group = %(group)s)
   AND (%(id)s::bigint IS NULL OR id < %(id)s)
 ORDER BY id DESC LIMIT %(limit)s
"""
RESOLVED: LiteralString = f"""{_COLUMNS}
 WHERE destination_id = %(number)s AND resolved_at IS NOT NULL
   AND (%(group)s::text IS NULL OR error_group = %(group)s)
   AND (%(at)s::timestamptz IS NULL OR (resolved_at, id) < (%(at)s, %(id)s::bigint))
 ORDER BY resolved_at DESC, id DESC LIMIT %(limit)s
"""
ONE: LiteralString = f"{_COLUMNS} WHERE id = %(id)s"
ONE_LEAD: LiteralString = f"""{_COLUMNS}
 WHERE lead_key = %(key)s AND destination_id = ANY (%(numbers)s) ORDER BY id DESC LIMIT 100
"""

# What was renewed since the person looked stays open: it may be another error by now.
IGNORE: LiteralString = """
UPDATE leadsync.dead_letter SET resolved_at = now(), updated_at = now(), resolution = %(resolution)s
 WHERE id IN (SELECT id FROM leadsync.dead_letter
               WHERE destination_id = %(number)s AND resolved_at IS NULL AND updated_at <= %(seen)s
                 AND (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s))
                 AND (%(group)s::text IS NULL OR error_group = %(group)s)
               ORDER BY id LIMIT %(limit)s FOR UPDATE)
   AND resolved_at IS NULL AND updated_at <= %(seen)s
RETURNING external_id
"""

HEAD = ("pipeline", "destination", "external_id", "group", "reason", "code", "field", "message", "attempts", "sync_id",
        "first_seen", "last_seen")  # fmt: skip


class Letter:
    """A row of the table, opened."""

    def __init__(self, row: tuple[Any, ...], sealer: Sealer, pipeline: Pipeline | None) -> None:
        (self.id, self.number, self.key, self.external_id, self.sync_id, self.group, self.reason, self.code, self.field,
         message, payload, self.attempts, self.created_at, self.updated_at, self.resolved_at,
         self.resolution) = row  # fmt: skip
        self.readable = True
        try:
            self.message = self._open(sealer, message, "message")
            content = self._open(sealer, payload, "payload")
        except SnapshotError:  # the key that sealed it is not known any more
            self.message, content, self.readable = None, None, False
        self.fields, self.delete = masking.fields_of(content, pipeline.source if pipeline else None)

    def _open(self, sealer: Sealer, blob: bytes | None, part: str) -> bytes | None:
        return None if blob is None else sealer.open(blob, f"dead_letter:{self.number}:{self.key}:{part}")

    def shown(self, target: Target, *, reveal: bool = False) -> dict[str, Any]:
        """As JSON; masked unless it is to be revealed."""
        plain = self.message.decode(errors="replace") if self.message is not None else None
        return {
            "id": self.id,
            "pipeline": target.pipeline,
            "destination": target.destination,
            "external_id": self.external_id,
            "nameless": self.external_id.startswith(NAMELESS),
            "sync_id": self.sync_id,
            "group": self.group,
            "reason": self.reason,
            "code": self.code,
            "field": self.field,
            "message": plain if reveal else masking.masked_message(self.message, self.fields),
            "fields": self.fields if reveal else masking.masked(self.fields),
            "delete": self.delete,
            "masked": not reveal,
            "readable": self.readable,
            "attempts": self.attempts,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "resolved_at": self.resolved_at,
            "resolution": self.resolution,
        }


class Ignore(Body):
    """Some letters by id, or a whole group; of it only what was not renewed after `seen`, when the person looked."""

    pipeline: Text
    destination: Text
    ids: Annotated[list[Annotated[int, Field(ge=1, lt=2**63)]], Field(min_length=1, max_length=1000)] | None = None
    group: Text | None = None
    seen: datetime
    reason: Reason

    @model_validator(mode="after")
    def _one_choice(self) -> Ignore:
        if (self.ids is None) == (self.group is None):
            raise ValueError("needs one of `ids` and `group`")
        if self.seen.tzinfo is None:
            raise ValueError("`seen` needs an offset")
        return self


@router.get("/dead-letters/groups")
def groups(backend: Uses, user: Asks) -> dict[str, Any]:
    """Open dead letters by destination and kind of failure, the largest group first."""
    with database(backend) as state:
        targets = visible(state, user)
        values = {"numbers": list(targets), "limit": MOST_GROUPS + 1, "bound": BOUND + 1}
        rows = state.execute(GROUPS, values).fetchall()
    return {
        "groups": [
            {
                "pipeline": targets[number].pipeline,
                "destination": targets[number].destination,
                "group": name,
                "first_seen": first,
                "last_seen": last,
                "sample": sample,
                "mended": marked_at and {"at": marked_at, "by": marked_by},
                "may_edit": user.edits(targets[number].pipeline),
                **count(letters),
            }
            for number, name, first, last, sample, letters, marked_at, marked_by in rows[:MOST_GROUPS]
        ],
        "more_groups": len(rows) > MOST_GROUPS,
    }


@router.get("/dead-letters")
def letters(
    backend: Uses,
    user: Asks,
    pipeline: Text,
    destination: Text,
    group: Text | None = None,
    state: Literal["open", "resolved"] = "open",
    before: Text | None = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """One page, newest first, masked."""
    after = place(before, [datetime, int]) or [None, None]
    with database(backend) as connection:
        target = one(visible(connection, user), pipeline, destination)
        values = {"number": target.number, "group": group, "at": after[0], "id": after[1], "limit": limit + 1}
        rows = connection.execute(OPEN if state == "open" else RESOLVED, values).fetchall()
    opener = _opener(backend, pipeline)
    found = [Letter(row, *opener) for row in rows[:limit]]
    last = found[-1] if len(rows) > limit else None
    return {
        "letters": [letter.shown(target) for letter in found],
        "next": last and mark(last.resolved_at or last.updated_at, last.id),
        "may_edit": user.edits(pipeline),
    }


@router.post("/dead-letters/{letter_id}/reveal")
def reveal(backend: Uses, user: Asks, letter_id: int) -> dict[str, Any]:
    """One letter as it is. The recovery log keeps who looked."""
    with database(backend) as state:
        targets = visible(state, user)
        row = state.execute(ONE, {"id": letter_id}).fetchone() if 0 < letter_id < 2**63 else None
        if row is None or row[1] not in targets:
            raise HTTPException(404, "there is no such dead letter")
        target = targets[row[1]]
        require_edit(user, target.pipeline)
        letter = Letter(row, *_opener(backend, target.pipeline))
        message = f"{user.name} looked at the payload of the dead letter of {letter.external_id}"
        recovery_log.append(
            state, target.pipeline, "revealed", message, destination=target.destination, by=user.name,
            external_ids=[letter.external_id],
        )  # fmt: skip
    return letter.shown(target, reveal=True)


@router.post("/dead-letters/ignore")
def ignore(backend: Uses, user: Asks, body: Ignore) -> dict[str, Any]:
    """Closes dead letters without delivering them: some thousand at a time, `left` says whether there are more."""
    with database(backend) as state:
        target = one(visible(state, user), body.pipeline, body.destination)
        require_edit(user, target.pipeline)
        values = {
            "number": target.number,
            "ids": body.ids,
            "group": body.group,
            "seen": body.seen,
            "resolution": f"ignored by {user.name}: {body.reason}",
            "limit": AT_ONCE,
        }
        with state.transaction():
            done = [external_id for (external_id,) in state.execute(IGNORE, values)]
            if done:
                recovery_log.append(
                    state, target.pipeline, "ignored",
                    f"{user.name} ignored {len(done)} dead letters: {body.reason}", destination=target.destination,
                    by=user.name, group=body.group, reason=body.reason, external_ids=done[:NAMED],
                )  # fmt: skip
    return {"ignored": len(done), "left": len(done) == AT_ONCE}


@router.get("/dead-letters.csv")
def export(
    backend: Uses, user: Asks, pipeline: Text, destination: Text, group: Annotated[Text | None, Query()] = None
) -> StreamingResponse:
    """The open dead letters of a destination or a group of it, masked, without payloads."""
    with database(backend) as state:
        target = one(visible(state, user), pipeline, destination)
    headers = {"Content-Disposition": f'attachment; filename="dead-letters-{target.pipeline}-{target.destination}.csv"'}
    body = csvtext.lines(HEAD, _rows(backend, target, group))
    return StreamingResponse(body, media_type="text/csv; charset=utf-8", headers=headers)


def _rows(backend: Backend, target: Target, group: str | None) -> Iterator[tuple[Any, ...]]:
    opener, after = _opener(backend, target.pipeline), None
    with database(backend) as state:
        while rows := _page(state, target.number, group, after):
            for row in rows:
                letter = Letter(row, *opener)
                message = masking.masked_message(letter.message, letter.fields)
                yield (target.pipeline, target.destination, letter.external_id, letter.group, letter.reason,
                       letter.code, letter.field, message, letter.attempts, letter.sync_id,
                       letter.created_at.isoformat(), letter.updated_at.isoformat())  # fmt: skip
            after = rows[-1][0]


def _page(state: Connection, number: int, group: str | None, after: int | None) -> list[tuple[Any, ...]]:
    values: Mapping[str, Any] = {"number": number, "group": group, "id": after, "limit": 1000}
    return state.execute(OPEN, values).fetchall()


def _opener(backend: Backend, pipeline: str) -> tuple[Sealer, Pipeline | None]:
    return backend.sealer(), next((each for each in backend.pipelines() if each.name == pipeline), None)
