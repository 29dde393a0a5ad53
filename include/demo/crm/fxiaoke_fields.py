"""The fields of Fxiaoke's sales lead (LeadsObj), and which values they take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

KEY = "leadsync_id__c"
EMAIL = re.compile(r"[^@\s,;<>()\"]+@[^@\s,;<>()\"]+\.[^@\s.,;<>()\"]+")
NUMBER = re.compile(r"-?\d{1,14}(\.\d+)?")


class Problem(Exception):
    """What is wrong with a record."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the lead; `length` in characters, 0 where it has none."""

    name: str
    label: str
    type: str = "text"
    length: int = 0
    unique: bool = False
    required: bool = False

    def document(self) -> dict[str, Any]:
        """As the description of the object shows it."""
        return {
            "api_name": self.name, "label": self.label, "type": self.type, "describe_api_name": "LeadsObj",
            "is_unique": self.unique, "is_required": self.required, "is_active": True, "is_index": True,
            "define_type": "custom" if self.name.endswith("__c") else "package", "max_length": self.length or None,
        }  # fmt: skip

    def value(self, value: Any) -> Any:
        """The value as it is kept, None for none. Raises Problem."""
        if value is None or value == "":
            return None
        kind: type = {"date_time": int, "true_or_false": bool}.get(self.type, str)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise Problem(f"{self.name}: the value must be of type {kind.__name__}")
        if not isinstance(value, str):
            return value
        if self.type == "number" and not NUMBER.fullmatch(value):
            raise Problem(f"{self.name}: {value} is no number")
        if self.type == "email" and not EMAIL.fullmatch(value):
            raise Problem(f"{self.name}: {value} is no e-mail address")
        if self.length and len(value) > self.length:
            raise Problem(f"{self.name}: longer than {self.length} characters")
        return value


FIELDS = {field.name: field for field in (
    Field("name", "姓名", length=100, required=True),
    Field("mobile", "手机", "phone_number", 100),
    Field("tel", "电话", "phone_number", 100),
    Field("email", "邮件", "email", 100),
    Field("url", "网址", "url", 1000),
    Field("company", "公司", length=256),
    Field("department", "部门", length=100),
    Field("job_title", "职务", length=100),
    Field("address", "地址", length=1000),
    Field("remark", "备注", "long_text", 2000),
    Field("leads_pool_id", "线索池", "object_reference", 64),
    Field(KEY, "Leadsync: 外部编号", length=256, unique=True),
    Field("city__c", "城市", length=256),
    Field("uid__c", "用户编号", "number"),
    Field("updated_at__c", "更新时间", "date_time"),
    Field("answers__c", "答案", "long_text", 100_000),
    Field("deleted__c", "已删除", "true_or_false"),
)}  # fmt: skip
# What the system keeps of every record.
SYSTEM = {field.name: field for field in (
    Field("owner", "负责人", "employee"),
    Field("life_status", "生命状态", "select_one"),
    Field("leads_number", "编号", "auto_number"),
)}  # fmt: skip
