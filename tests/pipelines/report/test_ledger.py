"""The ledger in one pass: counts, samples that do not depend on batches, and pieces of any length."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from curate.contract import parts
from curate.contract.columns import LEDGER_SCHEMA
from curate.contract.draw import draw
from pipelines.report import ledger

ROWS = [
    {
        "uid": f"{n:032x}", "url": f"u{n}", "caption": None if n == 5 else f"c{n}", "keep": n % 3 == 0,
        "reason": None if n % 3 == 0 else "a" if n % 2 else "b", "stage": None if n % 3 == 0 else "s",
    }
    for n in range(100)
]  # fmt: skip


@pytest.fixture(params=["file", "folder"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        parts.write_table(
            str(tmp_path / "ledger.parquet"), pa.Table.from_pylist(ROWS, LEDGER_SCHEMA)
        )
    for part in range(4) if request.param == "folder" else ():
        table = pa.Table.from_pylist(ROWS[part * 25 : part * 25 + 25], LEDGER_SCHEMA)
        parts.write_table(str(tmp_path / "ledger.parquet" / f"part-{part:05d}.parquet"), table)
    return str(tmp_path / "ledger.parquet")


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
def test_counts_and_samples(path: str, batch_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_BATCH_ROWS", batch_rows)
    summary = ledger.summarize(path, per_reason=4)
    assert (summary.rows, summary.kept) == (100, 34)
    assert summary.reasons == {"a": 33, "b": 33}
    for reason in "ab":
        expected = sorted(
            (n for n, row in enumerate(ROWS) if row["reason"] == reason),
            key=lambda n: draw(f"{n:032x}", "report"),
        )[:4]
        assert [sample.position for sample in summary.samples[reason]] == expected
    sample = summary.samples["a"][0]
    assert (sample.uid, sample.url) == (f"{sample.position:032x}", f"u{sample.position}")


def test_a_null_or_enormous_caption_is_held_short(tmp_path: Path) -> None:
    rows = [
        {**ROWS[1], "caption": None, "reason": "null"},
        {**ROWS[1], "caption": "x" * 1_000_000, "reason": "long"},
    ]
    parts.write_table(str(tmp_path / "l.parquet"), pa.Table.from_pylist(rows, LEDGER_SCHEMA))
    samples = ledger.summarize(str(tmp_path / "l.parquet")).samples
    assert samples["null"][0].caption == ""
    assert len(samples["long"][0].caption) == 2000


def test_pieces_of_any_length_in_order(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_BATCH_ROWS", 9)
    cursor = ledger.Cursor(path, ["uid"])
    taken = [cursor.take(rows) for rows in (0, 1, 20, 4, 75)]
    assert [len(piece) for piece in taken] == [0, 1, 20, 4, 75]
    assert [uid for piece in taken if len(piece) for uid in piece["uid"].to_pylist()] == [
        row["uid"] for row in ROWS
    ]
    with pytest.raises(ValueError, match=r"the ledger ends 1 rows before the pool. hint: "):
        cursor.take(1)


def test_no_ledger_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing.parquet: no ledger. hint: "):
        ledger.summarize(str(tmp_path / "nothing.parquet"))
