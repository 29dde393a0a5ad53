"""Puts the page together: guards, headers, static files and the routers of the views."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from leadsync.errors import LeadsyncError
from leadsync.ui import dead_letters, lead, metrics, operations, overview, recovery
from leadsync.ui.access import Backend, User, remember

STATIC = Path(__file__).with_name("static")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
# A POST carries this header: a form of another site can't set it, and a script of another site has to ask first.
HEADER = "x-leadsync"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def create_app(backend: Backend, authenticate: Callable[..., User]) -> FastAPI:
    """The page. `authenticate` is a FastAPI dependency that gives the user or raises 401."""
    guard = [Depends(remember(authenticate))]
    app = FastAPI(title="Leadsync", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.backend = backend
    app.middleware("http")(_protect)
    app.exception_handler(LeadsyncError)(_unavailable)
    app.exception_handler(psycopg.Error)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    for view in (overview, operations, dead_letters, lead, recovery):
        app.include_router(view.router, prefix="/api", dependencies=guard)
    app.include_router(metrics.router)  # has a token of its own
    app.include_router(_files(), dependencies=guard)
    return app


async def _protect(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuses what comes from other sites, and says what a browser may do with the answer."""
    site = request.headers.get("sec-fetch-site")
    if request.method not in ("GET", "HEAD") and (
        site not in (None, "same-origin") or request.headers.get(HEADER) is None
    ):
        response: Response = JSONResponse({"detail": "only the page itself may ask for this"}, 403)
    else:
        response = await call_next(request)
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


async def _unavailable(request: Request, error: Exception) -> Response:
    """The texts of these errors are for people, and carry no leads."""
    return JSONResponse({"detail": str(error)}, 503)


async def _refused(request: Request, error: Exception) -> Response:
    """The texts of these may quote data."""
    slow = isinstance(error, psycopg.errors.QueryCanceled)
    return JSONResponse({"detail": "the database took too long" if slow else type(error).__name__}, 503)


async def _invalid(request: Request, error: Exception) -> Response:
    """Without what was sent, which may be personal."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    told = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems]
    return JSONResponse({"detail": "; ".join(told)}, 422)


def _files() -> APIRouter:
    """The static files, read once. Behind the login as well."""
    router = APIRouter()
    found = {
        path.relative_to(STATIC).as_posix(): (path.read_bytes(), KINDS[path.suffix])
        for path in sorted(STATIC.rglob("*"))
        if path.suffix in KINDS
    }
    tags = {name: f'"{hashlib.blake2b(data, digest_size=8).hexdigest()}"' for name, (data, _) in found.items()}

    @router.get("/{name:path}")
    def file(name: str, request: Request) -> Response:
        name = name or "index.html"
        if name not in found:
            raise HTTPException(404, "there is no such page")
        headers = {"ETag": tags[name], "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(found[name][0], media_type=found[name][1], headers=headers)

    return router
