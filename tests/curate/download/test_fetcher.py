"""The fetcher against real servers on loopback: every hostile row ends in time, in memory and with its kind."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import math
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from curate.download import fetcher as module
from curate.download.fetcher import Body, Fetcher
from curate.download.guard import Policy
from curate.download.outcomes import Refused
from tests.tiny.local_server import answer, certificate, keep_alive_server, ok, raw_server

pytestmark = pytest.mark.net
OK = b"HTTP/1.1 200 OK\r\n"
LOCAL = frozenset({"127.0.0.1", "127.0.0.2", "127.0.0.3", "localhost"})


class Run:
    """A fetcher whose results are gathered. A body is released at once, unless ``keep``."""

    def __init__(self, *, most: int = 64, memory_bytes: int = 64 << 20, **limits: Any) -> None:
        policy = Policy(**{"allow_hosts": LOCAL, "timeout_s": 60.0, **limits})
        self.results: dict[Any, list[Body | Refused]] = {}
        self.order: list[Any] = []
        self.ended_s: dict[Any, float] = {}
        self.keep = False
        self._some = threading.Condition()
        self._numbers = itertools.count()
        self.fetcher = Fetcher(
            policy, most_requests=most, memory_bytes=memory_bytes, done=self._done
        )

    def _done(self, key: Any, result: Body | Refused) -> None:
        with self._some:
            self.results.setdefault(key, []).append(result)
            self.order.append(key)
            self.ended_s[key] = time.monotonic()
            self._some.notify_all()
        if isinstance(result, Body) and not self.keep:
            self.fetcher.release(len(result.data))

    def submit(self, *urls: str | None) -> None:
        for url in urls:
            self.fetcher.submit(next(self._numbers), url)

    def wait(self, count: int, timeout_s: float = 90.0) -> list[str]:
        """The kind of each result ("" for a body), by key."""
        with self._some:
            assert self._some.wait_for(lambda: len(self.order) >= count, timeout_s), self.kinds()
        return self.kinds()

    def kinds(self) -> list[str]:
        assert all(len(found) == 1 for found in self.results.values())
        single = [self.results[key][0] for key in sorted(self.results)]
        return [found.kind if isinstance(found, Refused) else "" for found in single]

    def __call__(self, *urls: str | None) -> list[str]:
        self.submit(*urls)
        return self.wait(len(urls))


@contextlib.contextmanager
def running(**limits: Any) -> Iterator[Run]:
    run = Run(**limits)
    try:
        yield run
    finally:
        run.fetcher.close()


def refusal(url: str | None, **limits: Any) -> Refused:
    with running(**limits) as run, pytest.raises(Refused) as caught:
        run.fetcher.get(url)
    return caught.value


def body(url: str, **limits: Any) -> bytes:
    with running(**limits) as run:
        return run.fetcher.get(url)


def until(true: Callable[[], object]) -> None:
    end_s = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def port_of_nobody(taken: socket.socket) -> int:
    """One that refuses all: it is taken, so that nobody else gets it, and nobody listens there."""
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", 0))
    return int(taken.getsockname()[1])


def sending(*pieces: bytes) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return send


# Addresses


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"]
)
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    hits: list[int] = []
    with raw_server(lambda connection: hits.append(1)) as base:
        url = base.replace("127.0.0.1", host)
        assert refusal(url, allow_hosts=frozenset()).kind == "forbidden_address"
    assert not hits


@pytest.mark.parametrize("named", ["127.0.0.1", "127.0.0.1:{port}"])
def test_named_hosts_are_let_in_and_others_are_not(named: str) -> None:
    with raw_server(sending(OK, b"\r\nhello")) as base:
        allow = frozenset({named.format(port=base.rpartition(":")[2])})
        assert body(base, allow_hosts=allow) == b"hello"
        assert refusal(base, allow_hosts=frozenset({"127.0.0.1:1"})).kind == "forbidden_address"


def test_the_address_connected_to_is_the_one_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers with a public address at first and with a private one later gains nothing."""
    answers = iter([["192.0.2.1"], ["10.0.0.1", "127.0.0.1"]])
    monkeypatch.setattr("curate.download.names._look_up", lambda name: next(answers))
    monkeypatch.setattr("curate.download.names._KEPT_S", 0.0)
    checked: list[str] = []

    def forbidden(address: str) -> bool:
        checked.append(address)
        return address != "192.0.2.1"

    monkeypatch.setattr("curate.download.transfer.forbidden", forbidden)
    with running(allow_hosts=frozenset()) as run:
        run.submit("http://rebind.example/")
        until(lambda: checked)
        run.submit("http://rebind.example/")
        until(lambda: 1 in run.results)
    first, second = run.kinds()
    assert first in ("timeout.connect", "connection", "refused", "other")  # it went there
    assert second == "forbidden_address"
    assert checked == ["192.0.2.1", "10.0.0.1", "127.0.0.1"]


def test_names_that_hang_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def look_up(name: str) -> list[str]:
        if name.startswith("slow"):
            release.wait(100)
        return ["127.0.0.1"]

    monkeypatch.setattr("curate.download.names._look_up", look_up)
    with keep_alive_server(lambda path: ok(b"x")) as seen:
        port = seen.base.rpartition(":")[2]
        names = frozenset({*(f"quick{n}.example" for n in range(20))})
        slow = [f"http://slow{number}.example:{port}/" for number in range(40)]
        try:
            with running(allow_hosts=names, most=100) as run:
                run.fetcher._desk.crowd.limit = 100
                run.submit(*slow)
                run.submit(*(f"http://quick{number}.example:{port}/" for number in range(20)))
                assert run.wait(20) == [""] * 20
                assert run.fetcher.waiting() == 0
            with running(timeout_s=0.6, allow_hosts=names, most=100) as run:
                run.fetcher._desk.crowd.limit = 100
                began_s = time.monotonic()
                assert run(*slow) == ["timeout.connect"] * 40
                assert time.monotonic() - began_s < 60
        finally:
            release.set()


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("http://169.254.169.254/latest", "forbidden_address"),
        ("http://127.0.0.9:{port}/", "forbidden_address"),
        ("http://localhost:{port}/", "forbidden_address"),
        ("file:///etc/passwd", "scheme"),
        ("/again", "redirect"),
        ("", "redirect"),
    ],
)
def test_redirects_are_checked_like_first_requests(location: str, kind: str) -> None:
    def reply(path: str) -> bytes:
        port = seen.base.rpartition(":")[2]
        return answer(302, b"", f"Location: {location.format(port=port)}")

    with keep_alive_server(reply) as seen:
        found = refusal(seen.base, allow_hosts=frozenset({"127.0.0.1"}))
    assert found.kind == kind
    assert len(seen.paths) == (6 if location == "/again" else 1)


def test_relative_and_non_ascii_redirects_are_followed() -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall("HTTP/1.1 301 Moved\r\nLocation: /ziel ü.jpg\r\n\r\n".encode())

    with raw_server(send) as base:
        assert "5 redirects" in str(refusal(base))

    def reply(path: str) -> bytes:
        return (
            answer(301, b"x" * 500, "Location: /ziel ü.jpg") if path == "/" else ok(path.encode())
        )

    with keep_alive_server(reply) as seen:
        assert body(seen.base) == b"/ziel%20%C3%BC.jpg"
        assert body(seen.base + "/ä b?ü#part") == b"/%C3%A4%20b?%C3%BC"
    assert seen.connections == 2  # a redirect keeps its connection


def test_a_redirect_whose_body_drips_is_followed_at_once() -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:%d/\r\n\r\n" % port)
        with contextlib.suppress(OSError):
            for _ in range(2000):
                time.sleep(0.05)
                connection.sendall(b"x")

    with keep_alive_server(lambda path: ok(b"there"), host="127.0.0.2") as seen:
        port = int(seen.base.rpartition(":")[2])
        with raw_server(send) as base:
            began_s = time.monotonic()
            assert body(base) == b"there"
            assert time.monotonic() - began_s < 30


def test_a_url_of_megabytes_ends_alone() -> None:
    with keep_alive_server(lambda path: ok(b"x")) as seen, running() as run:
        urls = [seen.base, f"{seen.base}/{'a' * 8_100_000}", seen.base]
        assert run(*urls) == ["", "bad_url", ""]


def test_what_is_sent_names_the_tool_and_nothing_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    cookie = ok(b"x", "Set-Cookie: a=b; Path=/")
    with (
        keep_alive_server(lambda path: cookie) as seen,
        running(user_agent="clip-pipe test") as run,
    ):
        run.fetcher.get(seen.base + "/1")
        run.fetcher.get(seen.base + "/2")
    head = seen.heads[1].decode().lower()
    assert "user-agent: clip-pipe test\r\n" in head
    assert "accept-encoding: identity\r\n" in head
    assert not any(word in head for word in ("cookie", "authorization", "referer"))
    assert seen.connections == 1


# Answers


def test_status_and_retry_after_are_carried() -> None:
    def reply(path: str) -> bytes:
        return answer(int(path[1:]), b"gone", "Retry-After: 7")

    with keep_alive_server(reply) as seen, running(retries=3) as run:
        assert run(seen.base + "/404", seen.base + "/410", seen.base + "/204") == [
            "http.404",
            "http.410",
            "http.204",
        ]
        assert seen.counts == {"/404": 1, "/410": 1, "/204": 1}
    with keep_alive_server(reply) as seen:
        busy = refusal(seen.base + "/503")
    assert (busy.kind, busy.retry_after_s) == ("http.503", 7.0)


def test_an_opt_out_is_honoured_before_the_body_is_read() -> None:
    directives = frozenset({"noai", "tdm-reservation"})
    sent: list[int] = []

    def send(connection: socket.socket) -> None:
        connection.sendall(OK + b"X-Robots-Tag: noarchive\r\nX-Robots-Tag: otherbot: noai, ")
        connection.sendall(b"clip-pipe: noai\r\nContent-Length: 30000000\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(300):
                sent.append(connection.send(b"x" * 100_000))

    with raw_server(send) as base:
        assert refusal(base, disallowed_directives=directives).kind == "opt_out"
    assert sum(sent) < 10_000_000  # socket buffers
    with keep_alive_server(lambda path: ok(b"x", "TDM-Reservation: 1")) as seen:
        assert refusal(seen.base, disallowed_directives=directives).kind == "opt_out"
        assert body(seen.base) == b"x"


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"", "connection"),
        (b"SSH-2.0-server\r\n", "protocol"),
        (OK + b"Content-Length: -5\r\n\r\nhello", "protocol"),
        (OK + b"Content-Length: 5x\r\n\r\nhello", "protocol"),
        (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "protocol"),
        (OK + b"Content-Length: 50\r\n\r\nhello", "connection"),
        (OK + b"Content-Length: 9999999999\r\n\r\n", "too_large.bytes"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello", "connection"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello", "connection"),
        (OK + b"Content-Encoding: br\r\n\r\nhello", "protocol"),
        (OK + b"Content-Encoding: gzip\r\n\r\nhello", "protocol"),
        (OK + b"X: " + b"y" * 400_000 + b"\r\n\r\n", "protocol"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "redirect"),
    ],
)
def test_broken_answers_have_a_kind(sent: bytes, kind: str) -> None:
    with raw_server(sending(sent)) as base:
        assert refusal(base).kind == kind


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (OK + b"\r\n", b""),
        (OK + b"Content-Length: 0\r\n\r\n", b""),
        (OK + b"Content-Length: 4\r\n\r\nfour", b"four"),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n",
            b"abcde",
        ),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"\r\nlate", b"late"),
        (b"HTTP/1.0 200\r\n\r\nold", b"old"),
        (OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"packed", mtime=0), b"packed"),
    ],
)
def test_odd_but_whole_answers_are_read(sent: bytes, expected: bytes) -> None:
    with raw_server(sending(sent)) as base:
        assert body(base) == expected


def test_nobody_listening_and_unknown_names() -> None:
    with socket.socket() as taken:
        assert refusal(f"http://127.0.0.1:{port_of_nobody(taken)}/").kind == "refused"
    with running(retries=2) as run:
        began_s = time.monotonic()
        assert run("http://nothing.invalid/") == ["dns"]
        assert time.monotonic() - began_s < 30
        assert run.fetcher.costs()["requests"] == 0  # the name was asked for, and that was all
    assert refusal(None).kind == "bad_url"


# Time


def dripping(start: bytes, piece: bytes) -> Callable[[socket.socket], None]:
    """Sends on for minutes, or until the other side goes."""

    def send(connection: socket.socket) -> None:
        connection.sendall(start)
        connection.settimeout(0.05)
        for _ in range(4000):
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1 << 10):
                    return
            connection.sendall(piece)

    return send


DRIPS = [
    (b"", b"", "timeout.first_byte"),  # silence
    (OK, b"X-A: b\r\n", "timeout.total"),  # endless headers
    (OK, b"X", "timeout.total"),  # one endless header line
    (OK + b"Content-Length: 9999\r\n\r\n", b"x", "timeout.total"),  # slow body
    (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", "timeout.total"),
    (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", "timeout.total"),
    (b"HTTP/1.1 404 No\r\nContent-Length: 9999\r\n\r\n", b"x", "http.404"),
]


def test_drips_end_at_the_deadline() -> None:
    with contextlib.ExitStack() as stack:
        bases = [
            stack.enter_context(raw_server(dripping(start, piece))) for start, piece, _ in DRIPS
        ]
        run = stack.enter_context(running(timeout_s=2.0))
        began_s = time.monotonic()
        assert run(*bases) == [kind for _, _, kind in DRIPS]
        took_s = [run.ended_s[key] - began_s for key in range(len(DRIPS))]
    assert 1.9 < min(took_s[:-1]) <= max(took_s) < 60  # the last is known before its body is over


def test_the_first_byte_has_a_limit_of_its_own() -> None:
    slow = OK + b"Content-Length: 40\r\n\r\n"
    with (
        raw_server(dripping(b"", b"")) as silent,
        raw_server(dripping(slow, b"x")) as base,
        running(first_byte_timeout_s=1.5) as run,
    ):
        began_s = time.monotonic()
        assert run(silent, base) == ["timeout.first_byte", ""]
        assert run.results[1] == [Body(b"x" * 40)]  # 2 s of them
        assert run.ended_s[0] - began_s < 30


def test_a_connection_that_never_comes_about() -> None:
    with socket.socket() as full:  # a listener whose queue is full drops further handshakes
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        time.sleep(0.05)
        found = refusal(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout_s=0.4)
        for filler in fillers:
            filler.close()
    assert found.kind == "timeout.connect"


def test_redirects_share_one_deadline() -> None:
    def reply(path: str) -> bytes:
        time.sleep(0.5 if len(path) > 1 else 0)
        return answer(302, b"", f"Location: {path}x")

    with keep_alive_server(reply) as seen:
        assert refusal(seen.base, timeout_s=1.2).kind == "timeout.total"
    assert len(seen.paths) <= 4  # 0.5 s each but for the first


# Size and memory


def endless(connection: socket.socket) -> None:
    connection.sendall(OK + b"\r\n")
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"x" * 65536)


def test_an_endless_body_costs_no_memory() -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with raw_server(endless) as base:
        assert refusal(base, max_bytes=32 << 20).kind == "too_large.bytes"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 64 << 10


def test_a_bomb_is_not_unpacked_past_the_limit() -> None:
    bomb = gzip.compress(b"\0" * (100 << 20))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with keep_alive_server(lambda path: ok(bomb, "Content-Encoding: gzip")) as seen:
        assert refusal(seen.base, max_bytes=16 << 20).kind == "too_large.bytes"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 64 << 10


@pytest.mark.parametrize("way", ["plain", "chunked", "gzip"])
def test_bodies_stay_in_the_budget_with_a_slow_consumer(way: str) -> None:
    size, budget = 4 << 20, 16 << 20
    data = b"\0" * size
    whole = {
        "plain": ok(data),
        "gzip": ok(gzip.compress(data, 1), "Content-Encoding: gzip"),
        "chunked": OK
        + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size
        + data
        + b"\r\n0\r\n\r\n",
    }[way]
    with (
        keep_alive_server(lambda path: whole) as seen,
        running(memory_bytes=budget, max_bytes=8 << 20, timeout_s=1.5) as run,
    ):
        run.keep = True
        run.submit(*(f"{seen.base}/{number}" for number in range(16)))
        released = 0
        while released < 16:
            run.wait(released + 1)
            time.sleep(0.1)  # 1.6 s in all: longer than a URL's own time
            run.fetcher.release(size)
            released += 1
        assert set(run.kinds()) == {""}
        memory = run.fetcher._desk.memory
        assert memory.peak_bytes <= budget + (8 << 20)
        assert (memory.in_flight_bytes, memory.paused) == (0, set())


def test_a_body_larger_than_the_budget_still_comes() -> None:
    data = b"\0" * (3 << 20)
    packed = ok(gzip.compress(data, 1), "Content-Encoding: gzip")
    with keep_alive_server(lambda path: packed if "z" in path else ok(data)) as seen:
        urls = [f"{seen.base}/{number}{'z' * (number % 2)}" for number in range(8)]
        with running(memory_bytes=1 << 20) as run:
            assert run(*urls) == [""] * 8


def test_few_bodies_are_handed_out_at_once_however_small() -> None:
    with keep_alive_server(lambda path: ok(b"x")) as seen, running(most=32) as run:
        run.keep = True
        run.fetcher._desk.memory.most_bodies = 10
        run.submit(*[seen.base] * 200)
        run.wait(10)
        time.sleep(0.3)
        assert len(run.order) == 10
        assert len(seen.paths) <= 10 + 32
        for released in range(200):
            run.wait(released + 1)
            run.fetcher.release(1)
    assert run.kinds() == [""] * 200


# Connections


def test_connections_are_used_again_and_costs_are_told() -> None:
    with keep_alive_server(lambda path: ok(b"x" * 1000)) as seen, running(most=8) as run:
        assert run(*(f"{seen.base}/{number}" for number in range(200))) == [""] * 200
        costs = run.fetcher.costs()
        assert (costs["requests"], costs["wire_bytes"]) == (200, 200_000)
        assert seen.connections == costs["connections"] <= 8
        assert 0 < costs["fetch_cpu_s"] < 5
        assert set(run.fetcher.costs().values()) == {0.0}


def test_a_connection_that_the_server_closed_is_no_failure() -> None:
    with keep_alive_server(lambda path: ok(b"x", "Connection: close")) as seen, running() as run:
        assert run(*(f"{seen.base}/{number}" for number in range(20))) == [""] * 20


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    made = certificate(tmp_path_factory.mktemp("tls"))
    if made is None:
        pytest.skip("no openssl command to make a certificate with")
    return made


def test_https_needs_a_trusted_certificate(
    trusted: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, context = trusted
    with keep_alive_server(lambda path: ok(b"secret"), context=context) as seen:
        assert refusal(seen.base).kind == "tls"
        monkeypatch.setenv("SSL_CERT_FILE", str(own))
        with running(most=2) as run:
            assert run(*(f"{seen.base}/{number}" for number in range(20))) == [""] * 20
            costs = run.fetcher.costs()
        assert costs["tls_handshakes"] == costs["connections"] <= 2
        assert costs["tls_wall_s"] > 0
        assert refusal(seen.base.replace("127.0.0.1", "localhost")).kind == "tls"


def test_plain_http_where_tls_was_asked_for() -> None:
    with raw_server(sending(OK, b"\r\nhello")) as base:
        assert refusal(base.replace("http:", "https:")).kind == "tls"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def speak_http2(connection: socket.socket, streams: list[int], answers: int = 1000) -> None:
    """Answers streams with 200 and "two", so many of them."""
    lines = connection.makefile("rb")
    lines.read(24)  # the preface
    connection.sendall(frame(4, 0, 0, b""))
    while len(head := lines.read(9)) == 9:
        lines.read(int.from_bytes(head[:3], "big"))
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        if kind == 4 and not flags & 1:
            connection.sendall(frame(4, 1, 0, b""))
        if kind == 1 and len(streams) < answers:
            streams.append(stream)
            # Static table entry 8 is ":status: 200".
            connection.sendall(frame(1, 4, stream, b"\x88") + frame(0, 1, stream, b"two"))


def test_http2_where_the_server_offers_it(
    trusted: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = trusted
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.with_name("both.pem"))
    context.set_alpn_protocols(["h2", "http/1.1"])
    streams: list[int] = []

    def send(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            if secure.selected_alpn_protocol() == "h2":
                speak_http2(secure, streams)
            else:
                secure.recv(1 << 16)
                secure.sendall(OK + b"Content-Length: 3\r\n\r\none")

    with raw_server(send, scheme="https") as base:
        with running() as run:
            assert run(*[base] * 10) == [""] * 10
            assert run.results[0] == [Body(b"two")]
            assert run.fetcher.costs()["connections"] == 1  # all on one
        assert len(set(streams)) == 10
        assert body(base, http2=False) == b"one"


def test_a_dead_http2_connection_is_left(
    trusted: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = trusted
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.with_name("both.pem"))
    context.set_alpn_protocols(["h2"])
    connections: list[int] = []

    def send(connection: socket.socket) -> None:
        connections.append(1)
        answers = 3 if len(connections) == 1 else 1000  # the first one goes dead
        with context.wrap_socket(connection, server_side=True) as secure:
            speak_http2(secure, [], answers)

    limits = {"timeout_s": 1.5, "requests_per_host": 2}
    with raw_server(send, scheme="https") as base, running(**limits) as run:
        assert run(*[base] * 3) == [""] * 3
        for _ in range(30):  # always some on it
            run.submit(base)
            time.sleep(0.05)
        kinds = run.wait(33)[3:]
    assert kinds.count("") >= 20
    assert set(kinds) <= {"", "timeout.first_byte"}
    assert len(connections) <= 8


# Hosts


def test_a_host_has_its_limit_and_does_not_hold_up_others() -> None:
    go = threading.Event()

    def held(path: str) -> bytes:
        go.wait(60)
        return ok(b"x")

    with (
        keep_alive_server(held) as slow,
        keep_alive_server(lambda path: ok(b"y"), host="127.0.0.2") as quick,
        running(requests_per_host=3, most=64) as run,
    ):
        run.submit(*[slow.base] * 30, *[quick.base] * 10)
        run.wait(10)
        assert set(run.order[:10]) == set(range(30, 40))
        until(lambda: slow.at_once >= 3)
        time.sleep(0.1)  # for a fourth, if there were one
        go.set()
        run.wait(40)
    assert slow.most_at_once == 3


def assert_paced(times_s: list[float], began_s: float, gap_s: float) -> None:
    """No request came sooner than its turn; how late a busy machine sees each says nothing."""
    for number, at_s in enumerate(times_s):
        assert at_s - began_s > gap_s * number - 0.01


def test_a_host_has_its_rate() -> None:
    limits = {"requests_per_s_per_host": 20.0}
    with keep_alive_server(lambda path: ok(b"x")) as seen, running(**limits) as run:
        began_s = time.monotonic()
        assert run(*[seen.base] * 8) == [""] * 8
    assert_paced(seen.times_s, began_s, 0.05)


def test_more_at_once_while_it_pays() -> None:
    limits = {"most": 128, "requests_per_host": 1000}
    with keep_alive_server(lambda path: ok(b"x"), delay_s=0.05) as seen, running(**limits) as run:
        assert run(*[seen.base] * 1500) == [""] * 1500
    assert 33 <= seen.most_at_once <= 128


def test_order_of_start_is_that_of_submission() -> None:
    with keep_alive_server(lambda path: ok(b"x")) as seen, running(most=1) as run:
        run(*(f"{seen.base}/{number}" for number in range(30)))
    assert seen.paths == [f"/{number}" for number in range(30)]


def test_a_dead_host_is_left_alone_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.download.health._DOWN_S", 0.5)
    with socket.socket() as taken, running(requests_per_host=4) as run:
        port = port_of_nobody(taken)
        kinds = run(*[f"http://127.0.0.1:{port}/"] * 200)
        assert kinds[:30] == ["refused"] * 30
        assert set(kinds) == {"refused", "host_down"}
        assert kinds.count("host_down") >= 160
        asked = run.fetcher.costs()["requests"]
        assert asked < 40
        time.sleep(0.6)
        with keep_alive_server(lambda path: ok(b"x"), port=port):
            run.submit(*[f"http://127.0.0.1:{port}/"] * 20)
            assert run.wait(220)[200:] == [""] * 20


def test_a_host_that_asks_for_hours_ends_what_waits_for_it() -> None:
    def reply(path: str) -> bytes:
        return answer(429, b"", "Retry-After: 3600")

    with keep_alive_server(reply) as seen, running(requests_per_host=2) as run:
        kinds = run(*[seen.base] * 100)
    assert set(kinds) == {"http.429", "host_down"}
    assert len(seen.paths) <= 4


def test_a_host_that_says_too_much_is_asked_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("curate.download.health._FIRST_PAUSE_S", 0.1)
    with keep_alive_server(lambda path: answer(429)) as seen, running(requests_per_host=2) as run:
        began_s = time.monotonic()
        run.submit(*[seen.base] * 100)
        time.sleep(1.0)
        asked, passed_s = len(seen.paths), time.monotonic() - began_s
        # After 0, 0.1, 0.3, 0.7, ... s: 4 times in 1 s.
        assert asked <= 2 * (2 + int(math.log2(passed_s / 0.1 + 1)))
        run.fetcher.close()


def test_a_host_that_drips_is_left_alone_in_the_end() -> None:
    with (
        raw_server(dripping(OK + b"Content-Length: 1000\r\n\r\n", b"x")) as base,
        running(timeout_s=0.2, requests_per_host=16) as run,
    ):
        assert run(*[base] * 200).count("host_down") >= 150


# Retries


@pytest.mark.parametrize("form", ["seconds", "date", "none"])
def test_transient_failures_are_tried_again(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.download.fetch_loop._BACKOFF_S", 0.1)
    monkeypatch.setattr("curate.download.health._FIRST_PAUSE_S", 0.1)

    def reply(path: str) -> bytes:
        if seen.counts[path] >= 3:
            return ok(b"at last")
        lines = {"seconds": ["Retry-After: 0"], "date": [f"Retry-After: {formatdate(usegmt=True)}"]}
        return answer(503, b"busy", *lines.get(form, []))

    with keep_alive_server(reply) as seen:
        assert body(seen.base + "/a", retries=3) == b"at last"
        assert refusal(seen.base + "/b", retries=1).kind == "http.503"
    assert seen.counts == {"/a": 3, "/b": 2}


def test_retry_after_holds_the_whole_host() -> None:
    def reply(path: str) -> bytes:
        return answer(429, b"", "Retry-After: 1") if len(seen.paths) == 1 else ok(b"x")

    with (
        keep_alive_server(reply) as seen,
        keep_alive_server(lambda path: ok(b"y"), host="127.0.0.2") as other,
        running(requests_per_host=1) as run,
    ):
        run.submit(*[seen.base] * 3, *[other.base] * 3)
        assert run.wait(6) == ["http.429", "", "", "", "", ""]
    assert seen.times_s[1] - seen.times_s[0] > 0.9
    assert other.times_s[-1] < seen.times_s[1]


def test_a_waiting_retry_holds_no_slot() -> None:
    def reply(path: str) -> bytes:
        return answer(500) if path == "/bad" else ok(b"x")

    with keep_alive_server(reply) as seen, running(most=1, retries=1) as run:
        run.submit(seen.base + "/bad", *[seen.base] * 20)
        run.wait(21)
    assert run.order.index(0) > 2  # where it held the slot, it would come first
    assert run.kinds()[0] == "http.500"


# robots.txt


def test_robots_txt_is_asked_once_and_followed() -> None:
    rules = b"User-agent: *\nDisallow: /private/\n"

    def reply(path: str) -> bytes:
        if path == "/robots.txt":
            return ok(rules, "X-Robots-Tag: noindex")
        return answer(302, b"", "Location: /private/x") if path == "/away" else ok(b"x")

    with keep_alive_server(reply) as seen:
        urls = [f"{seen.base}{path}" for path in ("/a", "/private/b", "/c", "/away")]
        with running(robots_txt=True, disallowed_directives=frozenset({"noindex"})) as run:
            assert run(*urls) == ["", "robots", "", "robots"]
        assert seen.counts["/robots.txt"] == 1
        assert not any(path.startswith("/private") for path in seen.paths)
        with running() as run:
            assert run(*urls) == [""] * 4


@pytest.mark.parametrize(
    ("status", "kind"), [(404, ""), (403, ""), (500, "robots"), (503, "robots")]
)
def test_robots_txt_that_cannot_be_had(status: int, kind: str) -> None:
    def reply(path: str) -> bytes:
        return answer(status) if path == "/robots.txt" else ok(b"x")

    with keep_alive_server(reply) as seen, running(robots_txt=True) as run:
        assert run(seen.base, seen.base) == [kind, kind]


def test_a_huge_robots_txt_is_cut() -> None:
    rules = b"User-agent: *\nDisallow: /private/\n" + b"# " + b"x" * (1 << 20)

    def reply(path: str) -> bytes:
        return ok(rules) if path == "/robots.txt" else ok(b"x")

    with keep_alive_server(reply) as seen, running(robots_txt=True) as run:
        assert run(seen.base + "/private/a", seen.base + "/b") == ["robots", ""]


def test_a_robots_txt_is_cut_also_where_its_length_is_announced_or_packed() -> None:
    rules = b"User-agent: *\nDisallow: /private/\n" + b"# " + b"x" * (1 << 20)

    def reply(path: str) -> bytes:
        if path != "/robots.txt":
            return ok(b"x")
        packed = gzip.compress(rules)
        return ok(packed, "Content-Encoding: gzip") if port in gzipped else ok(rules)

    gzipped: set[str] = set()
    for _ in range(2):
        with keep_alive_server(reply) as seen, running(robots_txt=True, max_bytes=1000) as run:
            port = seen.base.rpartition(":")[2]
            assert run(seen.base + "/private/a", seen.base + "/b") == ["robots", ""]
        gzipped = {str(number) for number in range(1 << 16)}


def test_a_crawl_delay_is_kept() -> None:
    def reply(path: str) -> bytes:
        return ok(b"User-agent: *\nCrawl-delay: 0.2\n" if path == "/robots.txt" else b"x")

    with keep_alive_server(reply) as seen, running(robots_txt=True) as run:
        assert run(*[seen.base] * 4) == [""] * 4
    assert_paced(seen.times_s[1:], seen.times_s[0], 0.2)


def test_a_robots_txt_that_leads_to_a_private_address_is_a_refusal_by_robots() -> None:
    def reply(path: str) -> bytes:
        away = answer(302, b"", "Location: http://10.0.0.1/robots.txt")
        return away if path == "/robots.txt" else ok(b"x")

    with keep_alive_server(reply) as seen, running(robots_txt=True) as run:
        assert run(seen.base) == ["robots"]


# The thread


def test_the_thread_ends_when_idle_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.1)
    monkeypatch.setattr("curate.download.fetch_loop._LONGEST_TURN_S", 0.1)
    with keep_alive_server(lambda path: ok(b"x")) as seen, running() as run:
        assert run.fetcher._thread is None
        for round_number in range(1, 4):
            run.submit(seen.base)
            run.wait(round_number)
            thread = run.fetcher._thread
            if thread is not None:
                thread.join(60)
            assert run.fetcher._thread is None
            assert run.fetcher._loop is None
        assert run.kinds() == [""] * 3


def test_closing_ends_everything_and_every_url_once() -> None:
    with keep_alive_server(lambda path: ok(b"x"), delay_s=50.0) as seen:
        run = Run(most=8)
        run.submit(*[seen.base] * 100, None)
        until(lambda: seen.at_once)
        began_s = time.monotonic()
        run.fetcher.close()
        assert time.monotonic() - began_s < 30
        kinds = run.kinds()
        assert len(kinds) == 101
        assert kinds.count("other") >= 90
        assert run.fetcher.waiting() == 0
        with pytest.raises(RuntimeError, match="closed"):
            run.fetcher.submit(0, seen.base)
        run.fetcher.close()


def test_a_consumer_that_raises_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended: list[int] = []
    every = threading.Event()

    def done(key: int, result: Body | Refused) -> None:
        ended.append(key)
        if len(ended) == 5:
            every.set()
        raise ValueError("the consumer's own")

    with keep_alive_server(lambda path: ok(b"x")) as seen:
        fetcher = Fetcher(
            Policy(allow_hosts=LOCAL), most_requests=2, memory_bytes=1 << 20, done=done
        )
        for key in range(5):
            fetcher.submit(key, seen.base)
        assert every.wait(60)
        fetcher.close()
    assert sorted(ended) == list(range(5))
    assert "the consumer's own" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["Loop", "Loop.turn"])
def test_a_fetch_thread_that_fails_leaves_nobody_waiting(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(f"curate.download.fetcher.{where}", fail)
    with running() as run:
        with pytest.raises(Refused, match="too many open files") as caught:
            run.fetcher.get("http://127.0.0.1/")
        assert caught.value.kind == "other"
        with pytest.raises(RuntimeError):
            run.submit("http://127.0.0.1/")


def test_blocking_gets_from_many_threads() -> None:
    with keep_alive_server(lambda path: ok(path.encode())) as seen, running() as run:
        found: dict[int, bytes] = {}

        def get(number: int) -> None:
            found[number] = run.fetcher.get(f"{seen.base}/{number}")

        threads = [threading.Thread(target=get, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {number: f"/{number}".encode() for number in range(20)}
        assert run.fetcher._desk.memory.handed_out_bytes <= 60


def test_many_urls_wait_without_cost() -> None:
    with keep_alive_server(lambda path: ok(b"x"), delay_s=0.2) as seen:
        run = Run(requests_per_host=1)
        began_s = time.monotonic()
        run.submit(*[seen.base + "/x"] * 20_000)
        assert time.monotonic() - began_s < 30  # 0.1 here; walking the queue would take minutes
        assert run.fetcher.waiting() > 19_000
        run.fetcher.close()
        assert len(run.order) == 20_000
