"""Shards: exact sizes, an order that is the uids' alone, the same bytes for any cut into parts."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from curate.contract import done, shards
from curate.contract.columns import CAPTIONS_TYPE
from curate.contract.draw import draw, pair_uid
from curate.shard.write import Write, _write_tar, sample_members


def table(count: int) -> pa.Table:
    rows = [
        {"uid": pair_uid(f"u{n}", "c"), "url": f"u{n}", "caption": f"caption {n}", "image": b"\xff\xd8\xff" + str(n).encode() * (n % 9), "width": n,
         "captions": [{"text": "more", "writer": "w", "prompt_sha": "p", "seed": 1}]}
        for n in range(count)
    ]  # fmt: skip
    schema = pa.schema(
        [
            ("uid", pa.string()),
            ("url", pa.string()),
            ("caption", pa.string()),
            ("image", pa.large_binary()),
            ("width", pa.int32()),
            ("captions", CAPTIONS_TYPE),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def write(folder: Path, samples: pa.Table, rows_per_part: int, stage: Write) -> list[Path]:
    packed: list[tuple[str, str]] = []
    histogram: Counter[int] = Counter()
    for number, start in enumerate(range(0, len(samples), rows_per_part)):
        paths = (str(folder / f"b{number}"), str(folder / f"i{number}"))
        part = samples.slice(start, rows_per_part)
        pictures = dict(zip(part["uid"].to_pylist(), part["image"].to_pylist(), strict=True))

        def of(uids: list[str], held: dict[str, bytes] = pictures) -> list[bytes | None]:
            return [held[uid] for uid in uids]

        histogram.update(stage.pack(part.drop_columns(["image"]), of, *paths))
        packed.append(paths)
    written = []
    for number, piece in enumerate(stage.slices(histogram)):
        path = folder / shards.shard_name(number)
        index = stage.assemble(piece, packed, str(path))
        assert index.equals(shards.index_tar(str(path)))
        written.append(path)
    return written


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_the_same_bytes_for_any_cut(tmp_path: Path, count: int) -> None:
    stage = Write(samples_per_shard=7)
    seen = []
    for rows_per_part in (1000, 9, 1):
        folder = tmp_path / str(rows_per_part)
        folder.mkdir()
        seen.append(
            [path.read_bytes() for path in write(folder, table(count), rows_per_part, stage)]
        )
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == -(-count // 7)


def test_every_sample_once_in_draw_order_and_exact_sizes(tmp_path: Path) -> None:
    samples = table(100)
    written = write(tmp_path, samples, 30, Write(samples_per_shard=40, seed=3))
    keys = [list(dict.fromkeys(shards.index_tar(str(path))["key"].to_pylist())) for path in written]
    assert [len(group) for group in keys] == [40, 40, 20]
    flat = [key for group in keys for key in group]
    assert flat == sorted(samples["uid"].to_pylist(), key=lambda uid: draw(uid, "shard:3"))


def test_members_are_the_contract_s(tmp_path: Path) -> None:
    (path,) = write(tmp_path, table(1), 1, Write())
    with tarfile.open(path) as tar:
        uid = pair_uid("u0", "c")
        assert tar.getnames() == [f"{uid}.jpg", f"{uid}.txt", f"{uid}.json"]
        assert all(member.mtime == 0 for member in tar)
        record = json.loads(tar.extractfile(f"{uid}.json").read())  # type: ignore[union-attr]
    assert record["caption"] == "caption 0"
    assert record["captions"][0]["writer"] == "w"
    assert "image" not in record


def test_png_pictures_keep_their_format() -> None:
    row = {"uid": "a" * 32, "caption": "c", "image": b"\x89PNG\r\n\x1a\n"}
    assert [name for name, _ in sample_members(row)] == ["png", "txt", "json"]


def test_a_shard_of_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="hint: at least 1"):
        Write(samples_per_shard=0).check()


def test_more_parts_than_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.shard.write._OPEN_FILES", 2)
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    stage = Write(samples_per_shard=7)
    few = [path.read_bytes() for path in write(tmp_path / "few", table(30), 30, stage)]
    assert [path.read_bytes() for path in write(tmp_path / "many", table(30), 3, stage)] == few


def test_a_block_that_is_cut_is_damage_and_no_shorter_tar(tmp_path: Path) -> None:
    blocks = tmp_path / "blocks.tar"
    blocks.write_bytes(bytes(700))
    entry = {"uid": "u", "offset": 512, "size": 512, "members": []}
    with pytest.raises(done.Damaged, match="ends within the sample at byte 512"):
        _write_tar(str(tmp_path / "00000.tar"), [(str(blocks), entry)])
    assert not (tmp_path / "00000.tar").exists()
