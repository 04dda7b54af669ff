"""The pool's paths are the contract's, tables carry their stats, pictures come back by uid."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.contract import parts
from curate.contract.columns import CAPTIONS_TYPE


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


def test_stats_stand_in_a_manifest_beside_the_table(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    table = pa.table({"a": [1, 2]})
    written = parts.write_table(path, table, {"rows": 2})
    assert written.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert parts.read_stats(path) == {"rows": 2, **written.told()}
    assert parts.read_stats(str(tmp_path / "u.parquet")) == {}
    assert parts.read_table(path).equals(table)
    assert parts.read_table(path, ["a"]).column_names == ["a"]


def test_pictures_come_back_by_uid(tmp_path: Path) -> None:
    path = str(tmp_path / "part.tar")
    pictures = [b"\xff\xd8\xffone", None, b"\x89PNG\r\n\x1a\ntwo", b"\xff\xd8\xffagain"]
    parts.write_images(path, ["a", "b", "c", "a"], pictures)
    assert parts.read_images(path) == {"a": pictures[0], "c": pictures[2]}


@pytest.mark.parametrize("folder", ["", "memory://test_parts"])
def test_pictures_are_read_one_by_one(tmp_path: Path, folder: str) -> None:
    path = f"{folder or tmp_path}/part.tar"
    pictures = [b"\xff\xd8\xffone", None, b"\x89PNG\r\n\x1a\n" + b"two" * 999]
    parts.write_images(path, ["a", "b", "c"], pictures)
    with parts.Pictures(path) as held:
        assert held(["c", "nobody", "a", "c"]) == [pictures[2], None, pictures[0], pictures[2]]
        assert held([]) == []
    assert held(["a"]) == [pictures[0]]  # opened again
    held.close()


def test_pictures_that_are_cut_are_named(tmp_path: Path) -> None:
    path = tmp_path / "part.tar"
    parts.write_images(str(path), ["a", "b"], [b"\xff\xd8\xff" + b"x" * 9000] * 2)
    whole = path.read_bytes()
    with parts.Pictures(str(path)) as held:
        held(["a"])
        path.write_bytes(whole[:600])
        with pytest.raises(parts.Damaged, match=r"part\.tar: changed while it was read"):
            held(["b"])
    with pytest.raises(parts.Damaged, match=r"'a\.jpg' at byte 0 is cut: 88 of 9003 bytes"):
        parts.Pictures(str(path))(["a"])


def test_no_pool_is_none(tmp_path: Path) -> None:
    assert parts.Pool(str(tmp_path)).describe() is None


def test_all_is_compressed_but_the_uids(tmp_path: Path) -> None:
    texts = [[{"text": "a", "writer": "w", "prompt_sha": "p", "seed": 1}]]
    table = pa.table(
        {
            "uid": ["0" * 32],
            "entries": pa.array([[1, 2]], pa.list_(pa.int32())),
            "captions": pa.array(texts, CAPTIONS_TYPE),
            "embedding_image": pa.array([[0.5, 0.5]], pa.list_(pa.float16(), 2)),
            "extra": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
            "reason": pa.array(["x"]).dictionary_encode(),
        }
    )
    path = str(tmp_path / "t.parquet")
    parts.write_table(path, table)
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    assert {c.path_in_schema for c in columns if c.compression == "UNCOMPRESSED"} == {"uid"}
    assert {c.compression for c in columns[1:]} == {"ZSTD"}
    assert parts.read_table(path).to_pylist() == table.to_pylist()


def test_dictionaries_are_for_words_that_repeat(tmp_path: Path) -> None:
    table = pa.table({"uid": ["a", "b"], "language": ["en", "en"], "n": [1, 2]})
    assert parts.repetitive(table.schema) == ["language"]


def test_a_part_without_a_manifest_is_not_read(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    parts.write_table(path, pa.table({"a": [1]}))
    with pytest.raises(parts.Damaged, match="never committed"):
        parts.read_part(path)
    parts.write_table(path, pa.table({"a": [1, 2]}), {"rows": 2})
    assert parts.read_part(path, ["a"])["a"].to_pylist() == [1, 2]
    Path(path).write_bytes(Path(path).read_bytes()[:-1])
    with pytest.raises(parts.Damaged, match=r"t\.parquet: \d+ of \d+ bytes"):
        parts.read_part(path)
    with pytest.raises(parts.Damaged, match="can't be read as parquet"):
        parts.read_table(path)


def test_what_somebody_has_done_meanwhile_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    assert parts.write_part(path, pa.table({"a": [1]}), {"by": "first"})[1]
    told, is_ours = parts.write_part(path, pa.table({"a": [2]}), {"by": "second"})
    assert not is_ours
    assert told["by"] == "first"
    assert parts.read_part(path)["a"].to_pylist() == [1]
