"""Virtual environments of the tools that Leadsync is measured beside, one each, pinned in NAME.txt beside this file.

`uv pip compile --python-version 3.11 NAME.in -o NAME.txt` pins anew.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".local" / "bench"


def binary(name: str, command: str) -> str:
    """The path of a command of the tool's environment, which is made when it is not there or not of these pins."""
    pins, folder = HERE / f"{name}.txt", FOLDER / name
    mark, wanted = folder / "pins", hashlib.sha256(pins.read_bytes()).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        print(f"installing {name} into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "-r", pins]
        subprocess.run(pip, check=True)
        mark.write_text(wanted)
    return str(folder / "bin" / command)
