"""The documentation page of each adapter, made from its class: what the code does is what the page says."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from textwrap import indent

from leadsync.budget import Limit
from leadsync.crm.base import CRMAdapter
from leadsync.crm.registry import adapter_class, adapter_names
from leadsync.fields import default, nested

SPANS = {1: "a second", 60: "a minute", 3600: "an hour", 86_400: "24 hours"}
INTRODUCTION = "Made by `make docs` from `include/leadsync/crm/{name}.py`."


def page(adapter: type[CRMAdapter]) -> str:
    """The page in Markdown."""
    about = inspect.getdoc(sys.modules[adapter.__module__]) or ""
    limits = "; ".join(map(_limit, adapter.limits)) or "none published"
    lines = [
        f"# {adapter.label}",
        INTRODUCTION.format(name=adapter.name),
        "",
        about,
        "",
        f"- Leads in one request: at most {adapter.max_batch}.",
        f"- Limits of an account, as published: {limits}.",
        f"- `on_delete`: {', '.join(sorted(adapter.delete_modes))}.",
        "",
        "## In the pipeline file",
        "```yaml",
        "destinations:",
        f"  {adapter.name}:  # the connection is crm_{adapter.name} unless `connection` names another",
        indent(adapter.example.strip(), "    "),
        "```",
        "",
        "## Settings",
    ]
    for model, places in nested(adapter.settings_model).items():
        if places:
            lines += ["", f"### {', '.join(f'`{place}`' for place in places)}"]
        lines += ["| setting | default | meaning |", "| --- | --- | --- |"]
        lines += [
            f"| `{name}` | {default(field)} | {field.description or ''} |" for name, field in model.model_fields.items()
        ]
    return "\n".join(lines) + "\n"


def write(folder: Path) -> list[Path]:
    """Writes every adapter's page; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in adapter_names():
        path = folder / f"{name}.md"
        path.write_text(page(adapter_class(name)), encoding="utf-8")
        written.append(path)
    return written


def _limit(limit: Limit) -> str:
    return f"{limit.requests:,} requests in {SPANS.get(int(limit.seconds)) or f'{limit.seconds:g} seconds'}"
