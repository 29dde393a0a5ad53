"""The documents: links lead somewhere, commands and files that they name are there, their pipeline files are right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from leadsync import alerts
from leadsync.config import load_pipeline
from leadsync.crm import registry

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")) if path.is_file()
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# Paths of this repository, as documents write them; <name> and the like stand for many.
NAMED = re.compile(r"`((?:include|dags|plugins|tests|bench|deploy|docs|model)/[\w./*-]+)`")
SHIPPED = yaml.safe_load((ROOT / "include" / "pipelines" / "leads.yaml").read_text())

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(document: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub and the site make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


@documents
def test_every_link_leads_somewhere(document: Path) -> None:
    wrong = []
    for link in LINK.findall(prose(document)):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_the_site_holds_every_page_and_no_page_leads_out_of_it() -> None:
    """As `make docs` sees it, which needs more than the tests have."""
    folder = ROOT / "docs"
    listed = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {str(path.relative_to(folder)) for path in folder.glob("**/*.md")}
    for page in folder.glob("**/*.md"):
        links = [link.partition("#")[0] for link in LINK.findall(prose(page)) if not re.match(r"https?:", link)]
        outside = [link for link in links if not (page.parent / link).resolve().is_relative_to(folder)]
        assert outside == [], page.name


@documents
def test_every_target_of_make_is_there(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^|&& )make (?:-s )?([a-z-]+)", document.read_text(), re.MULTILINE))
    assert named - targets == set()


def test_every_command_of_leadsync_is_there() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "leadsync", "--help"], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "include")},
    ).stdout  # fmt: skip
    commands = re.search(r"\{([a-z,-]+)\}", told)
    assert commands
    named = {
        name for document in DOCUMENTS for name in re.findall(r"python -m leadsync ([a-z-]+)", document.read_text())
    }
    assert len(named) > 2
    assert named - set(commands[1].split(",")) == set()


@documents
def test_every_module_that_is_to_be_run_is_there(document: Path) -> None:
    places = [ROOT, ROOT / "include"]
    for module in re.findall(r"python -m ((?:leadsync|demo|bench|tests)[\w.]*)", document.read_text()):
        path = module.replace(".", "/")
        assert any((place / f"{path}.py").is_file() or (place / path).is_dir() for place in places), module


@documents
def test_every_file_that_is_named_is_there(document: Path) -> None:
    missing = [path for path in NAMED.findall(document.read_text()) if not any(ROOT.glob(path.rstrip("/")))]
    if document.name == "CHANGELOG.md":  # it also tells what has been
        return
    assert missing == []


def blocks() -> list[tuple[str, dict[str, Any]]]:
    """Every block of YAML that could stand in a pipeline file, and where it is."""
    found = []
    for document in DOCUMENTS:
        for number, block in enumerate(re.findall(r"^ *```yaml\n(.*?)^ *```", document.read_text(), re.DOTALL | re.M)):
            content = yaml.safe_load(textwrap.dedent(block))
            if isinstance(content, dict) and {"source", "destinations"} & set(content):
                found.append((f"{document.relative_to(ROOT)}:{number}", content))
    return found


@pytest.mark.parametrize("content", [each for _, each in blocks()], ids=[name for name, _ in blocks()])
def test_every_pipeline_file_is_right(content: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "leads.yaml"
    # Destinations alone are read over the shipped source.
    file.write_text(yaml.safe_dump({"source": SHIPPED["source"], "destinations": SHIPPED["destinations"], **content}))
    registry.check_pipeline(load_pipeline(file))


def test_every_alert_has_its_place_in_the_documents() -> None:
    (group,) = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yaml").read_text())["groups"]
    told = re.findall(r"^\| `(Leadsync\w+)` \|", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE)
    assert told == [rule["alert"] for rule in group["rules"]]


def test_every_kind_of_message_has_its_place_in_the_documents() -> None:
    told = (ROOT / "docs" / "operating.md").read_text().partition("Its kinds:")[2].partition("###")[0]
    kinds = [kind for row in re.findall(r"^\| (`.+?) \|", told, re.MULTILINE) for kind in re.findall(r"`(\w+)`", row)]
    assert kinds == list(alerts.KINDS)


def test_both_languages_tell_the_same() -> None:
    """The same pictures, tables of CRMs, and documents; a README that is behind the other misleads."""
    english, chinese = (set(LINK.findall((ROOT / name).read_text())) for name in ("README.md", "README.zh-CN.md"))
    assert english - {"README.zh-CN.md"} == chinese - {"README.md"}
