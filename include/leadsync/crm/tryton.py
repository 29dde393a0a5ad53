"""Tryton 8.0 or newer: parties, opportunities or any other model with a unique text field, through its JSON-RPC.

The connection's address is the server's with the name of the database, `https://tryton.example.com/company`; login and
password are those of a user. `party.party` has `code` for the external id. `sale.opportunity` has no unique field:
that, and whatever else a model lacks, comes from a module of your own, as `tests/support/tryton/leadsync_party` is
one. A many-to-one takes the id of the other record; line breaks in a text of one line become blanks. `email`, `phone`
and the other types of contact write the party's first contact of that type; `addresses.city` writes the city of its
first address, and so with other one-to-many fields.

An `archive` makes the record inactive; a lead that comes back makes it active again. `sale.opportunity` has to be
deleted, with `cancel_button: cancel`; one that people have converted can't be, and its lead becomes a dead letter.
Where the package email-validator is installed with Tryton, a lead is refused when the domain of its address is unknown.

A batch is one transaction, so one bad lead refuses it. Creating is no upsert, so records are looked up first, inactive
ones too; the unique field keeps two requests that overtake each other from making two. A look-up counts before it
reads, for a reading alone does not tell what it left out.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, TypeAdapter

from leadsync.budget import Limit
from leadsync.crm import values
from leadsync.crm.base import BatchRefused, Settings, batches
from leadsync.crm.http import RequestFailed
from leadsync.crm.tryton_layout import (
    BREAKS,
    FIELDS,
    Description,
    Layout,
    Place,
    arrange,
    decode,
    encode,
    reads,
    same_contact,
    value,
)
from leadsync.crm.tryton_rpc import T, TrytonRPC
from leadsync.errors import AccessError
from leadsync.models import Lead, Outcome, Record, Status

PROBE = "leadsync\ncheck"

Held = dict[str, Any]  # a record as `search_read` gives it
COUNT = TypeAdapter(int)
IDS = TypeAdapter(list[int])
RECORDS = TypeAdapter(list[Held])
CONTEXT = TypeAdapter(dict[str, Any])
NOTHING: TypeAdapter[None] = TypeAdapter(None)
ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


class TrytonSettings(Settings):
    cancel_button: str | None = Field(
        None,
        pattern=r"^[a-z]\w*$",
        description="pressed when a delete is refused; `cancel` for sale.opportunity",
    )


class Tryton(TrytonRPC):
    name = "tryton"
    label = "Tryton"
    max_batch = 50
    # Tryton has no limits of its own, so ours keep us a good neighbour: it serves people with the same processes.
    limits = (Limit(20, 1),)
    delete_modes = frozenset({"archive", "delete", "field"})
    settings_model: ClassVar[type[Settings]] = TrytonSettings
    example = """
adapter: tryton
object: party.party
external_id_field: code
on_delete: archive
fields:
  name: {column: name, transform: trim}
  email: {column: email, transform: [trim, lower]}
  phone: phone
  addresses.city: {column: city, transform: trim}
  leadsync_uid: {column: uid, transform: integer}
  leadsync_answers: answers
  leadsync_updated_at: {column: update_time, transform: iso8601}
  leadsync_source: {constant: landing_page}
"""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lock = threading.Lock()
        self._known: Layout | None = None

    def upsert(self, leads: Sequence[Lead]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        fit: dict[str, dict[Place, Any]] = {}
        for lead in leads:
            encoded = self._encode(lead)
            if isinstance(encoded, Outcome):
                outcomes.append(encoded)
            else:
                fit[lead.external_id] = encoded
        held = self._find(list(fit), [place for encoded in fit.values() for place in encoded]) if fit else {}
        new = [lead for lead in leads if lead.external_id in fit and not held[lead.external_id]]
        old = [lead for lead in leads if lead.external_id in fit and held[lead.external_id]]
        told = self.attempt(lambda part: self._create(part, fit), new) if new else {}
        told |= self.attempt(lambda part: self._write(part, fit, held), old) if old else {}
        return [*outcomes, *told.values()]

    def delete(self, leads: Sequence[Lead]) -> list[Outcome]:
        held = self._find([lead.external_id for lead in leads], [])
        found = [record for records in held.values() for record in records]
        if self.destination.on_delete.mode == "archive":
            if not self._layout().can_archive:
                raise self.missing("on_delete: archive", "active")
            active = [record["id"] for record in found if record["active"]]
            if active:
                self._change(NOTHING, leads, held, "write", active, {"active": False})
        elif found:
            ids = [record["id"] for record in found]
            try:
                self._change(NOTHING, leads, held, "delete", ids)
            except BatchRefused:
                if not self.settings.cancel_button:
                    raise
                # Not before it is needed: a button that was pressed already is refused.
                self._change(ANYTHING, leads, held, self.settings.cancel_button, ids)
                self._change(NOTHING, leads, held, "delete", ids)
        return [Outcome(i, Status.DELETED, str(records[0]["id"]) if records else None) for i, records in held.items()]

    def fetch(self, external_ids: Sequence[str]) -> dict[str, list[Record]]:
        places = {name: self._place(name) for name in self.fields_read}
        return {
            external_id: [
                Record(external_id, str(record["id"]), {name: value(place, record) for name, place in places.items()})
                for record in records
                # Whoever marks the deleted by `active` wants to read the mark.
                if record.get("active", True) or "active" in places
            ]
            for ids in batches(external_ids, self.max_batch)
            for external_id, records in self._find(ids, list(places.values())).items()
        }

    def same(self, name: str, sent: Any, held: Any) -> bool:
        place = self._known.place(name) if self._known else None
        if place is not None:
            try:
                sent = decode(place.kind, encode(place.kind, sent))
            except ValueError:
                return False
            if place.type and isinstance(sent, str) and isinstance(held, str) and same_contact(place.type, sent, held):
                return True
        return values.same(sent, held)

    def check(self) -> None:
        target, layout = self.destination, self._layout()
        key = layout.place(target.external_id_field)
        for name in self.fields_read:
            self._place(name)
        if key is None or key.kind != "char" or key.relation:
            raise self.missing("no text of one line", target.external_id_field)
        if target.on_delete.mode == "archive" and not layout.can_archive:
            raise self.missing("on_delete: archive", "active")
        self._check_unique()

    def _check_unique(self) -> None:
        """Raises AccessError unless Tryton refuses two records with one external id.

        It tells nowhere whether a field is unique. A text with a line break is refused in any case, so nothing of
        this stays; but only after the rows were inserted, so that two of them break the unique constraint before.
        """
        target = self.destination
        constants = {name: rule.constant for name, rule in target.fields.items() if rule.column is None}
        encoded = self._encode(Lead("", constants))
        content = arrange(encoded, None) if isinstance(encoded, dict) else {}
        probe = {**content, target.external_id_field: PROBE}
        alone, twice = self._refusal([probe]), self._refusal([probe, probe])
        if alone == twice:
            raise AccessError(
                f"{self.who} does not refuse the same {target.external_id_field!r} of {target.object!r} twice: give "
                "the field a unique constraint, and the object's other required fields a default or a constant"
            )

    def _refusal(self, records: Sequence[Mapping[str, Any]]) -> str | None:
        try:
            made = self.call(IDS, "create", records)
        except BatchRefused as refused:
            return refused.message
        self.call(NOTHING, "delete", made)  # a module allowed line breaks
        return None

    def _encode(self, lead: Lead) -> dict[Place, Any] | Outcome:
        """The values by their places, or the refusal of a lead that has one that no record can hold."""
        external_id = lead.external_id
        if external_id != external_id.strip() or BREAKS.search(external_id):  # it would not be found again
            key = self.destination.external_id_field
            return Outcome(external_id, Status.REJECTED, code="invalid_value", field=key)
        encoded = {}
        for name, content in lead.fields.items():
            place = self._place(name)
            try:
                encoded[place] = encode(place.kind, content)
            except ValueError:
                return Outcome(external_id, Status.REJECTED, code="invalid_value", field=name)
        return encoded

    def _create(self, leads: Sequence[Lead], fit: Mapping[str, Mapping[Place, Any]]) -> list[Outcome]:
        key = self.destination.external_id_field
        records = [{**arrange(fit[lead.external_id], None), key: lead.external_id} for lead in leads]
        made = self._change(IDS, leads, {}, "create", records)
        if len(made) != len(leads):  # attributed by position: with one missing nobody knows whose they are
            return []
        return [
            Outcome(lead.external_id, Status.CREATED, str(crm_id)) for lead, crm_id in zip(leads, made, strict=True)
        ]

    def _write(
        self, leads: Sequence[Lead], fit: Mapping[str, Mapping[Place, Any]], held: Mapping[str, list[Held]]
    ) -> list[Outcome]:
        records = [(lead.external_id, record) for lead in leads for record in held[lead.external_id]]
        asleep = [record["id"] for _, record in records if not record.get("active", True)]
        pairs: list[Any] = []
        for external_id, record in records:
            pairs += [[record["id"]], arrange(fit[external_id], record)]
        if asleep:  # Tryton lets nothing of an inactive record be written but this, and by a call of its own
            self._change(NOTHING, leads, held, "write", asleep, {"active": True})
        try:
            self._change(NOTHING, leads, held, "write", *pairs)
        except BatchRefused:
            if asleep:
                self._change(NOTHING, leads, held, "write", asleep, {"active": False})
            raise
        outcomes = []
        for lead in leads:
            crm_id = held[lead.external_id][0]["id"]
            status = Status.CREATED if crm_id in asleep else Status.UPDATED
            outcomes.append(Outcome(lead.external_id, status, str(crm_id)))
        return outcomes

    def _find(self, external_ids: Sequence[str], places: Sequence[Place]) -> dict[str, list[Held]]:
        """The records of every external id, inactive ones too, with what is kept in these places."""
        key, layout = self.destination.external_id_field, self._layout()
        found: dict[str, list[Held]] = {external_id: [] for external_id in external_ids}
        domain: list[Any] = [[key, "in", list(external_ids)]]
        names = [key, *reads(dict.fromkeys(places))]
        if layout.can_archive:
            domain.append(["active", "in", [True, False]])  # without it inactive ones are left out
            names.append("active")
        count = self.call(COUNT, "search_count", domain)
        if count == 0:
            return found
        records = self.call(RECORDS, "search_read", domain, 0, None, None, list(dict.fromkeys(names)))
        needed = {"id", "active"} if layout.can_archive else {"id"}
        if len(records) != count or any(needed - record.keys() for record in records):
            raise self.left_out()
        for record in records:
            owner = record.get(key)
            if isinstance(owner, str) and owner in found:
                found[owner].append(record)
        return found

    def _change(
        self,
        shape: TypeAdapter[T],
        leads: Sequence[Lead],
        held: Mapping[str, list[Held]],
        method: str,
        *arguments: Any,
    ) -> T:
        """The result of a call that changes records.

        Raises BatchRefused; for one lead only where its records are still those that were looked up: else somebody
        was faster, and it is to be tried again.
        """
        try:
            return self.call(shape, method, *arguments)
        except BatchRefused:
            if len(leads) == 1:
                external_id = leads[0].external_id
                before = {record["id"] for record in held.get(external_id, [])}
                if before != {record["id"] for record in self._find([external_id], [])[external_id]}:
                    raise RequestFailed(f"{self.who}: the record was changed meanwhile", "changed_meanwhile") from None
            raise

    def _layout(self) -> Layout:
        """Read once; the user's preferences too, for they hold the company whose records it sees."""
        with self._lock:
            if self._known is None:
                preferences = self.call(CONTEXT, "get_preferences", True, model="res.user")
                self.context = {**preferences, "language": "en"}  # messages are told apart by their English words
                target = self.destination
                self._known = Layout(target.object, [*target.fields, target.on_delete.field or ""], self._fields)
            return self._known

    def _fields(self, model: str) -> dict[str, Description]:
        return self.call(FIELDS, "fields_get", None, model=model)

    def _place(self, name: str) -> Place:
        place = self._layout().place(name)
        if place is None:
            raise self.missing("no such field, or none that takes a lead's value", name)
        return place

    def field_of(self, message: str) -> str | None:
        """The destination's field that a message means: it has the label, in quotes."""
        for name in self.fields_read:
            place = self._known.place(name) if self._known else None
            if place is not None and f'"{place.label}"' in message:
                return name
        return None
