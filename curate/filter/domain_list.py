"""Refuses rows by the host of their URL, or by the URL itself: block lists, allow lists, opt-out lists.

Lists are plain text, one item a line. A domain stands for itself and for everything below it:
``example.com`` covers ``img.example.com`` and not ``notexample.com``; an IP address stands for itself
alone. Hosts are compared as a browser would take them: case, a dot at the end, a port and a user name
do not count, ``bücher.example`` is ``xn--bcher-kva.example``, and an IPv4 address is the same in every
spelling (``127.1``, ``0x7f000001``, ``::ffff:127.0.0.1``).
"""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, ClassVar, cast
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import storage
from curate.stage import KEEP, REASON, RowStage, StageError, path_option

_BLOCKED, _NOT_ALLOWED, _OPTED_OUT = REASONS = (
    "domain_list.blocked",
    "domain_list.not_allowed",
    "opt_out.url",
)
# scheme, slashes (browsers take \ for /), user name, then the host: up to a port, path, query or end.
_HOST = r"^\s*(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]{2}(?:[^/\\?#]*@)?(?P<host>\[[^\]/\\?#]*\]|[^/\\?#:\s]*)"
_PLAIN = re.compile(r"[a-z0-9.-]*")
_NUMBER = r"(?:0x[0-9a-f]*|[0-9]+)"
_IPV4 = re.compile(rf"{_NUMBER}(?:\.{_NUMBER}){{0,3}}")
_ODD = rf"[^a-z0-9.-]|(?:^|\.){_NUMBER}$"  # not ASCII alone, or perhaps an address
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_HINT = "hint: one domain a line, such as example.com, without a port or marks of other tools; whole URLs go in `urls`"
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_DIGEST = "S16"  # the first 128 bits of a sha256; two URLs of one list never share them
Hosts = frozenset[str]


@dataclass(frozen=True)
class Lists:
    """What the files say. ``urls`` are sorted digests of shape (items,), or None without such a list."""

    block: Hosts | None
    allow: Hosts | None
    urls: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class DomainList(RowStage):
    """Refuses rows as ``domain_list.blocked``, ``domain_list.not_allowed`` or ``opt_out.url``.

    Options (one of them at least; each a text file, ``.gz`` too, with ``#`` for comments):
        block: domains whose rows are refused.
        allow: domains whose rows alone are kept. A domain that ``block`` covers, too, is refused.
        urls: URLs that are refused, compared letter by letter. A line of 64 hex digits is the sha256
            of a URL (its UTF-8 bytes), so that a list can be passed on without naming what is on it.
    """

    batch_rows: ClassVar[int] = 8192

    block: str = path_option("")
    allow: str = path_option("")
    urls: str = path_option("")

    def reads(self) -> tuple[str, ...]:
        return ("url",)

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def inputs(self) -> tuple[str, ...]:
        return tuple(path for path in (self.block, self.allow, self.urls) if path)

    def identity(self) -> str:
        """Which list is which: their content alone does not tell a blocked domain from an allowed one."""
        return f"{bool(self.block):d}{bool(self.allow):d}{bool(self.urls):d}"

    def check(self) -> None:
        if not self.inputs():
            raise ValueError("no list at all. hint: set block, allow or urls to a text file")
        for path in self.inputs():
            if not storage.exists(path):
                raise ValueError(
                    f"{path}: no such list. hint: name a text file with an item a line"
                )
        for path in (self.block, self.allow):
            if path:
                _domains(path)
        if self.urls:
            _check_readable(self.urls)

    def open(self) -> Lists:
        """The lists in memory: about 100 bytes for each domain and 16 for each URL."""
        try:
            return Lists(
                _domains(self.block) if self.block else None,
                _domains(self.allow) if self.allow else None,
                _digests(self.urls) if self.urls else None,
            )
        except (OSError, ValueError) as fault:
            raise StageError(f"filter.domain_list: {fault}") from fault

    def process(self, batch: pa.Table, state: Lists) -> pa.Table:
        urls = batch["url"].combine_chunks()
        codes = np.full(len(urls), -1, np.int32)
        if state.urls is not None:
            codes[_listed(urls, state.urls)] = 2
        if state.block is not None or state.allow is not None:
            hosts = hosts_of(urls).dictionary_encode()
            names = hosts.dictionary.to_pylist()
            of_row = np.asarray(hosts.indices)
            if state.allow is not None:
                codes[~_covered(names, state.allow)[of_row]] = 1
            if state.block is not None:
                codes[_covered(names, state.block)[of_row]] = 0
        kept = codes < 0
        reason = pa.DictionaryArray.from_arrays(pa.array(codes, mask=kept), list(REASONS))
        return pa.table([pa.array(kept), reason], schema=self.writes())


def hosts_of(urls: pa.Array) -> pa.Array:
    """The host of each URL as ``normal_host`` writes it; empty where there is none."""
    found = pc.struct_field(pc.extract_regex(urls, _HOST), "host")
    hosts = pc.utf8_lower(pc.utf8_rtrim(found.fill_null(""), "."))
    # ASCII names, nearly all, are as they should be; the rest go through Python once each.
    odd = pc.match_substring_regex(hosts, _ODD)
    if not pc.any(odd).as_py():
        return hosts
    return pc.replace_with_mask(hosts, odd, pa.array(map(normal_host, hosts.filter(odd).to_pylist()), pa.string()))  # fmt: skip


def normal_host(host: str) -> str:
    """A host in lower-case ASCII: international names in punycode, addresses in their short form."""
    host = unquote(host).strip().rstrip(".").lower()
    if _PLAIN.fullmatch(host):
        return _ipv4(host) or host
    if ":" in host:
        try:
            address = ipaddress.IPv6Address(host.strip("[]"))
            return str(address.ipv4_mapped or address)
        except ValueError:
            return host
    try:
        host = host.encode("idna").decode("ascii")
    except (
        UnicodeError
    ):  # an empty or overlong label: no resolver finds it, so only its letters count
        return host
    return _ipv4(host) or host


def _ipv4(host: str) -> str:
    """The address of a host that is one, in any number of decimal, octal or hex parts; else ''."""
    if not _IPV4.fullmatch(host):
        return ""
    try:
        parts = [_part(text) for text in host.split(".")]
    except ValueError:  # an octal number with an 8
        return ""
    if any(part > 255 for part in parts[:-1]) or parts[-1] >= 256 ** (5 - len(parts)):
        return ""
    whole = sum(part << 24 - 8 * place for place, part in enumerate(parts[:-1])) + parts[-1]
    return str(ipaddress.IPv4Address(whole))


def _part(text: str) -> int:
    """A part of an IPv4 address. Raises ValueError for one that is no number."""
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if text.startswith("0") else 10)


def _covered(hosts: list[str], domains: Hosts) -> np.ndarray:
    """Whether each host is one of the domains or below one: bool, shape (hosts,)."""
    return np.fromiter((_is_covered(host, domains) for host in hosts), bool, len(hosts))


def _is_covered(host: str, domains: Hosts) -> bool:
    if host in domains:
        return True
    if ":" in host or host.rpartition(".")[2].isdigit():  # an address has nothing above it
        return False
    _, dot, host = host.partition(".")
    while dot:
        if host in domains:
            return True
        _, dot, host = host.partition(".")
    return False


def _listed(urls: pa.Array, digests: np.ndarray) -> np.ndarray:
    """Whether each URL is on a list of sorted digests: bool, shape (urls,)."""
    if not len(digests):
        return np.zeros(len(urls), bool)
    own = np.array([_digest(url or "") for url in urls.to_pylist()], _DIGEST)
    at = np.searchsorted(digests, own).clip(max=len(digests) - 1)
    return digests[at] == own


def _digest(url: str) -> bytes:
    return hashlib.sha256(url.encode("utf-8", "surrogateescape")).digest()[:16]


def _domains(path: str) -> Hosts:
    """The domains of a list. Raises ValueError for a line that is no domain."""
    return frozenset(_domain(path, number, line) for number, line in _lines(path, "#"))


def _domain(path: str, number: int, line: str) -> str:
    host = normal_host(line.removeprefix("*.").removeprefix("."))
    if not (_NAME.fullmatch(host) or _is_ipv6(host)):
        raise ValueError(f"{path}, line {number}: {line!r} is no domain. {_HINT}")
    return host


def _is_ipv6(host: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(host))
    except ValueError:
        return False


def _digests(path: str) -> np.ndarray:
    """The sorted digests of a list of URLs, or of their sha256."""
    found: Iterable[bytes] = (
        bytes.fromhex(line)[:16] if _SHA256.fullmatch(line) else _digest(line)
        for _, line in _lines(path)
    )
    return np.unique(np.fromiter(found, _DIGEST))


def _lines(path: str, comment: str = "") -> Iterator[tuple[int, str]]:
    """Number and text of each line that says something. A URL may hold a #, so there it must come first."""
    with _opened(path) as file:
        for number, data in enumerate(file, 1):
            line = data.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip()
            if comment:
                line = line.partition(comment)[0].strip()
            if line and not line.startswith("#"):
                yield number, line


def _check_readable(path: str) -> None:
    """Raise ValueError for a list that can't be read to its end."""
    with _opened(path) as file:
        while file.read(1 << 20):
            pass


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """A list's bytes, unpacked. Raises ValueError for a folder, a damaged or an unreadable file."""
    try:
        with storage.open_file(path) as raw:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if path.endswith(".gz") else raw
    except (EOFError, zlib.error, OSError) as fault:  # a file that is no gzip is an OSError
        what = "it is a folder" if isinstance(fault, IsADirectoryError) else fault
        raise ValueError(
            f"{path}: can't be read: {what}. hint: name a text file with an item a line, .gz or not; fetch a damaged one again"
        ) from fault
