"""One of many processes that use one simulated Salesforce account, whose token they share.

`python -m tests.support.visitor <URL> <Redis port> <sealing key>` says `ready`; for each line on its input it checks
the destination and says a hash of the token with which it did.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import redis

from leadsync.config import load_pipeline
from leadsync.crm import registry
from leadsync.crm.base import Endpoint
from leadsync.crm.tokens import TokenStore
from leadsync.sealing import Sealer
from tests.support.simulators import SECRETS

PIPELINE = Path(__file__).parents[2] / "include" / "pipelines" / "leads.yaml"


def main(url: str, port: int, key: str) -> None:
    destination = next(target for target in load_pipeline(PIPELINE).destinations if target.name == "salesforce")
    endpoint = Endpoint(url, SECRETS["DEMO_CRM_CLIENT_ID"], SECRETS["DEMO_CRM_CLIENT_SECRET"])
    adapter = registry.build(destination, endpoint, tokens=TokenStore(redis.Redis(port=port), Sealer(key)))
    print("ready", flush=True)
    for _ in sys.stdin:
        adapter.check()
        print(hashlib.sha256(adapter.credentials.access().token.encode()).hexdigest(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
