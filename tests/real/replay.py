"""Plants real download outcomes (status, type, length, headers) as answers of a local server.

Each row becomes one answer, and the kind of refusal it must end with, None for a picture. A host keeps
its rows together: it gets a loopback address of its own. Where the record has no body, one of the same
type and length is made: pictures are small JPEGs grown to the recorded length by comment segments.
"""

from __future__ import annotations

import ast
import functools
import gzip
import random
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq

from curate.download.opt_out import opted_out
from tests.bench.web import Answer
from tests.tiny.pictures import encoded

FILE = "download-outcomes-cc3m-val.parquet"
DISALLOWED = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
# Framing is the server's own; the rest goes out as it was recorded.
_FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive"})
_SIDES = (16, 64, 128, 256)


@dataclass(frozen=True)
class Planted:
    """One row of the record as it will be asked for, and how it must end."""

    row: dict[str, Any]
    host: str
    answer: Answer
    kind: str | None

    def url(self, number: int, port: int) -> str:
        """The number, by which the server answers, then the path and query as they were."""
        parts = urlsplit(self.row["url"])
        return f"http://{self.host}:{port}/{number}{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"


def sample(rows: list[dict[str, Any]], ordinary: int, of_each: int) -> list[dict[str, Any]]:
    """All that is rare, at most ``of_each`` of each status, and ``ordinary`` answers with a JPEG; source order."""
    rng = random.Random(0)
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        headers = row["headers"].lower()
        plain = row["http_status"] == 200 and row["mime"] == "image/jpeg"
        odd = any(
            word in headers for word in ("x-robots", "retry-after", "transfer-encoding", "'utf-8'")
        )
        coded = "content-encoding" in headers
        groups["odd" if odd else (row["http_status"], coded, plain)].append(index)
    chosen: list[int] = []
    for key, members in groups.items():
        most = ordinary if key == (200, False, True) else len(members) if key == "odd" else of_each
        chosen += rng.sample(members, min(most, len(members)))
    return [rows[index] for index in sorted(chosen)]


def read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def planted(rows: list[dict[str, Any]], most_bytes: int = 1 << 30) -> list[Planted]:
    """Answers for rows; bodies longer than ``most_bytes`` are made shorter."""
    hosts: dict[str, str] = {}
    found = []
    for number, row in enumerate(rows):
        place = len(hosts)
        host = hosts.setdefault(
            urlsplit(row["url"]).netloc,
            f"127.{1 + place // 62_500}.{place // 250 % 250}.{place % 250 + 1}",
        )
        found.append(Planted(row, host, *_answer(row, number, most_bytes)))
    return found


def _answer(row: dict[str, Any], number: int, most_bytes: int) -> tuple[Answer, str | None]:
    headers: dict[str, str] = ast.literal_eval(row["headers"]) if row["headers"] else {}
    by_name = {name.lower(): value for name, value in headers.items()}
    status, mime = row["http_status"], row["mime"]
    if (
        by_name.get("retry-after", "0") != "0"
    ):  # an hour, which holds the host's next row up for 30 s
        headers = {**headers, "Retry-After": "1"}
    lost = (
        status == 200 and mime is None
    )  # answered, but no body was ever recorded: it broke on the way
    length = min(
        row["bytes"] if row["bytes"] is not None else int(by_name.get("content-length", 0)),
        most_bytes,
    )
    body = _body(mime or "text/html", length)
    if by_name.get("content-encoding") == "gzip":
        body = gzip.compress(body, 1, mtime=0)
    lines = [f"HTTP/1.1 {status} As Recorded"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() not in _FRAMING]
    end = "keep"
    if status == 200 and not lost and "content-length" not in by_name and number % 2:
        lines.append("Connection: close")
        end = "close"
    elif status == 200 and not lost and "content-length" not in by_name:
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(
            b"%x\r\n%s\r\n" % (len(piece), piece)
            for start in range(0, len(body), 50_000)
            if (piece := body[start : start + 50_000])
        )
        body += b"0\r\n\r\n"
    elif lost:
        lines.append(f"Content-Length: {len(body) + 100}")
        end = "close"
    else:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
    return Answer(head, body, end=end), _kind(row, by_name, lost)


def _kind(row: dict[str, Any], headers: dict[str, str], lost: bool) -> str | None:
    if row["http_status"] != 200:
        return f"http.{row['http_status']}"
    if opted_out([headers.get("x-robots-tag", "")], "clip-pipe", DISALLOWED):
        return "opt_out"
    if lost:
        return "connection"
    if not row["mime"].startswith("image/"):
        return "not_an_image"
    return "too_small" if row["bytes"] < 60 else None  # a tracking pixel: one GIF of 49 bytes


def _body(mime: str, length: int) -> bytes:
    if mime == "image/jpeg":
        return _jpeg(length)
    if mime == "image/png":
        return _png(length)
    if mime == "image/gif":
        side = 1 if length < 60 else 24
        data = encoded(np.zeros((side, side), np.uint8), "GIF")
        return (
            data if len(data) + 5 > length else data[:-1] + _gif_comment(length - len(data)) + b";"
        )
    text = (
        b"<?php echo 1; ?>"
        if mime == "text/x-php"
        else b"not a picture"
        if mime == "text/plain"
        else b"<!doctype html><p>"
    )
    return (text * (length // len(text) + 1))[:length]


@functools.cache
def _small(side: int, kind: str) -> bytes:
    noise = np.random.default_rng(side).integers(0, 255, (side, side * 4 // 3, 3), np.uint8)
    return encoded(noise, kind, **({"quality": 80} if kind == "JPEG" else {}))


def _jpeg(length: int) -> bytes:
    """A picture of exactly ``length`` bytes where there is room for one, grown by comments after its start."""
    data = next(
        (found for side in reversed(_SIDES) if len(found := _small(side, "JPEG")) + 4 <= length),
        _small(16, "JPEG"),
    )
    left, comments = length - len(data), []
    while left >= 4:
        size = min(left, 65_537)
        size -= 4 if 0 < left - size < 4 else 0
        comments.append(b"\xff\xfe" + (size - 2).to_bytes(2, "big") + bytes(size - 4))
        left -= size
    return data[:2] + b"".join(comments) + data[2:]


def _png(length: int) -> bytes:
    data = encoded(np.full((16, 16), 99, np.uint8)) if length < 2000 else _small(16, "PNG")
    left = length - len(data) - 12
    if left < 2:
        return data
    chunk = b"tEXt" + b"k\0" + b"x" * (left - 2)
    return (
        data[:33]
        + left.to_bytes(4, "big")
        + chunk
        + zlib.crc32(chunk).to_bytes(4, "big")
        + data[33:]
    )


def _gif_comment(length: int) -> bytes:
    """A comment extension of exactly ``length`` bytes (at least 5)."""
    blocks, left = b"", length - 3
    while left > 0:
        size = min(255, left - 1) if left > 1 else 0
        if left - size - 1 == 1:
            size -= 1
        blocks += bytes([size]) + b"x" * size
        left -= size + 1
    return b"!\xfe" + blocks + b"\0"
