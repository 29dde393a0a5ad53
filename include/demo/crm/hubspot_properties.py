"""The properties of HubSpot's contacts, and which values they take."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MAX_TEXT = 65_536
EMAIL = re.compile(r"[^@\s,;<>()\"]+@[^@\s,;<>()\"]+\.[^@\s.,;<>()\"]{2,}")
TYPES = {"string", "number", "enumeration", "date", "datetime", "bool", "phone_number"}


class Problem(Exception):
    """What is wrong with one input; `code` and `category` are HubSpot's."""

    def __init__(self, code: str, message: str, name: str | None = None, category: str = "VALIDATION_ERROR") -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.category = category


@dataclass(frozen=True, slots=True)
class Property:
    """A contact's property; `unique` ones identify a contact."""

    name: str
    label: str
    type: str = "string"
    field_type: str = "text"
    group: str = "contactinformation"
    unique: bool = False
    options: tuple[str, ...] = ()
    read_only: bool = False
    custom: bool = False

    def document(self) -> dict[str, Any]:
        """As HubSpot shows it."""
        return {
            "name": self.name, "label": self.label, "type": self.type, "fieldType": self.field_type,
            "description": "", "groupName": self.group, "displayOrder": -1, "hidden": False, "formField": True,
            "calculated": False, "externalOptions": False, "archived": False,
            "hasUniqueValue": self.unique, "hubspotDefined": not self.custom,
            "options": [
                {"label": option, "value": option, "displayOrder": place, "hidden": False}
                for place, option in enumerate(self.options)
            ],
            "modificationMetadata": {
                "archivable": self.custom, "readOnlyDefinition": not self.custom, "readOnlyValue": self.read_only,
            },
        }  # fmt: skip

    def text(self, value: Any) -> str:
        """The value as HubSpot keeps it, "" for none. Raises Problem."""
        if self.read_only:
            raise Problem(
                "READ_ONLY_VALUE", f'"{self.name}" is a read only property; its value cannot be set.', self.name
            )
        text = _text(value)
        if len(text) > MAX_TEXT:
            raise self._unfit("PROPERTY_VALUE_TOO_LONG", f"the value is longer than {MAX_TEXT} characters")
        if text == "":
            return ""
        if self.name == "email":
            text = text.strip().lower()
            if not EMAIL.fullmatch(text):
                raise Problem("INVALID_EMAIL", f"Email address {text} is invalid", self.name)
        if self.type == "number" and not _is_number(text):
            raise self._unfit("INVALID_DOUBLE", f"{text} was not a valid number.")
        if self.type in ("date", "datetime") and not _is_moment(text):
            raise self._unfit("INVALID_DATE", f"{text} was not a valid date.")
        if self.type in ("enumeration", "bool") and self.options and text not in self.options:
            raise self._unfit("INVALID_OPTION", f"{text} was not one of the allowed options: {list(self.options)}")
        return text

    def _unfit(self, code: str, message: str) -> Problem:
        return Problem(code, message, self.name)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_moment(text: str) -> bool:
    """Epoch milliseconds, or ISO 8601."""
    try:
        return text.lstrip("-").isdigit() or bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def created(document: dict[str, Any]) -> Property:
    """A property from the body that creates it. Raises Problem."""
    for name in ("name", "label", "type", "fieldType", "groupName"):
        if not isinstance(document.get(name), str) or not document[name]:
            raise Problem("REQUIRED_FIELD", f"Some required fields were not set: [{name}]", name)
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", document["name"]) or document["type"] not in TYPES:
        raise Problem("INVALID_VALUE", "`name` or `type` of the property is not valid", "name")
    options = tuple(str(option["value"]) for option in document.get("options") or ())
    if document["type"] == "bool":
        options = ("true", "false")
    return Property(
        document["name"], document["label"], document["type"], document["fieldType"], document["groupName"],
        bool(document.get("hasUniqueValue")), options, custom=True,
    )  # fmt: skip


def _standard() -> Iterable[Property]:
    # HubSpot answers `hasUniqueValue: false` for the e-mail address, although no two contacts may share one.
    yield Property("email", "Email")
    for name, label in (
        ("firstname", "First Name"), ("lastname", "Last Name"), ("phone", "Phone Number"),
        ("mobilephone", "Mobile Phone Number"), ("company", "Company Name"), ("jobtitle", "Job Title"),
        ("website", "Website URL"), ("address", "Street Address"), ("city", "City"), ("state", "State/Region"),
        ("zip", "Postal Code"), ("country", "Country/Region"), ("industry", "Industry"), ("salutation", "Salutation"),
        ("message", "Message"),
    ):  # fmt: skip
        yield Property(name, label)
    yield Property("lifecyclestage", "Lifecycle Stage", "enumeration", "radio", options=(
        "subscriber", "lead", "marketingqualifiedlead", "salesqualifiedlead", "opportunity", "customer", "evangelist",
        "other",
    ))  # fmt: skip
    yield Property("hs_lead_status", "Lead Status", "enumeration", "radio", "sales_properties", options=(
        "NEW", "OPEN", "IN_PROGRESS", "OPEN_DEAL", "UNQUALIFIED", "ATTEMPTED_TO_CONTACT", "CONNECTED", "BAD_TIMING",
    ))  # fmt: skip
    yield Property("createdate", "Create Date", "datetime", "date", read_only=True)
    yield Property("lastmodifieddate", "Last Modified Date", "datetime", "date", read_only=True)
    yield Property("hs_object_id", "Record ID", "number", "number", unique=True, read_only=True)


def _custom() -> Iterable[Property]:
    yield Property("leadsync_external_id", "Leadsync: external id", group="leadsync", unique=True, custom=True)
    for name, label in (
        ("leadsync_appkey", "Leadsync: APPKEY"), ("leadsync_uid", "Leadsync: user id"),
        ("leadsync_updated_at", "Leadsync: changed at"), ("leadsync_source", "Leadsync: source"),
    ):  # fmt: skip
        yield Property(name, label, group="leadsync", custom=True)
    yield Property("leadsync_answers", "Leadsync: answers", field_type="textarea", group="leadsync", custom=True)
    yield Property(
        "leadsync_deleted", "Leadsync: deleted", "bool", "booleancheckbox", "leadsync", options=("true", "false"),
        custom=True,
    )  # fmt: skip


# What the account of the demo has: HubSpot's own, and those that the shipped pipeline writes.
PROPERTIES = {item.name: item for item in (*_standard(), *_custom())}
