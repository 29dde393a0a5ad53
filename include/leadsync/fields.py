"""What a pydantic model takes, as tables in Markdown: the code is where the documents come from."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

KINDS: dict[Any, str] = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    type(None): "null",
    Any: "anything",
    str | int | float | bool | None: "plain value",
    datetime: "time with offset",
    AwareDatetime: "time with offset",
}


def nested(model: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """The model and every one below it, each with the keys that it is written by; none for the outermost."""
    found: dict[type[BaseModel], list[str]] = {model: []}
    queue: list[tuple[str, type[BaseModel]]] = [("", model)]
    for prefix, each in queue:
        for name, field in each.model_fields.items():
            for kind in (field.annotation, *get_args(field.annotation)):
                if _is_model(kind):
                    found.setdefault(kind, []).append(f"{prefix}{name}")
                    queue.append((f"{prefix}{name}.", kind))
    return found


def default(field: FieldInfo) -> str:
    """As a pipeline file spells it; empty where nothing stands for it."""
    value = field.default
    if field.is_required():
        return "required"
    if field.default_factory or isinstance(value, BaseModel) or value in (None, "", (), frozenset(), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, datetime):
        return f"`{value.isoformat()}`"
    return f"`{', '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def kind(field: FieldInfo) -> str:
    """The type in words, with its limits."""
    limits = [words for limit in field.metadata for words in _limit(limit)]
    return ", ".join([_kind(field.annotation), *limits])


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in KINDS:
        return KINDS[annotation]
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return _either(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        choices = [choice for each in inner for choice in (get_args(each) if get_origin(each) is Literal else (each,))]
        return _either(f"`{each}`" if isinstance(each, str) else _kind(each) for each in choices)
    if any(map(_is_model, (annotation, *inner))):
        return "mapping"
    if origin is tuple:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"mapping to {_kind(inner[1])}"
    raise TypeError(f"no words for the type {annotation}")


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _limit(limit: object) -> Iterable[str]:
    if isinstance(limit, Gt):
        yield f"above {limit.gt}"
    if isinstance(limit, Ge):
        yield f"from {limit.ge}"
    if isinstance(limit, Le):
        yield f"up to {limit.le}"


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
