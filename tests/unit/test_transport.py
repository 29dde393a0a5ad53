"""What may go in the clear, by host."""

from __future__ import annotations

import pytest
from tests.unit.test_crm_base import destination

from leadsync import transport
from leadsync.crm import registry
from leadsync.crm.base import Endpoint
from leadsync.errors import AccessError, ConfigError


@pytest.mark.parametrize("host", [None, "", "/run/postgresql", "127.0.0.1", "127.1.2.3", "::1", "[::1]", "LocalHost"])
def test_this_machine_needs_no_tls(host: str | None) -> None:
    assert transport.may_be_plain(host)


@pytest.mark.parametrize("host", ["db.example", "10.0.0.1", "localhost.example", "127.0.0.1.example", "db"])
def test_another_needs_it_unless_it_is_named(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("LEADSYNC_PLAINTEXT_HOSTS", "other")
    assert not transport.may_be_plain(host)
    monkeypatch.setenv("LEADSYNC_PLAINTEXT_HOSTS", f"other, {host.upper()}")
    assert transport.may_be_plain(host)


@pytest.mark.parametrize("mode", [None, "disable", "allow", "prefer", "require", "verify-ca"])
def test_postgresql_is_verified_in_full(mode: str | None) -> None:
    transport.check_postgres("connection x", "localhost", mode)
    transport.check_postgres("connection x", "db.example", "verify-full")
    with pytest.raises(ConfigError, match=r"connection x goes to db.example .*set `sslmode` to verify-full"):
        transport.check_postgres("connection x", "localhost,db.example", mode)


def test_a_dsn_is_completed_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    transport.check_dsn("postgresql://me:secret@127.0.0.1/x")
    transport.check_dsn("postgresql://me:secret@db.example/x?sslmode=verify-full")
    with pytest.raises(ConfigError) as caught:
        transport.check_dsn("postgresql://me:secret@db.example/x")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    transport.check_dsn("host=db.example dbname=x")
    monkeypatch.setenv("PGHOST", "db.example")
    monkeypatch.delenv("PGSSLMODE")
    with pytest.raises(ConfigError):
        transport.check_dsn("dbname=x")


@pytest.mark.parametrize(
    "extra",
    [{}, {"ssl": False}, {"ssl": True, "ssl_cert_reqs": "none"}, {"ssl": True, "ssl_check_hostname": False}],
)
def test_redis_is_verified(extra: dict[str, object]) -> None:
    transport.check_redis("connection x", "127.0.0.1", extra)
    transport.check_redis("connection x", "redis.example", {"ssl": True})
    with pytest.raises(ConfigError, match="connection x goes to redis.example"):
        transport.check_redis("connection x", "redis.example", extra)


def test_nothing_is_sent_to_a_crm_in_the_clear() -> None:
    adapter = registry.build(destination(), Endpoint("http://crm.invalid", password="t"))
    with pytest.raises(AccessError, match="would go to crm.invalid in the clear"):
        adapter.check()
    adapter.close()
