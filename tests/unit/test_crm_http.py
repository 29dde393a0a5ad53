"""The HTTP client against a real server: what each reply means, what is sent again, and what stays secret."""

from __future__ import annotations

import gzip
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import TypeAdapter
from tests.support.scripted import Answer, Scripted, running_script
from tests.support.servers import free_port

from leadsync.crm.access import Access, StaticToken
from leadsync.crm.http import HTTPClient, Reply, RequestFailed
from leadsync.crm.pacing import Pacer
from leadsync.errors import AccessError, FenceLost, LeadsyncError, QuotaExceeded

TOKEN = "s3cret-token"


@pytest.fixture
def script() -> Iterator[Scripted]:
    with running_script() as running:
        yield running


class Client:
    """A client of one scripted server, with what it slept and how often it asked whether it may send."""

    def __init__(
        self,
        url: str,
        explain: Callable[[Reply], LeadsyncError | None] = lambda reply: None,
        translate: Callable[[Reply], Reply] = lambda reply: reply,
    ) -> None:
        self.slept: list[float] = []
        self.asked = 0
        self.http = HTTPClient(
            "CRM", pace=Pacer(1000), connect_timeout=0.5, read_timeout=0.3, before_request=self._ask,
            explain=explain, translate=translate, sleep=self.slept.append,
        )  # fmt: skip
        self.credentials = StaticToken("CRM", Access(url, TOKEN))

    def _ask(self) -> None:
        self.asked += 1

    def get(self, path: str = "/x?secret=1", **content: Any) -> Reply:
        return self.http.request("GET", path, self.credentials, **content)


@pytest.fixture
def client(script: Scripted) -> Iterator[Client]:
    made = Client(script.url)
    yield made
    made.http.close()


def test_a_request_carries_token_and_json(script: Scripted, client: Client) -> None:
    script.answers = [Answer(json={"ok": 1})]
    reply = client.http.request("POST", "/leads", client.credentials, json={"name": "Zoë 🌍"})
    assert reply.parse(TypeAdapter(dict[str, int])) == {"ok": 1}
    (request,) = script.requests
    assert (request.method, request.path) == ("POST", "/leads")
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.body == '{"name":"Zoë 🌍"}'.encode()


def test_a_vendor_may_want_headers_of_its_own(script: Scripted, client: Client) -> None:
    script.answers = [Answer(200, {})]
    access = Access(script.url, TOKEN, {"X-Key": TOKEN})
    client.http.request("GET", "/x", StaticToken("CRM", access))
    assert script.requests[0].headers["X-Key"] == TOKEN
    assert "Authorization" not in script.requests[0].headers
    assert TOKEN not in repr(access)


def test_a_request_may_bring_a_body_that_is_no_json(script: Scripted, client: Client) -> None:
    script.answers = [Answer(200, {})]
    headers = {"Content-Type": "multipart/mixed", "Prefer": "x"}
    client.http.request("POST", "/x", client.credentials, body=b"--x--", headers=headers)
    (request,) = script.requests
    assert request.body == b"--x--"
    assert (request.headers["Content-Type"], request.headers["Prefer"]) == ("multipart/mixed", "x")
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("status", [400, 409, 413, 422, 200, 204, 207])
def test_the_adapter_judges_successes_and_refused_data(script: Scripted, client: Client, status: int) -> None:
    script.answers = [Answer(status)]
    assert client.get().status == status


@pytest.mark.parametrize("status", [408, 423, 425, 500, 502, 503, 504])
def test_what_may_pass_is_one_failure_and_not_sent_again(script: Scripted, client: Client, status: int) -> None:
    script.answers = [Answer(status)]
    with pytest.raises(RequestFailed) as caught:
        client.get()
    assert (caught.value.code, caught.value.sent, caught.value.retry_after) == (str(status), True, None)
    assert len(script.requests) == 1
    assert client.slept == []


@pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 301, 302, 307])
def test_what_a_person_has_to_mend_is_an_access_error(script: Scripted, client: Client, status: int) -> None:
    script.answers = [Answer(status, headers={"Location": script.url + "/elsewhere"})]
    with pytest.raises(AccessError, match="401" if status == 401 else str(status)):
        client.get()
    assert len(script.requests) == 1


def test_short_throttling_is_waited_out(script: Scripted, client: Client) -> None:
    script.answers = [Answer(429, headers={"Retry-After": "3"}), Answer(429, headers={"Retry-After": "10"}), Answer()]
    assert client.get().status == 200
    assert client.slept == [3, 10]
    assert client.asked == 3


def test_throttling_is_waited_out_twice_at_most(script: Scripted, client: Client) -> None:
    script.answers = [Answer(429, headers={"Retry-After": "2"})]
    with pytest.raises(RequestFailed) as caught:
        client.get()
    assert (caught.value.code, caught.value.retry_after, client.slept) == ("429", 2, [2, 2])
    assert len(script.requests) == client.asked == 3


def test_throttling_without_a_word_on_how_long_is_waited_out_too(script: Scripted, client: Client) -> None:
    script.answers = [Answer(429)]
    with pytest.raises(RequestFailed) as caught:
        client.get()
    assert (caught.value.code, caught.value.retry_after, client.slept) == ("429", None, [1, 4])
    assert len(script.requests) == client.asked == 3


def test_long_throttling_is_left_to_the_load(script: Scripted, client: Client) -> None:
    script.answers = [Answer(429, headers={"Retry-After": "11"})]
    with pytest.raises(RequestFailed) as caught:
        client.get()
    assert (caught.value.retry_after, client.slept, len(script.requests)) == (11, [], 1)


def test_an_unavailable_crm_is_not_sent_to_again_even_when_it_says_when(script: Scripted, client: Client) -> None:
    script.answers = [Answer(503, headers={"Retry-After": "1"})]
    with pytest.raises(RequestFailed) as caught:
        client.get()
    assert (caught.value.retry_after, client.slept, len(script.requests)) == (1, [], 1)


def test_retry_after_is_seconds_or_a_date() -> None:
    def after(value: str) -> float | None:
        return Reply(503, {"Retry-After": value}, b"").retry_after

    assert after("120") == 120
    assert after(formatdate(0, usegmt=True)) == 0
    tomorrow = after(formatdate(time.time() + 86_400, usegmt=True))
    assert tomorrow is not None
    assert 80_000 < tomorrow <= 86_400
    assert after("9" * 400) == after("Fri, 31 Dec 9999 23:59:59 GMT") == 7 * 86_400


@pytest.mark.parametrize("value", ["", "soon", "-5", "1e3", "nan", "Tue, 24 Nov 2026 01:48:43"])
def test_a_retry_after_that_makes_no_sense_is_none(value: str) -> None:
    assert Reply(503, {"Retry-After": value}, b"").retry_after is None


def test_the_vendor_explains_first(script: Scripted) -> None:
    client = Client(script.url, lambda reply: QuotaExceeded("spent") if reply.status == 429 else None)
    script.answers = [Answer(429, headers={"Retry-After": "1"})]
    with pytest.raises(QuotaExceeded, match="spent"):
        client.get()
    assert client.slept == []
    client.http.close()


def test_an_error_in_a_200_is_treated_as_what_it_is_translated_to(script: Scripted) -> None:
    client = Client(script.url, translate=lambda reply: replace(reply, status=orjson.loads(reply.body)))
    script.answers = [Answer(200, 429, headers={"Retry-After": "2"}), Answer(200, 503), Answer(200, 401)]
    with pytest.raises(RequestFailed, match="503"):
        client.get()
    assert client.slept == [2]
    with pytest.raises(AccessError, match="token"):
        client.get()


def test_other_headers_open_the_door_where_there_is_no_token(script: Scripted, client: Client) -> None:
    client.credentials = StaticToken("CRM", Access(script.url, "", {"X-API-Key": "k"}))
    script.answers = [Answer()]
    client.get(headers={"Accept": "application/vnd.x+json"})
    sent = script.requests[0].headers
    assert (sent["X-API-Key"], sent["Accept"], "Authorization" in sent) == ("k", "application/vnd.x+json", False)
    assert "X-API-Key" not in repr(client.credentials.access())


def test_a_refused_connection_sent_nothing() -> None:
    client = Client(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RequestFailed) as caught:
        client.get()
    assert (caught.value.code, caught.value.sent) == ("connection", False)
    client.http.close()


def test_a_name_that_does_not_exist_sent_nothing() -> None:
    client = Client("https://no-such-host.invalid")
    with pytest.raises(RequestFailed) as caught:
        client.get()
    assert (caught.value.code, caught.value.sent) == ("connection", False)
    client.http.close()


def test_a_certificate_that_nobody_vouches_for_is_an_access_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.OID_COMMON_NAME, "crm")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "pem").write_bytes(private + certificate.public_bytes(Encoding.PEM))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "pem")
    with running_script(tls) as script:
        client = Client(script.url)
        with pytest.raises(AccessError, match="certificate"):
            client.get()
        assert script.requests == []
        client.http.close()
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "pem"))
        script.answers = [Answer(json=[1])]
        client = Client(script.url)
        assert client.get().body == b"[1]"
        client.http.close()


def test_a_server_without_tls_or_with_another_is_an_access_error(script: Scripted) -> None:
    script.answers = [Answer()]
    strangers = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # without a certificate it has no cipher to offer
    with running_script(strangers) as strict:
        for url in (script.url.replace("http:", "https:"), strict.url):
            client = Client(url)
            with pytest.raises(AccessError, match="TLS"):
                client.get()
            client.http.close()
        assert strict.requests == []


def test_a_proxy_of_the_environment_is_gone_through(script: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", script.url.replace("://", "://user:secret@"))
    script.answers = [Answer(json=[1])]
    monkeypatch.setenv("LEADSYNC_PLAINTEXT_HOSTS", "crm.invalid")
    client = Client("http://crm.invalid")
    assert client.get().body == b"[1]"
    client.http.close()
    (request,) = script.requests
    assert request.path.startswith("http://crm.invalid/")
    assert request.headers["Proxy-Authorization"].startswith("Basic ")
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"


def _dribble(write: Callable[[bytes], object]) -> None:
    write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(200):
        write(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (lambda write: None, "connection"),
        (lambda write: write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1,"), "connection"),
        (lambda write: time.sleep(1), "timeout"),
        (lambda write: (write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1,"), time.sleep(1)), "timeout"),
        (_dribble, "timeout"),
        (
            lambda write: write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n[1]"),
            "malformed_reply",
        ),
    ],
    ids=["closed", "cut short", "silent", "stops halfway", "dribbles for ever", "broken encoding"],
)
def test_a_reply_that_does_not_come_is_in_doubt(
    script: Scripted, client: Client, raw: Callable[[Callable[[bytes], object]], None], code: str
) -> None:
    script.answers = [Answer(raw=raw)]
    with pytest.raises(RequestFailed) as caught:
        client.get()
    assert (caught.value.code, caught.value.sent) == (code, True)
    assert len(script.requests) == 1


def test_a_reply_in_chunks_and_compressed_is_whole(script: Scripted, client: Client) -> None:
    data = gzip.compress(b'"%s"' % (b"x" * 300_000))

    def chunked(write: Callable[[bytes], object]) -> None:
        write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(data), 100):
            part = data[start : start + 100]
            write(b"%x\r\n%s\r\n" % (len(part), part))
        write(b"0\r\n\r\n")

    script.answers = [Answer(raw=chunked)]
    assert client.get().parse(TypeAdapter(str)) == "x" * 300_000


def test_connections_are_kept(script: Scripted, client: Client) -> None:
    script.answers = [Answer(json=[])]
    for _ in range(3):
        client.get()
    pool = client.http._routes.to(script.url).pool
    assert (pool.num_connections, pool.num_requests) == (1, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system has the option")
def test_what_the_network_holds_back_is_given_up_when_the_answer_is(script: Scripted, client: Client) -> None:
    script.answers = [Answer(json=[])]
    client.get()
    pool = client.http._routes.to(script.url).pool
    connection = pool._get_conn()
    assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 300
    pool._put_conn(connection)


def test_a_lost_fence_stops_everything(script: Scripted) -> None:
    def lost() -> None:
        raise FenceLost("lost")

    http = HTTPClient(
        "CRM", pace=Pacer(9), connect_timeout=1, read_timeout=1, before_request=lost, explain=lambda reply: None
    )
    with pytest.raises(FenceLost):
        http.request("GET", "/", StaticToken("CRM", Access(script.url, "t")))
    assert script.requests == []
    http.close()


def test_it_asks_last_whether_it_may_send(script: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pacing may take long, and the fence be lost meanwhile."""
    asked_while_waiting: list[int] = []
    monkeypatch.setattr(Pacer, "wait", lambda pacer: asked_while_waiting.append(client.asked))
    script.answers = [Answer(429), Answer()]
    client.get()
    assert asked_while_waiting == [0, 1]
    assert client.asked == 2


def test_no_error_tells_address_token_or_body(
    script: Scripted, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    for answer in (Answer(503, body=b"ada@example.org"), Answer(403), Answer(raw=lambda write: None)):
        script.answers = [answer]
        with pytest.raises(LeadsyncError) as caught:
            client.get(json={"email": "ada@example.org"})
        text = f"{caught.value!r} {caught.value.__cause__!r}"
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        for private in (TOKEN, "secret=1", "127.0.0.1", "ada@example.org"):
            assert private not in text
    assert TOKEN not in caplog.text
    assert "ada@example.org" not in caplog.text
    assert TOKEN not in repr(client.credentials.access())


def test_a_netrc_does_not_replace_the_token(
    script: Scripted, client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    script.answers = [Answer()]
    client.get()
    assert script.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
    client.http.send("POST", f"{script.url}/login", form={"client_secret": "x"})
    assert "Authorization" not in script.requests[1].headers


def test_cookies_are_not_kept(script: Scripted, client: Client) -> None:
    script.answers = [Answer(headers={"Set-Cookie": "a=b"})]
    client.get()
    client.get()
    assert "Cookie" not in script.requests[1].headers


def test_a_malformed_reply_keeps_its_text_out_of_the_error() -> None:
    with pytest.raises(RequestFailed) as caught:
        Reply(200, {}, b"<html>ada@example.org \xff").parse(TypeAdapter(list[int]))
    assert caught.value.code == "malformed_reply"
    assert caught.value.reply == "<html>ada@example.org \ufffd"
    assert "ada" not in str(caught.value)


def test_the_pacer_spaces_requests_evenly() -> None:
    now, slept = 100.0, list[float]()
    pacer = Pacer(4, clock=lambda: now, sleep=slept.append)
    for _ in range(4):
        pacer.wait()
    assert slept == [0.25, 0.5, 0.75]
    now = 200.0
    pacer.wait()  # what was not used is not saved up
    pacer.wait()
    assert slept[3:] == [0.25]


def test_the_longest_request_sums_all_time_outs(client: Client) -> None:
    assert client.http.longest_request == pytest.approx(3 * 0.5 + 2 * 0.3)


def test_every_request_is_observed_with_the_status_that_it_deserves(script: Scripted) -> None:
    seen: list[tuple[int | None, float, str | None]] = []
    client = Client(script.url, translate=lambda reply: replace(reply, status=429) if b"slow" in reply.body else reply)
    client.http._observe = lambda status, seconds, headers: seen.append((status, seconds, headers.get("x-left")))
    script.answers = [Answer(200, "slow down"), Answer(201, {}, headers={"X-Left": "7"})]
    client.get()
    assert [(status, left) for status, _, left in seen] == [(429, None), (201, "7")]
    script.answers = [Answer(raw=lambda write: time.sleep(0.5))]
    with pytest.raises(RequestFailed):
        client.get()
    assert seen[-1][0] is None
    assert seen[-1][1] >= 0.3
    assert all(0 < seconds < 5 for _, seconds, _ in seen)
    client.http.close()


def test_an_id_never_holds_a_nul() -> None:
    """PostgreSQL would not keep it. Two backslashes are one character, and what follows is a text about NUL."""
    texts = TypeAdapter(list[str])
    assert Reply(200, {}, rb'["a\u0000\u0000b", "\\\u0000", "\\u0000"]').parse(texts) == [
        "a\ufffd\ufffdb",
        "\\\ufffd",
        "\\u0000",
    ]


@pytest.mark.parametrize("token", ["漢字", "a\nb", "a\r\nX: 1", "a\0"])
def test_a_token_that_fits_no_header_is_told_and_not_quoted(script: Scripted, client: Client, token: str) -> None:
    login = StaticToken("CRM", Access(script.url, token))
    with pytest.raises(AccessError, match="the header Authorization would hold what HTTP does not allow") as caught:
        client.http.request("GET", "/", login)
    assert token not in str(caught.value)
    assert script.requests == []
