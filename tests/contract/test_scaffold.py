"""A new CRM passes lint and its whole suite as `make new-crm` writes it, in a copy of the project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.suite import AdapterSuite

ROOT = Path(__file__).parents[2]
COPIED = ("include", "tests/__init__.py", "tests/conftest.py", "tests/contract", "tests/support", "pyproject.toml")
NAME = "made_for_a_test"  # nobody else takes it
PYTHON = sys.executable


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the new CRM in it."""
    root = tmp_path_factory.mktemp("project")
    for part in COPIED:
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "test_*.py"))
        else:
            shutil.copy(ROOT / part, root / part)
    before = contents(root)
    told = run(root, PYTHON, "-m", "leadsync", "new-crm", NAME)
    added = contents(root)
    assert {path: added[path] for path in before} == before, "it touched a file that was there"
    assert sorted(added.keys() - before.keys()) == sorted(told.split("\n\n")[0].splitlines())
    return root


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def run(root: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{root / 'include'}{os.pathsep}{root}"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "linter",
    [
        (PYTHON, "-m", "ruff", "check", "."),
        (PYTHON, "-m", "ruff", "format", "--check", "."),
        (PYTHON, "-m", "mypy", "-m", f"leadsync.crm.{NAME}", "-m", f"demo.crm.{NAME}"),
        (str(Path(PYTHON).with_name("lint-imports")),),
    ],
    ids=["ruff check", "ruff format", "mypy", "lint-imports"],
)
def test_it_passes_lint(project: Path, linter: tuple[str, ...]) -> None:
    run(project, *linter)


def test_its_suite_passes(project: Path) -> None:
    told = run(project, PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/contract/test_{NAME}.py")
    assert "failed" not in told
    cases = [name for name in dir(AdapterSuite) if name.startswith("test_")]
    assert int(told.splitlines()[-1].split()[0]) >= len(cases)
