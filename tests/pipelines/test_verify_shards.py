"""Every fault that shards can have is found, and named with shard, key and byte; whole ones have none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.contract import shards, storage, tars
from pipelines import verify, verify_shards
from tests.tiny import whole_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    whole_run.make(folder)
    return folder / "shards"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "shards"))


def faults(root: Path, quick: bool = False) -> list[dict[str, Any]]:
    found = verify.check(str(root), quick=quick)
    assert found["fine"] == (not found["faults"])
    assert all(fault["hint"] for fault in found["faults"])
    return list(found["faults"])


def change(path: Path, how: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(how(pq.read_table(path)), path)


def test_whole_shards(root: Path) -> None:
    found = verify.check(str(root))
    assert found["checked"] == {"members": 27, "shards": 2, "samples": 9, "ledger rows": 47}
    assert found["fine"]
    assert verify.check(str(root), quick=True)["fine"]


def test_a_flipped_byte_is_named_with_shard_key_and_byte(root: Path) -> None:
    index = pq.read_table(root / "index.parquet")
    row = index.filter(pa.compute.equal(index["shard"], "00001.tar")).to_pylist()[3]
    data = bytearray((root / "00001.tar").read_bytes())
    data[row["offset"]] ^= 1
    (root / "00001.tar").write_bytes(data)
    (found,) = faults(root)
    assert found["file"].endswith("00001.tar")
    assert found["at"] == f"shard 00001.tar, key {row['key']}, byte {row['offset']:,}"
    assert "another checksum" in found["what"]
    assert faults(root, quick=True) == []


@pytest.mark.parametrize("quick", [False, True])
def test_a_cut_shard(root: Path, quick: bool) -> None:
    path = root / "00000.tar"
    path.write_bytes(path.read_bytes()[:-2000])
    found = faults(root, quick)
    assert found
    assert all(fault["at"].startswith("shard 00000.tar") for fault in found)


def test_a_damaged_header_names_the_bytes_and_the_keys_that_are_lost(root: Path) -> None:
    index = pq.read_table(root / "index.parquet").to_pylist()
    lost = index[0]
    data = bytearray((root / lost["shard"]).read_bytes())
    data[lost["offset"] - 512 : lost["offset"] - 500] = b"\xff" * 12
    (root / lost["shard"]).write_bytes(data)
    found = faults(root)
    assert any(fault["at"].startswith("shard 00000.tar, byte 0 to") for fault in found)
    assert any(lost["key"] in fault["at"] and "not there" in fault["what"] for fault in found)


def test_shards_that_are_gone_or_too_many(root: Path) -> None:
    (root / "00001.tar").rename(root / "00007.tar")
    words = [(Path(fault["file"]).name, fault["what"]) for fault in faults(root, quick=True)]
    assert ("00001.tar", "is not there, and sizes.json names it") in words
    assert ("00007.tar", "sizes.json does not name it") in words


@pytest.mark.parametrize(("name", "change_of", "words"), [
    ("sizes.json", {"00000.tar": 4}, "5 samples, and sizes.json says 4"),
    ("manifest.json", {"rows_in": 48}, "47 rows, and the source had 48"),
    ("manifest.json", {"kept": 8}, "9 kept rows, and manifest.json says 8"),
    ("manifest.json", {"shards": 3}, "names 3 shards, and 2 are there"),
    ("manifest.json", {"stages": []}, "23 rows with common, and manifest.json says 0"),
])  # fmt: skip
def test_counts_that_do_not_add_up(
    root: Path, name: str, change_of: dict[str, Any], words: str
) -> None:
    told = json.loads((root / name).read_text())
    (root / name).write_text(json.dumps({**told, **change_of}))
    for quick in (True, False):
        assert any(words in fault["what"] for fault in faults(root, quick))


def test_a_json_that_is_none(root: Path) -> None:
    (root / "manifest.json").write_text("[]")
    assert "holds no JSON object" in faults(root)[0]["what"]


def column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def how(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        new = pa.array(values(table[name].to_pylist()), table.schema.field(name).type)
        return table.set_column(place, name, new)

    return how


@pytest.mark.parametrize(("how", "words"), [
    (column("reason", lambda old: [None] * len(old)), "is refused and has no reason or stage"),
    (column("reason", lambda old: [one or "odd" for one in old]), "is kept and has a reason"),
    (column("uid", lambda old: [f"{n:032x}" for n in range(len(old))]), "9 kept rows of the ledger are in no shard"),
    (lambda table: table.slice(1), "46 rows, and the source had 47"),
])  # fmt: skip
def test_a_ledger_that_is_wrong(root: Path, how: Any, words: str) -> None:
    change(root / "ledger.parquet", how)
    assert any(words in fault["what"] for fault in faults(root))


def test_an_index_that_names_other_members(root: Path) -> None:
    change(root / "index.parquet", lambda table: table.slice(1))
    assert any("is not in index.parquet" in fault["what"] for fault in faults(root))


def test_no_ledger_and_no_index(root: Path) -> None:
    (root / "ledger.parquet").unlink()
    (root / "index.parquet").write_bytes(b"no parquet")
    names = {Path(fault["file"]).name for fault in faults(root)}
    assert names == {"ledger.parquet", "index.parquet"}


def test_shards_that_are_being_written(root: Path) -> None:
    (root / shards.UNFINISHED).write_text("{}")
    (found,) = faults(root)
    assert "not finished" in found["what"]


def foreign(path: Path, keys: list[str], cut: int = 0) -> None:
    data = b"".join(tars.member(f"{key}.txt", key.encode() * 300) for key in keys) + tars.END
    path.write_bytes(data[: len(data) - cut])


def test_foreign_tars_are_read_and_their_damage_is_named(tmp_path: Path) -> None:
    foreign(tmp_path / "a.tar", ["one", "two"])
    foreign(tmp_path / "b.tar", ["two", "three"])
    found = verify.check(str(tmp_path))
    assert found["fine"]
    assert "1 keys occur in more than one place" in found["notes"][0]
    foreign(tmp_path / "b.tar", ["three", "four"], cut=1100)
    (fault,) = faults(tmp_path)
    assert fault["at"].startswith("shard b.tar, byte")


def test_a_key_that_comes_again_behind_others(tmp_path: Path) -> None:
    foreign(tmp_path / "a.tar", ["one", "two", "one"])
    words = [fault["what"] for fault in faults(tmp_path)]
    assert any("a second time" in what for what in words)
    assert "members of a sample do not stand together" in words


def test_a_shard_full_of_faults_names_some_and_counts_the_rest(tmp_path: Path) -> None:
    foreign(tmp_path / "a.tar", ["one"] * 60)
    found = faults(tmp_path)
    assert len(found) == verify_shards._MOST + 1
    assert "more faults" in found[-1]["what"]


def test_text_only_runs_end_with_a_list_that_is_held_against_the_ledger(tmp_path: Path) -> None:
    whole_run.make(tmp_path, stages=whole_run.STAGES[:2])
    root = tmp_path / "shards"
    assert verify.check(str(root))["fine"]
    change(root / "kept.parquet", lambda table: table.slice(1))
    (found,) = faults(root)
    assert (Path(found["file"]).name, "1 kept rows" in found["what"]) == ("kept.parquet", True)
    (root / "kept.parquet").write_bytes((root / "kept.parquet").read_bytes()[:200])
    (found,) = faults(root)
    assert (Path(found["file"]).name, "can't be read" in found["what"]) == ("kept.parquet", True)


def test_a_manifest_whose_stages_are_something_else_is_a_fault(root: Path) -> None:
    path = root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stages": ["a"]}))
    (found,) = faults(root)
    assert found["file"] == str(path)


def test_a_tar_without_its_end_is_cut(root: Path) -> None:
    for path in root.glob("*.tar"):
        path.write_bytes(path.read_bytes()[: -len(tars.END)].rstrip(b"\0"))
    assert all("it is cut" in found["what"] for found in faults(root, quick=True))
    assert len(faults(root, quick=True)) == 2


def test_a_sample_that_the_ledger_refuses(root: Path) -> None:
    table = pq.read_table(root / "ledger.parquet")
    row = table["keep"].to_pylist().index(True)
    for name, value in (("keep", False), ("reason", "common"), ("stage", "some.stage")):
        values = table[name].to_pylist()
        values[row] = value
        column = pa.array(values, table.schema.field(name).type)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    change(root / "ledger.parquet", lambda _: table)
    told = [found["what"] for found in faults(root)]
    assert "1 samples are no kept rows of the ledger" in told


def test_the_index_is_read_tar_by_tar_in_row_groups_of_any_size(root: Path) -> None:
    path = root / "index.parquet"
    table = pq.read_table(path)
    for size in (1, 4, len(table)):
        pq.write_table(table, path, row_group_size=size)
        assert verify.check(str(root))["fine"]
    pq.write_table(table, path, row_group_size=4, write_statistics=False)
    assert verify.check(str(root))["fine"]
    pq.write_table(table.drop_columns("crc32"), path)
    assert next(found["what"] for found in faults(root)) == "can't be read: no column crc32"


def test_marks_are_the_first_half_of_a_uid_and_differ_for_other_keys() -> None:
    uids = ["0123456789abcdef" + "0" * 16, "f" * 32]
    marks = verify_shards.marks_of(pa.array([*uids, "key", "keý"]))
    assert marks[:2].tolist() == [0x0123456789ABCDEF, 0xFFFFFFFFFFFFFFFF]
    assert len(np.unique(marks)) == 4
    assert verify_shards.marks_of(pa.array([], pa.string())).shape == (0,)


@pytest.mark.net
def test_in_an_object_store(root: Path, bucket: str) -> None:
    for path in root.iterdir():
        with storage.committed(f"{bucket}/shards/{path.name}") as file:
            file.write(path.read_bytes())
    assert verify.check(f"{bucket}/shards")["checked"]["members"] == 27
