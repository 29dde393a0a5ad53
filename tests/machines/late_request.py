"""`python -m tests.machines.late_request URL`: a request that is answered, and two seconds later, over the same
connection, one that should be on its way when the link is cut. Then this process ends, as one does that was killed.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress

from leadsync.crm.access import Access, StaticToken
from leadsync.crm.http import HTTPClient, RequestFailed
from leadsync.crm.pacing import Pacer

CONNECT_TIMEOUT, READ_TIMEOUT = 1.0, 2.0


def client() -> HTTPClient:
    return HTTPClient(
        "CRM", pace=Pacer(1000), connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT,
        before_request=lambda: None, explain=lambda reply: None,
    )  # fmt: skip


if __name__ == "__main__":
    http, credentials = client(), StaticToken("CRM", Access(sys.argv[1], "token"))
    http.request("POST", "/first", credentials, json=[])
    time.sleep(2)
    with suppress(RequestFailed):
        http.request("POST", "/second", credentials, json=[])
