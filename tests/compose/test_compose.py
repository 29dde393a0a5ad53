"""`docker compose up`, for real. The tests share one project and go over it in order; each ends in step."""

from __future__ import annotations

import psycopg
import pytest

from demo import lead_store
from tests.compose.stack import Compose
from tests.e2e.conftest import Airflow

# The first one pulls and builds images.
pytestmark = pytest.mark.timeout(3600)

ONE_SHOT = {"init", "demo-init"}
RUN_SECONDS = 420


def fill(airflow: Airflow, appkey: str, count: int) -> None:
    airflow.hive.execute(
        "INSERT INTO customer (appkey, uid, name) SELECT %s, n, 'Lead ' || n FROM generate_series(1, %s) n",
        (appkey, count),
    )


def begin_a_slow_load(airflow: Airflow, appkey: str) -> str:
    """A run whose loads have begun and go on for a while; its id."""
    fill(airflow, appkey, 6000)
    hubspot = airflow.simulators["hubspot"]
    before = len(hubspot.records())
    for simulator in airflow.simulators.values():
        simulator.faults(latency=1.0)
    run_id = airflow.trigger()
    airflow.until(lambda: len(hubspot.records()) > before, "nothing arrives")
    return run_id


def finish(airflow: Airflow, run_id: str) -> None:
    """The run succeeds, and a further one leaves all in step."""
    for simulator in airflow.simulators.values():
        simulator.faults()
    assert airflow.wait(run_id, seconds=RUN_SECONDS) == "success", airflow.tasks(run_id)
    last = airflow.trigger()
    assert airflow.wait(last, seconds=RUN_SECONDS) == "success", airflow.tasks(last)
    airflow.assert_in_step()


def test_a_secret_that_is_missing_or_empty_is_named(compose: Compose) -> None:
    secrets = compose.copy_of_secrets()
    command = ("run", "--rm", "--no-deps", "--no-TTY", "init", "true")
    (secrets / "encryption_key").unlink()
    refused = compose.attempt(*command, secrets=secrets)
    assert refused.returncode != 0
    assert "encryption_key" in refused.stderr
    (secrets / "encryption_key").touch()
    refused = compose.attempt(*command, secrets=secrets)
    assert refused.returncode != 0
    assert "missing or empty secrets: encryption_key" in refused.stdout + refused.stderr


def test_every_service_is_bounded_and_knows_no_secret(compose: Compose) -> None:
    secrets = [path.read_text() for path in compose.secrets.rglob("*") if path.is_file()]
    for name, service in compose.services().items():
        assert service["read_only"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["logging"]["options"]["max-size"], name
        if name in ONE_SHOT:
            assert service["restart"] == "no", name
        else:
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"], name
        assert not any(secret in str(service) for secret in secrets), name


def test_all_is_healthy_nobody_is_root_and_only_loopback_is_published(compose: Compose, airflow: Airflow) -> None:
    published = set()
    for container in compose.containers():
        name = container["Service"]
        if name in ONE_SHOT:
            assert (container["State"], container["ExitCode"]) == ("exited", 0), name
            continue
        assert container["Health"] == "healthy", name
        ports = [port for port in container["Publishers"] or [] if port["PublishedPort"]]
        assert {port["URL"] for port in ports} <= {"127.0.0.1"}, name
        published |= {name} if ports else set()
        look = 'id -u; while read -r _ on _ how _; do [ "$on" != / ] || echo "$how"; done < /proc/mounts'
        user, *mounts = compose("exec", "--no-TTY", name, "sh", "-c", look).split()
        assert user != "0", name
        assert mounts[-1].split(",")[0] == "ro", name
    assert published == {"api-server", "demo-landing", "demo-hubspot", "demo-salesforce", "demo-store"}


def test_a_run_over_rest_brings_the_crms_in_step(airflow: Airflow) -> None:
    fill(airflow, "FIRST", 300)
    finish(airflow, airflow.trigger())
    lead_store.update(airflow.hive, "FIRST", 1, "Newer 😀", "1", None)
    lead_store.delete(airflow.hive, "FIRST", 2)
    assert airflow.counts(airflow.run(), 1)["delivered"] == 2
    airflow.assert_in_step()


def test_a_worker_that_is_killed_in_a_load_comes_back_and_the_load_goes_on(compose: Compose, airflow: Airflow) -> None:
    run_id = begin_a_slow_load(airflow, "KILL")
    # All processes but the container's first, which ends with them.
    compose.attempt("exec", "--no-TTY", "worker", "sh", "-c", "kill -9 -1")
    lead_store.update(airflow.hive, "KILL", 1, "Newer", "1", None)
    finish(airflow, run_id)
    tries = [airflow.load(run_id, index)["try_number"] for index in (0, 1)]
    assert max(tries) > 1
    compose.up("--no-recreate")


def test_two_workers_share_the_loads(compose: Compose, airflow: Airflow) -> None:
    compose.up("--no-recreate", "--scale", "worker=2")
    run_id = begin_a_slow_load(airflow, "TWO")
    finish(airflow, run_id)
    hosts = {airflow.load(run_id, index)["hostname"] for index in (0, 1)}
    assert len(hosts) == 2, hosts


def test_postgresql_and_redis_are_restarted_in_a_load(compose: Compose, airflow: Airflow) -> None:
    run_id = begin_a_slow_load(airflow, "RESTART")
    compose("restart", "postgres", "valkey", "broker")
    finish(airflow, run_id)


def test_down_and_up_keep_the_data(compose: Compose, airflow: Airflow) -> None:
    fill(airflow, "KEPT", 50)
    run_id = airflow.run()
    records = {name: simulator.records() for name, simulator in airflow.simulators.items()}
    airflow.hive.close()
    compose("down")
    compose.up()
    airflow.hive = psycopg.connect(compose.lead_store_dsn, autocommit=True)
    assert {name: simulator.records() for name, simulator in airflow.simulators.items()} == records
    assert compose.api("GET", f"/dags/leads_sync/dagRuns/{run_id}").json()["state"] == "success"
    lead_store.update(airflow.hive, "KEPT", 1, "Newer", "1", None)
    # One: ledger and watermark are kept.
    counts = airflow.counts(airflow.run(), 0)
    assert (counts["read"], counts["delivered"]) == (1, 1)
    airflow.assert_in_step()
