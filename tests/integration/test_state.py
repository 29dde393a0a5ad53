"""Schema and ledger on a real PostgreSQL."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from leadsync.errors import SchemaError
from leadsync.state import ledger, schema

LEAD, NEW, OLD = UUID(int=1), UUID(int=2), UUID(int=3)
Connection = psycopg.Connection[Any]


def claim(state: Connection, sequence: int, digest: UUID, **more: bool) -> ledger.Claims:
    with state.transaction():
        return ledger.claim(state, 1, sequence, [(LEAD, digest)], **more)


def settle(state: Connection, sequence: int, digest: UUID) -> None:
    with state.transaction():
        ledger.settle(state, 1, sequence, [(LEAD, digest, "crm-1", False)])


def test_an_old_schema_names_the_command(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(SchemaError, match="no Leadsync tables yet; run: python -m leadsync migrate"):
            schema.check(connection)
        schema.migrate(database)
        schema.migrate(database)
        schema.check(connection)
        connection.execute("UPDATE leadsync.alembic_version SET version_num = 'x'")
        with pytest.raises(SchemaError, match="are at revision x, this code needs .*; run: python -m leadsync migrate"):
            schema.check(connection)
        connection.execute("UPDATE leadsync.alembic_version SET version_num = '0001'")
        schema.migrate(database, "base")


def test_a_new_lead_is_claimed_sent_and_then_unchanged(state: Connection) -> None:
    assert claim(state, 1, NEW).send == {LEAD: None}
    settle(state, 1, NEW)
    assert claim(state, 2, NEW).unchanged == {LEAD}
    assert claim(state, 3, NEW, resend=True).send == {LEAD: "crm-1"}


def test_the_sequence_of_an_unchanged_lead_is_written_too(state: Connection) -> None:
    claim(state, 1, NEW)
    settle(state, 1, NEW)
    claim(state, 5, NEW)
    assert claim(state, 4, OLD).overtaken == {LEAD}


def test_a_newer_claim_in_doubt_is_not_overtaken(state: Connection) -> None:
    claim(state, 5, NEW)
    assert claim(state, 4, OLD).in_doubt == {LEAD}
    settle(state, 4, OLD)  # of no effect: the claim is another's
    assert claim(state, 5, NEW).send == {LEAD: None}


def test_a_claim_clears_the_hash_so_that_a_revert_after_a_lost_reply_is_sent(state: Connection) -> None:
    claim(state, 1, OLD)
    settle(state, 1, OLD)
    claim(state, 2, NEW)  # the reply to this one is lost
    assert claim(state, 3, OLD).send == {LEAD: "crm-1"}


def test_a_dry_run_claims_nothing(state: Connection) -> None:
    assert claim(state, 9, NEW, dry_run=True).send == {LEAD: None}
    assert state.execute("SELECT count(*) FROM leadsync.delivery").fetchone() == (0,)
