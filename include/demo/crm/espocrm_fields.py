"""The fields of EspoCRM's Lead, and which values they take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

KEY = "cLeadsyncId"
EMAIL = re.compile(r"[^@\s,;<>()\"]+@[^@\s.,;<>()\"]+(\.[^@\s.,;<>()\"]+)*")
PHONE = re.compile(r"[0-9A-Za-z_@:#+()\-. ]{1,36}")
BAD_CHARACTERS = re.compile(r"[<>=]")
MOMENT = "%Y-%m-%d %H:%M:%S"
ATOM = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)")


class Invalid(Exception):
    """What a value is refused for: the field, and EspoCRM's name of the check that failed."""

    def __init__(self, field: str, check: str) -> None:
        super().__init__(f"Field validation failure; entityType: Lead, field: {field}, type: {check}.")
        self.field = field
        self.check = check


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the Lead; values come and go under its `attribute`."""

    name: str
    type: str = "varchar"
    max_length: int = 255
    options: tuple[str, ...] = ()
    pattern: bool = False
    read_only: bool = False

    @property
    def attribute(self) -> str:
        return f"{self.name}Id" if self.type == "link" else self.name

    def definition(self) -> dict[str, Any]:
        """As the metadata show it."""
        found: dict[str, Any] = {"type": self.type}
        if self.type == "varchar":
            found["maxLength"] = self.max_length
        if self.options:
            found["options"] = list(self.options)
        if self.pattern:
            found["pattern"] = "$noBadCharacters"
        if self.read_only:
            found["readOnly"] = True
        if self.name.startswith("c") and self.name[1].isupper():
            found["isCustom"] = True
        return found

    def value(self, value: Any) -> Any:
        """The value as EspoCRM keeps it, None for none. Raises Invalid."""
        if isinstance(value, str) and self.type in ("varchar", "email", "phone"):
            value = value.strip(" \t\n\r\0\v")
        if value is None or value == "":
            return None
        if self.type in ("varchar", "text", "email", "phone", "enum", "datetime", "link"):
            if not isinstance(value, str):
                value = str(value)
            self._check_text(value)
            return _moment(self, value) if self.type == "datetime" else value
        if self.type == "bool":
            return bool(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Invalid(self.name, "valid")
        return value

    def _check_text(self, value: str) -> None:
        if self.type == "varchar" and len(value) > self.max_length:
            raise Invalid(self.name, "maxLength")
        if self.pattern and BAD_CHARACTERS.search(value):
            raise Invalid(self.name, "pattern")
        if self.type == "email" and not EMAIL.fullmatch(value):
            raise Invalid(self.name, "emailAddress")
        if self.type == "phone" and not PHONE.fullmatch(value):
            raise Invalid(self.name, "valid")
        if self.type == "enum" and value not in self.options:
            raise Invalid(self.name, "valid")


def _moment(field: Field, value: str) -> str:
    """`YYYY-MM-DD hh:mm:ss` in UTC; of ISO 8601 only the form without fractions of a second is understood."""
    try:
        if ATOM.fullmatch(value):
            return datetime.fromisoformat(value).astimezone(UTC).strftime(MOMENT)
        return datetime.strptime(value, MOMENT).strftime(MOMENT)
    except ValueError:
        raise Invalid(field.name, "valid") from None


SOURCES = ("", "Call", "Email", "Existing Customer", "Partner", "Public Relations", "Web Site", "Campaign", "Other")
STATUSES = ("New", "Assigned", "In Process", "Converted", "Recycled", "Dead")
# EspoCRM's own, and those that an example of a destination writes.
FIELDS = {
    field.name: field
    for field in (
        Field("name", "personName"),
        Field("salutationName", "enum", options=("", "Mr.", "Ms.", "Mrs.", "Dr.")),
        Field("firstName", max_length=100),
        Field("lastName", max_length=100),
        Field("title", max_length=100, pattern=True),
        Field("status", "enum", options=STATUSES),
        Field("source", "enum", options=SOURCES),
        Field("addressCity"),
        Field("addressCountry"),
        Field("emailAddress", "email"),
        Field("phoneNumber", "phone"),
        Field("doNotCall", "bool"),
        Field("description", "text"),
        Field("accountName", pattern=True),
        Field("createdAt", "datetime", read_only=True),
        Field("modifiedAt", "datetime", read_only=True),
        Field("assignedUser", "link"),
        Field(KEY),
        Field("cAppkey", max_length=100),
        Field("cUid", "int"),
        Field("cAnswers", "text"),
        Field("cChangedAt", max_length=100),
        Field("cConsentAt", "datetime"),
        Field("cDeleted", "bool"),
    )
}
ATTRIBUTES = {field.attribute: field for field in FIELDS.values() if field.type != "personName"}
WRITABLE = {name: field for name, field in ATTRIBUTES.items() if not field.read_only}
