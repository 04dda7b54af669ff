"""Index rows point at the bytes they name; foreign tars get an index; damage is an error."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest

from curate.contract import parts, shards, tars

SAMPLES = [
    ("k1", [("jpg", b"\xff\xd8\xff1"), ("txt", b"a dog"), ("json", b"{}")]),
    ("k2", [("jpg", b"\xff\xd8\xff2"), ("txt", "caf\u00e9".encode())]),
]


def write(folder: Path, name: str = "00000.tar") -> tuple[Path, list[dict[str, object]]]:
    data, rows = b"", []
    for key, members in SAMPLES:
        block, found = shards.sample_block(key, members)
        rows += [{**row, "offset": row["offset"] + len(data), "shard": name} for row in found]
        data += block
    path = folder / name
    path.write_bytes(data + tars.END)
    return path, rows


def test_walking_a_tar_finds_what_was_indexed(tmp_path: Path) -> None:
    path, rows = write(tmp_path)
    assert (
        shards.index_tar(str(path)).to_pylist()
        == pa.Table.from_pylist(rows, shards.INDEX_SCHEMA).to_pylist()
    )


def test_a_set_with_and_without_index_reads_alike(tmp_path: Path) -> None:
    _, rows = write(tmp_path)
    walked = shards.load_index(str(tmp_path))
    parts.write_table(
        str(tmp_path / "index.parquet"), pa.Table.from_pylist(rows, shards.INDEX_SCHEMA)
    )
    assert shards.load_index(str(tmp_path)).equals(walked)


def test_members_are_checked_against_the_index(tmp_path: Path) -> None:
    path, rows = write(tmp_path)
    data = bytearray(path.read_bytes())
    row = rows[1]
    file = io.BytesIO(bytes(data))
    where = (int(str(row["offset"])), int(str(row["size"])), int(str(row["crc32"])))
    assert shards.read_member(file, *where, "k1.txt") == b"a dog"
    data[where[0]] ^= 1
    with pytest.raises(tars.TarDamage, match="checksum differs"):
        shards.read_member(io.BytesIO(bytes(data)), *where, "k1.txt")


def test_an_index_that_names_a_missing_tar_is_an_error(tmp_path: Path) -> None:
    path, rows = write(tmp_path)
    write(tmp_path, "00001.tar")
    parts.write_table(
        str(tmp_path / "index.parquet"), pa.Table.from_pylist(rows, shards.INDEX_SCHEMA)
    )
    path.unlink()
    with pytest.raises(ValueError, match=r"names 00000\.tar, which is not there"):
        shards.load_index(str(tmp_path))


def test_lists_folders_globs_ranges_and_single_tars(tmp_path: Path) -> None:
    paths = [str(write(tmp_path, shards.shard_name(n))[0]) for n in range(3)]
    assert shards.list_tars(str(tmp_path)) == paths
    assert shards.list_tars(str(tmp_path / "*.tar")) == paths
    assert shards.list_tars(str(tmp_path) + "/{00000..00001}.tar") == paths[:2]
    assert shards.list_tars(paths[1]) == paths[1:2]


def test_a_range_with_missing_tars_names_them(tmp_path: Path) -> None:
    for number in (0, 2, 9):
        write(tmp_path, shards.shard_name(number))
    with pytest.raises(
        ValueError,
        match=r"00001\.tar, 00003\.tar, 00004\.tar, 00005\.tar, 00006\.tar and 2 more of 10 are not there\. hint: ",
    ):
        shards.list_tars(str(tmp_path / "{00000..00009}.tar"))
    with pytest.raises(ValueError, match=r"no tar files found\. hint: "):
        shards.list_tars(str(tmp_path / "{00003..00004}.tar"))


def test_nothing_in_the_name_of_a_folder_is_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "x[1]").mkdir()
    (path, _) = write(tmp_path / "x[1]")
    assert shards.list_tars(str(tmp_path / "x[1]")) == [str(path)]


def test_a_folder_of_no_tars_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tar files found\. hint: "):
        shards.list_tars(str(tmp_path))


def test_captions_of_keeps_the_alt_text_first() -> None:
    record = json.loads(
        shards.sample_json({"captions": [{"text": "b", "writer": "w"}, {"text": ""}]})
    )
    assert shards.captions_of("a", record) == ["a", "b"]


@pytest.mark.parametrize(
    "odd", ["hello", ["one", 3, None, {"text": 4}, {"text": "two"}], {"text": "x"}, 7, None]
)
def test_captions_of_foreign_records(odd: object) -> None:
    expected = ["a", "one", "two"] if isinstance(odd, list) else ["a"]
    assert shards.captions_of("a", {"captions": odd}) == expected


def test_tars_of_one_name_in_several_folders_stay_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder)
    pattern = str(tmp_path / "*" / "*.tar")
    assert list(shards.tar_names(pattern)) == ["x/00000.tar", "y/00000.tar"]
    assert set(shards.load_index(pattern)["shard"].to_pylist()) == {"x/00000.tar", "y/00000.tar"}
