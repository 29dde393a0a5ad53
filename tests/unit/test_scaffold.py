"""The names that a new CRM may have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from leadsync.__main__ import main
from leadsync.crm import scaffold
from leadsync.errors import ConfigError

ROOT = Path(__file__).parents[2]


def folders(root: Path) -> Path:
    """The folders of a project without a CRM."""
    for path in scaffold.FILES.values():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    return root


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hubspot", "exists already: include/leadsync/crm/hubspot.py"),
        ("scaffold", "exists already: include/leadsync/crm/scaffold.py"),
        ("server", "exists already: include/demo/crm/server.py"),
        ("simulators", "exists already: tests/contract/test_simulators.py"),
        ("class", "is a keyword of Python"),
        ("match", "is a keyword of Python"),
        ("row", "would hide what adapters import as Row"),
        ("lead", "would hide what adapters import as Lead"),
        ("", "is no name of an adapter"),
        ("2fast", "is no name of an adapter"),
        ("my-crm", "is no name of an adapter"),
        ("../evil", "is no name of an adapter"),
        ("Acme", "is no name of an adapter"),
        ("a" * 31, "is no name of an adapter"),
        ("acme\n", "is no name of an adapter"),
    ],
)
def test_a_name_that_will_not_do_is_refused_in_a_sentence(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-crm", name]) == 1
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_nothing_is_written_when_one_of_the_files_is_there(tmp_path: Path) -> None:
    root = folders(tmp_path)
    (root / "tests/contract/test_acme.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"exists already: tests/contract/test_acme\.py"):
        scaffold.write("acme", root)
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["test_acme.py"]


@pytest.mark.parametrize("name", ["z9", "a_b", "the_longest_name_of_a_crm_here"])
def test_the_files_of_any_name_are_formatted_and_parse(name: str, tmp_path: Path) -> None:
    paths = scaffold.write(name, folders(tmp_path))
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        path.format(name=name) for path in scaffold.FILES.values()
    ]
    for path in paths:
        compile(path.read_text(), path, "exec")
    ruff = [sys.executable, "-m", "ruff"]
    settings = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), *map(str, paths)]
    for command in ([*ruff, "format", "--check", *settings], [*ruff, "check", *settings]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_it_says_what_is_left_to_do() -> None:
    told = scaffold.next_steps("acme_two")
    assert "pytest tests/contract/test_acme_two.py" in told
    assert "| [`acme_two`](docs/crm/acme_two.md) |" in told
    for path in scaffold.FILES.values():
        assert path.format(name="acme_two") in told
