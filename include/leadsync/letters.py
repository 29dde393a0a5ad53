"""What one load leaves for a person: dead letters with sealed payloads, and lines in the recovery log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import psycopg

from leadsync.mapping import Mapped, lead_key
from leadsync.models import Digest
from leadsync.sealing import Sealer
from leadsync.state import dead_letters, recovery_log
from leadsync.state.dead_letters import DeadLetter
from leadsync.state.operations import Operation
from leadsync.transforms import MappingFailure

# So many external ids are named in one line of the recovery log; the dead letters themselves name them all.
NAMED = 100


class Letters:
    """Makes and keeps the dead letters of one load."""

    def __init__(
        self,
        state: psycopg.Connection[Any],
        sealer: Sealer,
        operation: Operation,
        destination: str,
        destination_id: int,
    ) -> None:
        self._state = state
        self._sealer = sealer
        self._operation = operation
        self._destination = destination
        self._id = destination_id
        self.reasons: Counter[str] = Counter()

    def unmapped(self, external_id: str, line: str, failure: MappingFailure, sequence: int) -> DeadLetter:
        """For a row that can't be turned into a record: keeps the row itself."""
        key = lead_key(external_id)
        return DeadLetter(
            lead_key=key,
            external_id=external_id,
            sequence=sequence,
            reason="mapping",
            code=None,
            field=failure.field,
            message=self._seal(failure.reason.encode(), key, "message"),
            payload=self._seal(orjson.dumps({"row": line}), key, "payload"),
            attempts=1,
        )

    def undelivered(
        self,
        mapped: Mapped,
        sequence: int,
        reason: str,
        attempts: int,
        code: str | None,
        field: str | None,
        message: str | None,
    ) -> DeadLetter:
        """For a record that the CRM did not take: keeps it as it was sent."""
        payload = orjson.dumps({"delete": mapped.delete, "fields": mapped.fields})
        return DeadLetter(
            lead_key=mapped.key,
            external_id=mapped.external_id,
            sequence=sequence,
            reason=reason,
            code=code,
            field=field,
            message=self._seal(message.encode(), mapped.key, "message") if message else None,
            payload=self._seal(payload, mapped.key, "payload"),
            attempts=attempts,
        )

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Writes dead letters, and a line of the recovery log for each kind of failure among them."""
        dead_letters.bury(self._state, self._id, self._operation.sync_id, letters)
        groups: dict[str, list[str]] = {}
        for letter in letters:
            why = " ".join(filter(None, (letter.reason, letter.code, letter.field)))
            groups.setdefault(why, []).append(letter.external_id)
        for why, ids in groups.items():
            self.reasons[why] += len(ids)
            self.remember("dead_letter", f"{len(ids)} leads became dead letters: {why}", {"external_ids": ids[:NAMED]})

    def resolve(self, keys: Sequence[Digest]) -> None:
        """Closes the dead letters of leads that are in the CRM now."""
        resolution = f"delivered by a later operation ({self._operation.kind})"
        resolved = dead_letters.resolve(self._state, self._id, keys, resolution)
        if resolved:
            message = f"{len(resolved)} dead letters were delivered"
            self.remember("resolved", message, {"external_ids": resolved[:NAMED]})

    def close(self, sequence: int, keys: Sequence[Digest]) -> None:
        """Closes the dead letters of leads that are not routed here in the state that was read under `sequence`."""
        resolution = f"not routed to {self._destination} any more"
        closed = dead_letters.close(self._state, self._id, sequence, keys, resolution)
        if closed:
            message = f"{len(closed)} dead letters were closed: {resolution}"
            self.remember("resolved", message, {"external_ids": closed[:NAMED]})

    def pass_over(self, external_ids: Sequence[str]) -> None:
        """Tells which leads a recovery did not send since a newer state was delivered that it does not hold."""
        if external_ids:
            message = (
                f"{len(external_ids)} leads were passed over: a newer state was delivered that is in no snapshot chosen"
            )
            details = {"leads": len(external_ids), "external_ids": external_ids[:NAMED]}
            self.remember("passed_over", message, details)

    def remember(self, kind: str, message: str, details: Mapping[str, Any]) -> None:
        """Adds a line to the recovery log."""
        recovery_log.append(
            self._state,
            self._operation.pipeline,
            kind,
            message,
            destination=self._destination,
            sync_id=self._operation.sync_id,
            **details,
        )

    def _seal(self, data: bytes, key: Digest, part: str) -> bytes:
        return self._sealer.seal(data, f"dead_letter:{self._id}:{key}:{part}")
