"""Options in the report: what is required or differs from the defaults, paths without their folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curate.contract.parts import Pool
from pipelines.report import options

BALANCE = {"t": 20_000, "keep": None, "by": "", "seed": 7, "salt": "balance"}


@pytest.mark.parametrize(
    ("use", "found", "told"),
    [
        ("filter.metadata_balance", BALANCE, "t = 20000, seed = 7"),
        ("filter.threshold", {"equals": True, "column": "a"}, 'column = "a", equals = true'),
        ("filter.threshold", {"column": "language", "one_of": []}, 'column = "language"'),
        ("filter.eval_overlap", {"pictures": ["s3://b/sets/cifar10/", "/x/y.tar"]}, 'pictures = ["cifar10", "y.tar"]'),
        ("source.url_table", {"path": "https://host/pool/a.parquet?key=secret"}, 'path = "a.parquet"'),
        ("download.fetch", {"thread_count": 8, "image_size": 256, "max_redirects": 2}, "max_redirects = 2"),
        ("gone.stage", {"b": 1, "a": "", "c": []}, "b = 1"),
    ],
)  # fmt: skip
def test_what_is_told(use: str, found: dict[str, object], told: str) -> None:
    assert options.told(use, found) == told


def test_the_recipe_s_seed_is_not_repeated() -> None:
    assert options.told("filter.metadata_balance", BALANCE, seed=7) == "t = 20000"


def test_a_long_value_is_cut() -> None:
    told = options.told("filter.threshold", {"column": "x" * 1000})
    assert len(told) < 80
    assert told.endswith("…")


def test_a_second_stage_of_a_kind_is_found_by_its_use(tmp_path: Path) -> None:
    pool = Pool(str(tmp_path))
    stage = {"use": "filter.threshold#2", "fingerprint": "ab" * 32}
    assert options.resolved(pool, stage) == {}
    folder = Path(pool.columns_folder("filter.threshold", stage["fingerprint"]))
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"options": {"column": "a"}}))
    assert options.resolved(pool, stage) == {"column": "a"}
    assert options.resolved(None, stage) == {}
