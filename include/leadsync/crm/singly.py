"""For CRMs that take one record a call and have no upsert: a batch is looked up, and then written lead by lead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leadsync.crm.base import CRMAdapter
from leadsync.crm.http import RequestFailed
from leadsync.models import Lead, Outcome, Status

BLANKS = " \t\n\r\0\v"
LONGEST = 255  # characters


def one_by_one(adapter: CRMAdapter, leads: Sequence[Lead], act: Callable[[Lead], Outcome]) -> list[Outcome]:
    """The outcomes of `act` for each lead, as far as the first request that fails.

    What was done before it is told, for it need not be sent again; what comes after it is not tried, for a CRM that
    is down would hold up each of them for a time-out. Raises RequestFailed when already the first one fails, and what
    `act` raises besides.
    """
    outcomes: list[Outcome] = []
    for number, lead in enumerate(leads):
        try:
            outcomes.append(act(lead))
        except RequestFailed as failed:
            if not outcomes:
                raise
            outcomes += adapter.attempt(_failing(failed), [lead]).values()
            outcomes += [
                Outcome(
                    rest.external_id, Status.TRANSIENT, code=failed.code, sent=False, retry_after=failed.retry_after
                )
                for rest in leads[number + 1 :]
            ]
            break
    return outcomes


def unfit_id(lead: Lead, field: str) -> Outcome | None:
    """The refusal of a lead whose external id would not come back as it was sent.

    Texts of one line lose the blanks around them, and what is longer than 255 characters. The record would not be
    found again, and made anew each time.
    """
    if lead.external_id == lead.external_id.strip(BLANKS) and len(lead.external_id) <= LONGEST:
        return None
    words = f"an external id must have no blanks around it, and at most {LONGEST} characters"
    return Outcome(lead.external_id, Status.REJECTED, None, "UNFIT_EXTERNAL_ID", field, words)


def _failing(failed: RequestFailed) -> Callable[[Sequence[Lead]], list[Outcome]]:
    def act(leads: Sequence[Lead]) -> list[Outcome]:
        raise failed

    return act
