"""PostgreSQL and Redis behind TLS, through Airflow's hooks: a good certificate, one of another host, an unknown one.

The servers of the tests speak no TLS themselves, so it ends right before them; what is tested is the client's side.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis
from psycopg.conninfo import conninfo_to_dict
from tests.support.tls import certificate, tls_before

from leadsync import runtime
from leadsync.errors import ConfigError

CASES = {"good": None, "another host": "is of another host", "unknown": "is not the one in `sslrootcert`"}


def presented(case: str, tmp_path: Path) -> tuple[Path, Path]:
    """The server's certificate, and the one that the client trusts."""
    served = certificate(tmp_path, "elsewhere.example" if case == "another host" else "localhost")
    return served, certificate(tmp_path, "127.0.0.1") if case == "unknown" else served


@pytest.mark.parametrize("case", CASES)
def test_postgresql(case: str, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, trusted = presented(case, tmp_path)
    with tls_before(int(str(conninfo_to_dict(postgres)["port"])), served, postgres=True) as port:
        extra = {"sslmode": "verify-full", "sslrootcert": str(trusted)}
        connection = {
            "conn_type": "postgres", "host": "localhost", "port": port, "login": "postgres", "schema": "postgres",
            "extra": extra,
        }  # fmt: skip
        monkeypatch.setenv("AIRFLOW_CONN_LEAD_STORE", json.dumps(connection))
        if expected := CASES[case]:
            with pytest.raises(ConfigError, match=expected), runtime.database("lead_store"):
                pass
        else:
            with runtime.database("lead_store") as found:
                assert found.pgconn.ssl_in_use
                assert found.execute("SELECT 1").fetchone() == (1,)


def test_a_postgresql_without_tls_is_told(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"sslmode": "verify-full", "sslrootcert": str(certificate(tmp_path, "localhost"))}
    port = int(str(conninfo_to_dict(postgres)["port"]))
    connection = {"conn_type": "postgres", "host": "localhost", "port": port, "login": "postgres", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_LEAD_STORE", json.dumps(connection))
    with pytest.raises(ConfigError, match="the server speaks no TLS"), runtime.database("lead_store"):
        pass


@pytest.mark.parametrize("case", CASES)
def test_redis(case: str, valkey: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, trusted = presented(case, tmp_path)
    with tls_before(valkey.get_connection_kwargs()["port"], served) as port:
        extra = {"ssl": True, "ssl_ca_certs": str(trusted)}
        connection = {"conn_type": "redis", "host": "localhost", "port": port, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_LEADSYNC_REDIS", json.dumps(connection))
        with runtime.redis_client() as client:
            if case == "good":
                assert client.ping()
            else:
                with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
                    client.ping()


def test_another_host_is_not_even_asked_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LEAD_STORE", "postgres://me:secret@db.invalid/x")
    monkeypatch.setenv("AIRFLOW_CONN_LEADSYNC_REDIS", "redis://:secret@redis.invalid:6379")
    with pytest.raises(ConfigError, match="LEADSYNC_PLAINTEXT_HOSTS") as caught, runtime.database("lead_store"):
        pass
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="LEADSYNC_PLAINTEXT_HOSTS"), runtime.redis_client():
        pass
