"""The access token of a CRM account, kept in Redis: vendors count logins, and every task is a process of its own.

Zoho gives ten tokens in ten minutes, Fxiaoke takes ten logins a minute. One process logs in at a time and the others
wait for its token; one that the CRM refused is forgotten before anybody logs in again. The token is sealed, and gone
when it ends. Its key's name is made of all that the login depends on, so that whoever has another password or refresh
token has another key. What can't be opened, for the sealing key was rotated, is as none. Redis away costs no more than
a login of one's own. There is nothing of a lead in it, so neither erasure nor maintenance has to look here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import LiteralString, cast
from uuid import uuid4

import orjson
import redis
import structlog

from leadsync.crm.access import Access
from leadsync.errors import SnapshotError
from leadsync.sealing import Sealer

LOCK = 20.0  # seconds that a login may keep the others waiting: what takes longer costs no more than a second login
NAP = 0.1  # seconds; a waiter looks so often for the token
LIFETIME = 900.0  # seconds to keep a token whose end nobody tells; one that ended sooner is refused and renewed
SHARE = 0.95  # of its lifetime that a token is handed out: it has to last for a request

# KEYS: what to delete. ARGV: what it must still hold.
DROP: LiteralString = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

log = structlog.get_logger(__name__)


class TokenStore:
    """The tokens in one Redis. Not thread-safe, as its sealer: one per adapter, whose login asks in one thread."""

    def __init__(self, client: redis.Redis, sealer: Sealer) -> None:
        self.client = client
        self.sealer = sealer
        self.drop = client.register_script(DROP)


class SharedToken:
    """The token of one account, which `account` names whole: its text may hold secrets.

    `sleep` waits for another's login; what it raises ends the wait.
    """

    def __init__(self, store: TokenStore, who: str, account: str, sleep: Callable[[float], None]) -> None:
        self._store = store
        self._who = who
        self._key = f"leadsync:token:{{{store.sealer.name(account)}}}"  # braces: one node of a cluster
        self._lock = f"{self._key}:lock"
        self._sleep = sleep

    def get(self, log_in: Callable[[], Access], refused: Access | None) -> Access:
        """The token that is kept, unless it is the `refused` one, or else a new one. Raises what `log_in` does."""
        mine = uuid4().hex
        try:
            found = self._found_or_locked(mine, refused)
        except redis.RedisError as error:
            self._warn(error)
            return log_in()
        if found is not None:
            return found
        try:
            access = log_in()
            with self._without_redis():
                self._keep(access)
            return access
        finally:
            with self._without_redis():
                self._store.drop(keys=[self._lock], args=[mine])

    def _found_or_locked(self, mine: str, refused: Access | None) -> Access | None:
        """The token, or None when it is this process that has to log in."""
        until = time.monotonic() + LOCK
        while time.monotonic() < until:
            if found := self._read(refused):
                return found
            if self._store.client.set(self._lock, mine, nx=True, px=round(LOCK * 1000)):
                return self._read(refused)  # of one who logged in between the two
            self._sleep(NAP)
        return None

    def _read(self, refused: Access | None) -> Access | None:
        blob = cast("bytes | None", self._store.client.get(self._key))
        if blob is None:
            return None
        try:
            access = Access(*orjson.loads(self._store.sealer.open(blob, self._key)))
        except SnapshotError:
            return None
        if access == refused:
            self._store.drop(keys=[self._key], args=[blob])
            return None
        return access

    def _keep(self, access: Access) -> None:
        blob = self._store.sealer.seal(orjson.dumps([access.url, access.token, access.headers]), self._key)
        seconds = SHARE * (LIFETIME if access.lifetime is None else access.lifetime)
        self._store.client.set(self._key, blob, px=max(1, round(seconds * 1000)))

    @contextmanager
    def _without_redis(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            self._warn(error)

    def _warn(self, error: redis.RedisError) -> None:
        log.warning("token not shared", crm=self._who, error=type(error).__name__)
