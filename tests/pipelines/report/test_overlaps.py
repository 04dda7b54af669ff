"""The list of what evaluation sets hold and a pool repeats."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from curate.contract import parts, storage
from curate.contract.parts import Pool
from pipelines.report import overlaps
from pipelines.report.content import Overlap, Report
from pipelines.report.page import render


def pool_of(folder: Path, found: list[list[str | None]]) -> Pool:
    pool = Pool(str(folder))
    storage.write_text(pool.description_path, f'{{"parts": {len(found)}}}')
    for part, items in enumerate(found):
        path = pool.columns_path("filter.eval_overlap", "ab" * 32, part)
        parts.write_table(path, pa.table({"overlap": pa.array(items, pa.string())}))
    return pool


def test_items_are_counted_over_all_parts(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, [["cifar/1", None, "cifar/2"], [None, "cifar/2"], []])
    stage = {"use": "filter.eval_overlap", "fingerprint": "ab" * 32}
    assert overlaps.found(pool, {"stages": [stage]}) == Overlap(
        rows=3, items=2, most=[("cifar/2", 2), ("cifar/1", 1)]
    )
    assert overlaps.found(pool, {"stages": [{"use": "score.phash", "fingerprint": "c"}]}) is None


def test_the_page_lists_them_escaped() -> None:
    page = render(Report(title="t", overlap=Overlap(rows=4, items=2, most=[("<b>set/1", 3)])))
    assert "4 rows repeat 2 items; the 1 most frequent" in page
    assert "&lt;b&gt;set/1" in page
    assert "<b>set/1" not in page
