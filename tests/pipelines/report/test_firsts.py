"""A refused copy of equal bytes finds the row that stays, whoever wrote the column."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from curate.contract import parts
from curate.contract.parts import Pool
from pipelines.report import repeated
from pipelines.report.ledger import LedgerSample
from pipelines.report.repeated import PoolRow, Repeated

SOURCE = {"use": "source.folder", "fingerprint": "aa" * 32}
FETCH = {"use": "download.fetch", "fingerprint": "bb" * 32}
PAIR = {"use": "filter.duplicate_pair", "fingerprint": "cc" * 32}
IMAGE = {"use": "filter.duplicate_image", "fingerprint": "dd" * 32}
HASHES = [["x", "y", None], ["x", "y", "y", "z"]]
KEEP = [[True, None, None], [False, True, False, True]]  # row 1 was refused above
ENDS = (3, 7)


def uid(row: int) -> str:
    return f"{row:032x}"


def made(folder: Path, in_rows: bool) -> Pool:
    pool = Pool(str(folder))
    first = 0
    for part, hashes in enumerate(HASHES):
        rows = range(first, first + len(hashes))
        uids = [uid(row) for row in rows]
        own = {
            "uid": uids,
            "url": [f"u{row}" for row in rows],
            "caption": [f"c{row}" for row in rows],
        }
        wrote = {"sha256": pa.array(hashes, pa.string())}
        parts.write_table(pool.rows_path(part), pa.table(own | (wrote if in_rows else {})))
        if not in_rows:
            path = pool.columns_path(FETCH["use"], FETCH["fingerprint"], part)
            parts.write_table(path, pa.table({"uid": uids} | wrote))
        for stage in (IMAGE, PAIR):
            path = pool.columns_path(stage["use"], stage["fingerprint"], part)
            parts.write_table(path, pa.table({"uid": uids, "keep": KEEP[part]}))
        first += len(hashes)
    return pool


def sample(row: int, stage: dict[str, str]) -> LedgerSample:
    return LedgerSample(row, uid(row), f"u{row}", f"c{row}", stage["use"])


@pytest.mark.parametrize("in_rows", [True, False], ids=["source", "download"])
def test_the_first_row_that_was_kept_is_found(tmp_path: Path, in_rows: bool) -> None:
    pool = made(tmp_path, in_rows)
    stages = [SOURCE, FETCH, IMAGE]
    samples = [sample(3, IMAGE), sample(5, IMAGE)]
    assert repeated.found(pool, stages, samples, ENDS) == {
        3: Repeated(PoolRow(0, uid(0), "u0", "c0")),
        5: Repeated(PoolRow(1, uid(4), "u4", "c4")),
    }


def test_equal_pairs_show_nothing(tmp_path: Path) -> None:
    pool = made(tmp_path, True)
    assert repeated.found(pool, [SOURCE, PAIR], [sample(3, PAIR)], ENDS) == {}


def test_without_its_column_nothing_is_found(tmp_path: Path) -> None:
    pool = made(tmp_path, False)
    assert repeated.found(pool, [SOURCE, IMAGE], [sample(3, IMAGE)], ENDS) == {}
