"""Servers on loopback for tests: an aiohttp application, raw bytes written by a function, or keep-alive.

127.0.0.1, 127.0.0.2, ... are separate hosts to whoever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

Handler = Callable[[Any], Awaitable[web.StreamResponse]]


@contextlib.contextmanager
def serve(handler: Handler) -> Iterator[str]:
    """``http://127.0.0.1:port`` of a server that answers every request by ``handler``."""
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    started = threading.Event()

    async def start() -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.append(runner.addresses[0][1])
        started.set()
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield f"http://127.0.0.1:{ready[0]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@contextlib.contextmanager
def raw_server(answer: Callable[[socket.socket], None], scheme: str = "http") -> Iterator[str]:
    """``http://127.0.0.1:port`` of a server that gives each connection to ``answer``.

    After the request was read; with another ``scheme``, at once.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if scheme == "http":
                connection.recv(1 << 16)
            answer(connection)

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


@dataclass
class Seen:
    """What a keep-alive server saw. ``times_s`` are of a monotonic clock."""

    base: str = ""
    connections: int = 0
    at_once: int = 0
    most_at_once: int = 0
    paths: list[str] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.paths)


def ok(body: bytes, *lines: str) -> bytes:
    """A 200 answer with further header lines."""
    return answer(200, body, *lines)


def answer(status: int, body: bytes = b"", *lines: str) -> bytes:
    """A whole answer with its length."""
    head = [f"HTTP/1.1 {status} Because", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


@contextlib.contextmanager
def keep_alive_server(
    reply: Callable[[str], bytes],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    delay_s: float = 0.0,
    context: ssl.SSLContext | None = None,
) -> Iterator[Seen]:
    """A server that answers many requests on a connection, each by ``reply(path)``, a whole answer."""
    listener = socket.create_server((host, port), backlog=512)
    scheme = "http" if context is None else "https"
    seen = Seen(base=f"{scheme}://{host}:{listener.getsockname()[1]}")
    lock = threading.Lock()

    def one(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as lines:
                while head := _request_head(lines):
                    path = head.split(b" ", 2)[1].decode()
                    with lock:
                        seen.paths.append(path)
                        seen.times_s.append(time.monotonic())
                        seen.heads.append(head)
                        seen.at_once += 1
                        seen.most_at_once = max(seen.most_at_once, seen.at_once)
                    try:
                        time.sleep(delay_s)
                        whole = reply(path)
                    finally:
                        with lock:
                            seen.at_once -= 1
                    connection.sendall(whole)

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with lock:
                seen.connections += 1
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def _request_head(lines: Any) -> bytes:
    head = b""
    while (line := lines.readline(1 << 16)) not in (b"\r\n", b""):
        head += line
    return head


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext] | None:
    """A certificate for 127.0.0.1 and a server's context with it; None without the openssl command."""
    both = folder / "both.pem"
    own = folder / "own.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(both), "-out", str(own)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        return None
    both.write_bytes(both.read_bytes() + own.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return own, context
