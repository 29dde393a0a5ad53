"""The fields of Salesforce's Lead, which values they take, and record ids."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

KEY = "Leadsync_Id__c"
REQUIRED = ("LastName", "Company")
EMAIL = re.compile(r"[^@\s,;<>()\"]+@[^@\s,;<>()\"]+\.[^@\s.,;<>()\"]+")
DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "00QHs0"  # Lead, and the instance


class Problem(Exception):
    """What is wrong with one record: Salesforce's status code, its words and the fields at fault."""

    def __init__(self, code: str, message: str, *fields: str) -> None:
        super().__init__(message)
        self.code = code
        self.fields = list(fields)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of Lead; `length` in characters, 0 where it has none."""

    name: str
    label: str
    type: str
    length: int = 0
    read_only: bool = False

    def document(self) -> dict[str, Any]:
        """As `describe` shows it."""
        is_key = self.name == KEY
        return {
            "name": self.name, "label": self.label, "type": self.type, "length": self.length,
            "byteLength": self.length * 3, "custom": self.name.endswith("__c"), "externalId": is_key, "unique": is_key,
            "caseSensitive": is_key, "idLookup": is_key or self.name == "Id",
            "nillable": self.name not in REQUIRED and not self.read_only,
            "createable": not self.read_only, "updateable": not self.read_only, "filterable": self.length < 4000,
            "precision": 18 if self.type == "double" else 0, "scale": 0, "picklistValues": [],
        }  # fmt: skip

    def matches(self, literal: Any) -> bool:
        """Whether a literal of a query is of this field's type."""
        if self.type == "boolean":
            return isinstance(literal, bool)
        if self.type == "double":
            return isinstance(literal, int | float) and not isinstance(literal, bool)
        return isinstance(literal, datetime if self.type == "datetime" else str)

    def shown(self, value: Any) -> Any:
        """A value that is kept, as replies have it: a datetime with `+0000`, and a checkbox is never empty."""
        if self.type == "boolean":
            return bool(value)
        return value.replace("Z", "+0000") if self.type == "datetime" and value else value

    def value(self, value: Any) -> Any:
        """The value as Salesforce keeps it, None for none. Raises Problem."""
        if self.read_only:
            raise Problem(
                "INVALID_FIELD_FOR_INSERT_UPDATE",
                f"Unable to create/update fields: {self.name}. Please check the security settings of this field and"
                " verify that it is read/write for your profile or permission set.",
                self.name,
            )
        if self.type == "boolean":
            return self._boolean(value)
        if value is None or value == "":
            return None
        if isinstance(value, dict | list):
            raise self._mistyped(value)
        if self.type == "double":
            return self._number(value)
        if self.type == "datetime":
            return self._datetime(value)
        return self._text(value)

    def _text(self, value: Any) -> str:
        text = ("true" if value else "false") if isinstance(value, bool) else str(value)
        if len(text) > self.length:
            raise Problem(
                "STRING_TOO_LONG", f"{self.label}: data value too large: {text} (max length={self.length})", self.name
            )
        if self.type == "email" and not EMAIL.fullmatch(text):
            raise Problem("INVALID_EMAIL_ADDRESS", f"{self.label}: invalid email address: {text}", self.name)
        return text

    def _number(self, value: Any) -> int | float:
        if isinstance(value, bool):
            raise self._mistyped(value)
        try:
            number = value if isinstance(value, int) else float(value)
        except ValueError:
            raise self._mistyped(value) from None
        if not math.isfinite(number) or abs(number) >= 10**18:
            raise Problem(
                "NUMBER_OUTSIDE_VALID_RANGE",
                f"{self.label}: value outside of valid range on numeric field: {value}",
                self.name,
            )
        return round(number)  # no decimal places

    def _datetime(self, value: Any) -> str:
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise self._mistyped(value) from None
        if moment.tzinfo is None:
            raise self._mistyped(value)
        return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _boolean(self, value: Any) -> bool:
        if value in ("true", "false"):
            return bool(value == "true")
        if not isinstance(value, bool):
            raise self._mistyped(value)
        return value

    def _mistyped(self, value: Any) -> Problem:
        return Problem(
            "INVALID_TYPE_ON_FIELD_IN_RECORD", f"{self.label}: value not of required type: {value}", self.name
        )


FIELDS = {field.name: field for field in (
    Field("Id", "Lead ID", "id", 18, read_only=True),
    Field("IsDeleted", "Deleted", "boolean", read_only=True),
    Field("CreatedDate", "Created Date", "datetime", read_only=True),
    Field("LastModifiedDate", "Last Modified Date", "datetime", read_only=True),
    Field("SystemModstamp", "System Modstamp", "datetime", read_only=True),
    Field("Name", "Full Name", "string", 121, read_only=True),
    Field("LastName", "Last Name", "string", 80),
    Field("FirstName", "First Name", "string", 40),
    Field("Salutation", "Salutation", "picklist", 40),
    Field("Title", "Title", "string", 128),
    Field("Company", "Company", "string", 255),
    Field("Street", "Street", "textarea", 255),
    Field("City", "City", "string", 40),
    Field("State", "State/Province", "string", 80),
    Field("PostalCode", "Zip/Postal Code", "string", 20),
    Field("Country", "Country", "string", 80),
    Field("Phone", "Phone", "phone", 40),
    Field("MobilePhone", "Mobile Phone", "phone", 40),
    Field("Email", "Email", "email", 80),
    Field("Website", "Website", "url", 255),
    Field("Description", "Description", "textarea", 32_000),
    Field("LeadSource", "Lead Source", "picklist", 255),
    Field("Status", "Status", "picklist", 255),
    Field("Industry", "Industry", "picklist", 255),
    Field("Rating", "Rating", "picklist", 255),
    Field(KEY, "Leadsync Id", "string", 255),
    Field("Appkey__c", "APPKEY", "string", 255),
    Field("Uid__c", "User id", "double"),
    Field("Updated_At__c", "Changed at", "datetime"),
    Field("Answers__c", "Answers", "textarea", 131_072),
    Field("Deleted__c", "Deleted in the lead store", "boolean"),
)}  # fmt: skip


def record_id(number: int) -> str:
    """The 18-character id: 15 that differ by case, and 3 that tell the case of each to those who ignore it."""
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = DIGITS[digit] + digits
    short = PREFIX + digits.rjust(9, "0")
    return short + _suffix(short)


def number_of(record: str) -> int | None:
    """The number behind an id of 15 or 18 characters, None where it is nobody's. Raises Problem for no id at all."""
    short = record[:15]
    if not re.fullmatch(r"[0-9A-Za-z]{15}([0-9A-Za-z]{3})?", record) or record[15:] not in ("", _suffix(short)):
        raise Problem("MALFORMED_ID", f"malformed id {record}")
    if not short.startswith(PREFIX):
        return None
    number = 0
    for digit in short[len(PREFIX) :]:
        number = number * 62 + DIGITS.index(digit)
    return number


def _suffix(short: str) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ012345"
    parts = (short[0:5], short[5:10], short[10:15])
    return "".join(letters[sum(1 << place for place, c in enumerate(part) if c.isupper())] for part in parts)
