"""The rows that refused samples repeat: duplicate filters write the uid of the row that stays beside their decision.

Bounded work: the sidecars of the samples' own parts, then the uids of the pool part by part until the few
that are wanted are found. Any filter that writes such a uid is understood, whatever its column is called.
One that keeps the first of equal values (`FirstOfEqual`) writes none; see `report.firsts`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.contract import parts, storage
from curate.contract.parts import Pool
from pipelines.report import firsts, options
from pipelines.report.ledger import LedgerSample

_UID = re.compile(r"[0-9a-f]{32}\Z")
_ITEM = "overlap"  # the column in which filter.eval_overlap names an evaluation set's item
_CAPTION_CHARACTERS = 2000


@dataclass(frozen=True)
class PoolRow:
    """A row of the pool and the part that it is in."""

    part: int
    uid: str
    url: str
    caption: str


@dataclass(frozen=True)
class Repeated:
    """What a sample repeats: a row of the pool, or an item of an evaluation set."""

    row: PoolRow | None = None
    item: str = ""


def found(
    pool: Pool,
    stages: Sequence[Mapping[str, Any]],
    samples: Sequence[LedgerSample],
    ends: Sequence[int],
) -> dict[int, Repeated]:
    """What samples repeat, by their position; those that repeat nothing are left out.

    ``stages`` are those of the shards' manifest; ``ends`` the rows up to the end of each part.
    """
    named = {stage["use"]: stage for stage in stages}
    places: dict[tuple[str, int], list[LedgerSample]] = {}
    for sample in samples:
        if sample.stage in named:
            part = bisect_right(ends, sample.position)
            places.setdefault((sample.stage, part), []).append(sample)
    links: dict[int, dict[str, str]] = {}
    for (name, part), rows in places.items():
        stage = named[name]
        path = pool.columns_path(options.use_of(stage), stage["fingerprint"], part)
        links |= _links(path, rows, ends[part - 1] if part else 0)
    links |= firsts.found(pool, stages, places, ends)
    uids = {text for texts in links.values() for text in texts.values() if _UID.match(text)}
    kept = _rows(pool, uids, len(ends))
    told = {}
    for position, texts in links.items():
        row = next((kept[text] for text in texts.values() if text in kept), None)
        item = texts.get(_ITEM, "")
        if row is not None or item:
            told[position] = Repeated(row, item)
    return told


def _links(path: str, samples: Sequence[LedgerSample], first: int) -> dict[int, dict[str, str]]:
    """position -> column -> text, of the texts that a stage wrote for some rows of one part."""
    if not storage.exists(path):
        return {}
    with storage.open_file(path) as file:
        schema = pq.read_schema(file)
    names = [item.name for item in schema if pa.types.is_string(item.type) and item.name != "uid"]
    if not names:
        return {}
    table = parts.read_table(path, ["uid", *names])
    texts = {}
    for sample in samples:
        row = table.slice(sample.position - first, 1).to_pylist()
        if row and row[0].pop("uid") == sample.uid:
            texts[sample.position] = {name: text for name, text in row[0].items() if text}
    return texts


def _rows(pool: Pool, uids: set[str], part_count: int) -> dict[str, PoolRow]:
    """The first row of each uid; parts are read until all are found."""
    rows: dict[str, PoolRow] = {}
    for part in range(part_count):
        missing = uids - rows.keys()
        if not missing:
            break
        path = pool.rows_path(part)
        there = pc.is_in(
            parts.read_table(path, ["uid"])["uid"], pa.array(sorted(missing), pa.string())
        )
        if pc.any(there).as_py():
            table = parts.read_table(path, ["uid", "url", "caption"]).filter(there)
            for row in table.to_pylist():
                caption = (row["caption"] or "")[:_CAPTION_CHARACTERS]
                rows.setdefault(row["uid"], PoolRow(part, row["uid"], row["url"] or "", caption))
    return rows
