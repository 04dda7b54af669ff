"""A light web server in a process of its own: raw answers by number, over HTTP and HTTPS.

Its CPU must not count as anybody's, and it must not be what is measured: an answer is bytes made
beforehand, and one process sends some thousand pictures of 250 KB a second (``python tests/bench/web.py``
prints how many). It listens on every loopback address, so 127.0.0.1, 127.0.0.2, ... are as many hosts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import pickle
import random
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Answer:
    """What one number gets: ``head`` (status line and headers), then ``body``, ``delay_s`` after it was asked.

    ``end`` is "keep" (the connection is kept), "close", or "hang" (nothing more ever comes).
    """

    head: bytes
    body: bytes = b""
    delay_s: float = 0.0
    end: str = "keep"


def answer(status: str, body: bytes = b"", delay_s: float = 0.0, **headers: str) -> Answer:
    """An ordinary answer; ``status`` as in "200 OK", header names with _ for -."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return Answer(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), body, delay_s)


def hang() -> Answer:
    """Takes the request and never answers."""
    return Answer(b"", end="hang")


def web_like(
    bodies: Sequence[bytes],
    count: int,
    *,
    latency_s: float = 0.0,
    gone: float = 0.0,
    hangs: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """``count`` answers: pictures after a lognormal wait of median ``latency_s``, shares of 404 and of hangs."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        luck = rng.random()
        wait_s = latency_s * math.exp(rng.gauss(0.0, 0.6))
        if luck < hangs:
            found.append(hang())
        elif luck < hangs + gone:
            found.append(answer("404 Not Found", b"gone", wait_s, Content_Type="text/html"))
        else:
            found.append(
                answer("200 OK", bodies[number % len(bodies)], wait_s, Content_Type="image/jpeg")
            )
    return found


@dataclass(frozen=True)
class Site:
    """A running server. ``ca_file`` has the usual authorities and its own, so that loading it costs what it does."""

    http_port: int
    https_port: int
    ca_file: str
    hosts: tuple[str, ...]

    def url(self, number: int, scheme: str = "http") -> str:
        """Where answer ``number`` is; numbers go round the hosts."""
        port = self.https_port if scheme == "https" else self.http_port
        return f"{scheme}://{self.hosts[number % len(self.hosts)]}:{port}/{number}/picture.jpg"

    def counted(self) -> dict[str, Any]:
        """requests and connections so far, and ``asked``: how often by number."""
        with urllib.request.urlopen(f"http://{self.hosts[0]}:{self.http_port}/counted") as response:
            found: dict[str, Any] = json.load(response)
        return found


@contextlib.contextmanager
def served(answers: Sequence[Answer], hosts: int = 1, tls: bool = False) -> Iterator[Site]:
    """The answers on 127.0.0.1 to 127.0.0.``hosts`` until the block ends."""
    names = tuple(f"127.0.0.{number + 1}" for number in range(hosts))
    with tempfile.TemporaryDirectory() as folder:
        if tls:
            make_certificates(Path(folder), names)
        # Bodies are often the same objects: pickle keeps one copy of each.
        (Path(folder) / "answers").write_bytes(pickle.dumps([vars(one) for one in answers]))
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ports = json.loads(process.stdout.readline())
            yield Site(ports["http"], ports["https"], str(Path(folder) / "trusted.pem"), names)
        finally:
            process.stdin.close()  # the server ends when its parent is gone, however that went
            process.wait(20)


def make_certificates(folder: Path, hosts: Sequence[str]) -> None:
    """``trusted.pem`` (the usual authorities and one of our own), ``site.pem`` and ``site.key``."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ",".join(f"IP:{host}" for host in hosts)
    for words in (
        ["-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=bench authority",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
        ["-keyout", "site.key", "-out", "site.pem", "-subj", "/CN=bench", "-CA", "ca.pem", "-CAkey", "ca.key",
         "-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE"],
    ):  # fmt: skip
        command = ["openssl", "req", "-x509", *curve, *words]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    usual = ssl.get_default_verify_paths().cafile
    if usual is None:
        with contextlib.suppress(ImportError):
            import certifi

            usual = certifi.where()
    others = Path(usual).read_text() if usual else ""
    (folder / "trusted.pem").write_text(others + "\n" + (folder / "ca.pem").read_text())


class _Connection(asyncio.Protocol):
    """One client; requests one after another."""

    def __init__(
        self, answers: list[dict[str, Any]], asked: list[int], counts: dict[str, int]
    ) -> None:
        self.answers, self.asked, self.counts = answers, asked, counts
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.counts["connections"] += 1

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head, self.received = self.received[:end].lower(), self.received[end + 4 :]
            self.counts["requests"] += 1
            closes = b"\r\nconnection: close" in head
            word = head.split(b" ", 2)[1].split(b"/", 2)[1]
            if not word.isdigit() or int(word) >= len(self.answers):
                told = json.dumps(
                    {**self.counts, "asked": self.asked} if word == b"counted" else {}
                )
                found = vars(
                    answer("200 OK" if word == b"counted" else "404 Not Found", told.encode())
                )
            else:
                found = self.answers[int(word)]
                self.asked[int(word)] += 1
            if found["delay_s"] > 0:
                asyncio.get_running_loop().call_later(found["delay_s"], self.send, found, closes)
            else:
                self.send(found, closes)

    def send(self, found: dict[str, Any], closes: bool) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(found["head"])
        if found["body"]:
            self.transport.write(found["body"])
        if found["end"] == "close" or (closes and found["end"] != "hang"):
            self.transport.close()


async def _serve(folder: Path) -> None:
    answers = pickle.loads((folder / "answers").read_bytes())
    asked = [0] * len(answers)
    counts = {"requests": 0, "connections": 0}
    loop = asyncio.get_running_loop()

    def connection() -> _Connection:
        return _Connection(answers, asked, counts)

    plain = await loop.create_server(connection, "0.0.0.0", 0, backlog=1024)
    ports = {"http": plain.sockets[0].getsockname()[1], "https": 0}
    if (folder / "site.pem").exists():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "site.pem", folder / "site.key")
        secure = await loop.create_server(connection, "0.0.0.0", 0, ssl=context, backlog=1024)
        ports["https"] = secure.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)
    gone = asyncio.Event()

    def wait_for_parent() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(gone.set)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    await gone.wait()


def _measure() -> None:
    """Pictures of 250 KB per second and per second of this server's CPU, with a client that only reads."""
    import http.client

    count = 2000
    with served([answer("200 OK", b"x" * 250_000)] * 4, tls=True) as site:
        context = ssl.create_default_context(cafile=site.ca_file)
        for scheme in ("http", "https"):
            client: http.client.HTTPConnection
            if scheme == "http":
                client = http.client.HTTPConnection(site.hosts[0], site.http_port)
            else:
                client = http.client.HTTPSConnection(
                    site.hosts[0], site.https_port, context=context
                )
            began = time.monotonic()
            for number in range(count):
                client.request("GET", f"/{number % 4}/x.jpg")
                client.getresponse().read()
            print(
                f"{scheme}: {count / (time.monotonic() - began):.0f} pictures of 250 KB per second, one client"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(_serve(Path(arguments.serve)))
    else:
        _measure()


if __name__ == "__main__":
    main()
