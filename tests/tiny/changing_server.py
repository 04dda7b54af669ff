"""A server of pictures whose answers a test changes between runs, a list of its URLs, and a plain download."""

from __future__ import annotations

import contextlib
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web

from curate.stage import KEEP, REASON, RowStage, decision, error
from tests.tiny.local_server import serve
from tests.tiny.pictures import encoded

GET = "tests.tiny.changing_server:Get"


@dataclass(frozen=True, kw_only=True)
class Get(RowStage):
    """Fetches and keeps bytes as they are: reasons as those of download.fetch, nothing of its engine."""

    lasting_errors: ClassVar[tuple[str, ...]] = ("http.404",)

    def reads(self) -> tuple[str, ...]:
        return ("url",)

    def writes(self) -> pa.Schema:
        return pa.schema([("image", pa.binary()), KEEP, REASON])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        images: list[bytes | None] = []
        reasons: list[str | None] = []
        for url in batch["url"].to_pylist():
            try:
                with urllib.request.urlopen(url, timeout=60) as answer:
                    images.append(answer.read())
                reasons.append(None)
            except urllib.error.HTTPError as fault:
                images.append(None)
                reasons.append(error(GET, f"http.{fault.code}"))
        return pa.table([pa.array(images, pa.binary()), *decision(reasons)], schema=self.writes())


@dataclass
class Web:
    """``answers``: path -> status, 200 where a path is not named. ``asked``: requests by path since ``reset``."""

    url: str = ""
    answers: dict[str, int] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    ever: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    def reset(self) -> None:
        self.asked.clear()

    def fetch(self, **more: Any) -> dict[str, Any]:
        """download.fetch, with leave to ask this server."""
        host = self.url.removeprefix("http://")
        return {"use": "download.fetch", "allow_hosts": [host], "image_size": 32, **more}

    async def answer(self, request: Any) -> web.StreamResponse:
        path = request.path.strip("/")
        with self.lock:
            self.asked[path] += 1
            self.ever[path] += 1
        status = self.answers.get(path, 200)
        body = picture(int(path)) if status == 200 else b"no"
        return web.Response(status=status, body=body, content_type="image/png")


@contextlib.contextmanager
def changing() -> Iterator[Web]:
    """A server that is changed through the object it gives."""
    made = Web()
    with serve(made.answer) as url:
        made.url = url
        yield made


def picture(number: int) -> bytes:
    """A small PNG, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    return encoded(pixels)


def write_list(path: Path, url: str, first: int, count: int, words: int = 3) -> None:
    """Rows ``first`` .. of a table with url and caption; ``word<n>`` is in every caption, n below ``words``."""
    numbers = range(first, first + count)
    table = {
        "url": [f"{url}/{n}" for n in numbers],
        "caption": [f"word{n % words} number {n}" for n in numbers],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
