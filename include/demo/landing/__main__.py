"""`python -m demo.landing --port N`: the landing page."""

from __future__ import annotations

import argparse
import os
import sys

import uvicorn

from demo.landing.app import make_app


def main() -> int:
    """Runs until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m demo.landing", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--dsn", default=os.environ.get("LEAD_STORE_DSN"), help="default: LEAD_STORE_DSN")
    arguments = parser.parse_args()
    if not arguments.dsn:
        parser.error("which lead store? set LEAD_STORE_DSN or give --dsn")
    names = {"HubSpot": "CRM_HUBSPOT_URL", "Salesforce": "CRM_SALESFORCE_URL"}
    crms = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
    uvicorn.run(make_app(arguments.dsn, crms), host=arguments.host, port=arguments.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
