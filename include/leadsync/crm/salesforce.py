"""Salesforce: sObject Collections by external id. Connection: host (My Domain), login (consumer key), password
(consumer secret) of a connected app with the client-credentials flow.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar
from urllib.parse import urlencode, urlsplit

from pydantic import Field

from leadsync.crm.base import BatchRefused, CRMAdapter, Settings
from leadsync.crm.http import Reply, RequestFailed
from leadsync.errors import AccessError, QuotaExceeded
from leadsync.models import Lead, Outcome, Record, Status

TRANSIENT_CODES = {"UNABLE_TO_LOCK_ROW", "SERVER_UNAVAILABLE", "REQUEST_RUNNING_TOO_LONG"}
# Whole-request codes that speak of the object or a field of it, not of a lead's value.
SETUP_CODES = {"INVALID_FIELD", "INVALID_TYPE", "NOT_FOUND", "INVALID_FIELD_FOR_INSERT_UPDATE"}
GONE_CODES = {"ENTITY_IS_DELETED", "INVALID_CROSS_REFERENCE_KEY"}
# A query travels in the URL, which may hold some 16,000 characters.
QUERY_CHARACTERS = 6_000


class SalesforceSettings(Settings):
    """`settings` of a Salesforce destination."""

    api_version: str = Field("v62.0", pattern=r"^v(4[6-9]|[5-9]\d|\d{3})\.0$", description="v46.0 or newer")


class Salesforce(CRMAdapter):
    """Leads, or any object with an external id field."""

    name: ClassVar[str] = "salesforce"
    max_batch: ClassVar[int] = 200
    delete_modes: ClassVar[frozenset[str]] = frozenset({"delete", "field"})
    settings_model: ClassVar[type[Settings]] = SalesforceSettings

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._login = threading.Lock()
        self._authorization: str | None = None
        self._instance = self.endpoint.url

    def authorization(self, refused: str | None = None) -> str | None:
        with self._login:
            # Several threads meet an expired token at once: one logs in, the others take what it got.
            if self._authorization is None or self._authorization == refused:
                self._authorization = f"Bearer {self._log_in()}"
            return self._authorization

    def _log_in(self) -> str:
        self.before_request()
        form = {
            "grant_type": "client_credentials",
            "client_id": self.endpoint.login,
            "client_secret": self.endpoint.password,
        }
        reply = self._client.request(
            "POST",
            f"{self.endpoint.url}/services/oauth2/token",
            headers={"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
            body=urlencode(form).encode(),
        )
        if reply.status in (400, 401, 403):
            raise AccessError(f"{self.destination.name}: Salesforce refuses the login of {self.hint}")
        if reply.status != 200:
            raise RequestFailed(str(reply.status), retry_after=reply.retry_after)
        document = reply.json()
        instance = str(document["instance_url"]).rstrip("/")
        here, there = urlsplit(self.endpoint.url), urlsplit(instance)
        if there.scheme != "https" and there.hostname != here.hostname:
            raise AccessError(f"{self.destination.name}: Salesforce names an instance without https; see {self.hint}")
        self._instance = instance
        return str(document["access_token"])

    def base_url(self) -> str:
        return f"{self._instance}/services/data/{getattr(self.settings, 'api_version', 'v62.0')}"

    def spent_quota(self, reply: Reply) -> QuotaExceeded | None:
        if reply.status != 403 or b"REQUEST_LIMIT_EXCEEDED" not in reply.content:
            return None
        return QuotaExceeded(
            f"{self.destination.name}: Salesforce's requests of 24 hours are spent; it goes on as the window slides"
        )

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        outcomes = self._upsert(leads)
        # Two upserts of one external id at nearly the same time (by another system) collide: once more.
        again = [lead for lead, outcome in zip(leads, outcomes, strict=True) if outcome.code == "DUPLICATE_VALUE"]
        if not again:
            return outcomes
        second = {outcome.external_id: outcome for outcome in self._upsert(again)}
        return [second.get(outcome.external_id, outcome) for outcome in outcomes]

    def _upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        kind, key = self.destination.object, self.destination.external_id_field
        records = [{"attributes": {"type": kind}, key: lead.external_id, **lead.fields} for lead in leads]
        reply = self.call("PATCH", f"/composite/sobjects/{kind}/{key}", {"allOrNone": False, "records": records})
        results = self._results(reply, len(leads))
        return [_outcome(lead.external_id, result) for lead, result in zip(leads, results, strict=True)]

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        outcomes = {lead.external_id: Outcome(lead.external_id, Status.DELETED) for lead in leads}
        # Looked up each time: an id learnt earlier may be that of a record deleted since, beside a live one.
        records = list(self._find([lead.external_id for lead in leads], []).values())
        for first in range(0, len(records), self.max_batch):
            part = records[first : first + self.max_batch]
            ids = ",".join(record.crm_id for record in part)
            reply = self.call("DELETE", "/composite/sobjects", params={"ids": ids, "allOrNone": "false"})
            for record, result in zip(part, self._results(reply, len(part)), strict=True):
                refusal = _outcome(record.external_id, result)
                if not result["success"] and refusal.code not in GONE_CODES:
                    outcomes[record.external_id] = refusal
        return list(outcomes.values())

    def fetch(self, external_ids: Sequence[str]) -> dict[str, Record]:
        return self._find(external_ids, list(self.destination.fields))

    def check(self) -> None:
        name, kind = self.destination.name, self.destination.object
        reply = self.call("GET", f"/sobjects/{kind}/describe")
        if reply.status != 200:
            raise AccessError(f"{name}: Salesforce has no object {kind!r}, or the user may not see it")
        fields = {item["name"]: item for item in reply.json()["fields"]}
        key = self.destination.external_id_field
        for field in (key, *self.destination.fields):
            if field not in fields:
                raise AccessError(f"{name}: Salesforce's {kind} has no field {field!r}, or the user may not see it")
        if not (fields[key].get("externalId") and fields[key].get("unique")):
            raise AccessError(f"{name}: Salesforce's field {key!r} must be a unique external id; change it in Setup")

    def _find(self, external_ids: Sequence[str], fields: Sequence[str]) -> dict[str, Record]:
        kind, key = self.destination.object, self.destination.external_id_field
        found = {}
        for part in _portions(external_ids):
            values = ",".join(part)
            # External ids are quoted; object and fields come from the pipeline file.
            query = f"SELECT {','.join(['Id', key, *fields])} FROM {kind} WHERE {key} IN ({values})"  # noqa: S608
            reply = self.call("GET", "/query", params={"q": query})
            if reply.status != 200:
                self._refuse(reply)
            for record in reply.json()["records"]:
                values_of = {field: record.get(field) for field in fields}
                found[record[key]] = Record(record[key], record["Id"], values_of)
        return found

    def _results(self, reply: Reply, expected: int) -> list[dict[str, Any]]:
        if reply.status != 200:
            self._refuse(reply)
        results = reply.json()
        if not isinstance(results, list) or len(results) != expected:
            raise reply.nonsense()
        return results

    def _refuse(self, reply: Reply) -> None:
        document = reply.json()
        error = document[0] if isinstance(document, list) and document else {}
        code = error.get("errorCode") or str(reply.status)
        if code in SETUP_CODES or reply.status == 404:
            fields = ", ".join(error.get("fields") or ()) or _named(error.get("message") or "")
            raise AccessError(
                f"{self.destination.name}: Salesforce refuses the set-up: {code} {fields}".rstrip()
                + "; mend the field mapping or the user's rights, then clear this task"
            )
        raise BatchRefused(code, None, error.get("message"))


def _outcome(external_id: str, result: dict[str, Any]) -> Outcome:
    if result.get("success"):
        status = Status.CREATED if result.get("created") else Status.UPDATED
        return Outcome(external_id, status, crm_id=result.get("id"))
    error = (result.get("errors") or [{}])[0]
    code = error.get("statusCode")
    status = Status.TRANSIENT if code in TRANSIENT_CODES else Status.REJECTED
    return Outcome(external_id, status, None, code, next(iter(error.get("fields") or ()), None), error.get("message"))


def _named(message: str) -> str:
    """The field that a message of Salesforce names in quotes: No such column 'X' on sobject of type Lead."""
    return message.split("'")[1] if message.count("'") >= 2 else ""


def _portions(external_ids: Sequence[str]) -> Iterator[list[str]]:
    """SOQL literals, so many at a time as a URL takes."""
    portion: list[str] = []
    size = 0
    for external_id in external_ids:
        literal = "'" + external_id.replace("\\", "\\\\").replace("'", "\\'") + "'"
        if portion and size + len(literal) > QUERY_CHARACTERS:
            yield portion
            portion, size = [], 0
        portion.append(literal)
        size += len(literal) + 1
    if portion:
        yield portion
