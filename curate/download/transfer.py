"""One request on one libcurl handle: what is set on it, what its callbacks take in, and what came of it.

libcurl asks for a socket before each connection it makes, with the address it is about to connect to; that
address is the one checked, so a name cannot change in between (no DNS rebinding). A connection that is used
again was opened under the same name and the same check. Redirects are not followed here: they end the
request as a ``Redirect``.
"""

from __future__ import annotations

import errno
import io
import os
import re
import socket
import sys
import time
from dataclasses import replace
from typing import Any

import pycurl

from curate.download.desk import Job, Memory
from curate.download.guard import (
    Accepted,
    Policy,
    Redirect,
    forbidden,
    is_allowed_host,
    judge,
    trusted_certificates,
)
from curate.download.outcomes import Refused

_STOP = -1  # a callback's answer that ends the request
_DRAINED_BYTES = 64 << 10  # of a body nobody wants, read to keep the connection,
DRAINED_S = 1.0  # for so long
_NO_BODY = frozenset({204, 304})
_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_STATUS = re.compile(rb"HTTP/[\d.]+ +(\d{3})(?: +(.*))?\s*$")
_CONNECTION = frozenset({
    pycurl.E_GOT_NOTHING, pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR, pycurl.E_PARTIAL_FILE,
    pycurl.E_HTTP2, 92,  # CURLE_HTTP2_STREAM, which pycurl has no name for
})  # fmt: skip
_TLS = frozenset({
    pycurl.E_SSL_CONNECT_ERROR, pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CERTPROBLEM,
    pycurl.E_SSL_CIPHER, pycurl.E_SSL_CACERT_BADFILE, pycurl.E_SSL_ISSUER_ERROR,
    pycurl.E_USE_SSL_FAILED, pycurl.E_SSL_INVALIDCERTSTATUS,
})  # fmt: skip
_KINDS = {
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_FILESIZE_EXCEEDED: "too_large.bytes",
    pycurl.E_URL_MALFORMAT: "bad_url",
    pycurl.E_FTP_WEIRD_SERVER_REPLY: "protocol",  # CURLE_WEIRD_SERVER_REPLY by its old name
    pycurl.E_UNSUPPORTED_PROTOCOL: "protocol",  # HTTP/0.9
    100: "protocol",  # CURLE_TOO_LARGE: headers; pycurl has no name for it
    pycurl.E_BAD_CONTENT_ENCODING: "protocol",
    **dict.fromkeys(_CONNECTION, "connection"),
    **dict.fromkeys(_TLS, "tls"),
}
_BROKEN_OFF = ("SSL_ERROR_SYSCALL", "reset by peer", "unexpected eof", "Broken pipe")


class Transfer:
    """A handle that is used for one request after another. All methods but ``__init__`` on the fetch thread."""

    def __init__(self, policy: Policy, memory: Memory) -> None:
        self._policy = policy
        # X-Robots-Tag on a robots.txt speaks of the file, and a long one is cut.
        self._robots_policy = replace(
            policy, disallowed_directives=frozenset(), max_bytes=sys.maxsize
        )
        self._memory = memory
        self.curl = _handle(policy)
        self.curl.transfer = self
        self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._open_socket)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._header)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._write)
        self.job: Any = None
        self.runs = 0  # requests begun on this handle

    def begin(self, job: Job, now_s: float, *, fresh: bool = False) -> None:
        """Make the handle ready for one hop of a job; ``fresh``: on a connection of its own."""
        self.job = job
        self.runs += 1
        self.began_s = now_s
        self.paused_s = 0.0
        self.paused_at_s: float | None = None
        self.size_bytes = 0
        self.length: int | None = None
        self.coding = ""
        self.redirect: Redirect | None = None
        self.refused: Refused | None = None
        self._cut = False
        self._status = 0
        self._words = ""
        self._headers: dict[str, list[str]] = {}
        self._judged = self._dropping = False
        self._dropped_bytes = 0
        self._drop_until_s = float("inf")
        self._body = io.BytesIO()
        self._no_files = False
        self._open_addresses = is_allowed_host(job.target, self._policy)
        self._addresses_tried = 0
        self._address_refused = ""
        self.curl.setopt(pycurl.URL, job.target.url)
        addresses = ",".join(f"[{ip}]" if ":" in ip else ip for ip in job.addresses)
        # "+": kept for as long as an answer of libcurl's own would be.
        entry = f"+{job.target.host}:{job.target.port}:{addresses}"
        self.curl.setopt(pycurl.RESOLVE, [entry] if addresses else [])
        # Over plain HTTP it would wait for the first answer of the host, be it one that never comes.
        multiplexes = self._policy.http2 and job.target.scheme == "https"
        self.multiplexes = multiplexes
        self.curl.setopt(pycurl.PIPEWAIT, int(multiplexes and not fresh))
        self.curl.setopt(pycurl.FRESH_CONNECT, int(fresh))
        self.curl.setopt(pycurl.FORBID_REUSE, 0)

    def pause(self) -> int:
        """A callback's answer that stops the flow until ``resume``; the clock stops with it."""
        self.paused_at_s = time.monotonic()
        self._memory.paused.add(self)
        return int(pycurl.WRITEFUNC_PAUSE)

    def resume(self, now_s: float) -> None:
        """Let the flow go on; may call back at once."""
        if self.paused_at_s is not None:
            self.paused_s += now_s - self.paused_at_s
        self.paused_at_s = None
        self._memory.paused.discard(self)
        self.curl.pause(pycurl.PAUSE_CONT)

    def spent_s(self, now_s: float) -> float:
        """What this attempt took so far, earlier hops included, pauses not."""
        until_s = now_s if self.paused_at_s is None else self.paused_at_s
        return float(self.job.spent_s) + until_s - self.began_s - self.paused_s

    def first_look_s(self, now_s: float) -> float:
        """When to ask ``overdue`` for the first time."""
        left_s = self._policy.timeout_s - self.job.spent_s
        return float(now_s + min(left_s, self._policy.first_byte_timeout_s))

    def overdue(self, now_s: float) -> Refused | Redirect | float:
        """The end of a request that is out of time, else when to look again."""
        if now_s >= self._drop_until_s:
            return self._out_of_time()
        left_s = self._policy.timeout_s - self.spent_s(now_s)
        if left_s <= 0:
            return self._out_of_time()
        if self.paused_at_s is not None or self._status or self._dropping:
            return min(now_s + max(left_s, 0.001), self._drop_until_s)
        connected_s = self.curl.getinfo(pycurl.PRETRANSFER_TIME)
        if connected_s and not self.curl.getinfo(pycurl.STARTTRANSFER_TIME):
            silent_s = now_s - self.began_s - connected_s
            if silent_s >= self._policy.first_byte_timeout_s:
                words = f"no answer {self._policy.first_byte_timeout_s:g} s after the connection"
                return Refused("timeout.first_byte", words)
            left_s = min(left_s, self._policy.first_byte_timeout_s - silent_s)
        return now_s + max(min(left_s, self._policy.first_byte_timeout_s), 0.001)

    def _out_of_time(self) -> Refused | Redirect:
        """By how far the request had come: not connected, connected and silent, or answering."""
        if self.refused is not None or self.redirect is not None:
            # It was over, and only the rest of a body was awaited.
            return self.refused or self.redirect  # type: ignore[return-value]
        limit = f"{self._policy.timeout_s:g} s"
        if self.job.hops == 0 and not self._status:
            if not self.curl.getinfo(pycurl.PRETRANSFER_TIME):
                return Refused("timeout.connect", f"no connection within {limit}")
            if not self.curl.getinfo(pycurl.STARTTRANSFER_TIME):
                return Refused("timeout.first_byte", f"connected, and no answer within {limit}")
        return Refused("timeout.total", f"not done within {limit}")

    def result(self, code: int, words: str) -> bytes | Redirect | Refused:
        """What came of the request: the body as sent, where to go instead, or why not."""
        if self.refused is not None:
            return self.refused
        if self.redirect is not None:
            return self.redirect
        if self._address_refused and not self._addresses_tried:
            host = self.job.target.host
            words = f"{host} is {self._address_refused}, not a public address"
            return Refused("forbidden_address", words)
        if self.is_short_of_files:
            return Refused("connection", "too many open files here", passing=True)
        if code and not self._cut:
            return self._explained(code, words)
        if not self._judged:
            return Refused("protocol", "no whole answer")
        return self._body.getvalue()

    @property
    def is_short_of_files(self) -> bool:
        """Whether no socket could be had: no fault of the site's."""
        return self._no_files and not self._addresses_tried

    @property
    def port(self) -> int:
        """The local port, by which a connection is told from others; 0 before there is one."""
        return int(self.curl.getinfo(pycurl.LOCAL_PORT))

    def forbid_reuse(self) -> None:
        """Have the connection closed when nothing is on it any more."""
        self.curl.setopt(pycurl.FORBID_REUSE, 1)

    def _explained(self, code: int, words: str) -> Refused:
        words = f"{words or 'libcurl'} ({code})"[:200]
        if code == pycurl.E_OPERATION_TIMEDOUT:  # of connecting, the only time libcurl is told
            return Refused("timeout.connect", words)
        if code == pycurl.E_COULDNT_CONNECT:
            number = self.curl.getinfo(pycurl.OS_ERRNO)
            kinds = {errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "timeout.connect"}
            return Refused(kinds.get(number, "connection"), words)
        kind = _KINDS.get(code, "other")
        if kind == "tls" and any(sign in words for sign in _BROKEN_OFF):
            kind = "connection"
        return Refused(kind, words)

    def count(self, totals: dict[str, float]) -> None:
        """Add what the request cost to the sums of the same names."""
        totals["wire_bytes"] += self.curl.getinfo(pycurl.SIZE_DOWNLOAD)
        connections = self.curl.getinfo(pycurl.NUM_CONNECTS)
        if connections:
            totals["connections"] += connections
            handshake_s = self.curl.getinfo(pycurl.APPCONNECT_TIME)
            if handshake_s:
                totals["tls_handshakes"] += connections
                totals["tls_wall_s"] += handshake_s - self.curl.getinfo(pycurl.CONNECT_TIME)

    def drop(self) -> None:
        """Forget the body; its bytes no longer count as in flight."""
        self._memory.in_flight_bytes -= self.size_bytes
        self._memory.paused.discard(self)
        self.size_bytes = 0
        self._body = io.BytesIO()

    def close(self) -> None:
        """Free the handle, which must be in no multi handle."""
        self.curl.transfer = None
        self.curl.close()

    def _open_socket(self, purpose: int, address: Any) -> Any:
        ip = address.addr[0] if isinstance(address.addr, tuple) else str(address.addr)
        try:
            if not self._open_addresses and forbidden(ip):
                self._address_refused = ip
                return pycurl.SOCKET_BAD
            opened = socket.socket(address.family, address.socktype, address.protocol)
            os.close(os.dup(opened.fileno()))  # pycurl will, and tells nobody where it could not
        except (OSError, ValueError) as fault:
            self._no_files |= isinstance(fault, OSError) and fault.errno in _NO_FILES
            return pycurl.SOCKET_BAD
        self._addresses_tried += 1
        return opened

    def _header(self, line: bytes) -> int | None:
        if self._judged:
            return None  # a trailer
        if line[:5] == b"HTTP/":
            found = _STATUS.match(line)
            self._status = int(found[1]) if found else 0
            self._words = (found[2] or b"").decode("latin-1").strip() if found else ""
            self._headers = {}
        elif line in (b"\r\n", b"\n"):
            if self._status >= 200:
                return self._judge()
        else:
            name, _, value = line.partition(b":")
            lines = self._headers.setdefault(name.strip().lower().decode("latin-1"), [])
            lines.append(_decoded(value.strip()))
        return None

    def _judge(self) -> int | None:
        self._judged = True
        try:
            policy = self._policy if self.job.robots_of is None else self._robots_policy
            found = judge(self._status, self._words, self._headers, policy)
        except Refused as refusal:
            self.refused = refusal
            return None if refusal.kind.startswith("http.") and self._may_drain() else _STOP
        if isinstance(found, Accepted):
            self.length, self.coding = found.length, found.coding
            return None
        self.redirect = found
        return None if self._may_drain() else _STOP

    def _may_drain(self) -> bool:
        """Whether the unwanted body has an end soon, so that the connection is worth keeping."""
        self._dropping = True
        if self._status in _NO_BODY:
            return True
        self._drop_until_s = time.monotonic() + DRAINED_S
        self._memory.draining.append((self, self.runs))
        if "transfer-encoding" in self._headers:
            return True  # chunks: an end is announced, if not where
        length = "".join(self._headers.get("content-length", [])[:1])
        return length.isdigit() and int(length[:12]) <= _DRAINED_BYTES

    def _write(self, piece: bytes) -> int | None:
        size = len(piece)
        if self._dropping:
            self._dropped_bytes += size
            return None if self._dropped_bytes <= _DRAINED_BYTES else _STOP
        if self.size_bytes + size > self.job.limit_bytes:
            if self.job.robots_of is not None:
                self._cut = True  # the first part of a huge robots.txt counts
            else:
                words = f"more than {self.job.limit_bytes} bytes"
                self.refused = Refused("too_large.bytes", words)
            return _STOP
        if not self._memory.takes(self, size):
            return self.pause()
        self.size_bytes += size
        self._body.write(piece)
        return None


def _handle(policy: Policy) -> Any:
    """A handle with everything set that is the same for all requests."""
    curl: Any = pycurl.Curl()
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    curl.setopt(pycurl.FOLLOWLOCATION, 0)
    curl.setopt(pycurl.PROXY, "")  # behind a proxy, addresses could not be checked
    curl.setopt(pycurl.NOPROXY, "*")
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.USERAGENT, policy.user_agent)
    curl.setopt(pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"])
    curl.setopt(pycurl.HTTP_CONTENT_DECODING, 0)
    version = pycurl.CURL_HTTP_VERSION_2TLS if policy.http2 else pycurl.CURL_HTTP_VERSION_1_1
    curl.setopt(pycurl.HTTP_VERSION, version)
    curl.setopt(pycurl.BUFFERSIZE, 128 << 10)
    curl.setopt(pycurl.CONNECTTIMEOUT_MS, int(policy.timeout_s * 1000) + 1000)
    curl.setopt(pycurl.DNS_CACHE_TIMEOUT, 300)
    file, folder = trusted_certificates()
    if file is not None:
        curl.setopt(pycurl.CAINFO, file)
    if folder is not None:
        curl.setopt(pycurl.CAPATH, folder)
    return curl


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
