"""The landing page's application: the form, and a page on which the visitor changes or deletes their lead."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import psycopg
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader

from demo import lead_store

LENGTHS = {"appkey": 40, "name": 80, "phone": 40, "email": 120, "city": 60, "budget": 40, "message": 2000}
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
POLICY = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'"
BODY_BYTES = 64_000


def make_app(dsn: str, crms: Mapping[str, str]) -> FastAPI:
    """The application; `crms` are names and addresses of the pages where the lead arrives."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    folder = Path(__file__).parent
    pages = Environment(loader=FileSystemLoader(folder), autoescape=True)
    secret = secrets.token_bytes(32)

    def page(name: str, status: int = 200, **values: object) -> HTMLResponse:
        html = pages.get_template(name).render(**values)
        return HTMLResponse(html, status, {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"})

    def token(appkey: str, uid: str) -> str:
        return hmac.new(secret, f"{appkey}\0{uid}".encode(), hashlib.sha256).hexdigest()

    def lead(request: Request) -> tuple[str, int]:
        """The visitor's own lead; their link holds an unguessable token."""
        appkey, uid, proof = (request.query_params.get(name, "") for name in ("appkey", "uid", "token"))
        if not uid.isdigit() or not hmac.compare_digest(proof, token(appkey, uid)):
            raise HTTPException(403, "this link is not valid (any more)")
        return appkey, int(uid)

    async def form(request: Request) -> dict[str, str]:
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403, "the form was sent from another site")
        body = await request.body()
        if len(body) > BODY_BYTES:
            raise HTTPException(413, "that is too much")
        return {name: value.strip() for name, value in parse_qsl(body.decode("utf-8", "replace"))}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/style.css")
    def style() -> Response:
        return PlainTextResponse((folder / "style.css").read_text(), media_type="text/css")

    @app.get("/")
    def landing(appkey: str = "ASDAD") -> HTMLResponse:
        return page("form.html", values={"appkey": appkey[: LENGTHS["appkey"]]}, errors={})

    @app.post("/")
    async def submit(request: Request) -> Response:
        values = await form(request)
        errors = _problems(values)
        if errors:
            return page("form.html", 422, values=values, errors=errors)
        answers = {name: values[name] for name in ("budget", "message") if values.get(name)}
        with psycopg.connect(dsn, autocommit=True) as connection:
            fields = {name: values.get(name) or None for name in ("name", "phone", "email", "city")}
            uid = lead_store.insert(connection, values["appkey"], answers=answers, **fields)
        link = {"appkey": values["appkey"], "uid": uid, "token": token(values["appkey"], str(uid))}
        return RedirectResponse(f"/thanks?{urlencode(link)}", 303)

    @app.get("/thanks")
    def thanks(request: Request) -> HTMLResponse:
        appkey, uid = lead(request)
        with psycopg.connect(dsn, autocommit=True) as connection:
            query = "SELECT name, phone, city, is_delete FROM customer WHERE appkey = %s AND uid = %s"
            row = connection.execute(query, (appkey, uid)).fetchone()
        if row is None:
            raise HTTPException(404, "this lead is gone")
        values = dict(zip(("name", "phone", "city", "gone"), row, strict=True))
        external_id = f"{appkey}:{uid}"
        return page("thanks.html", external_id=external_id, query=request.url.query, crms=crms, values=values)

    @app.post("/change")
    async def change(request: Request) -> Response:
        appkey, uid = lead(request)
        values = await form(request)
        with psycopg.connect(dsn, autocommit=True) as connection:
            if "forget" in values:
                lead_store.delete(connection, appkey, uid)
            else:
                texts = [(values.get(name) or "")[: LENGTHS[name]] or None for name in ("name", "phone", "city")]
                lead_store.update(connection, appkey, uid, *texts)
        return RedirectResponse(f"/thanks?{request.url.query}", 303)

    return app


def _problems(values: Mapping[str, str]) -> dict[str, str]:
    errors = {name: f"at most {most} characters" for name, most in LENGTHS.items() if len(values.get(name, "")) > most}
    for name in ("appkey", "name"):
        if not values.get(name):
            errors[name] = "please fill this in"
    if values.get("email") and not EMAIL.fullmatch(values["email"]):
        errors["email"] = "this does not look like an e-mail address"
    if not values.get("email") and not values.get("phone"):
        errors["phone"] = "a phone number or an e-mail address, please"
    if any("\0" in value for value in values.values()):
        errors["name"] = "there is a character in it that can't be stored"
    return errors
