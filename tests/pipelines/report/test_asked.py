"""The rows that a stage was given: those refused above it are left out, parts that are gone too."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.report import asked
from tests.tiny import fetched_run
from tests.tiny.fetched_run import FETCH

ROWS = [
    [("http://a.example/1", None, 1), None, ("http://a.example/2", "dns", 2)],
    [("http://b.example/3", None, 3)],
]


def test_rows_with_urls_and_reasons(tmp_path: Path) -> None:
    pool, _ = fetched_run.make(tmp_path, ROWS)
    found = list(asked.rows(pool, FETCH, ("keep", "reason")))
    assert [part for part, _ in found] == [0, 1]
    assert found[0][1].to_pylist() == [
        {"keep": True, "reason": "", "uid": fetched_run.uid(0), "url": "http://a.example/1"},
        {
            "keep": False,
            "reason": "error.download.fetch.dns",
            "uid": fetched_run.uid(2),
            "url": "http://a.example/2",
        },
    ]
    assert "sha256" in asked.columns(pool, FETCH)


def test_parts_that_are_gone_or_of_other_rows_are_passed_over(tmp_path: Path) -> None:
    pool, _ = fetched_run.make(tmp_path, [*ROWS, ROWS[0]])
    Path(pool.columns_path(FETCH["use"], FETCH["fingerprint"], 0)).unlink()
    shutil.copy(pool.rows_path(1), pool.rows_path(2))
    assert [part for part, _ in asked.rows(pool, FETCH, ("keep", "reason"))] == [1]
    for path in Path(pool.columns_folder(FETCH["use"], FETCH["fingerprint"])).glob("*.parquet"):
        path.unlink()
    assert asked.columns(pool, FETCH) == []
