"""docker-compose.yaml as a project of its own, on free ports, with secrets, pipelines and volumes of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import requests
import yaml

from demo.stack import health
from tests.support.servers import free_port

ROOT = Path(__file__).parents[2]
# Port of the embedded stack → variable of the compose file.
PUBLISHED = {
    "airflow-api-server": "LEADSYNC_PORT",
    "landing": "LEADSYNC_DEMO_LANDING_PORT",
    "crm-hubspot": "LEADSYNC_DEMO_HUBSPOT_PORT",
    "crm-salesforce": "LEADSYNC_DEMO_SALESFORCE_PORT",
    "lead-store": "LEADSYNC_TEST_STORE_PORT",
    "grafana": "LEADSYNC_GRAFANA_PORT",
}
PATIENCE = 120  # seconds; so long the API server may be away while something under it is restarted


class Compose:
    """The compose command on this project, and what `Airflow` of the end-to-end tests asks a stack for."""

    def __init__(self, folder: Path) -> None:
        self.state_dir, self.secrets, self.pipelines = folder, folder / "secrets", folder / "pipelines"
        self._ports = {name: free_port() for name in PUBLISHED}
        self._command = [
            *shlex.split(os.environ.get("LEADSYNC_COMPOSE") or "docker compose"),
            *("-p", f"leadsync-test-{os.getpid()}", "--profile", "demo"),
            *("-f", str(ROOT / "docker-compose.yaml"), "-f", str(ROOT / "tests" / "compose" / "override.yaml")),
        ]
        self._environment = {
            **os.environ,
            **{variable: str(self._ports[name]) for name, variable in PUBLISHED.items()},
            "COMPOSE_PROFILES": "demo",
            "LEADSYNC_SECRETS": str(self.secrets),
            "LEADSYNC_PIPELINES": str(self.pipelines),
            "LEADSYNC_DEMO_RATE": "0",
            "LEADSYNC_API_WORKERS": "1",
            # One load each: two workers share two loads.
            "LEADSYNC_WORKER_CONCURRENCY": "1",
        }
        subprocess.run([ROOT / "deploy" / "make-secrets.sh", "--demo", self.secrets], check=True)
        self._write_pipelines()

    def _write_pipelines(self) -> None:
        shipped = yaml.safe_load((ROOT / "include" / "pipelines" / "leads.yaml").read_text())
        shipped["schedule"] = {"cron": None, "watch": None}  # a run is when the test says so
        for target in shipped["destinations"].values():
            target["settings"] = {"read_timeout": 5, "connect_timeout": 2, "requests_per_second": 1000}
        self.pipelines.mkdir()
        (self.pipelines / "leads.yaml").write_text(yaml.safe_dump(shipped))
        # The temporary folder of a test is closed to others, and the containers have users of their own.
        self.pipelines.chmod(0o755)

    def __call__(self, *arguments: str, secrets: Path | None = None) -> str:
        """Runs a compose command; returns its standard output. AssertionError when it fails."""
        done = self.attempt(*arguments, secrets=secrets)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def attempt(self, *arguments: str, secrets: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**self._environment, **({"LEADSYNC_SECRETS": str(secrets)} if secrets else {})}
        return subprocess.run(
            [*self._command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def up(self, *arguments: str) -> None:
        """Returns when all is healthy. AssertionError with what is not, and what it says."""
        done = self.attempt("up", "--detach", "--wait", *arguments)
        if done.returncode:
            logs = self.attempt("logs", "--no-color", "--tail", "25").stdout
            raise AssertionError(f"{done.stderr[-3000:]}\n{self('ps', '--all')}\n{logs}")

    def services(self) -> dict[str, Any]:
        """The services as the compose file says, with everything filled in."""
        found: dict[str, Any] = json.loads(self("--profile", "monitoring", "config", "--format", "json"))["services"]
        return found

    def containers(self) -> list[dict[str, Any]]:
        """All containers of the project; older versions give a list, newer ones a line for each."""
        text = self("ps", "--all", "--format", "json").strip()
        found: list[dict[str, Any]] = (
            json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        )
        return found

    def copy_of_secrets(self) -> Path:
        copy = self.state_dir / "other-secrets"
        shutil.rmtree(copy, ignore_errors=True)
        return Path(shutil.copytree(self.secrets, copy))

    def port(self, program: str) -> int:
        return self._ports[program]

    def url(self, program: str) -> str:
        return f"http://127.0.0.1:{self.port(program)}"

    @property
    def ui_url(self) -> str:
        return self.url("airflow-api-server")

    @property
    def ui_password(self) -> str:
        return str(json.loads((self.secrets / "ui_passwords.json").read_text())["admin"])

    @property
    def lead_store_dsn(self) -> str:
        password = (self.secrets / "demo_store_owner_password").read_text()
        return f"postgresql://hive_owner:{password}@127.0.0.1:{self.port('lead-store')}/hive"

    def api(self, method: str, path: str, **more: Any) -> requests.Response:
        """One call of Airflow's REST API; a GET is repeated while the API server is away."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                reply = health.call(self, method, path, **more)  # type: ignore[arg-type]
                if method != "GET" or reply.status_code < 500 or time.monotonic() > until:
                    return reply
            except requests.RequestException:
                if method != "GET" or time.monotonic() > until:
                    raise
            time.sleep(1)
