"""Who asks, what that person may see and do, and what the page works with: both are handed in from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, LiteralString

import psycopg
import redis
from fastapi import Depends, HTTPException, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from leadsync.config import Destination, Pipeline
from leadsync.crm.base import Endpoint
from leadsync.figures import Target, targets
from leadsync.sealing import Sealer
from leadsync.state import schema

Connection = psycopg.Connection[Any]

# A query that takes longer is given up: the page must not wear out the database that the loads need.
TIMEOUT: LiteralString = "SET statement_timeout = '5s'"


@dataclass(frozen=True, slots=True)
class Backend:
    """What the page works with. `state`, `source` and `redis` connect; raise LeadsyncError when they can't.

    `source` is a plain connection to a pipeline's lead store, in autocommit; `endpoint` what a destination's connection
    says; `metrics_token` what Prometheus shows, empty where there is none.
    """

    state: Callable[[], AbstractContextManager[Connection]]
    source: Callable[[Pipeline], AbstractContextManager[Connection]]
    redis: Callable[[], AbstractContextManager[redis.Redis]]
    sealer: Callable[[], Sealer]
    pipelines: Callable[[], list[Pipeline]]
    endpoint: Callable[[Destination], Endpoint]
    metrics_token: Callable[[], str]


@dataclass(frozen=True, slots=True)
class User:
    """The person who asks; `may` tells whether Airflow lets them use a method (GET, PUT, POST) on a DAG."""

    name: str
    may: Callable[[str, str], bool]

    def sees(self, pipeline: str) -> bool:
        return self.may("GET", f"{pipeline}_sync")

    def edits(self, pipeline: str) -> bool:
        return self.may("PUT", f"{pipeline}_sync")


def remember(authenticate: Callable[..., User]) -> Callable[..., None]:
    """The dependency of every route: whoever is not known gets no further."""

    def guard(request: Request, user: User = Depends(authenticate)) -> None:  # noqa: B008 FastAPI's way
        request.state.leadsync_user = user

    return guard


def _user(request: Request) -> User:
    user: User = request.state.leadsync_user
    return user


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


Asks = Annotated[User, Depends(_user)]
Uses = Annotated[Backend, Depends(_backend)]


def storable(text: str) -> str:
    """The text, or ValueError: PostgreSQL takes no NUL, and UTF-8 no half of a character."""
    if "\0" in text:
        raise ValueError("contains a NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode") from None
    return text


Text = Annotated[str, StringConstraints(max_length=300), AfterValidator(storable)]
# Why a person did something; kept for ever, so a word at least.
Reason = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=3, max_length=500), AfterValidator(storable)
]


class Body(BaseModel):
    """What a POST brings."""

    model_config = ConfigDict(extra="forbid")


@contextmanager
def database(backend: Backend) -> Iterator[Connection]:
    """Leadsync's own database, in autocommit, with a limit on what one question may take."""
    with backend.state() as state:
        schema.check(state)
        state.execute(TIMEOUT)
        yield state


def visible(state: Connection, user: User) -> dict[int, Target]:
    """The destinations that the user may see, by number. Refuses a user who may see no pipeline."""
    known = targets(state)
    seen = {name for name in {target.pipeline for target in known} if user.sees(name)}
    if known and not seen:
        raise HTTPException(403, "you may see no pipeline's DAG")
    return {target.number: target for target in known if target.pipeline in seen}


def one(targets: dict[int, Target], pipeline: str, destination: str) -> Target:
    """The destination of that name; 404 when there is none that the user may see."""
    for target in targets.values():
        if (target.pipeline, target.destination) == (pipeline, destination):
            return target
    raise HTTPException(404, "there is no such destination")


def require_edit(user: User, pipeline: str) -> None:
    """403 unless the user may edit the pipeline's DAG."""
    if not user.edits(pipeline):
        raise HTTPException(403, f"this needs the right to edit the DAG {pipeline}_sync")
