"""The embedded stack of `make up`, for real: its own folder, its own ports, every process."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from demo.stack import ports
from demo.stack.__main__ import main
from demo.stack.errors import StackError
from demo.stack.stack import Stack

ROOT = Path(__file__).parents[2]


SLEEPER = """
import time

from airflow.sdk import dag, task


@dag(schedule=None)
def sleeper():
    @task
    def sleep():
        time.sleep(600)

    sleep()


sleeper()
"""


def a_stack(folder: Path, dags: Path | None = None, dag: str | None = None) -> Stack:
    return Stack(folder, ports.free_base(20000 + os.getpid() * 20 % 10000), ROOT, dags_folder=dags, dag=dag)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    dags = tmp_path_factory.mktemp("dags")
    (dags / "sleeper.py").write_text(SLEEPER)
    stack = a_stack(tmp_path_factory.mktemp("stack") / "with blank", dags, "sleeper")
    yield stack
    stack.clean()


@pytest.fixture
def running(made: Stack) -> Stack:
    made.up()
    return made


def assert_nothing_left(stack: Stack) -> None:
    assert stack.processes() == []
    ports.check_free(stack.settings.base_port)


def await_true(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def healthy(stack: Stack, name: str) -> bool:
    state = next(state for state in stack.status() if state.name == name)
    return state.state == "RUNNING" and stack.problem(state) is None


@pytest.mark.parametrize("text", ["http", "0", "-1", "65530", "8080.5"])
def test_a_base_that_is_no_port_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEADSYNC_PORT", text)
    with pytest.raises(StackError, match="LEADSYNC_PORT=.* is not a port"):
        ports.base_from_environment()


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    stack = a_stack(tmp_path)
    with socket.create_server(("127.0.0.1", stack.port("landing"))), pytest.raises(StackError) as caught:
        stack.up()
    text = str(caught.value)
    assert f"{stack.port('landing')} (landing) is taken by" in text
    assert f"(pid {os.getpid()})" in text
    assert "LEADSYNC_PORT=" in text
    assert stack.processes() == []
    assert not stack.postgres.folder.exists()


def test_what_does_not_come_up_is_named_and_the_rest_is_stopped(tmp_path: Path) -> None:
    stack = a_stack(tmp_path)
    folder = tmp_path / "valkey" / "appendonlydir"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof.manifest").write_text("nonsense\n")
    try:
        with pytest.raises(StackError, match=r"(?s)Valkey does not come up: .*manifest.*the whole log: .*valkey.log"):
            stack.up()
        assert_nothing_left(stack)
    finally:
        stack.clean()


def test_settings_of_the_users_own_airflow_stay_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "True")
    monkeypatch.setenv("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
    monkeypatch.setenv("AIRFLOW_HOME", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("AIRFLOW_CONN_LEAD_STORE", "postgres://elsewhere")
    monkeypatch.setenv("AIRFLOW_CONN_CRM_MINE", "http://mine")
    found = a_stack(tmp_path).environment()
    assert found["AIRFLOW__CORE__LOAD_EXAMPLES"] == "False"
    assert "AIRFLOW__CORE__UNIT_TEST_MODE" not in found
    assert [name for name, value in found.items() if "elsewhere" in value] == []
    assert found["AIRFLOW_CONN_CRM_MINE"] == "http://mine"


def test_status_before_the_first_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path / "none")]
    assert main([*folder, "status"]) == 3
    assert main([*folder, "down"]) == 0
    assert capsys.readouterr().out.count("Leadsync is not running") == 2


def test_everything_listens_on_the_loopback_only(running: Stack) -> None:
    found = set()
    for process in running.processes():
        with suppress(psutil.NoSuchProcess):  # a DAG file's parser is gone in a moment
            listening = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
            found |= {each.laddr for each in listening}
    assert {ip for ip, _ in found} == {"127.0.0.1"}
    assert {port for _, port in found} == {running.port(name) for name in ports.OFFSETS}


def test_secrets_are_readable_by_their_owner_only(running: Stack) -> None:
    files = [path for path in running.secrets.folder.iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    for folder in (running.state_dir, running.secrets.folder, running.postgres.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    values = {path.read_text() for path in files}
    shown = " ".join(part for process in running.processes() for part in process.cmdline())
    shown += (running.state_dir / "supervisord.conf").read_text()
    shown += "".join(path.read_text() for path in (running.state_dir / "logs").iterdir())
    assert [value for value in values if value in shown] == []


def test_a_second_up_says_that_it_runs(running: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    before = [state.pid for state in running.status()]
    assert main(["--folder", str(running.state_dir), "up"]) == 0
    printed = capsys.readouterr().out
    assert "runs already" in printed
    assert running.ui_url in printed
    assert [state.pid for state in running.status()] == before


def test_status_tells_addresses_and_processes(running: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(running.state_dir), "status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = dict(line.split("=", 1) for line in lines[:9])
    assert list(values) == [
        "UI_URL", "UI_USER", "UI_PASSWORD", "LEAD_STORE_DSN", "LEADSYNC_DB_DSN", "REDIS_URL", "LANDING_URL",
        "CRM_HUBSPOT_URL", "CRM_SALESFORCE_URL",
    ]  # fmt: skip
    with psycopg.connect(values["LEAD_STORE_DSN"]) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("hive_owner",)
    assert [line.split()[:2] for line in lines[9:]] == [[each.name, "RUNNING"] for each in running.programs()]


def test_killed_programs_come_back_and_leave_no_orphans(running: Stack) -> None:
    run = running.api("POST", "/dags/sleeper/dagRuns", json={"logical_date": None}).json()["dag_run_id"]
    task = f"/dags/sleeper/dagRuns/{run}/taskInstances/sleep"
    await_true(lambda: running.api("GET", task).json().get("state") == "running", "the task does not start")
    killed = {name: running.pid(name) for name in ("airflow-scheduler", "postgres", "crm-hubspot")}
    # Processes that run a task are hidden from their own user: the case that is easily missed.
    orphans = psutil.Process(killed["airflow-scheduler"]).children(recursive=True)
    assert len(orphans) > 8
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)
    for name, pid in killed.items():
        await_true(lambda name=name, pid=pid: running.pid(name) not in (0, pid), f"{name} is not started again")
        await_true(lambda name=name: healthy(running, name), f"{name} is not healthy again")
    assert [process for process in orphans if process.is_running()] == []


def test_down_leaves_nothing_and_up_goes_on_with_the_data(running: Stack) -> None:
    with psycopg.connect(running.lead_store_dsn) as connection:
        connection.execute("CREATE TABLE kept (number int)")
    running.down()
    assert_nothing_left(running)
    running.up()
    with psycopg.connect(running.lead_store_dsn) as connection:
        connection.execute("DROP TABLE kept")


def test_down_ends_what_a_killed_supervisor_left(running: Stack) -> None:
    os.kill(int((running.state_dir / "supervisord.pid").read_text()), signal.SIGKILL)
    assert len(running.processes()) > len(running.programs()) - 1
    running.down()
    assert_nothing_left(running)
