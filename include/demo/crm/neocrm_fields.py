"""The fields of Neocrm's lead, and which values they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KEY = "leadsyncId__c"
REQUIRED = ("name", "companyName", "entityType")


class Problem(Exception):
    """What is wrong with a request: Neocrm's code and words."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the object; `length` in characters."""

    name: str
    label: str
    type: str = "text"
    length: int = 300
    creatable: bool = True

    def document(self) -> dict[str, Any]:
        """As the description shows it."""
        return {
            "apiKey": self.name, "label": self.label, "type": self.type, "required": self.name in REQUIRED,
            "creatable": self.creatable, "maxLength": self.length, "selectitem": [],
        }  # fmt: skip

    def value(self, value: Any) -> Any:
        """The value as Neocrm keeps it, None for none. Raises Problem."""
        if value is None or value == "":
            return None
        if self.type in ("datetime", "integer", "relation"):
            if not isinstance(value, int) or isinstance(value, bool):
                raise self._mismatch()
            return value
        if self.type == "boolean":
            if not isinstance(value, bool):
                raise self._mismatch()
            return value
        if not isinstance(value, str):
            raise self._mismatch()
        if len(value) > self.length:
            raise Problem(5000046, f"Field value is too long[{self.name}]")
        return value

    def _mismatch(self) -> Problem:
        return Problem(5000047, f"Field data type mismatch[{self.name}]")


FIELDS = {field.name: field for field in (
    Field("id", "ID", "integer", creatable=False),
    Field("createdAt", "创建日期", "datetime", creatable=False),
    Field("updatedAt", "最新修改日", "datetime", creatable=False),
    Field("entityType", "业务类型", "relation"),
    Field("ownerId", "线索所有人", "relation"),
    Field("dimDepart", "所属部门", "relation"),
    Field("name", "姓名"),
    Field("companyName", "公司名称"),
    Field("phone", "电话", "phone", 100),
    Field("mobile", "手机", "phone", 100),
    Field("email", "电子邮件", "email", 100),
    Field("address", "地址"),
    Field("city__c", "城市"),
    Field(KEY, "Leadsync ID"),
    Field("leadsyncUid__c", "Leadsync: user id"),
    Field("leadsyncAnswers__c", "Leadsync: answers", "textarea", 20_000),
    Field("leadsyncUpdatedAt__c", "Leadsync: changed at", "datetime"),
    Field("leadsyncDeleted__c", "Leadsync: deleted", "boolean"),
)}  # fmt: skip
