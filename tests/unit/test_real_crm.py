"""What installs the real CRMs of the contract tests: once, and loudly when it can't."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.support import real, real_bottlecrm
from tests.support.faults import FaultProxy
from tests.support.real_tryton import JSONRPC
from tests.support.servers import free_port


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(real, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    path = tmp_path / "requirements.txt"
    path.write_text("trytond==8.2.1\n")
    return path


def test_an_index_that_is_out_of_reach_fails_with_the_remedy(
    requirements: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    with pytest.raises(RuntimeError, match="its packages can't be installed.* package index") as caught:
        real.installed("tryton", [requirements], lambda python, folder: made.append(folder))
    assert f"No matching distribution found for {real.PIP}" in str(caught.value), "pip's own reason is not passed on"
    assert made == []
    monkeypatch.setattr(real, "_install", lambda kind, python, path: None)
    folder = real.installed("tryton", [requirements], lambda python, folder: made.append(folder))
    assert made == [folder], "what was half made was taken for whole"


def test_it_is_made_once_until_a_source_changes(requirements: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "_install", lambda kind, python, path: None)
    made: list[Path] = []
    for content in ("", "", "# other"):
        requirements.write_text(content)
        folder = real.installed("tryton", [requirements], lambda python, folder: made.append(folder))
        assert folder == made[-1]
        assert (folder / "bin" / "python").exists()
    assert len(set(made)) == len(made) == 2


def test_faults_that_the_wire_can_not_have_are_refused() -> None:
    proxy = FaultProxy(free_port(), JSONRPC())
    with pytest.raises(ValueError, match="no fault of the wire: reject"):
        proxy.set_faults({"reject": {"rate": 1}, "down": True})


def test_kinds_without_a_server_have_a_simulator() -> None:
    assert real.is_real("tryton")
    assert not real.is_real("hubspot")


def test_without_a_python_that_is_new_enough_it_is_said_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/bin")
    found = subprocess.run([real_bottlecrm.PYTHON, "--cached"], capture_output=True, text=True)
    if found.returncode == 0:  # the machine's own is new enough
        assert Path(found.stdout.strip()).is_relative_to("/bin")
        return
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="run .ci/python-for-bottlecrm once"):
        real_bottlecrm.start()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(RuntimeError, match="run .ci/python-for-bottlecrm once"):
        real_bottlecrm.start()
    assert list(tmp_path.iterdir()) == []
