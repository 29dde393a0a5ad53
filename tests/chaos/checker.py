"""Compares CRMs with the lead store, and proves from their journals that nothing went back. Knows nothing of the product:
external id, fields and order are written down here once more, by hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

# One committed state of a lead, as text.
COLUMNS: LiteralString = """
appkey, uid::text AS uid, phone, name, email, city, answers::text AS answers, is_delete,
update_time::text AS update_time,
to_char(date_trunc('milliseconds', update_time), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS update_time_ms
"""
PRESENT: LiteralString = f"SELECT {COLUMNS} FROM customer"  # noqa: S608
HISTORY: LiteralString = f"SELECT {COLUMNS} FROM history ORDER BY id"  # noqa: S608
OPEN_LETTERS: LiteralString = """
SELECT w.destination, l.external_id, l.reason, l.code
  FROM leadsync.dead_letter l JOIN leadsync.watermark w USING (destination_id)
 WHERE l.resolved_at IS NULL
"""

Version = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """Something that must not be. `explained`: the lead has an open dead letter, which is all that is promised."""

    kind: str  # lost, doubled, stale, alive, back, invented or letter
    crm: str
    lead: str
    detail: str
    explained: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.lead} in {self.crm}: {self.detail}"


@dataclass(frozen=True)
class Seen:
    """What one CRM shows: live records, the journal, and how many live records it counts."""

    records: Mapping[str, Mapping[str, Any]]
    journal: Sequence[Mapping[str, Any]]
    live: int


class Checker:
    """The lead store at one moment: the present state of every lead and all that came before."""

    def __init__(self, hive: str, state: str) -> None:
        with psycopg.connect(hive, row_factory=psycopg.rows.dict_row, options="-c timezone=UTC") as connection:
            self.present = {external_id(row): row for row in connection.execute(PRESENT)}
            self.versions: dict[str, list[Version]] = defaultdict(list)
            for row in connection.execute(HISTORY):
                self.versions[external_id(row)].append(row)
        with psycopg.connect(state) as connection:
            self.letters = {(crm, lead): (reason, code) for crm, lead, reason, code in connection.execute(OPEN_LETTERS)}

    def check(self, crm: str, seen: Seen, rejected: Collection[str] = ()) -> list[Finding]:
        """All that is wrong with a CRM. `rejected` are the leads that it was told to refuse."""
        findings = [
            *self._compare(crm, seen.records),
            *_doubles(crm, seen),
            *self._order(crm, seen.journal),
            *self._letters(crm, rejected),
        ]
        return findings

    def _compare(self, crm: str, records: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
        for lead in sorted(self.present.keys() | records.keys()):
            row, record, explained = self.present.get(lead), records.get(lead), (crm, lead) in self.letters
            wanted = None if row is None or row["is_delete"] else EXPECTED[crm](row)
            if record is None and wanted is not None:
                yield Finding("lost", crm, lead, f"not there, should be {wanted}", explained)
            elif record is not None and wanted is None:
                yield Finding("alive", crm, lead, f"deleted in the lead store, but it is {record}", explained)
            elif record is not None and dict(record) != wanted:
                yield Finding("stale", crm, lead, f"is {record}, should be {wanted}", explained)

    def _order(self, crm: str, journal: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """Each change must be a committed state of its lead, and none older than the one before it."""
        reached: dict[str, int] = {}
        for change in journal:
            lead, at = change["external_id"], reached.get(change["external_id"], 0)
            versions = self.versions.get(lead, [])
            matching = [place for place, version in enumerate(versions) if _shows(crm, change, version)]
            where = f"change {change['seq']} ({change['action']})"
            if not matching:
                yield Finding("invented", crm, lead, f"{where} is no committed state: {change['fields']}")
                continue
            later = [place for place in matching if place >= at]
            if not later:
                yield Finding("back", crm, lead, f"{where} is state {matching[-1]} after state {at}")
                continue
            # The earliest it can be: a delete carries no time, so it may stand for any deleted state from here on.
            reached[lead] = later[0]

    def _letters(self, crm: str, rejected: Collection[str]) -> Iterator[Finding]:
        for (owner, lead), (reason, code) in self.letters.items():
            if owner == crm and not (reason == "failed" or (reason == "rejected" and lead in rejected)):
                yield Finding("letter", crm, lead, f"dead letter without a cause: {reason} {code}")


def external_id(row: Version) -> str:
    """The key of a lead in every CRM."""
    return ":".join(part.replace("\\", "\\\\").replace(":", "\\:") for part in (row["appkey"], row["uid"]))


def _doubles(crm: str, seen: Seen) -> Iterator[Finding]:
    if seen.live != len(seen.records):
        yield Finding("doubled", crm, "?", f"{seen.live} live records for {len(seen.records)} leads")
    owners: dict[tuple[str, str], list[str]] = defaultdict(list)
    for lead, record in seen.records.items():
        owners[OWNER[crm](record)].append(lead)
    for found in owners.values():
        if len(found) > 1:
            yield Finding("doubled", crm, found[0], f"records {found} are of one lead")


def _shows(crm: str, change: Mapping[str, Any], version: Version) -> bool:
    if change["action"] == "delete":
        return bool(version["is_delete"])
    return not version["is_delete"] and _filled(change["fields"]) == EXPECTED[crm](version)


def _filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _hubspot(row: Version) -> dict[str, Any]:
    return _filled({
        "leadsync_external_id": external_id(row),
        "email": row["email"] and row["email"].strip().lower(),
        "firstname": row["name"] and row["name"].strip(),
        "phone": row["phone"],
        "city": row["city"],
        "leadsync_appkey": row["appkey"],
        "leadsync_uid": row["uid"],
        "leadsync_answers": row["answers"],
        "leadsync_updated_at": row["update_time"],
        "leadsync_source": "landing page",
    })  # fmt: skip


def _salesforce(row: Version) -> dict[str, Any]:
    return _filled({
        "Leadsync_Id__c": external_id(row),
        "LastName": (row["name"] or "").strip() or "Unknown",
        "Company": row["appkey"],
        "Email": row["email"] and row["email"].strip().lower(),
        "Phone": row["phone"],
        "City": row["city"],
        "Appkey__c": row["appkey"],
        "Uid__c": int(row["uid"]),
        "Updated_At__c": row["update_time_ms"],
        "Answers__c": row["answers"],
        "LeadSource": "Web",
    })  # fmt: skip


EXPECTED = {"hubspot": _hubspot, "salesforce": _salesforce}
OWNER = {
    "hubspot": lambda record: (record.get("leadsync_appkey"), record.get("leadsync_uid")),
    "salesforce": lambda record: (record.get("Appkey__c"), str(record.get("Uid__c"))),
}
