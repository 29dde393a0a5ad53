"""`python -m leadsync`."""

from pathlib import Path

import pytest

from leadsync.__main__ import main


def test_check_reads_the_shipped_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "leads: right; customer → hubspot, salesforce\n"


def test_check_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "leads.yaml").write_text("source: {}\n", encoding="utf-8")
    assert main(["check", "--folder", str(tmp_path)]) == 1
    assert "leads.yaml:1: source.table: Field required" in capsys.readouterr().err
