"""Pictures that many URLs gave byte for byte: most often "image not available" of a site.

Counted by sha256 in two passes with a bounded number of hashes: the first finds which come often, the
second counts the different URLs of the few that may be shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.contract.parts import Pool
from pipelines.report import asked, pictures
from pipelines.report.content import Placeholder, Thumb
from pipelines.report.tally import Tally

LEAST_URLS = 5
_SHOWN = 10
_CANDIDATES = 40  # one URL with many captions counts often in the first pass and once in the second
_MOST_URLS = 10_000
_COLUMNS = ("keep", "reason", "sha256")


def count(rows: pa.Table, tally: Tally) -> None:
    """Note the pictures of one part, once for each of its URLs."""
    came = rows.filter(pc.and_(pc.equal(rows["reason"], ""), pc.is_valid(rows["sha256"])))
    pairs = came.group_by(["sha256", "url"], use_threads=False).aggregate([])
    keys = pairs["sha256"].combine_chunks()
    tally.add(keys, pa.repeat(pa.scalar(""), len(keys)))


@dataclass
class _Seen:
    part: int
    uid: str
    url: str
    rows: int = 0
    urls: set[str] = field(default_factory=set)


def found(pool: Pool, stage: Mapping[str, Any], tally: Tally) -> list[Placeholder]:
    """The pictures with the most different URLs, each with the first row that has it."""
    counts = tally.counts()
    often = counts.filter(pc.greater_equal(counts["rows"], LEAST_URLS))
    often = often.sort_by([("rows", "descending"), ("key", "ascending")]).slice(0, _CANDIDATES)
    wanted = often["key"].combine_chunks()
    seen: dict[str, _Seen] = {}
    for part, rows in asked.rows(pool, stage, _COLUMNS) if len(wanted) else ():
        own = pc.and_(pc.equal(rows["reason"], ""), pc.is_in(rows["sha256"], wanted))
        for row in rows.filter(own).to_pylist():
            known = seen.setdefault(row["sha256"], _Seen(part, row["uid"], row["url"] or ""))
            known.rows += 1
            if len(known.urls) < _MOST_URLS:
                known.urls.add(row["url"] or "")
    order = sorted(seen, key=lambda key: (-len(seen[key].urls), -seen[key].rows, key))
    shown = [seen[key] for key in order if len(seen[key].urls) >= LEAST_URLS][:_SHOWN]
    images = pictures.newest(pool, [stage["fingerprint"]], [(one.part, one.uid) for one in shown])
    return [_placeholder(one, images.get(one.uid)) for one in shown]


def _placeholder(one: _Seen, image: bytes | None) -> Placeholder:
    thumb = Thumb(one.uid, image, "", note=one.url)
    return Placeholder(thumb, one.rows, len(one.urls), len(one.urls) >= _MOST_URLS)
