"""Refuses rows by the host of their URL, or by the URL itself: block lists, allow lists, opt-out lists.

Lists are plain text, one item a line. A domain stands for itself and for everything below it:
``example.com`` covers ``img.example.com`` and not ``notexample.com``; an IP address stands for itself
alone. Hosts are compared as a resolver would take them: case, a dot at the end, a port and a user name
do not count, and ``bücher.example`` is ``xn--bcher-kva.example``.
"""

from __future__ import annotations

import gzip
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar
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
_PLAIN = re.compile(r"[a-z0-9.-]*[a-z]")  # ASCII, and no address: it ends in a letter
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
    odd = pc.match_substring_regex(hosts, r"[^a-z0-9.-]")
    if not pc.any(odd).as_py():
        return hosts
    return pc.replace_with_mask(hosts, odd, pa.array(map(normal_host, hosts.filter(odd).to_pylist()), pa.string()))  # fmt: skip


def normal_host(host: str) -> str:
    """A host in lower-case ASCII: international names in punycode, addresses in their short form."""
    host = unquote(host).strip().rstrip(".").lower()
    if _PLAIN.fullmatch(host):
        return host
    try:
        return ipaddress.ip_address(host.strip("[]")).compressed
    except ValueError:
        pass
    try:
        return host.encode("idna").decode("ascii")
    except (
        UnicodeError
    ):  # an empty or overlong label: no resolver finds it, so only its letters count
        return host


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
    host = normal_host(line.removeprefix("*").removeprefix("."))
    if not host or re.search(r"[/\\\s*@?]", line.removeprefix("*.")):
        raise ValueError(
            f"{path}, line {number}: {line!r} is no domain. hint: one domain a line, such as example.com; whole URLs go in `urls`"
        )
    return host


def _digests(path: str) -> np.ndarray:
    """The sorted digests of a list of URLs, or of their sha256."""
    found: Iterable[bytes] = (
        bytes.fromhex(line)[:16] if _SHA256.fullmatch(line) else _digest(line)
        for _, line in _lines(path)
    )
    return np.unique(np.fromiter(found, _DIGEST))


def _lines(path: str, comment: str = "") -> Iterator[tuple[int, str]]:
    """Number and text of each line that says something. A URL may hold a #, so there it must come first."""
    with storage.open_file(path) as raw:
        file = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
        for number, data in enumerate(file, 1):
            line = data.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip()
            if comment:
                line = line.partition(comment)[0].strip()
            if line and not line.startswith("#"):
                yield number, line
