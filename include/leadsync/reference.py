"""The reference of the pipeline file and the environment, made from the models: what the code takes is what it says."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import getdoc
from pathlib import Path

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from leadsync.config import Pipeline
from leadsync.fields import default, kind, nested

INTRODUCTION = """\
# Configuration
Made by `make docs` from `include/leadsync/config.py`.

One file, `include/pipelines/<name>.yaml`, is one pipeline: a table and the CRMs that it goes to. It gives the DAG
`<name>_sync`. `make check` reads all files and says what is wrong, with the line. No secret belongs into them:
addresses and credentials are [Airflow connections](running.md#connections). The names of pipelines and destinations
are lower case letters, digits and `_`, and stay: they are how Leadsync knows what it has delivered. A plain value is a
text, a number, true, false or null.
"""

# Every key that has no default, and every one whose default says little of what else it takes.
EXAMPLE = """\
source:
  connection: lead_store
  table: public.customer
  key: [appkey, uid]
  watermark: update_time
  watermark_kind: timestamp
  timezone: Asia/Shanghai
  deleted: is_delete
  columns: [appkey, uid, phone, name, city, answers, update_time, is_delete]
  lookup: [phone]
  bound: lag
  lag: 5
  lookback: 30
  ignore_roles: [reporting]

destinations:
  sales_team:
    adapter: hubspot
    connection: crm_hubspot
    object: contacts
    external_id_field: leadsync_external_id
    fields:
      phone: phone
      firstname: {column: name, transform: [trim, lower], default: unknown, max_length: 80, required: true}
      utm_source: {column: answers, path: utm.source}
      lead_origin: {constant: landing page}
    route: {city: [Berlin, Hamburg]}
    on_delete: {mode: field, field: lifecycle, value: deleted}
    start: 2026-01-31T00:00:00+01:00
    in_flight: 8
    max_rejected: 0.5
    max_rejected_floor: 20
    park_after: 3
    record_url: https://app.hubspot.com/contacts/1234567/record/0-1/{id}
    crm_owned: [phone]
    settings: {requests_per_second: 19, requests_per_day: 650000}
"""

ENVIRONMENT: Mapping[str, str] = {
    "LEADSYNC_ENCRYPTION_KEY": "keys that snapshots and stored payloads are sealed with, base64 of 32 bytes each, "
    "newest first, separated by commas; or the Airflow variable `leadsync_encryption_key`",
    "LEADSYNC_METRICS_TOKEN": "what Prometheus has to show at `/leadsync/metrics`; or the Airflow variable "
    "`leadsync_metrics_token`",
    "LEADSYNC_PLAINTEXT_HOSTS": "hosts of a private network that may be reached without TLS, separated by commas; "
    "without it none but this machine's own",
    "LEADSYNC_PIPELINES": "folder of the pipeline files; `include/pipelines` without it",
    "LEADSYNC_DB_DSN": "Leadsync's database for the command line (`migrate`, `operation`), as postgresql://…; "
    "tasks use the connection `leadsync_db`",
}


def page() -> str:
    """The page in Markdown."""
    lines = [INTRODUCTION, "## Every key", "```yaml", f"{EXAMPLE}\n{_defaults()}".rstrip(), "```"]
    for model, places in nested(Pipeline).items():
        title = ", ".join(f"`{_place(place)}`" for place in places)
        lines += ["", f"## {title or 'The file'}", *([getdoc(model) or "", ""] if places else [])]
        lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{name}` | {kind(field)} | {default(field)} | {meaning(field)} |" for name, field in keys(model).items()
        ]
    lines += ["", "## Environment", "| variable | holds |", "| --- | --- |"]
    lines += [f"| `{name}` | {text} |" for name, text in ENVIRONMENT.items()]
    lines += ["", "Variables of the demo stack are in [running it](running.md#the-demo-stack)."]
    return "\n".join(lines) + "\n"


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """What a file may say of a model: a name is the file's, or the key that stands before it."""
    return {name: field for name, field in model.model_fields.items() if name != "name"}


def meaning(field: FieldInfo) -> str:
    """Its description, or the first sentence of the model that it takes; empty where nobody wrote one."""
    kind = field.annotation
    if field.description or not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return field.description or ""
    return (getdoc(kind) or "").partition(". ")[0].partition("\n")[0].rstrip(".")


def write(path: Path) -> Path:
    """Writes the page; returns its file."""
    path.write_text(page(), encoding="utf-8")
    return path


def _defaults() -> str:
    """What of a file says nothing new unless somebody changes it."""
    given = Pipeline.model_construct().model_dump(mode="json", exclude={"name"}, warnings=False)
    return "".join(yaml.safe_dump({name: value}, sort_keys=False) for name, value in given.items())


def _place(place: str) -> str:
    return place.replace("destinations", "destinations.<name>").replace("fields", "fields.<field>")
