"""The lead store of a sequence: its writers, and a history of every committed state of every lead for the checker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg

from demo import lead_store
from tests.chaos.checker import external_id

# Written in the writer's own transaction, under the row's lock: `id` is the order of a lead's committed states.
HISTORY: LiteralString = """
CREATE TABLE IF NOT EXISTS history (id bigint GENERATED ALWAYS AS IDENTITY, LIKE customer);
CREATE OR REPLACE FUNCTION keep_history() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    lead customer := coalesce(NEW, OLD);
BEGIN
    lead.is_delete := lead.is_delete OR TG_OP = 'DELETE';
    INSERT INTO history (appkey, uid, phone, name, email, city, answers, update_time, is_delete)
    VALUES (lead.appkey, lead.uid, lead.phone, lead.name, lead.email, lead.city, lead.answers, lead.update_time,
            lead.is_delete);
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER keep_history AFTER INSERT OR UPDATE OR DELETE ON customer
    FOR EACH ROW EXECUTE FUNCTION keep_history();
"""

APPKEYS = ("ASDAD", "新品", "A:B", "back\\slash")
NAMES = ("李雷", "  Ada Lovelace ", "José García", None)
CITIES = ("上海", "Berlin", None)

INSERT: LiteralString = """
INSERT INTO customer (appkey, uid, phone, name, email, city, answers)
VALUES (%(appkey)s, %(uid)s, %(phone)s, %(name)s, %(email)s, %(city)s, jsonb_build_object('value', %(value)s::int))
ON CONFLICT DO NOTHING
"""
UPDATE: LiteralString = """
UPDATE customer SET phone = %(phone)s, name = %(name)s, city = %(city)s,
                    answers = jsonb_build_object('value', %(value)s::int)
 WHERE appkey = %(appkey)s AND uid = %(uid)s
"""
REMOVE: LiteralString = "DELETE FROM customer WHERE appkey = %(appkey)s AND uid = %(uid)s"
MARK: LiteralString = "UPDATE customer SET is_delete = %(deleted)s WHERE appkey = %(appkey)s AND uid = %(uid)s"


def key(lead: int) -> tuple[str, int]:
    """The key columns of a lead."""
    return APPKEYS[lead % len(APPKEYS)], lead


def name_of(lead: int) -> str:
    """The external id of a lead."""
    appkey, uid = key(lead)
    return external_id({"appkey": appkey, "uid": str(uid)})


def prepare(dsn: str) -> None:
    """Makes the tables where they are missing."""
    lead_store.create(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute(HISTORY)


class Writers:
    """Open transactions by number. What a server that dies takes with it is forgotten."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._open: dict[int, psycopg.Connection[Any]] = {}

    def begin(self, transaction: int, changes: Sequence[tuple[str, int, int]]) -> None:
        """Opens a transaction and makes changes in it."""
        try:
            # A lead that another open transaction holds is not waited for: the whole transaction is given up.
            connection = psycopg.connect(self._dsn, options="-c lock_timeout=100", connect_timeout=2)
        except psycopg.OperationalError:
            return
        self._open[transaction] = connection
        try:
            for action, lead, value in changes:
                _change(connection, action, lead, value)
        except psycopg.OperationalError:
            self._open.pop(transaction).close()

    def end(self, transaction: int, *, commit: bool) -> None:
        """Commits or rolls back."""
        connection = self._open.pop(transaction, None)
        if connection is None:
            return
        try:
            if commit:
                connection.commit()
        except psycopg.OperationalError:
            pass  # the server died: whether the commit arrived is seen in the table
        finally:
            connection.close()

    def end_all(self) -> None:
        """Commits what is open."""
        for transaction in list(self._open):
            self.end(transaction, commit=True)


def touch(dsn: str, leads: Sequence[tuple[str, int]]) -> None:
    """Writes leads anew without a change: they get a new update_time."""
    with psycopg.connect(dsn) as connection:
        for appkey, uid in leads:
            connection.execute("UPDATE customer SET phone = phone WHERE appkey = %s AND uid = %s", (appkey, uid))


def _change(connection: psycopg.Connection[Any], action: str, lead: int, value: int) -> None:
    appkey, uid = key(lead)
    values = {"appkey": appkey, "uid": uid, "value": value}
    if action in ("delete", "undelete"):
        connection.execute(MARK, values | {"deleted": action == "delete"})
        return
    if action == "remove":
        connection.execute(REMOVE, values)
        return
    values |= {
        "phone": f"+86 {13_800_000_000 + value}",
        "name": NAMES[value % len(NAMES)],
        "email": f" Lead{lead}@Example.com",
        "city": CITIES[value % len(CITIES)],
    }
    connection.execute(INSERT if action == "insert" else UPDATE, values)
