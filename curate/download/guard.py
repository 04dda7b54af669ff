"""What may be asked of the web, and what is refused: URLs, addresses and headers judged, without any I/O.

http and https only; private, loopback and link-local addresses are refused (`fetcher` asks for every
address it connects to, redirects included); a cap on bytes before and after decompression; headers that
opt out are honoured before a body is read.
"""

from __future__ import annotations

import email.utils
import ipaddress
import os
import re
import ssl
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from curate.download.opt_out import opted_out, reserved
from curate.download.outcomes import Refused

_SUCCESSES = frozenset({200, 203})  # 203: a proxy on the way changed something
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL_SAFE = "%/:=&?~+!$,;'@()*[]"
_BARE_PERCENT = re.compile(r"%(?![0-9a-fA-F]{2})")
_NEEDS_NOTHING = re.compile(r"[A-Za-z0-9_.\-~%/:=&?+!$,;'@()*\[\]]*")
# A URL that is clean as it is: nothing to encode, nothing another parser could read otherwise.
_CLEAN = re.compile(
    r"(https?)://([a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})+)(?::([1-9][0-9]{0,3}|[1-5][0-9]{4}))?"
    r"(/(?:[A-Za-z0-9_.\-~/:=&+!$,;'@()*]|%[0-9a-fA-F]{2})*"
    r"(?:\?(?:[A-Za-z0-9_.\-~/:=&?+!$,;'@()*]|%[0-9a-fA-F]{2})+)?)"
)
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?")
_MOST_URL = 64 << 10
_MOST_LABEL, _MOST_HOST = 63, 253
# Not of the public internet, by IANA's registries of special addresses; a list of our own, since what
# Python's `is_global` says changed between patch releases.
_NOT_PUBLIC_4 = tuple(map(ipaddress.IPv4Network, (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    "168.63.129.16/32",  # a public number that every machine of one large cloud has for its host
)))  # fmt: skip
_UNICAST_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_INFLATE_BYTES = 1 << 20
_PACKED_BYTES = 64 << 10  # given to zlib at once, since it copies what it leaves
_MOST_MEMBERS = 1000  # of one gzip body
_GZIP = b"\x1f\x8b"
_COMPRESSION = re.compile(r"gzip|deflate|compress|\b(br|zstd|dcb|dcz|exi|bzip2|xz|lzma)\b")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The limits under which URLs are fetched. ``allow_hosts`` (``host`` or ``host:port``) are free of the address check."""

    timeout_s: float = 10.0  # of one URL, redirects included, time held up by ourselves not
    first_byte_timeout_s: float = 10.0  # from the connection to the first byte of an answer
    max_bytes: int = 32 << 20
    max_redirects: int = 5
    allow_hosts: frozenset[str] = frozenset()
    user_agent: str = "clip-pipe"
    user_agent_token: str = "clip-pipe"
    disallowed_directives: frozenset[str] = field(default_factory=frozenset)
    robots_txt: bool = False
    requests_per_host: int = 16
    requests_per_s_per_host: float = 0.0  # 0: no limit
    http2: bool = True
    retries: int = 0  # of kinds that are transient


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart, ASCII throughout."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The whole URL."""
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host, and the port where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address as it is, so that no name has to be resolved."""
        return ":" in self.host or self.host.replace(".", "").isdigit()

    @property
    def origin(self) -> str:
        """Scheme, host and port: what one robots.txt speaks for."""
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """A 200 or 203 answer whose body may be read. ``length`` is as announced, in bytes."""

    length: int | None
    coding: str  # of the body: "" or what `inflated` takes


@dataclass(frozen=True, slots=True)
class Redirect:
    """An answer that sends us elsewhere."""

    location: str


def clean_url(url: str | None) -> Target:
    """Percent-encode, IDNA-encode and take apart. Raises Refused (``bad_url``, ``scheme``)."""
    if url and len(url) > _MOST_URL:
        raise Refused("bad_url", f"a URL of {len(url)} characters, at most {_MOST_URL} are taken")
    if url and (clean := _CLEAN.fullmatch(url)):
        scheme, host, number, path = clean.groups()
        if len(host) <= _MOST_HOST:
            return Target(scheme, host, int(number or _DEFAULT_PORTS[scheme]), path)
    if not url or not url.strip():
        raise Refused("bad_url", "the URL is missing")
    try:
        parts = urlsplit(url.strip())
        port = parts.port
        host = _host(parts.hostname or "")
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
    if len(path) + len(query) > _MOST_URL:
        raise Refused("bad_url", f"a URL of over {_MOST_URL} characters once encoded")
    return Target(scheme, host, port or _DEFAULT_PORTS[scheme], path + query)


def _host(host: str) -> str:
    """A name or an IPv6 address that every parser reads alike. Raises ValueError."""
    if ":" in host and "%" not in host:
        return str(ipaddress.IPv6Address(host))
    if not host.isascii():
        host = _ascii_host(host)
    labels = host.removesuffix(".").split(".")
    if host and (
        not _HOST_NAME.fullmatch(host)
        or not all(0 < len(label) <= _MOST_LABEL for label in labels)
        or len(host) > _MOST_HOST
    ):
        raise ValueError(f"{host[:80]!r} cannot be a host")
    return host


def _ascii_host(host: str) -> str:
    """As browsers do it: mapped by UTS 46 (so that "ß" stays a letter of its own), then punycode."""
    import idna

    if len(host) > _MOST_HOST:
        raise ValueError("the host's name is too long")
    labels = idna.uts46_remap(host, std3_rules=False, transitional=False).split(".")
    return ".".join(
        label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii")
        for label in labels
    )


def _percent_encoded(text: str) -> str:
    if _NEEDS_NOTHING.fullmatch(text) and "%" not in text:
        return text
    return quote(_BARE_PERCENT.sub("%25", text), safe=_URL_SAFE)


def next_target(target: Target, location: str) -> Target:
    """Where a redirect leads. Raises Refused (``bad_url``, ``scheme``)."""
    try:
        return clean_url(urljoin(target.url, location))
    except ValueError as fault:
        raise Refused("bad_url", f"redirect to {location[:100]!r}: {fault}") from fault


def forbidden(address: str) -> bool:
    """Whether an IP address is not one of the public internet (private, loopback, link-local, ...)."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(found.packed[-4:])
        if inner is None:
            return found not in _UNICAST_6 or any(found in network for network in _NOT_PUBLIC_6)
        found = inner
    return any(found in network for network in _NOT_PUBLIC_4)


def is_allowed_host(target: Target, policy: Policy) -> bool:
    """Whether ``allow_hosts`` names the host, so that its addresses are not checked."""
    if not policy.allow_hosts:
        return False
    names = {target.host, f"{target.host}:{target.port}", target.authority}
    return not names.isdisjoint(policy.allow_hosts)


def judge(
    status: int, words: str, headers: Mapping[str, Sequence[str]], policy: Policy
) -> Accepted | Redirect:
    """What to do with an answer, from its status line and headers (lower-case names, all lines of each).

    Raises Refused: http.<code>, redirect, opt_out, protocol, too_large.bytes.
    """
    if status not in _SUCCESSES and status not in _REDIRECTS:
        after_s = retry_after_s("".join(headers.get("retry-after", ())[:1]))
        raise Refused(f"http.{status}", f"HTTP {status} {words}".strip()[:200], after_s)
    lines = headers.get("x-robots-tag", ())
    if opted_out(lines, policy.user_agent_token, policy.disallowed_directives):
        raise Refused("opt_out", f"X-Robots-Tag: {' | '.join(lines)}"[:200])
    if reserved(headers.get("tdm-reservation", ()), policy.disallowed_directives):
        raise Refused("opt_out", "TDM-Reservation: 1")
    if status in _REDIRECTS:
        location = "".join(headers.get("location", ())[:1]).strip()
        if not location:
            raise Refused("redirect", f"HTTP {status} without Location")
        return Redirect(location)
    return Accepted(_length(headers, policy.max_bytes), _coding(headers))


def _length(headers: Mapping[str, Sequence[str]], max_bytes: int) -> int | None:
    announced = {line.strip() for line in headers.get("content-length", ())}
    if not announced or "transfer-encoding" in headers:
        return None
    text = announced.pop()
    if announced or not (text.isascii() and text.isdigit()):
        raise Refused("protocol", f"Content-Length is {headers['content-length']}"[:200])
    if len(text) > 18 or int(text) > max_bytes:
        raise Refused("too_large.bytes", f"{text} bytes announced, at most {max_bytes} are taken")
    return int(text)


def _coding(headers: Mapping[str, Sequence[str]]) -> str:
    """How the body is compressed, although nothing but identity was asked for."""
    coding = ",".join(headers.get("content-encoding", ())).strip().lower()
    if coding in ("gzip", "x-gzip", "deflate"):
        return coding
    if _COMPRESSION.search(coding):
        raise Refused("protocol", f"Content-Encoding {coding[:80]!r} was not asked for")
    return ""  # "UTF-8" and the like come with pictures as they are; the content is sniffed anyhow


def inflated(body: bytes, coding: str, limit_bytes: int, *, cut: bool = False) -> bytes | None:
    """``body`` without its coding, None where that is over ``limit_bytes``. Raises Refused (``protocol``).

    With ``cut`` the first ``limit_bytes`` count, and so does a beginning without its end.
    """
    pieces, size, members = [], 0, 1
    inflate = _inflater(body, coding)
    rest, at = b"", 0
    try:
        while True:
            if not rest:
                rest, at = body[at : at + _PACKED_BYTES], at + _PACKED_BYTES
            piece = inflate.decompress(rest, min(_INFLATE_BYTES, limit_bytes + 1 - size))
            pieces.append(piece)
            size += len(piece)
            if size > limit_bytes:
                return b"".join(pieces)[:limit_bytes] if cut else None
            if inflate.eof:
                rest = inflate.unused_data + body[at : at + 2]
                if coding == "deflate" or not rest.startswith(_GZIP):
                    break
                at, members = at + 2, members + 1
                if members > _MOST_MEMBERS:
                    raise Refused("protocol", f"gzip of more than {_MOST_MEMBERS} members")
                inflate = _inflater(rest, coding)
                continue
            rest = inflate.unconsumed_tail
            if not rest and not piece and at >= len(body):
                break
    except zlib.error as fault:
        raise Refused("protocol", f"not {coding}: {fault}"[:200]) from fault
    if not inflate.eof and not cut:
        raise Refused("connection", f"the {coding} body ended early")
    return b"".join(pieces)


def _inflater(body: bytes, coding: str) -> Any:
    raw_deflate = coding == "deflate" and not _has_zlib_header(body)
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS if raw_deflate else zlib.MAX_WBITS | 32)


def _has_zlib_header(body: bytes) -> bool:
    return len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0


def retry_after_s(text: str, now_s: float | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None where it says neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at_s = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, TypeError):
        return None
    return max(0.0, at_s - (time.time() if now_s is None else now_s))


def trusted_certificates() -> tuple[str | None, str | None]:
    """File and folder of trusted certificates: SSL_CERT_FILE, else OpenSSL's own places, else certifi's file."""
    if named := os.environ.get("SSL_CERT_FILE"):
        return named, None
    places = ssl.get_default_verify_paths()
    if places.cafile:
        return places.cafile, None
    if places.capath and any(os.scandir(places.capath)):
        return None, places.capath
    import certifi

    return certifi.where(), None
