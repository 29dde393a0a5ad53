"""`python -m demo.crm hubspot|salesforce --port N --data DIR`: a simulated CRM on 127.0.0.1."""

from __future__ import annotations

import argparse
import pkgutil
import signal
import sys
from importlib import import_module
from pathlib import Path

import demo.crm
from demo.crm.faults import FaultBox
from demo.crm.server import Server
from demo.crm.store import Store

SHARED = {"__main__", "faults", "server", "store"}


def main() -> int:
    """Runs until SIGTERM."""
    kinds = sorted({module.name for module in pkgutil.iter_modules(demo.crm.__path__)} - SHARED)
    parser = argparse.ArgumentParser(prog="python -m demo.crm", description=__doc__)
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder that keeps the records")
    arguments = parser.parse_args()
    try:
        vendor = import_module(f"demo.crm.{arguments.kind}").vendor(Store(arguments.data), FaultBox())
    except KeyError as error:
        print(f"the environment lacks {error.args[0]}: the credentials that the simulator accepts", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Server(arguments.port, vendor) as server:
        server.serve_forever(poll_interval=0.2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
