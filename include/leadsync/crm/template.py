"""Documents with placeholders, and paths into replies: all that it takes to describe an API in a pipeline file.

`{name}` stands for a value. A text that is nothing but a placeholder becomes the value itself, a list or an object too;
inside a longer text lists are joined by commas. `{name:backslash}` and `{name:doubled}` write texts as literals of a
query language: in single quotes, and a quote inside escaped by a backslash (SOQL) or doubled (OData, SQL). The members
of an object under the key `...` take that key's place. There is no logic.

A path is keys and places joined by dots; `*` means every one: `errors.*.context.ids.0`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

PLACEHOLDER = re.compile(r"\{([a-z_]+)(?::([a-z]+))?\}")
SPREAD = "..."
BACKSLASH = str.maketrans(
    {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}
)  # fmt: skip
LITERALS: Mapping[str, Callable[[str], str]] = {
    "backslash": lambda text: f"'{text.translate(BACKSLASH)}'",
    "doubled": lambda text: "'" + text.replace("'", "''") + "'",
}
WHOLE = frozenset({"leads", "fields"})  # lists and objects of their own: never a part of a text


def used(template: Any) -> Iterator[str]:
    """The names of the placeholders of a template. Raises ValueError for one that is not written as it must be."""
    if isinstance(template, Mapping):
        for key, value in template.items():
            if key == SPREAD and not isinstance(value, Mapping) and value != "{fields}":
                raise ValueError("`...` takes the members of an object: {fields}, or one that is written out")
            yield from used(key)
            yield from used(value)
    elif isinstance(template, list):
        for value in template:
            yield from used(value)
    elif isinstance(template, str):
        for found in PLACEHOLDER.finditer(template):
            name, literal = found.groups()
            if literal is not None and literal not in LITERALS:
                raise ValueError(f"{found[0]}: after the colon goes {' or '.join(LITERALS)}")
            if name in WHOLE and found[0] != template:
                raise ValueError(f"{found[0]} must stand alone, not inside a text")
            yield name


def filled(template: Any, values: Mapping[str, Any]) -> Any:
    """The document; a placeholder without a value stays.

    Raises ValueError when the items of a list inside a text can't be told apart, for one holds a comma.
    """
    if isinstance(template, str):
        return _filled_text(template, values)
    if isinstance(template, list):
        return [filled(value, values) for value in template]
    if isinstance(template, Mapping):
        document: dict[str, Any] = {}
        for key, value in template.items():
            member = filled(value, values)
            if key == SPREAD and isinstance(member, Mapping):
                document |= member
            else:
                document[_filled_text(str(key), values)] = member
        return document
    return template


def filled_text(template: str, values: Mapping[str, Any]) -> str:
    """The text, also where it is nothing but a placeholder."""
    return PLACEHOLDER.sub(lambda found: _text(found, values), template)


def filled_path(template: str, values: Mapping[str, Any]) -> str:
    """The path of an address; what is filled in is percent-encoded.

    Raises ValueError for a value that would name something else: the collection, or what is above it.
    """

    def part(found: re.Match[str]) -> str:
        text = _text(found, values)
        if text in ("", ".", ".."):
            raise ValueError(f"{found[0]} would change the path")
        return quote(text, safe="")

    return PLACEHOLDER.sub(part, template)


def find_all(document: Any, path: str) -> list[Any]:
    """Every value that the path leads to; the document itself where the path is empty."""
    found = [document]
    for part in path.split(".") if path else ():
        found = [child for each in found for child in _children(each, part)]
    return found


def find(document: Any, path: str | None) -> Any:
    """The first value that the path leads to and that is not null, or None."""
    return None if path is None else next((value for value in find_all(document, path) if value is not None), None)


def _children(value: Any, part: str) -> list[Any]:
    if isinstance(value, list):
        if part == "*":
            return value
        return [value[int(part)]] if part.isdecimal() and int(part) < len(value) else []
    if isinstance(value, dict):
        return list(value.values()) if part == "*" else [value[part]] if part in value else []
    return []


def _filled_text(template: str, values: Mapping[str, Any]) -> Any:
    whole = PLACEHOLDER.fullmatch(template)
    if whole and whole[2] is None and whole[1] in values:
        return values[whole[1]]
    return filled_text(template, values)


def _text(found: re.Match[str], values: Mapping[str, Any]) -> str:
    name, literal = found.groups()
    if name not in values:
        return found[0]
    value = values[name]
    texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if literal is not None:
        texts = [LITERALS[literal](text) for text in texts]
    elif isinstance(value, list) and any("," in text for text in texts):
        raise ValueError(f"{found[0]}: an item holds a comma")
    return ",".join(texts)
