"""How the adapter `rest` sends the requests that the settings describe, and judges what comes back."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from leadsync.crm import values
from leadsync.crm.access import Access, Credentials
from leadsync.crm.base import NAME, BatchRefused, CRMAdapter
from leadsync.crm.http import ADAPTER_JUDGES, Reply, RequestFailed
from leadsync.crm.login import FixedHeaders, TokenLogin, token_for
from leadsync.crm.rest_settings import Batch, Call, Errors, Results
from leadsync.crm.template import filled, filled_path, filled_text, find, find_all
from leadsync.errors import AccessError, LeadsyncError, QuotaExceeded
from leadsync.models import Lead, Outcome, Status

# What a path leads to by mistake may be a message, which quotes leads; codes are logged.
CODE = re.compile(r"[\w.:/-]{1,80}")
UNSENDABLE = "unsendable_id"  # our own: nothing was sent


class NotThere(AccessError):
    """What was asked for is not there: a record, or else the object. `status` is None where a code said so."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class RestCalls(CRMAdapter):
    """The half of the adapter that talks."""

    def make_credentials(self) -> Credentials:
        auth, endpoint = self.settings.auth, self.endpoint
        if auth.scheme == "client_credentials":
            form = {
                "grant_type": "client_credentials",
                "client_id": endpoint.login,
                "client_secret": endpoint.password,
                **({"scope": auth.scope} if auth.scope else {}),
            }
            remedy = "correct the connection's address, client id (login) and client secret (password), and `auth`"
            read = token_for(endpoint.url)
            return TokenLogin(self.who, self.http, endpoint.url + auth.token_path, form, read, remedy)
        if auth.scheme == "api_key":
            return FixedHeaders(self.who, Access(endpoint.url, "", {auth.header: endpoint.password}))
        if auth.scheme == "basic":
            pair = base64.b64encode(f"{endpoint.login}:{endpoint.password}".encode()).decode()
            return FixedHeaders(self.who, Access(endpoint.url, "", {"Authorization": f"Basic {pair}"}))
        return super().make_credentials()

    def translate(self, reply: Reply) -> Reply:
        errors: Errors = self.settings.errors
        if not (errors.success or errors.expired or errors.throttled) or reply.status >= 500:
            return reply
        codes = set(self._codes_of(reply))
        if codes & errors.expired:
            return replace(reply, status=401)
        if codes & errors.throttled:
            return replace(reply, status=429)
        lies = errors.success and reply.status < 300 and not codes & errors.success
        return replace(reply, status=400) if lies else reply

    def explain(self, reply: Reply) -> LeadsyncError | None:
        errors: Errors = self.settings.errors
        codes = self._codes_of(reply)
        if set(codes) & errors.quota:
            wait = reply.retry_after
            resets_at = None if wait is None else datetime.now(UTC) + timedelta(seconds=wait)
            return QuotaExceeded(f"{self.who}: the quota is spent ({reply.status})", resets_at)
        judged = reply.status in ADAPTER_JUDGES  # with the leads at hand
        gone = bool(set(codes) & errors.gone) and not judged
        if gone or self._says_absent(reply):
            missing = self.missing(str(reply.status), self.destination.object)
            return NotThere(str(missing), None if gone else reply.status)
        if set(codes) & errors.transient:
            return RequestFailed(
                f"{self.who} answered {reply.status}", str(reply.status), retry_after=reply.retry_after
            )
        if set(codes) & errors.setup and not judged:
            _, field = self._at_fault(parsed(reply.body), errors, ())
            return self.missing(codes[0], field)
        return super().explain(reply)

    def _says_absent(self, reply: Reply) -> bool:
        """Whether this is the API's own way to say that one record is not there, and not a proxy's page."""
        settings = self.settings
        statuses = {settings.fetch.absent_status, settings.delete and settings.delete.absent_status}
        return reply.status in statuses and (not reply.body.strip() or parsed(reply.body) is not None)

    def _filling(self, call: Batch, ones: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The values of the placeholders of a request about these leads."""
        return {
            "leads": [filled(call.each, one) for one in ones],
            "ids": [one.get("id") for one in ones],
            "external_ids": [one.get("external_id") for one in ones],
            "names": [self.destination.external_id_field, *self.fields_read],
            **(ones[0] if call.single else {}),
        }

    def _send(self, call: Call, filling: Mapping[str, Any], leads: Sequence[Lead] = ()) -> tuple[int, Any]:
        """Status and document of a success. Raises BatchRefused for what the API says of the data."""
        try:
            path = filled_path(call.path, filling)
            params = {name: filled_text(value, filling) for name, value in call.query.items()}
            body = filled(call.body, filling)
        except ValueError:
            raise BatchRefused(UNSENDABLE) from None
        reply = self.http.request(
            call.method, path, self.credentials, json=body, params=params or None, headers=call.headers
        )
        document = parsed(reply.body)
        if document is None and reply.body.strip():
            raise reply.malformed()
        if reply.status < 400:
            return reply.status, document
        refused = self._refused("", document, self.settings.errors, leads)
        raise BatchRefused(refused.code or str(reply.status), field=refused.field, message=refused.message)

    def _outcome(
        self, external_id: str, result: Any, where: Results, done: Status, leads: Sequence[Lead] = ()
    ) -> Outcome:
        """What one result of a reply means."""
        failed = bool(set(codes_in(result, where)) - self.settings.errors.success)
        if where.success is not None:
            flag = find(result, where.success)
            if flag is None and not failed:
                return Outcome(external_id, Status.TRANSIENT, code="malformed_reply")
            failed = flag not in where.success_is
        if failed:
            return self._refused(external_id, result, where, leads)
        if where.created is not None and find(result, where.created) in where.created_is:
            done = Status.CREATED
        crm_id = find(result, where.id)
        return Outcome(external_id, done, None if crm_id is None else str(crm_id))

    def _refused(self, external_id: str, result: Any, where: Results | Errors, leads: Sequence[Lead]) -> Outcome:
        """What an error means for one lead. Raises AccessError or QuotaExceeded when it is not about the lead."""
        errors: Errors = self.settings.errors
        codes = codes_in(result, where)
        words, field = self._at_fault(result, where, leads)
        if found := [code for code in codes if code in errors.setup]:
            raise self.missing(found[0], field)
        if set(codes) & errors.quota:
            raise QuotaExceeded(f"{self.who}: the quota is spent")
        passing = set(codes) & (errors.transient | errors.throttled)
        status = Status.TRANSIENT if passing else Status.REJECTED
        return Outcome(external_id, status, None, codes[0] if codes else None, field, words)

    def _at_fault(self, result: Any, where: Results | Errors, leads: Sequence[Lead]) -> tuple[str | None, str | None]:
        """The message of an error, and the field that it names: the destination's, or one that was sent."""
        words = find(result, where.message)
        words = words if isinstance(words, str) else None
        for path in where.field:
            name = find(result, path)
            if isinstance(name, str) and NAME.fullmatch(name):
                return words, name
        for name in sorted({name for lead in leads for name in lead.fields}, key=len, reverse=True):
            if words and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words):
                return words, name
        return words, self.named(words or "")

    def _codes_of(self, reply: Reply) -> list[str]:
        return codes_in(parsed(reply.body), self.settings.errors)


def parsed(body: bytes) -> Any:
    """The document; None where there is none, or it is something else than JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def codes_in(document: Any, where: Results | Errors) -> list[str]:
    found = [value for path in where.code for value in find_all(document, path)]
    return [code for value in found if isinstance(value, str | int) and CODE.fullmatch(code := values.text(value))]


def items(document: Any, path: str, *, needed: bool = True) -> list[Any]:
    """The list that the path leads to, or the one result. Raises RequestFailed when it leads nowhere."""
    found = find(document, path)
    if found is None and needed:
        raise RequestFailed("the CRM's reply lacks what the settings promise", "malformed_reply")
    return found if isinstance(found, list) else [] if found is None else [found]


def matched(where: Results, results: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Each result with what the request named the lead by. By position only when none is missing."""
    if where.key is not None:
        yield from ((str(key), result) for result in results for key in find_all(result, where.key) if key is not None)
    elif len(results) == len(names):
        yield from zip(names, results, strict=True)
