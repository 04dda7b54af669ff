"""The pool's paths are the contract's, tables carry their stats, pictures come back by uid."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from curate.contract import parts


def test_paths_are_the_contract_s() -> None:
    pool = parts.Pool("/p")
    assert pool.description_path == "/p/pool.json"
    assert pool.rows_path(3) == "/p/rows/part-00003.parquet"
    assert pool.images_path("abcdef0123456789", 3) == "/p/images/abcdef0123456789/part-00003.tar"
    assert (
        pool.columns_path("score.x", "abcdef0123456789", 0)
        == "/p/columns/score.x-abcdef01/part-00000.parquet"
    )


def test_a_component_from_elsewhere_makes_a_legal_folder_name() -> None:
    assert parts.stage_folder("mylab.filters:Blur", "abcdef0123") == "mylab.filters.Blur-abcdef01"


def test_stats_travel_in_the_footer(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    table = pa.table({"a": [1, 2]})
    parts.write_table(path, table, {"rows": 2})
    assert parts.read_stats(path) == {"rows": 2}
    assert parts.read_table(path).equals(table)
    assert parts.read_table(path, ["a"]).column_names == ["a"]


def test_pictures_come_back_by_uid(tmp_path: Path) -> None:
    path = str(tmp_path / "part.tar")
    pictures = [b"\xff\xd8\xffone", None, b"\x89PNG\r\n\x1a\ntwo", b"\xff\xd8\xffagain"]
    parts.write_images(path, ["a", "b", "c", "a"], pictures)
    assert parts.read_images(path) == {"a": pictures[0], "c": pictures[2]}


def test_no_pool_is_none(tmp_path: Path) -> None:
    assert parts.Pool(str(tmp_path)).describe() is None
