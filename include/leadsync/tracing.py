"""OpenTelemetry spans of snapshot, load and batch, below those of Airflow's tasks.

Airflow's settings (`[traces] otel_on`, the variables OTEL_…) say whether and where they go; switched off they cost
next to nothing. Attributes are names, ids and numbers, never anything of a lead, and of an error its class alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, Status, StatusCode

Attribute = str | int | bool

tracer = trace.get_tracer("leadsync")


@contextmanager
def span(name: str, parent: Context | None = None, **attributes: Attribute) -> Iterator[Span]:
    """`leadsync.NAME`, below `parent` (see `here`) or whatever is current."""
    named = {f"leadsync.{key}": value for key, value in attributes.items()}
    with tracer.start_as_current_span(
        f"leadsync.{name}", parent, attributes=named, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except Exception as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def note(on: Span, **attributes: Attribute) -> None:
    """Attributes that are known only at the end."""
    on.set_attributes({f"leadsync.{key}": value for key, value in attributes.items()})


def here() -> Context:
    """What spans of other threads are to lie below."""
    return get_current()
