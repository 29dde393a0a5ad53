"""What may go over a network in the clear: nothing, unless it stays on this machine or its host is named. And how soon
a connection that leads nowhere any more is noticed.

Leads and passwords travel to PostgreSQL, Redis and the CRMs. Hosts of a private network (containers beside each other)
are named in the environment variable LEADSYNC_PLAINTEXT_HOSTS, separated by commas.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from leadsync.errors import ConfigError

TRUE = (True, "true", "True")  # a connection that is written as an address has texts
# Seconds and milliseconds. A machine that loses its power or its network closes no connection: without these each end
# would notice after hours, and PostgreSQL would keep a lost session's locks as long. With them it is half a minute.
LIVENESS: Mapping[str, int] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# The same at the server's end of the connection.
SERVER_LIVENESS = " ".join(
    f"-c tcp_{name.removeprefix('tcp_')}={value}" for name, value in LIVENESS.items() if name != "connect_timeout"
)
OPT_OUT = "or, for a private network only, name the host in LEADSYNC_PLAINTEXT_HOSTS"


def may_be_plain(host: str | None) -> bool:
    """Whether a connection to this host may go unprotected. None or a path is a socket of this machine."""
    if not host or host.startswith(("/", "@")):
        return True
    host = host.lower().strip("[]")
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return local or host in {name.strip().lower() for name in os.environ.get("LEADSYNC_PLAINTEXT_HOSTS", "").split(",")}


def check_postgres(where: str, hosts: str | None, sslmode: str | None) -> None:
    """Raises ConfigError unless the server's certificate and name are checked. `hosts` may be several, with commas."""
    for host in (hosts or "").split(","):
        if not may_be_plain(host) and sslmode != "verify-full":
            raise ConfigError(
                f"{where} goes to {host} with sslmode {sslmode or 'prefer'}, which anybody between can read: set "
                f"`sslmode` to verify-full and `sslrootcert` to the file of the authority (or `system`), {OPT_OUT}"
            )


def check_dsn(dsn: str) -> None:
    """As `check_postgres`, of a DSN; what it leaves out libpq takes from the environment."""
    given = conninfo_to_dict(dsn)
    host, mode = given.get("host") or os.environ.get("PGHOST"), given.get("sslmode") or os.environ.get("PGSSLMODE")
    check_postgres("the DSN", str(host) if host else None, str(mode) if mode else None)


def check_redis(where: str, host: str | None, extra: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the server's certificate and name are checked. `extra` is the connection's."""
    checked = (
        extra.get("ssl") in TRUE
        and str(extra.get("ssl_cert_reqs", "required")).lower() in ("required", "cert_required")
        and extra.get("ssl_check_hostname", True) in TRUE
    )
    if not may_be_plain(host) and not checked:
        raise ConfigError(
            f"{where} goes to {host} in the clear or without a look at its certificate: set `ssl` to true in its "
            f"extra, and leave `ssl_cert_reqs` and `ssl_check_hostname` as they are, {OPT_OUT}"
        )
