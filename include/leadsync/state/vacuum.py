"""VACUUM of Leadsync's own tables, where autovacuum has left many dead rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, LiteralString

import psycopg
import structlog
from psycopg import sql

log = structlog.get_logger(__name__)

# Dead rows that are worth a VACUUM: so many, and such a share of the live ones. Autovacuum waits for twice the share.
FLOOR = 1000
SHARE = 0.1

# What this session has removed counts at once, not only in a second.
FLUSH: LiteralString = "SELECT pg_stat_force_next_flush()"

BLOATED: LiteralString = """
SELECT relname FROM pg_stat_user_tables
 WHERE schemaname = 'leadsync' AND n_dead_tup >= greatest(%(floor)s, %(share)s * n_live_tup)
 ORDER BY n_dead_tup DESC
"""

VACUUMED = "vacuumed"


def bloated(connection: psycopg.Connection[Any]) -> list[str]:
    """The tables that need it, the worst first."""
    connection.execute(FLUSH)
    return [row[0] for row in connection.execute(BLOATED, {"floor": FLOOR, "share": SHARE})]


def vacuum(connection: psycopg.Connection[Any], tables: Iterable[str]) -> dict[str, str]:
    """VACUUM (ANALYZE) of tables, on a connection in autocommit; by table `vacuumed`, or why PostgreSQL skipped it.

    It skips, with a warning and no error, a table that is not the role's own, and one that autovacuum is at.
    """
    outcome = {}
    for table in tables:
        warnings: list[str] = []

        def hear(notice: psycopg.errors.Diagnostic, heard: list[str] = warnings) -> None:
            if notice.severity_nonlocalized == "WARNING":
                heard.append(notice.message_primary or "skipped")

        connection.add_notice_handler(hear)
        try:
            name = sql.Identifier("leadsync", table)
            connection.execute(sql.SQL("VACUUM (ANALYZE, SKIP_LOCKED) {}").format(name))
        finally:
            connection.remove_notice_handler(hear)
        outcome[table] = warnings[0] if warnings else VACUUMED
        (log.warning if warnings else log.info)("vacuum", table=table, outcome=outcome[table])
    return outcome
