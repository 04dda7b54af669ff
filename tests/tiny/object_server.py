"""An S3 server on loopback (moto, in a process of its own), and a proxy before it that fails now and then."""

from __future__ import annotations

import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"
_START_S = 60
_HOPS = {"transfer-encoding", "connection", "content-length", "keep-alive"}


@contextmanager
def moto() -> Iterator[str]:
    """The address of a server that holds nothing; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=_plain_environment(), **quiet)
    address = f"http://127.0.0.1:{port}"
    try:
        until_s = time.monotonic() + _START_S
        while True:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < until_s
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def make_bucket(address: str, name: str) -> None:
    request = urllib.request.Request(f"{address}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def environment(address: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


class Proxy(ThreadingHTTPServer):
    """Passes requests on to ``target``; one in ``every`` fails, each kind of failure in its turn.

    "busy": 503 SlowDown. "reset": the connection ends before the request is passed on. "lost": it is
    passed on, and its answer is lost. "cut": half of the answer comes. ``seen`` lists every request.
    """

    daemon_threads = True
    kinds = ("busy", "reset", "lost", "cut")

    def __init__(self, target: str, every: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.every = target.removeprefix("http://"), every
        self.seen: list[tuple[str, str, str]] = []  # method, path, what was done to it
        self.always: dict[str, str] = {}  # method -> kind of failure, each time
        self.once: dict[str, str] = {}  # the same, the next time
        self.says: tuple[int, bytes] | None = None  # status and body of every answer
        self.ignores: tuple[str, ...] = ()  # headers that are not passed on, in small letters
        self._count = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fate(self, method: str, path: str) -> str:
        with self._count:
            number = len(self.seen) + 1
            kind = self.always.get(method, "") or self.once.pop(method, "")
            if not kind and self.every and number % self.every == 0:
                kind = self.kinds[number // self.every % len(self.kinds)]
            self.seen.append((method, path, kind))
            return kind

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients leave


@contextmanager
def proxy(target: str, every: int = 0) -> Iterator[Proxy]:
    server = Proxy(target, every)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.server.fate(self.command, self.path)
        if self.server.says is not None:
            self._answer(self.server.says[0], [], self.server.says[1])
            return
        if kind == "busy":
            self._answer(503, [], BUSY)
            return
        if kind == "reset":
            self._reset()
            return
        upstream = http.client.HTTPConnection(self.server.target, timeout=60)
        try:
            told = {n: v for n, v in self.headers.items() if n.lower() not in self.server.ignores}
            upstream.request(self.command, self.path, body, told)
            found = upstream.getresponse()
            data, headers = found.read(), found.getheaders()
        finally:
            upstream.close()
        length = {name.lower(): value for name, value in headers}.get("content-length")
        kept = [(name, value) for name, value in headers if name.lower() not in _HOPS]
        if kind == "lost" or (kind == "cut" and not data):
            self._reset()
        elif kind == "cut":
            self._answer(found.status, kept, data[: len(data) // 2], len(data))
            self._reset()
        else:
            known = int(length) if length and self.command == "HEAD" else len(data)
            self._answer(found.status, kept, data, known)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass
