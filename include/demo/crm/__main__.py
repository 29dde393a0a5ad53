"""A simulated CRM on this machine: speaks its vendor's API, keeps its records in a folder, and can fail on demand."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from demo.crm.app import App
from demo.crm.faults import FaultBox
from demo.crm.server import Connections, serve
from demo.crm.store import Store
from demo.crm.vendor import kinds


def main() -> int:
    """Runs until SIGTERM; 2 when the credentials are missing."""
    vendors = kinds()
    needed = "\n".join(f"  {kind}: {', '.join(vendor.credentials)}" for kind, vendor in sorted(vendors.items()))
    parser = argparse.ArgumentParser(
        prog="python -m demo.crm",
        description=__doc__,
        epilog=f"credentials that it accepts, from the environment:\n{needed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=sorted(vendors))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder that keeps the records; made when missing")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--rate-limit", type=int, metavar="N", help="answer 429 above N requests in 10 seconds")
    arguments = parser.parse_args()
    vendor = vendors[arguments.kind]
    credentials = [os.environ.get(name, "") for name in vendor.credentials]
    missing = [name for name, value in zip(vendor.credentials, credentials, strict=True) if not value]
    if missing:
        print(f"{parser.prog}: set {' and '.join(missing)}: the credentials that it accepts", file=sys.stderr)
        return 2
    base = {"rate_limit": {"requests": arguments.rate_limit, "seconds": 10}} if arguments.rate_limit else {}
    store = Store(arguments.data)
    connections: Connections = {}
    # uvicorn raises the signal again once it has stopped: an ordered end is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        app = App(vendor(store, FaultBox(base), *credentials), connections)
        serve(app, arguments.host, arguments.port, connections)
    except KeyboardInterrupt:
        pass
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
