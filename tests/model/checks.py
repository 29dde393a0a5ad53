"""The promises, as they are checked while a history goes on and when it has come to rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.world import DELETED, NEVER, Destination, Row, Violation

if TYPE_CHECKING:
    from tests.model.walk import World


def nothing_lost(world: World) -> None:
    """Promise 1: below the watermark every state in the lead store is delivered, or an open dead letter.

    A state that was changed again before it was read is overtaken by one that lies above the watermark.
    """
    for name, standing in world.database.standings.items():
        destination = world.destinations[name]
        for row in world.store.rows.values():
            if row.time < standing.watermark and destination.routed(row) and not _accounted(world, destination, row):
                raise Violation("lost", f"CRM {name} stands at {standing.watermark} without {row}")


def _accounted(world: World, destination: Destination, row: Row) -> bool:
    newest = destination.crm.newest.get(row.lead)
    if newest and (newest.rank >= row.rank or newest.value == row.value):
        return True
    letter = world.database.standings[destination.name].letters.get(row.lead)
    return letter is not None and letter.row.rank >= row.rank


def in_step(world: World, destination: Destination, *, repaired: bool) -> None:
    """After the world has come to rest: the CRM equals the lead store, or a dead letter says truly why not."""
    standing, crm = world.database.standings[destination.name], destination.crm
    for row in world.store.rows.values():
        letter = standing.letters.get(row.lead)
        if not destination.routed(row):
            if letter:
                raise Violation("ended wrong", f"CRM {crm.name} is not to have {row}, and still there is {letter}")
            continue
        deliverable = destination.mapped(row) and not crm.refuses(row.value)
        if deliverable and crm.content(row.lead) != row.value:
            raise Violation("ended wrong", f"CRM {crm.name} holds {crm.content(row.lead)} of {row}")
        if deliverable and letter:
            raise Violation("ended wrong", f"CRM {crm.name} has {row}, and still the letter {letter}")
        if not deliverable and (letter is None or letter.row.rank < row.rank):
            raise Violation("ended wrong", f"CRM {crm.name} can't take {row}, and the letter is {letter}")
    for lead, records in crm.records.items():
        if repaired and world.store.read(lead).time == NEVER and records != [DELETED]:
            raise Violation("ended wrong", f"CRM {crm.name} still has lead {lead}, whose row is gone")
