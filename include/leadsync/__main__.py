"""The command line: `python -m leadsync` with `check`, `migrate`, `operation`, `erase`, `docs` or `new-crm`."""

from __future__ import annotations

import argparse
import os
import sys
from getpass import getuser
from pathlib import Path
from uuid import UUID

import orjson
import psycopg

from leadsync import operation_log, reference, transport
from leadsync.config import load_pipelines
from leadsync.crm import pages, registry, scaffold
from leadsync.errors import LeadsyncError
from leadsync.sealing import Sealer
from leadsync.state import schema

PIPELINES = Path(__file__).parents[1] / "pipelines"
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 0 when all is well, 1 with the problem on standard error."""
    parser = argparse.ArgumentParser(prog="leadsync", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="read the pipeline files and say what is wrong")
    check.add_argument("--folder", type=Path, default=PIPELINES, help="default: %(default)s")
    check.set_defaults(run=_check)
    migrate = commands.add_parser("migrate", help="bring Leadsync's own tables to what this code needs")
    migrate.add_argument("--dsn", default=os.environ.get("LEADSYNC_DB_DSN"), help="default: LEADSYNC_DB_DSN")
    migrate.add_argument("--revision", default="head", help="default: %(default)s; `base` removes the tables")
    migrate.set_defaults(run=_migrate)
    operation = commands.add_parser("operation", help="what a sync operation sent to each CRM, as JSON lines")
    operation.add_argument("sync_id", type=UUID, help="its id, as the return value of `extract` shows it")
    operation.add_argument("--dsn", default=os.environ.get("LEADSYNC_DB_DSN"), help="default: LEADSYNC_DB_DSN")
    operation.set_defaults(run=_operation)
    erase = commands.add_parser("erase", help="remove every trace of leads that were deleted from Leadsync's stores")
    erase.add_argument("pipeline", help="the pipeline whose leads they are")
    erase.add_argument("external_id", nargs="+", help="such as ASDAD:12345")
    erase.set_defaults(run=_erase)
    docs = commands.add_parser(
        "docs", help="write the pages that the code makes: the configuration's, and each adapter's"
    )
    docs.add_argument("--folder", type=Path, default=DOCS, help="default: %(default)s")
    docs.set_defaults(run=_docs)
    new = commands.add_parser("new-crm", help="write adapter, simulator and test of a new CRM, to be changed")
    new.add_argument("name", help="as the pipeline file will say in `adapter`, such as acme")
    new.set_defaults(run=_new_crm)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except LeadsyncError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for pipeline in load_pipelines(arguments.folder):
        registry.check_pipeline(pipeline)
        names = ", ".join(destination.name for destination in pipeline.destinations)
        print(f"{pipeline.name}: right; {pipeline.source.table} → {names}")


def _migrate(arguments: argparse.Namespace) -> None:
    from leadsync.state import migration  # Alembic takes long to import

    migration.migrate(_dsn(arguments), arguments.revision)
    print(
        f"Leadsync's tables are at revision {schema.newest() if arguments.revision == 'head' else arguments.revision}"
    )


def _operation(arguments: argparse.Namespace) -> None:
    sealer = Sealer(os.environ.get("LEADSYNC_ENCRYPTION_KEY", ""))
    try:
        with psycopg.connect(_dsn(arguments)) as connection:
            entries = operation_log.read(connection, sealer, str(arguments.sync_id))
    except psycopg.Error as error:
        raise LeadsyncError(f"the database can't be read: {type(error).__name__}") from None
    if not entries:
        raise LeadsyncError(f"there is no load of a sync operation {arguments.sync_id}")
    for entry in entries:
        print(orjson.dumps(entry).decode())


def _erase(arguments: argparse.Namespace) -> None:
    from leadsync import upkeep  # Airflow, for its connections: seconds that no other command should take

    try:
        user = getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = f"uid {os.getuid()}"
    done = upkeep.erase_leads(arguments.pipeline, arguments.external_id, f"{user} (command line)")
    print(orjson.dumps(done).decode())


def _docs(arguments: argparse.Namespace) -> None:
    for path in [*pages.write(arguments.folder / "crm"), reference.write(arguments.folder / "configuration.md")]:
        print(path)


def _new_crm(arguments: argparse.Namespace) -> None:
    for path in scaffold.write(arguments.name, ROOT):
        print(path.relative_to(ROOT))
    print(scaffold.next_steps(arguments.name))


def _dsn(arguments: argparse.Namespace) -> str:
    if not arguments.dsn:
        raise LeadsyncError("which database? set LEADSYNC_DB_DSN or give --dsn postgresql://…")
    transport.check_dsn(arguments.dsn)
    return str(arguments.dsn)


if __name__ == "__main__":
    sys.exit(main())
