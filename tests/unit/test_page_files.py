"""The page's static files: every text has its Chinese, nothing can make HTML of data, nothing comes from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from leadsync.ui import app

SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(app.STATIC.glob("*.js"))}
# A name of the dictionary: quoted or not, before a colon.
NAMED = re.compile(r'(?:"((?:[^"\\]|\\.)+)"|\b(\w+)):\s+\n?\s*"')
ASKED = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)"')


def test_every_text_has_its_chinese() -> None:
    chinese = {quoted or plain for quoted, plain in NAMED.findall(SCRIPTS["chinese.js"])}
    used = {text for name, script in SCRIPTS.items() if name != "chinese.js" for text in ASKED.findall(script)}
    assert len(used) > 100
    assert used - chinese == set()


def test_no_script_makes_html() -> None:
    for name, script in SCRIPTS.items():
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "DOMParser",
            "eval(",
            "Function(",
        ):
            assert way not in script, f"{name} uses {way}"


def test_nothing_is_fetched_from_elsewhere_and_nothing_is_inline() -> None:
    for path in app.STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path.name
        assert "https://" not in text, path.name
    page = (app.STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)


def test_every_module_that_is_imported_is_there() -> None:
    for name, script in SCRIPTS.items():
        for wanted in re.findall(r'from "\./([^"]+)"', script):
            assert wanted in SCRIPTS, f"{name} imports {wanted}"
    assert {path.suffix for path in Path(app.STATIC).iterdir()} <= set(app.KINDS)
