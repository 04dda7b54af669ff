"""Refused copies find the row that stays, whatever part it is in; overlaps the item's name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from curate.contract import parts
from curate.contract.parts import Pool
from pipelines.report import repeated
from pipelines.report.ledger import LedgerSample
from pipelines.report.repeated import PoolRow, Repeated

NEAR = {"use": "filter.near_duplicate#2", "fingerprint": "ab" * 32}
OVERLAP = {"use": "filter.eval_overlap", "fingerprint": "cd" * 32}
FETCH = {"use": "download.fetch", "fingerprint": "ef" * 32}
SIZES = (3, 4, 2)
ENDS = (3, 7, 9)


def uid(row: int) -> str:
    return f"{row:032x}"


def sample(row: int, stage: dict[str, str]) -> LedgerSample:
    return LedgerSample(row, uid(row), f"u{row}", f"c{row}", stage["use"])


def write(pool: Pool, stage: dict[str, str], column: str, texts: dict[int, str]) -> None:
    first = 0
    for part, size in enumerate(SIZES):
        rows = range(first, first + size)
        values = pa.array([texts.get(row) for row in rows], pa.string())
        table = pa.table({"uid": [uid(row) for row in rows], column: values})
        path = pool.columns_path(stage["use"].partition("#")[0], stage["fingerprint"], part)
        parts.write_table(path, table)
        first += size


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    made = Pool(str(tmp_path))
    first = 0
    for part, size in enumerate(SIZES):
        rows = range(first, first + size)
        columns = {"uid": uid, "url": "u{}".format, "caption": "c{}".format}
        table = pa.table({name: [make(row) for row in rows] for name, make in columns.items()})
        parts.write_table(made.rows_path(part), table, {"rows": size})
        first += size
    write(made, NEAR, "named_as_you_like", {1: uid(8), 4: uid(0), 5: uid(0), 6: uid(99)})
    write(made, OVERLAP, "overlap", {2: "cifar10/7.png"})
    write(made, FETCH, "error_message", {3: "HTTP 404"})
    return made


def found(pool: Pool, *samples: LedgerSample) -> dict[int, Repeated]:
    return repeated.found(pool, [NEAR, OVERLAP, FETCH], samples, ENDS)


def test_the_row_that_stays_is_found_in_any_part(pool: Pool) -> None:
    assert found(pool, sample(1, NEAR), sample(4, NEAR), sample(5, NEAR)) == {
        1: Repeated(PoolRow(2, uid(8), "u8", "c8")),
        4: Repeated(PoolRow(0, uid(0), "u0", "c0")),
        5: Repeated(PoolRow(0, uid(0), "u0", "c0")),
    }


def test_an_overlap_has_its_item(pool: Pool) -> None:
    assert found(pool, sample(2, OVERLAP)) == {2: Repeated(item="cifar10/7.png")}


def test_other_texts_and_rows_that_went_are_nothing(pool: Pool) -> None:
    gone = {"use": "filter.gone", "fingerprint": "00" * 32}
    samples = [sample(3, FETCH), sample(6, NEAR), sample(0, NEAR), sample(1, gone)]
    assert found(pool, *samples) == {}
    assert repeated.found(pool, [gone], [sample(1, gone)], ENDS) == {}


def test_parts_are_read_until_all_are_found(pool: Pool) -> None:
    Path(pool.rows_path(2)).unlink()
    assert found(pool, sample(4, NEAR)).keys() == {4}


def test_a_sidecar_of_other_rows_is_not_believed(pool: Pool) -> None:
    other = LedgerSample(4, uid(77), "u", "c", NEAR["use"])
    assert found(pool, other) == {}
