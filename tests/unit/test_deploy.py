"""The image's entry point, the script that makes the secrets, and what the compose files say of both."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from cryptography.fernet import Fernet
from deploy.entrypoint import MissingSecrets, filled

from leadsync.sealing import Sealer

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "docker-compose.yaml", ROOT / "deploy" / "demo.yaml", ROOT / "deploy" / "monitoring.yaml"]
DEFAULT = re.compile(r"\$\{(\w+):-([^${}]*)\}")


def make_secrets(*arguments: str | Path) -> str:
    command = [ROOT / "deploy" / "make-secrets.sh", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_secrets_are_filled_in_and_encoded_in_urls(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p@ss/w:rd\n")
    given = {"URL": "redis://:{secret:password}@host:1", "PLAIN": "{secret:password}", "OTHER": "{a}"}
    assert filled(given, tmp_path, tmp_path / "none") == {
        "URL": "redis://:p%40ss%2Fw%3Ard@host:1",
        "PLAIN": "p@ss/w:rd",
        "OTHER": "{a}",
    }


def test_every_file_is_a_connection_and_a_variable_that_is_set_wins(tmp_path: Path) -> None:
    (tmp_path / "crm_hubspot").write_text('{"conn_type": "http"}\n')
    (tmp_path / "lead_store").write_text("postgres://file")
    (tmp_path / ".hidden").write_text("x")
    assert filled({"AIRFLOW_CONN_LEAD_STORE": "postgres://set"}, tmp_path, tmp_path) == {
        "AIRFLOW_CONN_LEAD_STORE": "postgres://set",
        "AIRFLOW_CONN_CRM_HUBSPOT": '{"conn_type": "http"}',
    }


def test_all_that_are_missing_or_empty_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "there").write_text("x")
    given = {"A": "{secret:there}", "B": "{secret:gone}", "C": "{secret:empty}"}
    with pytest.raises(MissingSecrets, match="missing or empty secrets: empty, gone;"):
        filled(given, tmp_path, tmp_path / "none")


def test_the_secrets_that_are_made_are_of_use_and_stay(tmp_path: Path) -> None:
    folder = tmp_path / "with blank"
    (folder / "connections").mkdir(parents=True)
    (folder / "redis_password").write_text("mine")
    assert "redis_password" not in make_secrets("--demo", folder)
    first = {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert make_secrets("--demo", folder) == ""
    assert {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()} == first
    assert first["redis_password"] == "mine"
    Fernet(first["airflow_fernet_key"])
    Sealer(first["encryption_key"])
    assert set(json.loads(first["ui_passwords.json"])) == {"admin", "viewer"}
    assert json.loads(first["lead_store"])["password"] == first["demo_store_reader_password"]
    made = [path for path in folder.rglob("*") if path.is_file() and path.name != "redis_password"]
    assert len({path.read_text() for path in made}) == len(made)
    # The services run as different users; the folder keeps the machine's other users out.
    assert {path.stat().st_mode & 0o777 for path in made} == {0o444}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_demo_is_asked_for(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if "demo" in path.name or path.parent.name == "connections"]


def test_the_example_lists_every_variable_with_its_default() -> None:
    text, used = "".join(path.read_text() for path in FILES), set()
    # A default may hold a variable; the innermost is replaced first.
    while found := DEFAULT.findall(text):
        used |= set(found)
        text = DEFAULT.sub(lambda match: match[2], text)
    assert re.findall(r"(?<!\$)\$\{\w*", text) == []
    listed = set(re.findall(r"^#(LEADSYNC_\w+)=(\S+)", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert listed == used


def test_every_secret_is_made_and_every_placeholder_is_mounted(tmp_path: Path) -> None:
    make_secrets("--demo", tmp_path)
    for path in FILES:
        content = yaml.safe_load(path.read_text())
        for secret in content["secrets"].values():
            assert (tmp_path / Path(secret["file"]).name).exists(), secret
        for name, service in content["services"].items():
            wanted = set(re.findall(r"\{secret:(\w+)\}", json.dumps(service.get("environment", {}))))
            assert wanted <= set(service.get("secrets", [])), name
            assert set(service.get("secrets", [])) <= set(content["secrets"]), name


def test_the_image_is_of_the_pinned_airflow() -> None:
    (pinned,) = re.findall(r"^apache-airflow==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert f"apache/airflow:slim-{pinned}-python3.13" in (ROOT / "deploy" / "Dockerfile").read_text()
