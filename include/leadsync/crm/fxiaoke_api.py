"""How Fxiaoke lets an app in, and how it tells errors."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from leadsync.crm.access import Access
from leadsync.crm.base import Endpoint
from leadsync.crm.http import HTTPClient, Reply, RequestFailed
from leadsync.crm.login import Login

# Everything is told in a 200: the HTTP statuses that the codes deserve. All others are about the data. The published
# table is not to be trusted for more: the gateway was seen to use codes of it in another meaning.
ENDED, THROTTLED, DENIED, BROKEN = 401, 429, 403, 503
SPENT, NOT_BOUGHT = 30002, 30003
STATUS = {
    20005: ENDED, 20016: ENDED, 20017: ENDED,
    14001: THROTTLED, 30004: THROTTLED, SPENT: THROTTLED, NOT_BOUGHT: THROTTLED,
    15003: DENIED, 20012: DENIED, 20014: DENIED, 20020: DENIED, 20021: DENIED, 20022: DENIED, 20023: DENIED,
    -1: BROKEN, -2: BROKEN, 50009: BROKEN,
}  # fmt: skip


class Answer(BaseModel):
    errorCode: int
    errorMessage: str = ""


class _Token(BaseModel):
    accessToken: str
    ea: str
    expiresIn: float | None = None


ANSWER = TypeAdapter(Answer)
TOKEN = TypeAdapter(_Token)


class AppLogin(Login):
    """A token of the app. Fxiaoke gives the same one again for 110 minutes, and takes ten logins a minute."""

    def __init__(self, who: str, endpoint: Endpoint, http: HTTPClient, user_id: str) -> None:
        super().__init__(who)
        self._endpoint = endpoint
        self._http = http
        self._user_id = user_id

    def log_in(self) -> Access:
        code = self._endpoint.extra.get("permanent_code")
        if not isinstance(code, str) or not code:
            raise self.refuse('needs the app\'s permanent code in the connection\'s extra: {"permanent_code": "…"}')
        body = {
            "appId": self._endpoint.login,
            "appSecret": self._endpoint.password,
            "permanentCode": code,
            "grantType": "app_secret",
        }
        url = f"{self._endpoint.url}/oauth2.0/token"
        reply = told(self._http.send("POST", url, body=orjson.dumps(body), params=traced()))
        self.check_up(reply)
        if reply.status != 200:
            raise self.refuse(
                f"refuses the login ({code_of(reply) or reply.status}): correct the connection's address, appId "
                "(login), appSecret (password) and permanent code (extra), and let the app use the API from here"
            )
        try:
            token = TOKEN.validate_json(reply.body)
        except ValidationError:  # its text stays here, for it may hold a token
            raise RequestFailed(f"{self.who}: the login's reply makes no sense", "malformed_reply") from None
        headers = {
            "Authorization": f"Bearer {token.accessToken}",
            "x-fs-ea": token.ea,
            "x-fs-userid": self._user_id,
        }
        return Access(self._endpoint.url, token.accessToken, headers, token.expiresIn)


def traced() -> dict[str, str]:
    """The parameter that names a request; Fxiaoke wants another one each time."""
    return {"thirdTraceId": str(uuid4())}


def code_of(reply: Reply) -> int | None:
    """The error code of a reply; None where it is not Fxiaoke's own, or a success."""
    try:
        return reply.parse(ANSWER).errorCode or None
    except RequestFailed:
        return None


def told(reply: Reply) -> Reply:
    """The reply with the status that its error code deserves."""
    code = code_of(reply) if reply.status == 200 else None
    return reply if code is None else replace(reply, status=STATUS.get(code, 400))
