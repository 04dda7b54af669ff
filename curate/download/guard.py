"""What may be asked of the web, and what is refused: one guarded GET with a reason for each refusal.

http and https only; private, loopback and link-local addresses are refused after each resolution and
connected to by the address that was checked, so a name cannot change in between; one deadline over
resolution, connection, redirects and body; a cap on bytes, before and after decompression.
"""

from __future__ import annotations

import email.message
import functools
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
import zlib
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from curate.download.opt_out import opted_out

MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_READ_BYTES = 1 << 16
_NAMES_KEPT = 4096
_RESOLVED_FOR_S = 60.0
_URL_SAFE = "%/:=&?~+!$,;'@()*[]"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Refused(Exception):
    """A picture that does not come in. ``kind`` ends the row's reason, the message has the words."""

    def __init__(self, kind: str, words: str, retry_after_s: float | None = None) -> None:
        super().__init__(words)
        self.kind = kind
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The limits of one GET. ``allow_hosts`` names hosts (``host`` or ``host:port``) free of the address check."""

    timeout_s: float = 10.0
    max_bytes: int = 32 << 20
    allow_hosts: frozenset[str] = frozenset()
    user_agent: str = "clip-pipe"
    user_agent_token: str = "clip-pipe"
    disallowed_directives: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Target:
    """A URL taken apart, ASCII throughout."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def clean_url(url: str | None) -> Target:
    """Percent-encode, IDNA-encode and take apart. Raises Refused (``bad_url``, ``scheme``)."""
    if not url or not url.strip():
        raise Refused("bad_url", "the URL is missing")
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        host = parts.hostname or ""
        if ":" not in host:
            host = host.encode("idna").decode("ascii")
        path = _percent_encoded(parts.path or "/")
        query = f"?{_percent_encoded(parts.query)}" if parts.query else ""
    except ValueError as fault:  # UnicodeError too
        raise Refused("bad_url", f"not a URL: {fault}") from fault
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise Refused(
            "scheme", f"only http and https are fetched, not {scheme or 'a URL without scheme'!r}"
        )
    if not host or parts.username is not None:
        raise Refused("bad_url", "no host" if not host else "a user name in the URL is not sent")
    return Target(scheme, host, port or _DEFAULT_PORTS[scheme], path + query)


def _percent_encoded(text: str) -> str:
    return quote(re.sub(r"%(?![0-9a-fA-F]{2})", "%25", text), safe=_URL_SAFE)


def forbidden(address: str) -> bool:
    """Whether an IP address is not one of the public internet (private, loopback, link-local, ...)."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if found in _NAT64:
            inner = ipaddress.IPv4Address(found.packed[-4:])
        if inner is not None:
            return forbidden(str(inner))
    return not found.is_global or found.is_multicast or found.is_reserved


class Guard:
    """Fetches URLs under one Policy. Safe to share between threads."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._names: dict[tuple[str, int], tuple[float, list[Any]]] = {}

    def get(self, url: str | None) -> bytes:
        """The body of a 200 answer, decompressed. Raises Refused, and nothing else."""
        deadline_s = time.monotonic() + self.policy.timeout_s
        try:
            return self._get(clean_url(url), deadline_s)
        except Refused:
            raise
        except Exception as fault:
            raise explained(fault) from fault

    def _get(self, target: Target, deadline_s: float) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = self._connect(target, deadline_s)
            try:
                connection.request("GET", target.path, headers=self._headers(target))
                response = connection.getresponse()
                if response.status not in _REDIRECTS:
                    return self._accept(response)
                location = response.headers.get("Location")
                if not location:
                    raise Refused("redirect", f"HTTP {response.status} without Location")
                target = clean_url(urljoin(target.url, _as_sent(location)))
            finally:
                connection.close()
        raise Refused("redirect", f"more than {MAX_REDIRECTS} redirects")

    def _headers(self, target: Target) -> dict[str, str]:
        return {
            "Host": target.authority,
            "User-Agent": self.policy.user_agent,
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }

    def _accept(self, response: http.client.HTTPResponse) -> bytes:
        if response.status != 200:
            wait_s = _seconds(response.headers.get("Retry-After"))
            raise Refused(
                f"http.{response.status}", f"HTTP {response.status} {response.reason}"[:200], wait_s
            )
        robots = response.headers.get_all("X-Robots-Tag", [])
        if opted_out(robots, self.policy.user_agent_token, self.policy.disallowed_directives):
            raise Refused("opt_out", f"X-Robots-Tag: {' | '.join(robots)}"[:200])
        return read_body(response, self.policy.max_bytes)

    def _connect(self, target: Target, deadline_s: float) -> socket.socket:
        """A connection to a checked address of the host, TLS included."""
        last: OSError | None = None
        for family, address in self._addresses(target, deadline_s):
            plain = _PlainSocket(family, socket.SOCK_STREAM)
            try:
                plain.settimeout(_left_s(deadline_s))
                plain.connect(address)
                sock: Any = plain
                if target.scheme == "https":
                    plain.settimeout(_left_s(deadline_s))
                    sock = tls_context().wrap_socket(plain, server_hostname=target.host)
                sock.settimeout(_left_s(deadline_s))
                sock.deadline_s = deadline_s
                return sock
            except OSError as fault:
                plain.close()
                last = fault
        raise last or Refused("dns", f"no address for {target.host}")

    def _addresses(self, target: Target, deadline_s: float) -> list[tuple[int, Any]]:
        found = self._resolve(target, deadline_s)
        if {
            target.host,
            f"{target.host}:{target.port}",
            target.authority,
        } & self.policy.allow_hosts:
            return found
        public = [(family, address) for family, address in found if not forbidden(address[0])]
        if found and not public:
            raise Refused(
                "forbidden_address", f"{target.host} is {found[0][1][0]}, not a public address"
            )
        return public

    def _resolve(self, target: Target, deadline_s: float) -> list[tuple[int, Any]]:
        """(family, socket address) of a host. A resolver that hangs is left behind at the deadline."""
        key = (target.host, target.port)
        until_s, found = self._names.get(key, (0.0, []))
        if time.monotonic() < until_s:
            return found
        answer: Future[list[Any]] = Future()
        threading.Thread(target=_look_up, args=(key, answer), daemon=True).start()
        found = [(info[0], info[4]) for info in answer.result(timeout=_left_s(deadline_s))]
        while len(self._names) >= _NAMES_KEPT:
            self._names.pop(
                next(iter(self._names)), None
            )  # the oldest; another thread may be first
        self._names[key] = (time.monotonic() + _RESOLVED_FOR_S, found)
        return found


def read_body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """The whole body, decompressed. Raises Refused for one that is too large, cut short or ill-framed."""
    announced = set(response.headers.get_all("Content-Length", []))
    length = announced.pop().strip() if len(announced) == 1 else ""
    if announced or (length and not (length.isascii() and length.isdigit())):
        raise Refused("protocol", f"Content-Length is {response.headers.get_all('Content-Length')}")
    if length and int(length) > max_bytes:
        raise Refused("too_large.bytes", f"{length} bytes announced, at most {max_bytes} are taken")
    inflate = _inflater(response.headers)
    body = bytearray()
    while piece := response.read(_READ_BYTES):
        while piece:
            body += inflate.decompress(piece, max_bytes + 1 - len(body)) if inflate else piece
            if len(body) > max_bytes:
                raise Refused("too_large.bytes", f"more than {max_bytes} bytes")
            piece = inflate.unconsumed_tail if inflate else b""
    if response.length:
        raise Refused("connection", f"the body ended {response.length} bytes early")
    return bytes(body)


def _inflater(headers: email.message.Message) -> Any:
    """A decompressor for a body that is compressed although none was asked for, or None."""
    coding = headers.get("Content-Encoding", "identity").strip().lower()
    if coding in ("identity", ""):
        return None
    if coding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    raise Refused("protocol", f"Content-Encoding {coding!r} was not asked for")


def explained(fault: Exception) -> Refused:
    """The refusal for what a socket, TLS or http.client raised."""
    words = f"{type(fault).__name__}: {fault}"[:200]
    kinds: list[tuple[type[Exception] | tuple[type[Exception], ...], str]] = [
        (TimeoutError, "timeout"),
        (socket.gaierror, "dns"),
        (ConnectionRefusedError, "refused"),
        (ssl.SSLError, "tls"),
        (
            (ConnectionError, http.client.IncompleteRead, http.client.RemoteDisconnected),
            "connection",
        ),
        ((http.client.HTTPException, zlib.error), "protocol"),
        (OSError, "connection"),
    ]
    return Refused(
        next((kind for types, kind in kinds if isinstance(fault, types)), "other"), words
    )


class _TimedReads:
    """A socket whose every read must end by ``deadline_s``; a timeout per read lets a drip go on for ever."""

    deadline_s: float | None = None

    def recv_into(self, *args: Any) -> int:
        if self.deadline_s is not None:
            self.settimeout(_left_s(self.deadline_s))  # type: ignore[attr-defined]
        return super().recv_into(*args)  # type: ignore[misc]


class _PlainSocket(_TimedReads, socket.socket):
    pass


class _TlsSocket(_TimedReads, ssl.SSLSocket):
    pass


@functools.cache
def tls_context() -> ssl.SSLContext:
    """One context for all requests: making one reloads the certificates, 20 ms of CPU (facts, download 1)."""
    context = ssl.create_default_context()
    context.sslsocket_class = _TlsSocket
    return context


def _look_up(key: tuple[str, int], answer: Future[list[Any]]) -> None:
    try:
        answer.set_result(socket.getaddrinfo(*key, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as fault:
        answer.set_exception(fault)


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time for this URL is over")
    return left_s


def _as_sent(header: str) -> str:
    """A header that http.client read as Latin-1, as UTF-8 where it is that."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; its date form is rare on picture servers and counts as absent."""
    return float(text) if text and text.strip().isascii() and text.strip().isdigit() else None
