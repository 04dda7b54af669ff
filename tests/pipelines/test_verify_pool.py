"""Every fault that a pool can have is found, and named with file and part; a whole pool has none."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.contract import done, storage
from pipelines import lease, verify, verify_pool
from pipelines.errors import RunFailed
from tests.tiny import whole_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    whole_run.make(folder)
    return folder


@pytest.fixture
def pool(made: Path, tmp_path: Path) -> Path:
    return whole_run.copied(made, tmp_path) / "pool"


def sidecar(pool: Path, name: str, part: int = 2) -> Path:
    (folder,) = (pool / "columns").glob(f"*{name}-????????")
    return folder / f"part-{part:05d}.parquet"


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **stats: Any) -> None:
    """Other columns under a manifest that fits them: only what they say is wrong."""
    table = change(pq.read_table(path))
    told = done.read(str(path)) or {}
    pq.write_table(table, path)
    hashed = {"bytes": os.path.getsize(path), "sha256": done.digest_of(str(path))}
    Path(done.manifest_path(str(path))).write_text(json.dumps({**told, **hashed, **stats}))


def put(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        new = pa.array(values(table[name].to_pylist()), table.schema.field(name).type)
        return table.set_column(place, name, new)

    return change


def test_a_pool_json_of_other_kinds_is_a_fault_told_once(pool: Path) -> None:
    for text, what in (("[1]", "holds no JSON object"), ('{"parts": 6, "slices": 3}', "6 parts, and 0 slices")):  # fmt: skip
        (pool / "pool.json").write_text(text)
        (found,) = faults(pool)
        assert found["what"] == what


def test_reasons_of_a_stage_s_own_manifest_are_held_against_its_parts(pool: Path) -> None:
    path = sidecar(pool, "Common").parent / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "refused": {"common": 1}}))
    (found,) = faults(pool)
    assert (found["file"], found["what"][:9]) == (str(path), "refused =")


def test_two_pictures_of_one_uid(tmp_path: Path) -> None:
    uid = "0" * 32
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo(f"{uid}.jpg"))
    seen = verify_pool._Seen()
    verify_pool._check_pictures(str(tmp_path / "a.tar"), pa.table({"uid": [uid], "keep": [True]}), 0, seen)  # fmt: skip
    assert [fault.what for fault in seen.faults] == [f"has several pictures of one uid: {uid}"]


def faults(pool: Path, quick: bool = False) -> list[dict[str, Any]]:
    found = verify.check(str(pool), quick=quick)
    assert found["fine"] == (not found["faults"])
    return list(found["faults"])


def test_a_whole_pool(pool: Path) -> None:
    found = verify.check(str(pool))
    assert found["fine"]
    assert found["checked"] == {"rows": 47, "parts of stages": 36, "pictures": 9}
    assert found["notes"] == []
    assert verify.check(str(pool), quick=True)["fine"]


def test_flipped_bytes_are_found_by_their_hash_and_not_by_a_quick_look(pool: Path) -> None:
    for path in (sidecar(pool, "Length"), pool / "rows" / "part-00004.parquet"):
        data = bytearray(path.read_bytes())
        data[10] ^= 1  # in the first column's values, not in the footer
        path.write_bytes(data)
    found = faults(pool)
    assert {(Path(f["file"]).name, f["at"]) for f in found} == {
        ("part-00002.parquet", "part 2"),
        ("part-00004.parquet", "part 4"),
    }
    assert all("another hash" in f["what"] for f in found)
    assert faults(pool, quick=True) == []


@pytest.mark.parametrize("quick", [False, True])
def test_a_cut_file_and_a_missing_one(pool: Path, quick: bool) -> None:
    path = sidecar(pool, "Length")
    path.write_bytes(path.read_bytes()[:-100])
    (tar,) = (pool / "images").glob("*/part-00001.tar")
    tar.unlink()
    found = faults(pool, quick)
    assert sorted((Path(f["file"]).name, f["at"]) for f in found) == [
        ("part-00001.tar", "part 1"),
        ("part-00002.parquet", "part 2"),
    ]


def test_a_manifest_that_is_no_json_and_one_of_another_part(pool: Path) -> None:
    first, second = (Path(done.manifest_path(str(sidecar(pool, "Length", n)))) for n in (1, 2))
    first.write_text("{")
    second.write_text(second.read_text().replace('"part": 2', '"part": 3'))
    found = faults(pool)
    assert [f["at"] for f in found] == ["part 1", "part 2"]
    assert "JSON" in found[0]["what"]
    assert "says it is of part 3" in found[1]["what"]


@pytest.mark.parametrize(("name", "change", "words"), [
    ("Length", put("uid", lambda old: [old[1], old[0], *old[2:]]), "row 0: its uid is not that of the pool's rows"),
    ("Common", put("reason", lambda old: [None] * len(old)), "is refused without a reason"),
    ("Common", put("keep", lambda old: [None if one is None else True for one in old]), "has a reason and is not refused"),
    ("Common", put("reason", lambda old: [one and "dull" for one in old]), "and its manifest says {'common'"),
    ("Picture", put("keep", lambda old: [None] * len(old)), "has pictures of rows that are not kept"),
    ("Length", lambda table: table.slice(1), "rows, and its manifest says"),
])  # fmt: skip
def test_what_the_columns_say(pool: Path, name: str, change: Any, words: str) -> None:
    for number in range(6):  # the stage refuses somewhere
        rewrite(sidecar(pool, name, number), change)
    found = faults(pool)
    assert any(words in f["what"] for f in found), found
    assert all(f["hint"] for f in found)


def test_rows_whose_uids_are_none(pool: Path) -> None:
    rewrite(pool / "rows" / "part-00001.parquet", put("uid", lambda old: ["XYZ", *old[1:]]))
    found = faults(pool)
    assert "row 0: 'XYZ' is no uid" in found[0]["what"]


def test_rows_that_are_gone_while_stages_are_done(pool: Path) -> None:
    done.withdraw(str(pool / "rows" / "part-00003.parquet"))
    (found,) = faults(pool)
    assert (found["at"], "is not there, though stages are done" in found["what"]) == (
        "part 3",
        True,
    )


def test_a_stage_s_manifest_that_is_not_the_sum_of_its_parts(pool: Path) -> None:
    path = sidecar(pool, "Common").parent / "manifest.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "kept": 11}))
    (found,) = faults(pool)
    assert found["what"] == "kept = 11, and its parts have 10"


def test_a_part_too_many_and_a_pool_json_that_does_not_add_up(pool: Path) -> None:
    described = json.loads((pool / "pool.json").read_text())
    described |= {"parts": 5, "slices": described["slices"][:5]}
    (pool / "pool.json").write_text(json.dumps(described))
    assert {f["at"] for f in faults(pool)} == {"part 5"}
    (pool / "pool.json").write_text(json.dumps({**described, "parts": 7}))
    assert "7 parts, and 5 slices" in faults(pool)[0]["what"]


def test_what_attempts_that_died_left_is_noted_and_no_fault(pool: Path) -> None:
    path = sidecar(pool, "Length")
    done.set_aside(str(path))
    path.write_bytes(b"of an attempt that died")
    found = verify.check(str(pool))
    assert found["fine"]
    assert len(found["notes"]) == 2
    assert any("without a manifest" in note for note in found["notes"])
    assert any("set aside" in note for note in found["notes"])


def test_a_pool_without_part_manifests_is_said_to_be_one(pool: Path) -> None:
    described = json.loads((pool / "pool.json").read_text())
    (pool / "pool.json").write_text(json.dumps({**described, "schema_version": 1}))
    found = verify.check(str(pool))
    assert "schema version 1" in found["notes"][0]


@pytest.mark.net
@pytest.mark.slow
def test_in_an_object_store(pool: Path, bucket: str) -> None:
    for path in pool.rglob("*"):
        if path.is_file():
            with storage.committed(f"{bucket}/pool/{path.relative_to(pool)}") as file:
                file.write(path.read_bytes())
    assert verify.check(f"{bucket}/pool")["checked"]["pictures"] == 9
    cut = sidecar(pool, "Length").relative_to(pool)
    with storage.committed(f"{bucket}/pool/{cut}") as file:
        file.write(b"cut")
    (found,) = verify.check(f"{bucket}/pool")["faults"]
    assert found["file"] == f"{bucket}/pool/{cut}"


def test_damaged_parts_are_set_aside_and_made_anew(pool: Path) -> None:
    whole = {path: path.read_bytes() for path in pool.rglob("part-*.parquet")}
    (tar,) = [
        path for path in (pool / "images").glob("*/part-00001.tar") if path.stat().st_size > 2000
    ]
    whole[tar] = tar.read_bytes()
    hurt = [sidecar(pool, "Length"), pool / "rows" / "part-00004.parquet", tar]
    for path in hurt:
        data = bytearray(path.read_bytes())
        data[600 if path == tar else 10] ^= 1
        path.write_bytes(data)
    found = verify.check(str(pool), set_aside=True)
    assert len(found["notes"]) == len(found["faults"]) == 3
    assert not any(path.exists() for path in hurt)
    assert not (pool / ".lease").exists()
    shutil.rmtree(pool.parent / "shards")
    whole_run.run(str(pool.parent / "whole.toml"))
    assert verify.check(str(pool))["fine"]
    assert {path: path.read_bytes() for path in whole} == whole


def test_nothing_is_set_aside_while_a_run_is_at_work(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar(pool, "Length").write_bytes(b"cut")
    held = json.dumps({"host": "elsewhere", "pid": 1, "run": "x", "beat": "now"})
    (pool / ".lease").write_text(held)
    monkeypatch.setattr(lease, "refuse_living", _refuse)
    with pytest.raises(RunFailed, match="another run"):
        verify.check(str(pool), set_aside=True)
    assert sidecar(pool, "Length").exists()


def _refuse(*_: Any) -> None:
    raise RunFailed("another run")
