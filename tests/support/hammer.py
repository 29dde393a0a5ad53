"""One of many processes that send to one simulated HubSpot account, each as fast as the shared budget lets it.

`python -m tests.support.hammer <URL> <Redis port> <number>` says `ready`, starts at a line on its input, and goes on
until it is ended.
"""

from __future__ import annotations

import itertools
import sys
import threading
from pathlib import Path

import redis

from leadsync.budget import Budget, Lane, Limit
from leadsync.config import load_pipeline
from leadsync.crm.base import Endpoint
from leadsync.crm.hubspot import HubSpot
from leadsync.models import Lead
from tests.support.simulators import SECRETS

PIPELINE = Path(__file__).parents[2] / "include" / "pipelines" / "leads.yaml"
LIMIT = Limit(100, 5)
THREADS = 4


class Limited(HubSpot):
    limits = (LIMIT, Limit(250_000, 86_400))


def main(url: str, port: int, number: int) -> None:
    destination = next(target for target in load_pipeline(PIPELINE).destinations if target.name == "hubspot")
    budget = Budget(redis.Redis(port=port), Lane.NEW)
    adapter = Limited(destination, Endpoint(url, password=SECRETS["DEMO_CRM_TOKEN"]), budget=budget)
    ids = itertools.count()

    def send() -> None:
        while True:
            adapter.deliver([Lead(f"{number}:{next(ids)}", {"city": "Berlin"})])

    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(THREADS):
        threading.Thread(target=send).start()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
