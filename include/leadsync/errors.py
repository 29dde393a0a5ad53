"""Errors, named by the reaction that they call for. Their texts carry ids and codes, never leads or secrets."""

from __future__ import annotations

from datetime import datetime


class LeadsyncError(Exception):
    """Base of all errors that Leadsync raises on purpose; the text says what is wrong and what to do."""

    @property
    def kind(self) -> str:
        """The name of the reaction that it calls for: of its class here, or the nearest one here."""
        return next(each.__name__ for each in type(self).__mro__ if each.__module__ == __name__)


class FailNow(LeadsyncError):
    """Trying again by itself is pointless: a person has to mend something first. Airflow does not retry it."""


class TryAgain(LeadsyncError):
    """It may go away by itself: Airflow retries. `retry_after` is in seconds, None where nobody said."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConfigError(FailNow):
    """A pipeline file, a parameter or the encryption key is wrong."""


class SourceError(FailNow):
    """The lead store can't be used as it is: connection, table, column or rights."""


class SchemaError(FailNow):
    """The tables of Leadsync are missing or older than the code."""


class SnapshotError(FailNow):
    """A snapshot is incomplete, damaged or gone, or Redis can't take it."""


class RedisAway(SnapshotError):
    """Redis can't be read: nothing is known of the snapshots in it."""


class AccessError(FailNow):
    """The CRM refuses us: credentials, rights, a missing object or field. Nothing is wrong with the leads."""


class QuotaExceeded(FailNow):
    """The CRM's quota is spent; `resets_at` (aware) says when it may go on, None where the CRM does not tell."""

    def __init__(self, message: str, resets_at: datetime | None = None) -> None:
        super().__init__(message)
        self.resets_at = resets_at


class BrokenMapping(FailNow):
    """Most leads of a load were rejected: the mapping or the CRM's set-up is broken, not the leads."""


class RefusedAgain(FailNow):
    """A replay brought nothing: every lead was refused again. Their dead letters stay, renewed."""


class LeftBehind(FailNow):
    """A CRM is slow and changes wait for the others: the run ends without it, and it catches up in the next ones."""


class Superseded(FailNow):
    """This task belongs to an attempt that a newer one has replaced."""


class Refused(FailNow):
    """What a person asked for can't be done, or not yet; nothing was changed."""


class InUse(TryAgain):
    """Something that is under way, or that may be cleared, still needs what is to go."""


class Unavailable(TryAgain):
    """A service can't be reached or fails for everything: stop instead of hammering."""


class TransientFailure(TryAgain):
    """Some leads failed in passing and wait in the retry queue."""


class FenceLost(TryAgain):
    """The lock that keeps loads of one destination apart was lost: nothing more may be sent."""
