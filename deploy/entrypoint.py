"""Where every container of our image begins: `entrypoint.py PROGRAM ARGUMENT…` fills secrets into the environment and
becomes the program.

`{secret:NAME}` in a variable stands for the content of the file NAME in /run/secrets, percent-encoded where the
variable is a URL. Each file in /run/connections is an Airflow connection: `crm_hubspot` becomes
AIRFLOW_CONN_CRM_HUBSPOT. So no secret is in the compose file, in `docker inspect` or on a command line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

SECRETS = Path("/run/secrets")
CONNECTIONS = Path("/run/connections")
PLACEHOLDER = re.compile(r"\{secret:(\w+)\}")
CONFIG_ERROR = 78  # EX_CONFIG of sysexits.h


class MissingSecrets(Exception):
    """Secrets that are missing or empty; the text names them and the remedy."""


def filled(given: Mapping[str, str], secrets: Path, connections: Path) -> dict[str, str]:
    """The environment with the secrets in it. Raises MissingSecrets, which names all that are missing."""
    missing: set[str] = set()

    def content(path: Path) -> str:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            text = ""
        except PermissionError:
            raise MissingSecrets(f"{path.name} can't be read by user {os.getuid()}: chmod a+r it") from None
        if not text:
            missing.add(path.name)
        return text

    def fill(value: str) -> str:
        # A password may hold what ends the host's part of a URL.
        shown = (lambda text: quote(text, safe="")) if "://" in value else str
        return PLACEHOLDER.sub(lambda found: shown(content(secrets / found[1])), value)

    found = {name: fill(value) for name, value in given.items()}
    for path in sorted(connections.glob("[!.]*")) if connections.is_dir() else []:
        found.setdefault(f"AIRFLOW_CONN_{path.name.upper()}", content(path))
    if missing:
        raise MissingSecrets(
            f"missing or empty secrets: {', '.join(sorted(missing))}; docs/deploying.md says what each is, "
            "deploy/make-secrets.sh makes those that can be made"
        )
    return found


def main(command: list[str]) -> None:
    try:
        environment = filled(os.environ, SECRETS, CONNECTIONS)
    except MissingSecrets as error:
        print(error, file=sys.stderr)
        sys.exit(CONFIG_ERROR)
    os.execvpe(command[0], command, environment)  # noqa: S606 no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
