"""Finds adapters by name: each module of this package that defines one is a CRM. There is no list to edit."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module

from pydantic import ValidationError

import leadsync.crm
from leadsync.config import Destination, Pipeline
from leadsync.crm.base import CRMAdapter, Endpoint
from leadsync.errors import ConfigError

NOT_ADAPTERS = {"base", "http", "registry"}


def adapter_names() -> list[str]:
    """What `adapter:` may say in a pipeline file."""
    return sorted({module.name for module in pkgutil.iter_modules(leadsync.crm.__path__)} - NOT_ADAPTERS)


def adapter_class(name: str) -> type[CRMAdapter]:
    """The adapter of that name. Raises ConfigError that lists the known ones."""
    if name not in adapter_names():
        raise ConfigError(f"unknown adapter {name!r}; allowed: {', '.join(adapter_names())}")
    module = import_module(f"leadsync.crm.{name}")
    for found in vars(module).values():
        if inspect.isclass(found) and issubclass(found, CRMAdapter) and found.__module__ == module.__name__:
            return found
    raise ConfigError(f"the module leadsync.crm.{name} defines no adapter")


def check_destination(destination: Destination) -> None:
    """Raises ConfigError when adapter, delete mode or settings are wrong. Connects to nothing."""
    try:
        adapter = adapter_class(destination.adapter)
    except ConfigError as error:
        raise ConfigError(f"destinations.{destination.name}.adapter: {error}") from None
    mode = destination.on_delete.mode
    if mode not in adapter.delete_modes:
        allowed = ", ".join(sorted(adapter.delete_modes))
        raise ConfigError(
            f"destinations.{destination.name}.on_delete: {destination.adapter} has no {mode!r}; allowed: {allowed}"
        )
    try:
        adapter.settings_model.model_validate(destination.settings)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(("destinations", destination.name, "settings", *map(str, problem["loc"])))
        allowed = ", ".join(adapter.settings_model.model_fields)
        raise ConfigError(f"{where}: {problem['msg']}; {destination.adapter} has: {allowed}") from None


def check_pipeline(pipeline: Pipeline) -> None:
    """Raises ConfigError for the first destination that its adapter can't serve."""
    for destination in pipeline.destinations:
        try:
            check_destination(destination)
        except ConfigError as error:
            raise ConfigError(f"{pipeline.name}.yaml: {error}") from None


def build(destination: Destination, endpoint: Endpoint) -> CRMAdapter:
    """The adapter of a destination."""
    return adapter_class(destination.adapter)(destination, endpoint)
