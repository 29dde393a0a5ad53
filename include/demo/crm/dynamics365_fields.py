"""The columns of Dataverse's lead table, which values they take, and the table's definition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

KEY = "new_leadsyncid"
ID = "leadid"
TABLE = "lead"
SET = "leads"
GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.I)
HELP = "For more information on this error please follow this help link https://go.microsoft.com/fwlink/?linkid=2195293"


class Problem(Exception):
    """What is wrong with one request: HTTP status, Dataverse's code and its words."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def payload_problem(message: str) -> Problem:
    """What the OData reader says of a body."""
    words = f"Error identified in Payload provided by the user for Entity :'{SET}', {HELP}  ---->  InnerException : "
    return Problem("0x80048d19", f"{words}Microsoft.OData.ODataException: {message}")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table; `size` is the longest text, or the largest number."""

    name: str
    type: str = "String"
    size: int = 100
    options: tuple[int, ...] = ()
    read_only: bool = False

    def document(self) -> dict[str, Any]:
        """As EntityDefinitions shows it."""
        return {
            "LogicalName": self.name, "SchemaName": self.name, "AttributeType": self.type,
            "IsValidForCreate": not self.read_only or self.name == ID, "IsValidForUpdate": not self.read_only,
            "IsValidForRead": True,
        } | ({"MaxLength": self.size} if self.type in ("String", "Memo") else {})  # fmt: skip

    def value(self, value: Any) -> Any:
        """The value as Dataverse keeps it, None for none. Raises Problem."""
        if value is None or value == "":
            return None
        if self.type in ("String", "Memo"):
            return self._text(value)
        if self.type == "DateTime":
            return self._datetime(value)
        if self.type == "Boolean":
            if not isinstance(value, bool):
                raise self._mistyped(value, "Boolean")
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._mistyped(value, "Int32")
        if self.options and value not in self.options:
            accepted = ",".join(map(str, self.options))
            raise Problem("0x8004431a", f"A validation error occurred. The value {value} of '{self.name}' on record of"
                          f" type '{TABLE}' is outside the valid range. Accepted Values: {accepted}")  # fmt: skip
        if abs(value) > self.size:
            raise Problem("0x8004432f", f"A validation error occurred. The value {value} of '{self.name}' on record of"
                          f" type '{TABLE}' is outside the valid range.")  # fmt: skip
        return value

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._mistyped(value, "String")
        if len(value) > self.size:
            raise Problem("0x80044331", f"A validation error occurred.  The length of the '{self.name}' attribute of"
                          f" the '{TABLE}' entity exceeded the maximum allowed length of '{self.size}'.")  # fmt: skip
        return value

    def _datetime(self, value: Any) -> str:
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise self._mistyped(value, "DateTimeOffset") from None
        if moment.tzinfo is None:
            raise self._mistyped(value, "DateTimeOffset")
        return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    @staticmethod
    def _mistyped(value: Any, kind: str) -> Problem:
        return payload_problem(f"Cannot convert the literal '{value}' to the expected type 'Edm.{kind}'.")


def _columns() -> list[Column]:
    texts = {
        "subject": 300, "firstname": 50, "lastname": 50, "companyname": 100, "jobtitle": 100, "emailaddress1": 100,
        "telephone1": 50, "mobilephone": 20, "websiteurl": 200, "address1_line1": 250, "address1_city": 80,
        "address1_postalcode": 20, "address1_country": 80, KEY: 400, "new_appkey": 100, "new_uid": 100,
    }  # fmt: skip
    return [
        Column(ID, "Uniqueidentifier", read_only=True),
        Column("fullname", size=160, read_only=True),
        Column("createdon", "DateTime", read_only=True),
        Column("modifiedon", "DateTime", read_only=True),
        *(Column(name, size=size) for name, size in texts.items()),
        Column("description", "Memo", 2_000),
        Column("new_answers", "Memo", 1_048_576),
        Column("leadsourcecode", "Picklist", options=tuple(range(1, 11))),
        Column("numberofemployees", "Integer", 1_000_000),
        Column("donotemail", "Boolean"),
        Column("new_deleted", "Boolean"),
        Column("new_updatedat", "DateTime"),
    ]


COLUMNS = {column.name: column for column in _columns()}


def definition(wanted: set[str], expanded: Mapping[str, set[str]]) -> dict[str, Any]:
    """The table's definition with the properties that were asked for."""
    whole: dict[str, Any] = {
        "LogicalName": TABLE, "SchemaName": "Lead", "EntitySetName": SET, "PrimaryIdAttribute": ID,
        "PrimaryNameAttribute": "fullname", "MetadataId": "70816501-edb9-4740-a16c-6a5efbc05d84",
    }  # fmt: skip
    parts: dict[str, list[dict[str, Any]]] = {
        "Attributes": [column.document() for column in COLUMNS.values()],
        "Keys": [{"LogicalName": "new_leadsynckey", "KeyAttributes": [KEY], "EntityKeyIndexStatus": "Active"}],
    }
    shown = {name: value for name, value in whole.items() if not wanted or name in wanted}
    for name, inner in expanded.items():
        shown[name] = [{k: v for k, v in part.items() if not inner or k in inner} for part in parts[name]]
    return shown


def picklists() -> list[dict[str, Any]]:
    """The columns that take one of several numbers, with the label of each."""
    return [
        {"LogicalName": column.name, "OptionSet": {"Options": [_option(value) for value in column.options]}}
        for column in COLUMNS.values()
        if column.options
    ]


def _option(value: int) -> dict[str, Any]:
    label = {"Label": f"Source {value}", "LanguageCode": 1033}
    return {"Value": value, "Label": {"LocalizedLabels": [label], "UserLocalizedLabel": label}}


def check_names(record: Mapping[str, Any]) -> None:
    """Raises Problem for a property that the table does not have."""
    for name in record:
        if name not in COLUMNS and not name.startswith("@odata."):
            raise payload_problem(
                f"The property '{name}' does not exist on type 'Microsoft.Dynamics.CRM.{TABLE}'. Make sure to only use"
                " property names that are defined by the type."
            )
