"""The fields of Pipedrive's persons and leads, and which values they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

PERSON_KEY = "3339fe67e9a9406d52bbdf177157fc4aa07d3d69"
LEAD_KEY = "e411ee487cebbbc613cff2ae273c4b94f7878dc0"


class Invalid(Exception):
    """What is wrong with one field of a body."""

    def __init__(self, path: str, words: str) -> None:
        super().__init__(f"{path}: {words}")


@dataclass(frozen=True, slots=True)
class Custom:
    """A custom field: its key, name and type."""

    code: str
    name: str
    type: str = "varchar"

    def document(self) -> dict[str, Any]:
        """As the API of fields shows it."""
        return {
            "field_name": self.name, "field_code": self.code, "field_type": self.type, "options": None,
            "subfields": None, "is_custom_field": True, "is_optional_response_field": False,
        }  # fmt: skip

    def value(self, value: Any, path: str) -> Any:
        """The value as it is kept, None for none. Raises Invalid."""
        if value is None or value == "":
            return None
        if self.type == "double":
            return _number(value, path)
        if not isinstance(value, str):
            raise Invalid(path, "must be a string")
        if self.type == "date":
            try:
                return date.fromisoformat(value).isoformat()
            except ValueError:
                raise Invalid(path, "must be a date") from None
        if len(value) > (65_000 if self.type == "text" else 255):
            raise Invalid(path, "is too long")
        return value


def _name(value: Any, path: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Invalid(path, "must be a string that is not empty")
    return value


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Invalid(path, "must be a number")
    return value


def _whole(value: Any, path: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise Invalid(path, "must be an integer")
    return value


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise Invalid(path, "must be a boolean")
    return value


def _labels(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list):
        raise Invalid(path, "must be an array")
    return value


def _contacts(value: Any, path: str) -> list[dict[str, Any]] | None:
    """Entries with exactly one primary, the first unless another one says so."""
    if not isinstance(value, list):
        raise Invalid(path, "must be an array")
    found: list[dict[str, Any]] = []
    for number, entry in enumerate(value):
        if not isinstance(entry, dict) or not isinstance(entry.get("value"), str) or not entry["value"]:
            raise Invalid(f"{path}.{number}.value", "must be a string that is not empty")
        found.append({"value": entry["value"], "primary": False, "label": entry.get("label", "work")})
    primary = next((number for number, entry in enumerate(value) if entry.get("primary") is True), 0)
    if found:
        found[primary]["primary"] = True
    return found or None


Check = Callable[[Any, str], Any]
PERSON: Mapping[str, Check] = {
    "name": _name, "owner_id": _whole, "org_id": _whole, "visible_to": _whole, "label_ids": _labels,
    "emails": _contacts, "phones": _contacts,
}  # fmt: skip
LEAD: Mapping[str, Check] = {
    "title": _name, "owner_id": _whole, "person_id": _whole, "organization_id": _whole, "was_seen": _flag,
    "is_archived": _flag, "label_ids": _labels,
}  # fmt: skip


def _customs(key: str, *codes: str) -> dict[str, Custom]:
    names = (
        ("Leadsync: external id", "varchar"), ("Leadsync: APPKEY", "varchar"), ("Leadsync: user id", "varchar"),
        ("Leadsync: city", "varchar"), ("Leadsync: answers", "text"), ("Leadsync: changed at", "varchar"),
        ("Leadsync: deleted", "varchar"), ("Budget", "double"),
    )  # fmt: skip
    return {code: Custom(code, *name) for code, name in zip((key, *codes), names, strict=True)}


# Keys are of an account; these are the demo's. Leads have the custom fields of deals.
PERSON_CUSTOM = _customs(
    PERSON_KEY, "74f9ca01f4a9298b4b1d395cae9fc6a531c6b82b", "bb9ae376a71e137729aafb209b28c274c62449ad",
    "852356669e0270244002c417b8d6fd91e363368f", "9618b4aad79491791d2acfbcd66991c6d4245fd7",
    "31df3b95cee88c2a4338f61fcb97a71506972794", "6b56994eb19e6946e371ff71f68d6c8d15e9fd0a",
    "55871649a6a1b5a694730e82607a2eb1c10a9e1e",
)  # fmt: skip
LEAD_CUSTOM = _customs(
    LEAD_KEY, "38963003c98afa8129287255933fa5c9749bc19e", "48e8101f6730366f8a7f1d16cdaf5c5dead4e4f5",
    "567e3dff2688dbef9916cf340d7365936761ba6f", "4f99226669d7d33c317e30240d92bee83e7e0f0a",
    "7318aa3c708d51217f91b3a683dd2c993ad01858", "2f707ad2fa450eb08718990dcd4d2a25a6672693",
    "1690e91d1d538142376b52a7bf79833afa5cc5c7",
)  # fmt: skip
