"""SOQL over the records that are kept, page by page."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from demo.crm.salesforce_fields import FIELDS, KEY, Problem, record_id
from demo.crm.soql import MalformedQuery, Query, parse
from demo.crm.store import Row, Store

MAX_PAGE = 2000
MAX_CURSORS = 10
SYSTEM = ("CreatedDate", "LastModifiedDate", "SystemModstamp")


class Queries:
    """Answers queries; of those with more than a page it keeps the last ten, as Salesforce does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cursors: dict[str, tuple[list[int], Query]] = {}

    def first(self, text: str, version: str, deleted: bool) -> dict[str, Any]:
        """The first page. Raises Problem for what is no query of Lead."""
        query = _checked(text)
        numbers = self._matching(query, deleted)
        cursor = f"01g{secrets.token_hex(7)}"
        if len(numbers) > MAX_PAGE:
            while len(self._cursors) >= MAX_CURSORS:
                del self._cursors[next(iter(self._cursors))]
            self._cursors[cursor] = (numbers, query)
        return self._page(cursor, numbers, query, 0, version)

    def more(self, cursor: str, first: int, version: str) -> dict[str, Any]:
        """The page that starts at `first`. Raises Problem."""
        if cursor not in self._cursors:
            raise Problem("INVALID_QUERY_LOCATOR", "invalid query locator")
        numbers, query = self._cursors[cursor]
        return self._page(cursor, numbers, query, first, version)

    def _matching(self, query: Query, deleted: bool) -> list[int]:
        """Numbers of the records that the query finds, in its order."""
        keys = [c.values for c in query.conditions if c.field == KEY and c.operator in ("=", "IN")]
        rows = self._store.select(external_ids=[str(value) for value in keys[0]] if keys else None, deleted=deleted)
        found = [
            row
            for row in rows
            if all(
                condition.holds(_value(row, condition.field), case_sensitive=condition.field in (KEY, "Id"))
                for condition in query.conditions
            )
        ]
        if query.order:
            # Records without a value come first: None can't be compared with the others.
            name, descending = query.order
            bare = [row for row in found if _value(row, name) is None]
            rest = [row for row in found if _value(row, name) is not None]
            found = [*bare, *sorted(rest, key=lambda row: _value(row, name))][:: -1 if descending else 1]
        return [row.number for row in found[: query.limit]]

    def _page(self, cursor: str, numbers: list[int], query: Query, first: int, version: str) -> dict[str, Any]:
        part = numbers[first : first + MAX_PAGE]
        rows = {row.number: row for row in self._store.select(numbers=part, deleted=True)}
        records = [shown(rows[number], query.fields, version) for number in part if number in rows]
        done = first + MAX_PAGE >= len(numbers)
        document = {"totalSize": len(numbers), "done": done, "records": records}
        if not done:
            document["nextRecordsUrl"] = f"/services/data/v{version}.0/query/{cursor}-{first + MAX_PAGE}"
        return document


def _checked(text: str) -> Query:
    """A query whose object, fields and literals fit."""
    try:
        query = parse(text)
    except MalformedQuery as error:
        raise Problem("MALFORMED_QUERY", str(error)) from None
    if query.object != "Lead":
        raise Problem("INVALID_TYPE", f"sObject type '{query.object}' is not supported.")
    used = [*query.fields, *(condition.field for condition in query.conditions)]
    for name in [*used, query.order[0]] if query.order else used:
        if name not in FIELDS:
            raise Problem("INVALID_FIELD", f"No such column '{name}' on entity 'Lead'.")
    for condition in query.conditions:
        field = FIELDS[condition.field]
        if not all(value is None or field.matches(value) for value in condition.values):
            message = f"value of filter criterion for field '{field.name}' must be of type {field.type}"
            raise Problem("INVALID_FIELD", message)
    return query


def shown(row: Row, names: Iterable[str], version: str) -> dict[str, Any]:
    """A record as replies have it."""
    url = f"/services/data/v{version}.0/sobjects/Lead/{record_id(row.number)}"
    return {"attributes": {"type": "Lead", "url": url}, **{name: _value(row, name) for name in names}}


def _value(row: Row, name: str) -> Any:
    if name == "Id":
        return record_id(row.number)
    if name == "IsDeleted":
        return row.deleted
    if name == "Name":
        return " ".join(filter(None, (row.fields.get("FirstName"), row.fields.get("LastName"))))
    if name in SYSTEM:
        return FIELDS[name].shown(row.created_at if name == "CreatedDate" else row.updated_at)
    return FIELDS[name].shown(row.fields.get(name))
