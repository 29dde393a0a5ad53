"""Secrets of a stack: made once, one file each, readable by their owner only."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path


def _password() -> str:
    # Hexadecimal, so that it needs no escaping in DSNs, URLs and configuration files.
    return secrets.token_hex(16)


def _key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


_MAKERS = {"encryption_key": _key, "airflow_fernet_key": _fernet_key}


class Secrets:
    """The files of one folder. `secrets["redis_password"]` is made at its first use and stays what it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> str:
        path = self.folder / name
        if not path.exists():
            write_private(path, _MAKERS.get(name, _password)())
        return path.read_text()


def write_private(path: Path, text: str) -> None:
    """Writes a file of mode 0600 whole or not at all, also when the power fails."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
