"""The fields of Zoho's Leads, and which values they take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "Leadsync_Id"
MODULE = "Leads"
REQUIRED = ("Last_Name", "Company")
EMAIL = re.compile(r"[^@\s,;<>()\"]+@[^@\s,;<>()\"]+\.[^@\s.,;<>()\"]{2,}")
PHONE = re.compile(r"[\d\s+().;/#\-a-zA-Z]{1,30}")
MOMENT = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3])(:[0-5]\d){2}(Z|[+-]\d\d:\d\d)")
SOURCES = ("-None-", "Advertisement", "Cold Call", "Employee Referral", "External Referral", "Web Download")


class Problem(Exception):
    """What is wrong with one record: Zoho's code, its words and details."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.details = details

    def document(self) -> dict[str, Any]:
        """As a result shows it."""
        return {"code": self.code, "details": self.details, "message": str(self), "status": "error"}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of Leads; `length` in characters, or digits."""

    name: str
    type: str = "text"
    length: int = 255
    read_only: bool = False

    def document(self) -> dict[str, Any]:
        """As settings/fields shows it."""
        is_key = self.name == KEY
        return {
            "api_name": self.name, "field_label": self.name.replace("_", " "), "data_type": self.type,
            "length": self.length, "system_mandatory": self.name in REQUIRED, "custom_field": self.name in CUSTOM,
            "unique": {"casesensitive": "true"} if is_key else {},
            "external": {"type": "org", "show": True} if is_key else None,
            "read_only": self.read_only, "field_read_only": self.read_only, "visible": True,
            "operation_type": {
                "web_update": not self.read_only, "api_create": not self.read_only, "web_create": not self.read_only,
                "api_update": not self.read_only,
            },
        }  # fmt: skip

    def value(self, value: Any) -> Any:
        """The value as Zoho keeps it, None for none. Raises Problem."""
        if value is None:
            return None
        if self.type == "boolean":
            if not isinstance(value, bool):
                raise self._unfit()
            return value
        if self.type == "integer":
            if isinstance(value, bool) or not isinstance(value, int) or len(str(abs(value))) > self.length:
                raise self._unfit()
            return value
        if not isinstance(value, str):
            raise self._unfit()
        if len(value) > self.length:
            raise Problem("INVALID_DATA", "invalid data", maximum_length=self.length, api_name=self.name)
        pattern = {"email": EMAIL, "phone": PHONE, "datetime": MOMENT}.get(self.type)
        if (pattern and not pattern.fullmatch(value)) or (self.type == "picklist" and value not in SOURCES):
            raise self._unfit()
        return value or None

    def _unfit(self) -> Problem:
        return Problem("INVALID_DATA", "invalid data", expected_data_type=self.type, api_name=self.name)


CUSTOM = (KEY, "Appkey", "Uid", "Updated_At", "Answers", "Deleted")
FIELDS = {field.name: field for field in (
    Field("id", "bigint", 19, read_only=True),
    Field("Full_Name", length=120, read_only=True),
    Field("Created_Time", "datetime", read_only=True),
    Field("Modified_Time", "datetime", read_only=True),
    Field("Last_Name", length=80),
    Field("First_Name", length=40),
    Field("Company", length=200),
    Field("Designation", length=100),
    Field("Email", "email", 100),
    Field("Phone", "phone", 30),
    Field("Mobile", "phone", 30),
    Field("City", length=100),
    Field("Country", length=100),
    Field("Description", "textarea", 32_000),
    Field("Lead_Source", "picklist", 120),
    Field("No_of_Employees", "integer", 16),
    Field("Email_Opt_Out", "boolean"),
    Field(KEY),
    Field("Appkey"),
    Field("Uid"),
    Field("Updated_At", "datetime"),
    Field("Answers", "textarea", 32_000),
    Field("Deleted", "boolean"),
)}  # fmt: skip


def known(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that Leads has, as they are kept; Zoho ignores the others without a word. Raises Problem."""
    return {name: FIELDS[name].value(value) for name, value in record.items()
            if name in FIELDS and not FIELDS[name].read_only}  # fmt: skip
