"""Real CRMs for the tests: installed once into a virtual environment of their own, and run behind a proxy that fails.

A kind is real when there is a module `tests/support/real_<kind>.py`, which defines `start`; see `RealCRM`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from leadsync.crm.base import Endpoint
from tests.support.faults import Dialect, FaultProxy

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leadsync"
READY = ".ready"
PIP = "pip==26.3"


class RealCRM(ABC):
    """A handle on one real CRM: what the contract suite asks of a `Simulator`, said of the CRM itself.

    A subclass starts the server, tells the proxy of its API, and looks into its database past the product.
    """

    batches_are_atomic: ClassVar[bool]  # whether one bad record refuses its whole batch

    def __init__(self, kind: str, port: int, dialect: Dialect) -> None:
        self.kind = kind
        self.proxy = FaultProxy(port, dialect)

    @property
    @abstractmethod
    def endpoint(self) -> Endpoint:
        """What the connection of a destination says: through the proxy."""

    @abstractmethod
    def records(self, *, deleted: bool = False) -> dict[str, dict[str, Any]]:
        """External id → fields that have a value, of live records, and with `deleted` also of deleted ones."""

    @abstractmethod
    def doubled(self) -> int:
        """How many external ids have more than one live record."""

    @abstractmethod
    def empty(self) -> None:
        """Forgets the records."""

    @abstractmethod
    def stop(self) -> None:
        """Ends the server and deletes its data."""

    @property
    def url(self) -> str:
        return self.endpoint.url

    def get(self, what: str) -> Any:
        """What a simulator says under `/_demo/<what>`: only `stats` here."""
        return {"stats": self.stats}[what]()

    def stats(self) -> dict[str, Any]:
        """Counts of doubles and of requests."""
        statuses = self.proxy.by_status
        return {"doubled": self.doubled(), "requests": statuses.total(), "by_status": dict(statuses)}

    def faults(self, **faults: Any) -> None:
        """Replaces the faults. Raises ValueError for those that can't be had with a real CRM."""
        if self.batches_are_atomic:
            faults.pop("whole_batch", None)  # it does so anyway
        self.proxy.set_faults(faults)

    def clear_faults(self) -> None:
        """Switches all faults off."""
        self.faults()

    def reset(self) -> None:
        """Forgets records, faults and counters."""
        self.proxy.drain()
        self.clear_faults()
        self.empty()
        self.proxy.by_status.clear()


def is_real(kind: str) -> bool:
    """Whether the tests of this kind of CRM run on a real one."""
    return find_spec(f"tests.support.real_{kind}") is not None


@contextmanager
def running(kind: str) -> Iterator[RealCRM]:
    """A started CRM, empty, with its proxy."""
    crm: RealCRM = import_module(f"tests.support.real_{kind}").start()
    try:
        crm.proxy.start()
        try:
            yield crm
        finally:
            crm.proxy.stop()
    finally:
        crm.stop()


def installed(
    kind: str,
    sources: Sequence[Path],
    finish: Callable[[Path, Path], None] = lambda python, folder: None,
    interpreter: str = sys.executable,
) -> Path:
    """A folder with a virtual environment, and whatever `finish` (its Python, the folder) adds.

    It is made once and kept between runs, until one of `sources` changes, whose first is the list of pinned packages.
    `interpreter` is the Python that it is made with. Raises RuntimeError when the package index can't be reached.
    """
    version = [interpreter, "-c", "import sys; print(sys.version, end='')"]
    digest = hashlib.sha256(subprocess.run(version, check=True, capture_output=True).stdout)
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    folder = CACHE / f"{kind}-{digest.hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # runs side by side make it once
        if not (folder / READY).exists():
            shutil.rmtree(folder)  # what a run that was ended left
            subprocess.run([interpreter, "-m", "venv", "--without-pip", folder], check=True, capture_output=True)
            python = folder / "bin" / "python"
            _install(kind, python, sources[0])
            finish(python, folder)
            (folder / READY).touch()
    return folder


def _install(kind: str, python: Path, requirements: Path) -> None:
    # Not by this Python's own pip: an old one does not work with the newest Pythons, which may have none.
    pip = python.parents[1] / "pip"
    done = _pip([sys.executable, "-m", "pip", "install", "--target", pip, PIP])
    if not done.returncode:
        # Most of what is installed is never imported, so it is not compiled. The lists name all that is needed.
        done = _pip(
            [python, "-m", "pip", "install", "--no-compile", "--no-deps", "-r", requirements], PYTHONPATH=str(pip)
        )
    if done.returncode:
        raise RuntimeError(
            f"{kind}: its packages can't be installed. The tests of its adapter need them once, from the package index "
            f"that pip uses; they are kept in {python.parents[1]}:\n{done.stderr.strip()[-2000:]}"
        )


def _pip(command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    options = ["--quiet", "--disable-pip-version-check"]
    return subprocess.run([*command, *options], capture_output=True, text=True, env={**os.environ, **environment})
