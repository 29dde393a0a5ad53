"""Finds adapters by the names of the modules of this package: there is no list to edit."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module

from leadsync import crm
from leadsync.budget import Budget
from leadsync.config import Destination, Pipeline
from leadsync.crm.base import NAME, CRMAdapter, Endpoint, validated_settings
from leadsync.crm.tokens import TokenStore
from leadsync.errors import ConfigError


def adapter_names() -> list[str]:
    """What `adapter` may be in a pipeline file."""
    return sorted(module.name for module in pkgutil.iter_modules(crm.__path__) if _find(module.name))


def adapter_class(name: str) -> type[CRMAdapter]:
    """The adapter of that name. Raises ConfigError that lists those there are."""
    known = {module.name for module in pkgutil.iter_modules(crm.__path__)}
    found = _find(name) if name in known else None
    if found is None:
        raise ConfigError(f"there is no adapter {name!r}; allowed: {', '.join(adapter_names())}")
    return found


def check_destination(destination: Destination) -> None:
    """Raises ConfigError when the destination asks for what its adapter can't do. Connects to nothing."""
    where = f"destinations.{destination.name}"
    try:
        adapter = adapter_class(destination.adapter)
    except ConfigError as error:
        raise ConfigError(f"{where}.adapter: {error}") from None
    mode = destination.on_delete.mode
    if mode not in adapter.delete_modes:
        allowed = ", ".join(sorted(adapter.delete_modes))
        raise ConfigError(f"{where}.on_delete: {adapter.label} can't {mode!r}; allowed: {allowed}")
    for name in (destination.object, destination.external_id_field, *destination.fields, destination.on_delete.field):
        if name is not None and not NAME.fullmatch(name):
            raise ConfigError(f"{where}: {name!r} is no name of an object or a field")
    validated_settings(adapter, destination)


def check_pipeline(pipeline: Pipeline) -> None:
    """Raises ConfigError for the first destination that its adapter can't serve."""
    for destination in pipeline.destinations:
        try:
            check_destination(destination)
        except ConfigError as error:
            raise ConfigError(f"{pipeline.name}.yaml: {error}") from None


def build(
    destination: Destination,
    endpoint: Endpoint,
    *,
    before_request: Callable[[], None] = lambda: None,
    budget: Budget | None = None,
    tokens: TokenStore | None = None,
) -> CRMAdapter:
    """The adapter for one destination. Raises ConfigError; connects to nothing."""
    check_destination(destination)
    adapter = adapter_class(destination.adapter)
    return adapter(destination, endpoint, before_request=before_request, budget=budget, tokens=tokens)


def _find(module: str) -> type[CRMAdapter] | None:
    for thing in vars(import_module(f"{crm.__name__}.{module}")).values():
        if isinstance(thing, type) and issubclass(thing, CRMAdapter) and getattr(thing, "name", None) == module:
            return thing
    return None
