"""Any JSON API, described in the pipeline file alone: see the settings.

The connection's password is the token or the API key, or login and password are those of basic authentication or of
OAuth 2 client credentials (`auth.scheme`). No secret belongs into the pipeline file.

Requests are documents with placeholders. `{external_id}`, `{fields}` (an object), `{id}` (the CRM's id) are of one
lead: they stand in `each`, or anywhere with `max_batch: 1`. `{leads}` is the list of what `each` makes of the leads,
`{external_ids}` and `{ids}` the list of these alone, `{names}` that of the fields that are read back, `{object}` and
`{external_id_field}` are the destination's. A text that is nothing but a placeholder becomes the value itself; inside a
longer text lists are joined by commas, and `{external_ids:backslash}` or `{external_ids:doubled}` writes each as a
literal in single quotes whose own quotes are escaped by a backslash (SOQL) or doubled (OData, SQL). The members of an
object under the key `...` take that key's place. In a path values are percent-encoded. There is no logic.

Replies are read by paths: keys and places joined by dots, `*` for every one, such as `errors.*.context.ids.0`.

The `upsert` must be safe to repeat. Where an API has none, `create` and `update` take its place: records are then
looked up by external id before they are written one by one, so the external id field should not allow duplicates, and
`fetch` has to find a record as soon as it is made. The example is HubSpot's API, which has an adapter of its own: it
shows nearly every kind of setting, and is tested.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

from leadsync.budget import Limit
from leadsync.config import Destination
from leadsync.crm import values
from leadsync.crm.base import BatchRefused, Endpoint, Settings, batches
from leadsync.crm.http import RequestFailed
from leadsync.crm.rest_calls import UNSENDABLE, NotThere, RestCalls, codes_in, items, matched
from leadsync.crm.rest_settings import Call, Delete, RestSettings, Upsert
from leadsync.crm.singly import one_by_one
from leadsync.crm.template import find, find_all
from leadsync.errors import AccessError
from leadsync.models import Lead, Outcome, Record, Status


class Rest(RestCalls):
    name = "rest"
    label = "JSON API"
    max_batch = 10_000
    limits: ClassVar[tuple[Limit, ...]] = ()  # the setting says it
    delete_modes = frozenset({"delete", "archive", "field"})
    settings_model: ClassVar[type[Settings]] = RestSettings
    example = """
adapter: rest
object: contacts
external_id_field: leadsync_external_id
on_delete: archive
fields:
  email: {column: email, transform: [trim, lower]}
  firstname: {column: name, transform: trim}
  phone: phone
  city: city
  leadsync_answers: answers
  leadsync_updated_at: update_time
settings:
  requests_per_second: 9
  auth: {scheme: bearer}
  upsert:
    method: POST
    path: /crm/v3/objects/{object}/batch/upsert
    max_batch: 100
    body: {inputs: "{leads}"}
    each:
      id: "{external_id}"
      idProperty: "{external_id_field}"
      objectWriteTraceId: "{external_id}"
      properties: {"...": "{fields}", "{external_id_field}": "{external_id}"}
    results: {items: results, key: "properties.{external_id_field}", id: id, created: new}
    failures:
      items: errors
      key: context.objectWriteTraceId.*
      code: [errors.*.code, category]
      message: message
      field: errors.*.context.propertyName.0
  delete:  # {id}: the records are looked up first
    method: POST
    path: /crm/v3/objects/{object}/batch/archive
    max_batch: 100
    body: {inputs: "{leads}"}
    each: {id: "{id}"}
  fetch:
    method: POST
    path: /crm/v3/objects/{object}/batch/read
    max_batch: 100
    body: {idProperty: "{external_id_field}", inputs: "{leads}", properties: "{names}"}
    each: {id: "{external_id}"}
    items: results
    key: properties.{external_id_field}
    id: id
    fields: properties
    absent: errors.*.context.ids.*
  check:
    method: GET
    path: /crm/v3/properties/{object}
    fields: results
    unique: hasUniqueValue
  errors:
    code: [policyName, errors.*.code, category]
    message: message
    field: errors.*.context.propertyName.0
    transient: [INTERNAL_ERROR, RATE_LIMITS, TIMEOUT, SERVICE_UNAVAILABLE]
    setup: [PROPERTY_DOESNT_EXIST, PROPERTY_NOT_UNIQUE, INVALID_OBJECT_TYPE]
    quota: DAILY
"""

    def __init__(self, destination: Destination, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(destination, endpoint, **options)
        self.max_batch = (self.settings.upsert or self.settings.fetch).max_batch
        self._described: dict[str, Any] | None = None
        self._describing = threading.Lock()

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        if self.settings.check.before_upsert:
            self._refuse_unknown({name for lead in leads for name in lead.fields})
        if self.settings.upsert is not None:
            return self._write(self.settings.upsert, leads)
        there = self._read_all([lead.external_id for lead in leads])
        return one_by_one(self, leads, lambda lead: self._save(lead, [crm_id for crm_id, _ in there[lead.external_id]]))

    def _write(self, call: Upsert, leads: Sequence[Lead], **more: str) -> list[Outcome]:
        """What became of the leads in one request."""
        ones = [{"external_id": lead.external_id, "fields": self._fields(lead), **more} for lead in leads]
        status, document = self._send(call, self._filling(call, ones), leads)
        done = Status.CREATED if status == 201 else Status.UPDATED
        names = [lead.external_id for lead in leads]
        if call.results is None:
            return [Outcome(name, done) for name in names]
        outcomes = []
        for name, result in matched(call.results, items(document, call.results.items), names):
            outcomes.append(self._outcome(name, result, call.results, done, leads))
        if call.failures:
            failures = matched(call.failures, items(document, call.failures.items, needed=False), names)
            outcomes += [self._refused(name, failure, call.failures, leads) for name, failure in failures]
        return outcomes

    def _save(self, lead: Lead, crm_ids: Sequence[str]) -> Outcome:
        """Creates the lead's record, or updates those that there are."""
        if not crm_ids:
            made = self._one(self.settings.create, lead, Status.CREATED)
            if made.status is not Status.REJECTED:
                return made
            # Another sender may have been quicker.
            crm_ids = [crm_id for crm_id, _ in self._read_all([lead.external_id])[lead.external_id]]
            if not crm_ids:
                return made
        each = [self._one(self.settings.update, lead, Status.UPDATED, id=crm_id) for crm_id in crm_ids]
        return next((outcome for outcome in each if outcome.status is not Status.UPDATED), each[0])

    def _one(self, call: Upsert, lead: Lead, done: Status, **more: str) -> Outcome:
        try:
            told = [outcome for outcome in self._write(call, [lead], **more) if outcome.external_id == lead.external_id]
        except BatchRefused as refused:
            return Outcome(lead.external_id, Status.REJECTED, None, refused.code, refused.field, refused.message)
        if len(told) != 1:
            return Outcome(lead.external_id, Status.TRANSIENT, code="missing_from_reply")
        (outcome,) = told
        if outcome.status in (Status.CREATED, Status.UPDATED):
            return outcome._replace(status=done, crm_id=outcome.crm_id or more.get("id"))
        return outcome

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        call = self.settings.delete
        names = {lead.external_id: [lead.external_id] for lead in leads}  # by which a request names their records
        if call.by_id:
            there = self._read_all([lead.external_id for lead in leads])
            names = {owner: [crm_id for crm_id, _ in found] for owner, found in there.items()}
        told: dict[str, Outcome] = {}
        for part in batches([(owner, name) for owner, found in names.items() for name in found], call.max_batch):
            told |= self._delete(call, part)
        outcomes = []
        for owner, found in names.items():
            each = [told[name] for name in found if name in told]
            if len(each) == len(found):  # of a lead that is doubled every record has to go
                failed = [outcome for outcome in each if outcome.status is not Status.DELETED]
                outcomes.append((failed or each or [Outcome(owner, Status.DELETED)])[0])
        return outcomes

    def _delete(self, call: Delete, part: Sequence[tuple[str, str]]) -> dict[str, Outcome]:
        """What became of the records with these names (owner, name), by name; those that the reply leaves out lack."""
        owners = {name: owner for owner, name in part}
        crm_ids = {name: name if call.by_id else None for name in owners}
        done = {name: Outcome(owner, Status.DELETED, crm_ids[name]) for name, owner in owners.items()}
        placeholder = "id" if call.by_id else "external_id"
        try:
            _, document = self._send(call, self._filling(call, [{placeholder: name} for name in owners]))
        except (NotThere, BatchRefused) as error:
            gone = self.settings.errors.gone
            if (
                error.status not in (call.absent_status, None)
                if isinstance(error, NotThere)
                else error.code not in gone
            ):
                raise
            if len(part) > 1:
                raise BatchRefused("not_found") from None  # halved until it is known which
            return done
        if call.results is None:
            return done
        told = {}
        for name, result in matched(call.results, items(document, call.results.items), list(owners)):
            if name in owners:
                gone = set(codes_in(result, call.results)) & self.settings.errors.gone
                outcome = self._outcome(owners[name], result, call.results, Status.DELETED) if not gone else done[name]
                told[name] = outcome._replace(crm_id=crm_ids[name])
        return told

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        names = self.fields_read
        records: dict[str, list[Record]] = {}
        for owner, found in self._read_all(external_ids).items():
            records[owner] = [
                Record(owner, crm_id, {name: fields.get(name) for name in names}) for crm_id, fields in found
            ]
        return records

    def same(self, name: str, sent: Any, held: Any) -> bool:
        return values.same(sent, held, precision=timedelta(seconds=self.settings.time_precision))

    def check(self) -> None:
        target, call = self.destination, self.settings.check
        described = self._describe()
        if call.fields is None:
            return
        self._refuse_unknown(filter(None, (target.external_id_field, *target.fields, target.on_delete.field)))
        key = described[target.external_id_field]
        if not all(find(key, path) is True for path in call.unique):
            raise AccessError(
                f"{self.who}: the field {target.external_id_field!r} of {target.object!r} is not unique: make it so"
            )

    def _send(self, call: Call, filling: Mapping[str, Any], leads: Sequence[Lead] = ()) -> tuple[int, Any]:
        try:
            return super()._send(call, filling, leads)
        except BatchRefused as refused:
            if refused.code != UNSENDABLE and call is not self.settings.check:
                self._refuse_unknown(())  # it may be the object that was refused, and no lead
            raise

    def _fields(self, lead: Lead) -> dict[str, Any]:
        if not self.settings.texts:
            return dict(lead.fields)
        return {name: values.text(value) for name, value in lead.fields.items()}

    def _read_all(self, external_ids: Sequence[str]) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
        """CRM id and fields of the records of every external id."""
        records: dict[str, list[tuple[str, Mapping[str, Any]]]] = {external_id: [] for external_id in external_ids}
        for ids in batches(external_ids, self.settings.fetch.max_batch):
            self._read(ids, records)
        return records

    def _read(self, external_ids: Sequence[str], records: dict[str, list[tuple[str, Mapping[str, Any]]]]) -> None:
        call = self.settings.fetch
        try:
            _, document = self._send(call, self._filling(call, [{"external_id": each} for each in external_ids]))
        except NotThere as error:
            if error.status is None or error.status != call.absent_status:
                raise
            return
        found = items(document, call.items)
        for record in found:
            key, crm_id, fields = find(record, call.key), find(record, call.id), find(record, call.fields)
            if key is None or crm_id is None or not isinstance(fields, dict):
                raise self.left_out()
            if str(key) in records:  # an API that compares without regard to case finds more
                records[str(key)].append((str(crm_id), fields))
        if call.total is not None:
            whole = find(document, call.total) == len(found)
        else:
            absent = {str(each) for each in find_all(document, call.absent)} if call.absent else set()
            whole = call.complete or all(records[each] or each in absent for each in external_ids)
        if not whole:
            raise self.left_out()

    def _describe(self) -> Mapping[str, Any]:
        """The descriptions of the object's fields by name; none where the settings do not say where they are."""
        call = self.settings.check
        try:
            _, document = self._send(call, {"names": [self.destination.external_id_field, *self.fields_read]})
        except BatchRefused as refused:
            raise self.missing(refused.code, self.destination.object) from None
        found = find(document, call.fields)
        if isinstance(found, list):
            found = {find(each, call.name): each for each in found}
        if call.fields is not None and not isinstance(found, dict):
            raise RequestFailed(f"{self.who}: the description of the object makes no sense", "malformed_reply")
        self._described = found or {}
        return self._described

    def _refuse_unknown(self, names: Iterable[str]) -> None:
        """Raises AccessError for a field that the object does not have, or that can't be written."""
        with self._describing:
            described = self._described if self._described is not None else self._describe()
        writable = self.settings.check.writable
        for name in names:
            if name not in described or (writable and find(described[name], writable) is not True):
                raise self.missing("unknown field", name)
