"""What connections to PostgreSQL are set to; see tests/machines for those that lead nowhere any more."""

from __future__ import annotations

import json
import os
import socket

import pytest
from psycopg.conninfo import conninfo_to_dict

from leadsync import runtime

SERVERS = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "30000",
}


@pytest.fixture(autouse=True)
def connection(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(str(conninfo_to_dict(postgres)["port"]))
    extra = {"keepalives_idle": 42}  # what a person has set stays
    values = {"conn_type": "postgres", "host": "127.0.0.1", "port": port, "login": "postgres", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_LEAD_STORE", json.dumps(values))


def test_statements_are_not_compiled() -> None:
    with runtime.database("lead_store") as found:
        assert found.execute("SHOW jit").fetchone() == ("off",)


def test_both_ends_of_a_connection_look_after_it() -> None:
    with runtime.database("lead_store") as found:
        told = {name: found.execute(f"SHOW {name}").fetchone() for name in SERVERS}
        with socket.socket(fileno=os.dup(found.fileno())) as ours:
            options = [
                ours.getsockopt(socket.IPPROTO_TCP, option)
                for option in (
                    socket.TCP_KEEPIDLE,
                    socket.TCP_KEEPINTVL,
                    socket.TCP_KEEPCNT,
                    socket.TCP_USER_TIMEOUT,
                )
            ]
    assert told == {name: (value,) for name, value in SERVERS.items()}
    assert options == [42, 5, 4, 30_000]
