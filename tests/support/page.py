"""The page's API over a World, with people in place of Airflow's users."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import redis
import requests
import uvicorn
from fastapi import Header, HTTPException

from leadsync.config import Destination, Pipeline
from leadsync.crm.base import Endpoint
from leadsync.errors import Unavailable
from leadsync.sealing import Sealer
from leadsync.ui.access import Backend, User
from leadsync.ui.app import create_app
from tests.support.servers import free_port
from tests.support.world import KEY, World

# Who may do what, on every DAG; `stranger` is logged in and may see no pipeline.
METHODS = {"admin": {"GET", "PUT", "POST"}, "viewer": {"GET"}, "stranger": set[str]()}


def authenticate(x_test_user: str | None = Header(None)) -> User:
    if x_test_user not in METHODS:
        raise HTTPException(401, "Not authenticated")
    methods = METHODS[x_test_user]
    return User(x_test_user, lambda method, dag_id: method in methods and dag_id.startswith("leads_"))


class Client(requests.Session):
    """A browser's tab, as far as the server can tell."""

    def __init__(self, address: str, user: str | None) -> None:
        super().__init__()
        self.trust_env = False
        self.address = address
        self.headers.update({"x-leadsync": "1", "sec-fetch-site": "same-origin"})
        if user:
            self.headers["x-test-user"] = user

    def request(self, method: Any, url: Any, *args: Any, **more: Any) -> requests.Response:  # type: ignore[override]
        return super().request(method, f"{self.address}{url}", *args, timeout=60, **more)


@contextmanager
def serving(page: Page) -> Iterator[Page]:
    """The page under a real server."""
    server = uvicorn.Server(uvicorn.Config(page.app, port=page.port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield page
    finally:
        server.should_exit = True
        thread.join()


class Page:
    """Clients of the page: as admin, as viewer, as anybody. The lead store or Redis can be taken away."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pipeline = world.pipeline
        self.port = free_port()
        self.store_away = False
        self.redis_away = False
        self.token = "token-of-the-test"
        self.app = create_app(
            Backend(
                self._state,
                self._source,
                self._redis,
                lambda: Sealer(KEY),
                lambda: [self.pipeline],
                self._endpoint,
                lambda: self.token,
            ),
            authenticate,
        )

    def client(self, user: str | None) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", user)

    @property
    def admin(self) -> Client:
        return self.client("admin")

    @property
    def viewer(self) -> Client:
        return self.client("viewer")

    def get(self, path: str, user: str = "viewer", **parameters: Any) -> Any:
        """The JSON of a good answer."""
        reply = self.client(user).get(f"/api/{path}", params=parameters)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def post(self, path: str, body: Any = None, user: str = "admin", **parameters: Any) -> Any:
        """The JSON of a good answer."""
        reply = self.client(user).post(f"/api/{path}", json=body, params=parameters)
        assert reply.status_code == 200, reply.text
        return reply.json()

    @contextmanager
    def _state(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.world.state.info.dsn, autocommit=True) as connection:
            yield connection

    @contextmanager
    def _source(self, pipeline: Pipeline) -> Iterator[psycopg.Connection[Any]]:
        if self.store_away:
            raise Unavailable("connection lead_store: the PostgreSQL server can't be reached")
        with psycopg.connect(self.world.dsn, autocommit=True) as connection:
            yield connection

    @contextmanager
    def _redis(self) -> Iterator[redis.Redis]:
        if self.redis_away:
            raise redis.ConnectionError("away")
        yield self.world.redis

    def _endpoint(self, target: Destination) -> Endpoint:
        simulator = self.world.simulators.get(target.name)
        return simulator.endpoint if simulator else Endpoint("https://crm.invalid", password="none")
