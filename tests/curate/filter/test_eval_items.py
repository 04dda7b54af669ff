"""Evaluation sets are read from every layout that they come in, and each item has a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.filter import eval_items
from tests.tiny import eval_sets

PICTURES = {"red/1.PNG": eval_sets.square("red"), "blue/2.png": eval_sets.square("blue")}


def pictures(*paths: str) -> dict[str, bytes]:
    files = eval_items.set_files(paths, eval_items.PICTURE_FILES)
    return {
        item: data for file, name in files.items() for item, data in eval_items.pictures(file, name)
    }


def captions(*paths: str) -> dict[str, str]:
    files = eval_items.set_files(paths, eval_items.CAPTION_FILES)
    return {
        item: text for file, name in files.items() for item, text in eval_items.captions(file, name)
    }


def test_pictures_of_a_folder_and_of_tars(tmp_path: Path) -> None:
    others = {"labels.csv": b"filepath,label\n", "red/1.txt": b"words"}
    folder = eval_sets.folder(tmp_path / "squares", PICTURES | others)
    found = pictures(folder)
    assert found == {f"squares/{name}": data for name, data in PICTURES.items()}
    for kind in ("tar", "tar.gz"):
        tar = eval_sets.tar(tmp_path / f"set.v1.{kind}", PICTURES | others)
        assert pictures(tar) == {f"set.v1/{name}": data for name, data in PICTURES.items()}


def test_tars_of_a_folder_a_glob_and_a_range(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(2):
        name = f"0000{number}.tar"
        eval_sets.tar(tmp_path / "shards" / name, {"k.png": PICTURES["red/1.PNG"]})
    in_folder = {"shards/00000/k.png", "shards/00001/k.png"}
    assert set(pictures(str(tmp_path / "shards"))) == in_folder
    expected = {"00000/k.png", "00001/k.png"}
    assert set(pictures(str(tmp_path / "shards" / "*.tar"))) == expected
    assert set(pictures(str(tmp_path / "shards" / "{00000..00001}.tar"))) == expected


def test_pictures_and_hashes_of_tables(tmp_path: Path) -> None:
    data = PICTURES["red/1.PNG"]
    path = str(tmp_path / "val.parquet")
    pq.write_table(pa.table({"image": [{"bytes": data, "path": "x.png"}, None]}), path)
    assert pictures(path) == {"val/0": data}
    assert not eval_items.has_hashes(path)
    pq.write_table(pa.table({"uid": ["u1", "u2"], "phash": [b"12345678", None]}), path)
    assert eval_items.has_hashes(path)
    assert list(eval_items.hashes(path, "val")) == [
        ("val/u1", b"12345678"),
        ("val/u2", None),
    ]


def test_captions_as_text_tables_and_members(tmp_path: Path) -> None:
    text = tmp_path / "lines.txt"
    text.write_text("one caption\n\nanother one\n")
    assert captions(str(text)) == {"lines/0": "one caption", "lines/2": "another one"}
    table = tmp_path / "table.tsv"
    table.write_text('filepath\tcaption\na.jpg\ta "b\nb.jpg\tc\n')
    assert captions(str(table)) == {"table/0": 'a "b', "table/1": "c"}
    pq.write_table(pa.table({"caption": ["x", None, "z"]}), tmp_path / "p.parquet")
    assert captions(str(tmp_path / "p.parquet")) == {"p/0": "x", "p/2": "z"}
    members = {"1.jpg": b"", "1.txt": b"first\nsecond\n", "labels.csv": b"filepath\n1.jpg\n", "captions.tsv": b"filepath\tcaption\n1.jpg\tthird\n"}  # fmt: skip
    tar = eval_sets.tar(tmp_path / "pairs.tar.gz", members)
    assert captions(tar) == {
        "pairs/1/0": "first",
        "pairs/1/1": "second",
        "pairs/captions/0": "third",
    }


def test_embeddings_of_arrays_and_tables(tmp_path: Path) -> None:
    vectors = np.array([[1, 0], [0, 2]], np.float32)
    np.save(tmp_path / "e.npy", vectors)
    names, found = eval_items.embeddings(str(tmp_path / "e.npy"), "e", "embedding_image")
    assert names == ["e/0", "e/1"]
    assert np.array_equal(found, vectors)
    table = pa.table({"uid": ["a", "b"], "embedding_image": [[1.0, 0.0], None]})
    pq.write_table(table, tmp_path / "t.parquet")
    names, found = eval_items.embeddings(str(tmp_path / "t.parquet"), "t", "embedding_image")
    assert (names, found.tolist()) == (["t/a"], [[1.0, 0.0]])


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        pictures(str(tmp_path / "none.tar"))
    tar = Path(eval_sets.tar(tmp_path / "cut.tar", PICTURES))
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"cut\.tar: damaged: .*hint: fetch it again"):
        pictures(str(tar))
    table = tmp_path / "t.csv"
    table.write_text("text\nwords\n")
    with pytest.raises(ValueError, match=r"no column 'caption'; it has text\. hint"):
        captions(str(table))
    np.save(tmp_path / "flat.npy", np.zeros(4))
    with pytest.raises(ValueError, match=r"shape \(4,\).*hint"):
        eval_items.embeddings(str(tmp_path / "flat.npy"), "e", "x")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column 'image'; it has a\. hint"):
        pictures(str(tmp_path / "a.parquet"))


def test_arrays_and_tables_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    def said(name: str, found: str) -> None:
        with pytest.raises(ValueError, match=rf"{name}: {found}.*\. hint: ") as fault:
            eval_items.embeddings(str(tmp_path / name), "e", "embedding_image")
        assert type(fault.value) is ValueError

    (tmp_path / "empty.npy").touch()
    said("empty.npy", "empty")
    (tmp_path / "noise.npy").write_bytes(b"noise" * 20)
    said("noise.npy", "")
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 and no more")
    said("zip.npy", "")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 3)))
    (tmp_path / "two.npz").rename(tmp_path / "two.npy")
    said("two.npy", "an archive of several arrays")
    np.save(tmp_path / "scalar.npy", np.float32(3))
    said("scalar.npy", r"an array of shape \(\)")
    (tmp_path / "noise.parquet").write_bytes(b"noise" * 20)
    said("noise.parquet", "can't be read as parquet")
    pq.write_table(pa.table({"embedding_image": [[1.0, 2.0], [1.0]]}), tmp_path / "ragged.parquet")
    said("ragged.parquet", "the rows of 'embedding_image'")
    pq.write_table(pa.table({"embedding_image": ["a"]}), tmp_path / "text.parquet")
    said("text.parquet", "the rows of 'embedding_image'")


def test_a_damaged_tar_gz_is_named(tmp_path: Path) -> None:
    noise = {f"{n}.png": np.random.default_rng(n).bytes(5000) for n in range(4)}
    tar = Path(eval_sets.tar(tmp_path / "val.tar.gz", noise))
    data = tar.read_bytes()
    tar.write_bytes(data[:40] + b"\xff" * 20 + data[60:])
    with pytest.raises(ValueError, match=r"val\.tar\.gz: damaged: .*hint: fetch it again"):
        pictures(str(tar))
