"""Writes the files of a new CRM: an adapter and a simulator of a small API, and their test, which passes as it stands.

They are templates and no copies of a living adapter; a test makes a CRM of them and runs its linters and its suite.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from leadsync.errors import ConfigError

TEMPLATES = Path(__file__).parent
NAME = re.compile(r"[a-z][a-z0-9_]{1,29}")
# Template → the file that it becomes, below the root of the project.
FILES = {
    "adapter.txt": "include/leadsync/crm/{name}.py",
    "simulator.txt": "include/demo/crm/{name}.py",
    "test.txt": "tests/contract/test_{name}.py",
}


def write(name: str, root: Path) -> list[Path]:
    """Writes them into the project at `root`; returns them. Raises ConfigError for a name that won't do."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name of an adapter: 2 to 30 lower-case letters, digits and underscores, a letter first"
        )
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ConfigError(f"{name!r} is a keyword of Python: choose another name")
    texts = {file: (TEMPLATES / file).read_text(encoding="utf-8") for file in FILES}
    words = {
        "name": name,
        "label": name.replace("_", " ").title(),
        "class_name": "".join(part.capitalize() for part in name.split("_")),
    }
    paths = {file: root / path.format(name=name) for file, path in FILES.items()}
    there = [path for path in paths.values() if path.exists() or path.with_suffix("").exists()]
    if there:
        raise ConfigError(f"{name!r} exists already: {there[0].relative_to(root)}")
    if any(re.search(rf"\b{words['class_name']}\b", text) for text in texts.values()):
        raise ConfigError(f"{name!r} would hide what adapters import as {words['class_name']}: choose another name")
    for file, path in paths.items():
        path.write_text(Template(texts[file]).substitute(words), encoding="utf-8")
    return list(paths.values())


def next_steps(name: str) -> str:
    """What is left to do, for the one who made it."""
    test = FILES["test.txt"].format(name=name)
    label = name.replace("_", " ").title()
    return f"""
The suite passes as it stands: .venv/bin/pytest {test}
1. Change what is marked, the simulator first: grep -n CHANGE {" ".join(FILES.values()).format(name=name)}
   docs/adding-a-crm.md says what there is to decide.
2. Add a row to the table of CRMs in README.md:
   | [`{name}`](docs/crm/{name}.md) | how {label} is written to | host, password: API token |
3. Write its page: make docs
4. Say it in CHANGELOG.md."""
