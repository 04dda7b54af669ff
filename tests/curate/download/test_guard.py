"""The guarded GET: what it refuses, with which kind, and that it never outlasts its deadline."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from curate.download import guard
from curate.download.guard import Guard, Policy, Refused, clean_url, forbidden
from tests.tiny.local_server import raw_server, serve

OK = b"HTTP/1.1 200 OK\r\n"


def local_guard(**limits: Any) -> Guard:
    return Guard(Policy(**{"allow_hosts": frozenset({"127.0.0.1"}), "timeout_s": 5.0, **limits}))


def refusal(url: str | None, **limits: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        local_guard(**limits).get(url)
    return caught.value


def answering(*pieces: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return answer


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("http://Example.com", "http://example.com/"),
        (" https://example.com:443/a b.jpg\n", "https://example.com/a%20b.jpg"),
        ("http://example.com/ünï.jpg?q=ä b", "http://example.com/%C3%BCn%C3%AF.jpg?q=%C3%A4%20b"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://example.com/100%.jpg", "http://example.com/100%25.jpg"),
        ("http://example.com/%41%zz#part", "http://example.com/%41%25zz"),
        ("http://[2001:db8::1]:81/x", "http://[2001:db8::1]:81/x"),
    ],
)
def test_urls_are_made_ascii(url: str, clean: str) -> None:
    assert clean_url(url).url == clean
    assert clean_url(clean).url == clean


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (None, "bad_url"),
        ("", "bad_url"),
        ("http://", "bad_url"),
        ("http://host:port/", "bad_url"),
        ("http://[::1/", "bad_url"),
        ("http://a..b/", "bad_url"),
        ("http://user:pass@example.com/", "bad_url"),
        ("http://example.com/\ud800", "bad_url"),
        ("file:///etc/passwd", "scheme"),
        ("data:image/png;base64,AAAA", "scheme"),
        ("ftp://example.com/x", "scheme"),
        ("//example.com/x.jpg", "scheme"),
        ("example.com/x.jpg", "scheme"),
    ],
)
def test_what_is_no_web_address_is_refused(url: str | None, kind: str) -> None:
    assert refusal(url).kind == kind


@given(st.text(max_size=60).map(lambda text: "http://" + text))
def test_any_text_is_a_target_or_a_refusal(url: str) -> None:
    with contextlib.suppress(Refused):
        assert clean_url(url).url.isascii()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.1.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("255.255.255.255", True),
        ("::1", True),
        ("::", True),
        ("fe80::1%eth0", True),
        ("fc00::1", True),
        ("ff02::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::7f00:1", True),
        ("64:ff9b::808:808", False),
        ("2002:7f00:1::", True),
    ],
)
def test_only_public_addresses_are_free(address: str, expected: bool) -> None:
    assert forbidden(address) is expected


@pytest.mark.net
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"]
)
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    hits: list[int] = []
    with raw_server(lambda connection: hits.append(1)) as base, pytest.raises(Refused) as caught:
        Guard(Policy(timeout_s=3)).get(base.replace("127.0.0.1", host))
    assert (caught.value.kind, hits) == ("forbidden_address", [])


@pytest.mark.net
@pytest.mark.parametrize("named", ["127.0.0.1", "127.0.0.1:{port}"])
def test_named_hosts_are_let_in_and_others_are_not(named: str) -> None:
    with raw_server(answering(OK, b"\r\nhello")) as base:
        port = base.rpartition(":")[2]
        allow = frozenset({named.format(port=port)})
        assert Guard(Policy(allow_hosts=allow)).get(base) == b"hello"
        assert refusal(base, allow_hosts=frozenset({"127.0.0.1:1"})).kind == "forbidden_address"


@pytest.mark.net
def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers with a public address first and a private one later is asked once."""
    asked: list[str] = []

    def resolve(host: str, port: int, type: int) -> list[Any]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) > 1 else "192.0.2.1"
        return [(socket.AF_INET, type, 0, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    strict = Guard(Policy(timeout_s=0.5))
    with pytest.raises(Refused) as caught:
        strict.get("http://rebind.example/")
    assert caught.value.kind == "forbidden_address"  # 192.0.2.0/24 is reserved for documentation
    monkeypatch.setattr(guard, "forbidden", lambda address: address == "127.0.0.1")
    with pytest.raises(Refused) as caught:
        strict.get("http://rebind.example/")
    assert caught.value.kind in ("timeout", "connection", "refused")  # it went to 192.0.2.1
    assert asked == ["rebind.example"]


@pytest.mark.net
@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("http://169.254.169.254/latest", "forbidden_address"),
        ("http://localhost:{port}/", "forbidden_address"),
        ("file:///etc/passwd", "scheme"),
        ("/again", "redirect"),
        ("", "redirect"),
    ],
)
def test_redirects_are_checked_like_first_requests(location: str, kind: str) -> None:
    async def redirect(request: web.Request) -> web.Response:
        port = request.url.port
        return web.Response(status=302, headers={"Location": location.format(port=port)})

    with serve(redirect) as base:
        assert refusal(base).kind == kind


@pytest.mark.net
def test_relative_and_non_ascii_redirects_are_followed() -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/":
            return web.Response(status=301, headers={"Location": "/ziel ü.jpg"})
        assert request.path == "/ziel ü.jpg"
        return web.Response(body=b"there " + request.headers["User-Agent"].encode())

    with serve(answer) as base:
        assert local_guard(user_agent="clip-pipe test").get(base) == b"there clip-pipe test"


@pytest.mark.net
def test_status_and_retry_after_are_carried() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=int(request.path[1:]), headers={"Retry-After": "7"})

    with serve(answer) as base:
        assert refusal(base + "/404").kind == "http.404"
        assert refusal(base + "/204").kind == "http.204"
        busy = refusal(base + "/503")
    assert (busy.kind, busy.retry_after_s) == ("http.503", 7.0)


@pytest.mark.net
def test_an_opt_out_is_honoured_before_the_body_is_read() -> None:
    headers = b"X-Robots-Tag: noarchive\r\nX-Robots-Tag: noai\r\n"
    directives = frozenset({"noai"})
    with raw_server(answering(OK, headers, b"\r\nbody")) as base:
        assert refusal(base, disallowed_directives=directives).kind == "opt_out"
        assert local_guard().get(base) == b"body"


def drip(connection: socket.socket, piece: bytes) -> None:
    for _ in range(400):
        connection.sendall(piece)
        time.sleep(0.05)


@pytest.mark.net
@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b""),  # silence
        (OK, b"X-A: b\r\n"),  # endless headers
        (OK, b"X"),  # one endless header line
        (OK + b"Content-Length: 1000\r\n\r\n", b"x"),  # slow body
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_a_drip_ends_at_the_deadline(start: bytes, piece: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        drip(connection, piece)

    with raw_server(answer) as base:
        began = time.monotonic()
        found = refusal(base, timeout_s=0.4)
        assert time.monotonic() - began < 3.0
    assert found.kind == "timeout"


@pytest.mark.net
def test_a_hanging_resolver_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: Any, **__: Any) -> list[Any]:
        release.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    assert refusal("http://slow.example/", timeout_s=0.2).kind == "timeout"
    assert time.monotonic() - began < 3.0
    release.set()


def endless(connection: socket.socket) -> None:
    connection.sendall(OK + b"\r\n")
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"x" * 65536)


@pytest.mark.net
def test_bodies_are_capped() -> None:
    with raw_server(endless) as base:
        assert refusal(base, max_bytes=1 << 20).kind == "too_large.bytes"
    bomb = gzip.compress(b"\0" * (8 << 20))
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    with raw_server(answering(head, bomb)) as base:
        assert refusal(base, max_bytes=1 << 20).kind == "too_large.bytes"
        assert local_guard().get(base) == b"\0" * (8 << 20)
    with raw_server(answering(OK, b"Content-Length: 9999999999\r\n\r\n")) as base:
        assert refusal(base).kind == "too_large.bytes"
    with raw_server(answering(OK, b"Content-Length: 4\r\n\r\nfour")) as base:
        assert local_guard(max_bytes=4).get(base) == b"four"


@pytest.mark.net
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "connection"),
        (b"SSH-2.0-server\r\n", "protocol"),
        (OK + b"Content-Length: -5\r\n\r\nhello", "protocol"),
        (OK + b"Content-Length: 5x\r\n\r\nhello", "protocol"),
        (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "protocol"),
        (OK + b"Content-Length: 50\r\n\r\nhello", "connection"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello", "connection"),
        (OK + b"Content-Encoding: br\r\n\r\nhello", "protocol"),
        (OK + b"Content-Encoding: gzip\r\n\r\nhello", "protocol"),
        (OK + b"X: y\r\n" * 200 + b"\r\n", "protocol"),
        (OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n", "protocol"),
    ],
)
def test_broken_answers_have_a_kind(answer: bytes, kind: str) -> None:
    with raw_server(answering(answer)) as base:
        assert refusal(base).kind == kind


@pytest.mark.net
def test_chunked_bodies_are_read() -> None:
    with raw_server(
        answering(OK, b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    ) as base:
        assert local_guard().get(base) == b"abcde"


@pytest.mark.net
def test_nobody_listening_is_refused_and_unknown_names_have_no_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert refusal(f"http://127.0.0.1:{port}/").kind == "refused"
    assert refusal("http://no-such-host.invalid/").kind in ("dns", "timeout")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
    ]
    command += [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(path),
        "-out",
        str(path.with_suffix(".crt")),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as fault:
        pytest.skip(f"no openssl command to make a certificate with: {fault}")
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.mark.net
def test_https_needs_a_trusted_certificate_and_keeps_the_deadline(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)

    def answer(connection: socket.socket) -> None:
        with server_side.wrap_socket(connection, server_side=True) as secure:
            path = secure.recv(1 << 16).split()[1]
            secure.sendall(OK + b"\r\nsecret")
            if path == b"/slow":
                time.sleep(4)

    with raw_server(answer, scheme="https") as base:
        assert refusal(base).kind == "tls"
        trusting = ssl.create_default_context(cafile=str(certificate))
        trusting.sslsocket_class = guard._TlsSocket
        monkeypatch.setattr(guard, "tls_context", lambda: trusting)
        assert local_guard().get(base) == b"secret"
        began = time.monotonic()
        assert refusal(base + "/slow", timeout_s=0.5).kind == "timeout"
        assert time.monotonic() - began < 3.0


@pytest.mark.net
def test_plain_http_where_tls_was_asked_for() -> None:
    with raw_server(answering(OK, b"\r\nhello")) as base:
        assert refusal(base.replace("http:", "https:")).kind == "tls"


def test_one_tls_context_serves_all_requests() -> None:
    assert guard.tls_context() is guard.tls_context()
