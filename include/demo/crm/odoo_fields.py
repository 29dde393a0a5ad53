"""The fields of Odoo's crm.lead, and what `load` makes of the texts that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

PRIORITIES = {"0": "Low", "1": "Medium", "2": "High", "3": "Very High"}
TEAMS = {1: "Sales", 2: "Website"}
RELATIONS = frozenset({"many2one", "many2many", "one2many"})


class Problem(Exception):
    """What is wrong with one value, in Odoo's words."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the model."""

    name: str
    label: str
    type: str = "char"
    required: bool = False
    readonly: bool = False

    def document(self) -> dict[str, Any]:
        """As `fields_get` shows it."""
        about = {"type": self.type, "string": self.label, "required": self.required, "readonly": self.readonly,
                 "name": self.name, "store": True, "searchable": True}  # fmt: skip
        if self.type == "selection":
            about["selection"] = [list(item) for item in PRIORITIES.items()]
        if self.type in RELATIONS:
            about["relation"] = "crm.team" if self.type == "many2one" else "crm.tag"
        return about

    def shown(self, value: Any, *, named: bool = True) -> Any:
        """A value that is kept, as `read` has it: nothing is False, or 0 where the field holds a number.

        A relation comes with its name where it is to be `named`.
        """
        if value is None:
            return {"integer": 0, "monetary": 0.0, "many2many": []}.get(self.type, False)
        return [value, TEAMS[value]] if self.type == "many2one" and named else value

    def loaded(self, text: str) -> Any:
        """What `load` makes of a cell, None for no value. Raises Problem."""
        if text == "":
            return False if self.type == "boolean" else None
        if self.type == "integer":
            return self._integer(text)
        if self.type == "monetary":
            return self._number(text)
        if self.type == "boolean":
            # An unknown word is a warning, and true.
            return text.lower() not in ("0", "false", "no")
        if self.type == "datetime":
            return self._moment(text)
        if self.type == "selection":
            return self._selected(text)
        if self.type == "many2one":
            return self._related(text)
        return text

    def _integer(self, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise self._unfit(f"'{text}' does not seem to be an integer for field '{self.label}'") from None
        if not -(2**31) <= number < 2**31:
            raise Problem("integer out of range\n")
        return number

    def _number(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise self._unfit(f"'{text}' does not seem to be a number for field '{self.label}'") from None

    def _moment(self, text: str) -> str:
        try:
            return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").strftime("%Y-%m-%d %H:%M:%S")
        except ValueError:
            raise self._unfit(f"'{text}' does not seem to be a valid datetime for field '{self.label}'") from None

    def _selected(self, text: str) -> str:
        for key, label in PRIORITIES.items():
            if text.lower() in (key, label.lower()):
                return key
        raise self._unfit(f"Value '{text}' not found in selection field '{self.label}'")

    def _related(self, text: str) -> int:
        for key, label in TEAMS.items():
            if text == label:
                return key
        raise self._unfit(f"No matching record found for name '{text}' in field '{self.label}'")

    def _unfit(self, message: str) -> Problem:
        return Problem(message, self.name)


FIELDS = {field.name: field for field in (
    Field("id", "ID", "integer", readonly=True),
    Field("create_date", "Created on", "datetime", readonly=True),
    Field("write_date", "Last Updated on", "datetime", readonly=True),
    Field("name", "Opportunity", required=True),
    Field("active", "Active", "boolean"),
    Field("contact_name", "Contact Name"),
    Field("partner_name", "Company Name"),
    Field("email_from", "Email"),
    Field("phone", "Phone"),
    Field("mobile", "Mobile"),
    Field("street", "Street"),
    Field("city", "City"),
    Field("zip", "Zip"),
    Field("website", "Website"),
    Field("referred", "Referred By"),
    Field("description", "Notes", "html"),
    Field("expected_revenue", "Expected Revenue", "monetary"),
    Field("color", "Color Index", "integer"),
    Field("priority", "Priority", "selection"),
    Field("team_id", "Sales Team", "many2one"),
    Field("tag_ids", "Tags", "many2many"),
    Field("x_leadsync_appkey", "Leadsync: APPKEY"),
    Field("x_leadsync_uid", "Leadsync: user id"),
    Field("x_leadsync_updated_at", "Leadsync: changed at", "datetime"),
    Field("x_leadsync_answers", "Leadsync: answers", "text"),
    Field("x_leadsync_deleted", "Leadsync: deleted", "boolean"),
)}  # fmt: skip
