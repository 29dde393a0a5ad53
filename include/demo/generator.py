"""`python -m demo.generator`: visitors of the landing pages. Inserts, updates and soft-deletes leads, sometimes in
transactions that stay open for seconds and commit late, or not at all.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter

import psycopg
import structlog

from demo import lead_store

log = structlog.get_logger(__name__)

APPKEYS = ("ASDAD", "SPRING", "AUTUMN", "新品")
NAMES = ("李雷", "韩梅梅", "王芳", "张伟", "Ada Lovelace", "José García", "Zoë Müller", "Nguyễn Văn An", "Sam 😀 Lee")
CITIES = ("上海", "北京", "深圳", "Berlin", "Paris", "São Paulo", None)


class Generator:
    """Makes changes at a rate until it is told to stop."""

    def __init__(self, dsn: str, rate: float, seed: int | None) -> None:
        self._dsn = dsn
        self._rate = rate
        self._random = random.Random(seed)  # noqa: S311
        self._known: list[tuple[str, int]] = []
        self.stop = threading.Event()
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Until `stop` is set; survives a database that goes away for a while."""
        if self._rate <= 0:
            self.stop.wait()
            return
        pause = 1.0
        while not self.stop.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True) as now, psycopg.connect(self._dsn) as late:
                    pause = 1.0
                    self._work(now, late)
            except psycopg.OperationalError as error:
                log.warning("the lead store is away", error=type(error).__name__, seconds=pause)
                self.stop.wait(pause)
                pause = min(pause * 2, 30.0)

    def _work(self, now: lead_store.Connection, late: lead_store.Connection) -> None:
        commit_at, said = 0.0, time.monotonic()
        while not self.stop.wait(self._random.expovariate(self._rate)):
            if commit_at == 0.0 and self._random.random() < 0.05:
                commit_at = time.monotonic() + self._random.uniform(0.5, 5.0)
            if commit_at and time.monotonic() > commit_at:
                if self._random.random() < 0.2:
                    late.rollback()
                else:
                    late.commit()
                commit_at = 0.0
            # The open transaction only inserts: it must not lock a lead that the other wants.
            if commit_at and self._random.random() < 0.3:
                self.change(late, "insert")
            else:
                self.change(now, self._random.choices(("insert", "update", "delete"), (55, 33, 12))[0])
            if time.monotonic() - said > 10:
                said = time.monotonic()
                log.info("changes so far", **self.counts)

    def change(self, connection: lead_store.Connection, kind: str) -> None:
        """One change of that kind."""
        pick = self._random
        if kind == "insert" or not self._known:
            kind, appkey = "insert", pick.choice(APPKEYS)
            number = pick.getrandbits(48)
            email = f"lead{number}@example.com" if pick.random() < 0.9 else None
            answers = {
                "budget": pick.choice(("<100", "100–500", ">500")),
                "utm": {"source": pick.choice(("wx", "ads"))},
            }
            phone = f"+86 {13 * 10**9 + number % 10**9}"
            uid = lead_store.insert(connection, appkey, pick.choice(NAMES), phone, email, pick.choice(CITIES), answers)
            self._known.append((appkey, uid))
        elif kind == "update":
            appkey, uid = pick.choice(self._known)
            phone = f"+86 {pick.randrange(13 * 10**9, 14 * 10**9)}"
            lead_store.update(connection, appkey, uid, pick.choice(NAMES), phone, pick.choice(CITIES))
        else:
            appkey, uid = self._known.pop(pick.randrange(len(self._known)))
            lead_store.delete(connection, appkey, uid)
        self.counts[kind] += 1


def main() -> int:
    """Runs until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m demo.generator", description=__doc__)
    parser.add_argument("--dsn", default=os.environ.get("LEAD_STORE_DSN"), help="default: LEAD_STORE_DSN")
    parser.add_argument(
        "--rate",
        type=float,
        default=float(os.environ.get("LEADSYNC_DEMO_RATE") or 2),
        help="changes per second; 0: none (default: LEADSYNC_DEMO_RATE, or 2)",
    )
    parser.add_argument("--seed", type=int, help="makes the choices repeatable")
    arguments = parser.parse_args()
    if not arguments.dsn:
        parser.error("which lead store? set LEAD_STORE_DSN or give --dsn")
    generator = Generator(arguments.dsn, arguments.rate, arguments.seed)
    signal.signal(signal.SIGTERM, lambda *_: generator.stop.set())
    generator.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
