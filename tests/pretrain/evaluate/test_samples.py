"""Classes and captions of each layout; pictures that have none are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.evaluate.samples import captioned, labelled
from pretrain.evaluate.store import open_store
from tests.tiny import eval_sets

CSV = b'filepath,label,classname\ntest/a.jpg,0,"cat, tabby"\ntest/b.JPG,1,dog\ntest/gone.jpg,1,dog\ntest/c.jpg,,\n'
TSV = 'filepath\tx\tcaption\na.jpg\t1\t"quoted" red\nb.jpg\t1\tblue\r\na.jpg\t1\tpièce\ngone.jpg\t1\tlost\nb.jpg\t1\nc.jpg\t1\t \n'.encode()
PICTURES = {"test/a.jpg": b"1", "test/b.JPG": b"2", "test/c.jpg": b"3", "test/unnamed.jpg": b"4"}


def found_labels(path: str) -> tuple[list[tuple[str, str]], int]:
    with open_store(path) as store:
        found = labelled(store)
    return list(zip(found.names, found.labels)), found.n_bad


def found_captions(path: str, all_captions: bool = False) -> tuple[dict[str, list[str]], int]:
    with open_store(path) as store:
        found = captioned(store, all_captions)
    return dict(zip(found.names, found.captions)), found.n_bad


@pytest.mark.parametrize("kind", ["folder", "set.tar.gz"])
def test_labels_csv(tmp_path: Path, kind: str) -> None:
    files = {**PICTURES, "labels.csv": CSV}
    path = (
        eval_sets.folder(tmp_path / kind, files)
        if kind == "folder"
        else eval_sets.tar(tmp_path / kind, files)
    )
    assert found_labels(path) == ([("test/a.jpg", "cat, tabby"), ("test/b.jpg", "dog")], 2)


def test_class_folders_whatever_lies_above_them(tmp_path: Path) -> None:
    files = {"val/cat/1.jpg": b"", "val/dog/2.x.png": b"", "stray.jpg": b"", "readme.md": b""}
    assert found_labels(eval_sets.folder(tmp_path / "s", files)) == (
        [("val/cat/1.jpg", "cat"), ("val/dog/2.x.png", "dog")],
        1,
    )


def test_webdataset_labels_from_cls_and_json(tmp_path: Path) -> None:
    files = {
        "0.jpg": b"", "0.cls": b"3\n",
        "1.webp": b"", "1.json": b'{"label": 7, "classname": "cat"}',
        "2.jpg": b"", "2.json": b'{"label": 0}',
        "3.jpg": b"", "3.json": b"{broken",
        "4.jpg": b"", "4.json": b'["not an object"]',
        "5.txt": b"no picture",
    }  # fmt: skip
    assert found_labels(eval_sets.tar(tmp_path / "s.tar", files)) == (
        [("0.jpg", "3"), ("1.webp", "cat"), ("2.jpg", "0")],
        2,
    )


def test_captions_tsv_has_tabs_and_no_quoting(tmp_path: Path) -> None:
    files = {"a.jpg": b"", "b.jpg": b"", "c.jpg": b"", "captions.tsv": TSV}
    captions, n_bad = found_captions(eval_sets.tar(tmp_path / "s.tar", files))
    assert captions == {"a.jpg": ['"quoted" red', "pièce"], "b.jpg": ["blue"]}
    assert n_bad == 2  # one row of a picture that is not there, one picture with a blank caption


def test_a_table_in_a_folder_names_files_below_it(tmp_path: Path) -> None:
    files = {"set/captions.tsv": b"filepath\tcaption\na.jpg\tred\n", "set/a.jpg": b"", "a.jpg": b""}
    assert found_captions(eval_sets.folder(tmp_path / "s", files))[0] == {"set/a.jpg": ["red"]}


def test_added_captions_are_used_when_asked_for(tmp_path: Path) -> None:
    record = b'{"captions": [{"text": "a rewrite", "writer": "w"}, {"text": ""}]}'
    files = {"0.jpg": b"", "0.txt": b"alt", "0.json": record, "1.jpg": b"", "1.txt": b" "}
    path = eval_sets.tar(tmp_path / "s.tar", files)
    assert found_captions(path) == ({"0.jpg": ["alt"]}, 1)
    assert found_captions(path, all_captions=True) == ({"0.jpg": ["alt", "a rewrite"]}, 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.jpg": b"", "labels.csv": b"file,label\na.jpg,1\n"},
            r"labels.csv has columns \['file', 'label'\], no filepath",
        ),
        ({"a.jpg": b"", "labels.csv": b"filepath,x\na.jpg,1\n"}, "no label or classname"),
        ({"a.jpg": b""}, "none of them a picture with a class"),
    ],
)
def test_unusable_labels_say_what_was_found(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message + r"[^$]*hint: "):
        found_labels(eval_sets.tar(tmp_path / "s.tar", files))


@pytest.mark.parametrize("table", [None, b"filepath,caption\na.jpg,red\n", b"filepath\tcaption\n"])
def test_unusable_captions_say_what_was_found(tmp_path: Path, table: bytes | None) -> None:
    files = {"a.jpg": b"", **({"captions.tsv": table} if table else {})}
    with pytest.raises(ValueError, match=r"s.tar.*hint: "):
        found_captions(eval_sets.tar(tmp_path / "s.tar", files))


def test_a_json_that_belongs_to_no_picture_leaves_class_folders_as_they_are(tmp_path: Path) -> None:
    files = {"cat/1.jpg": b"", "dog/2.jpg": b"", "dataset-metadata.json": b'{"title": "pets"}'}
    assert found_labels(eval_sets.folder(tmp_path / "s", files)) == (
        [("cat/1.jpg", "cat"), ("dog/2.jpg", "dog")],
        0,
    )


def test_a_damaged_text_or_label_costs_its_sample_only(tmp_path: Path) -> None:
    from curate.contract import parts, shards

    files = {
        "0.jpg": b"p",
        "0.cls": b"3",
        "0.txt": b"a cat",
        "1.jpg": b"q",
        "1.cls": b"4",
        "1.txt": b"a dog",
    }
    path = Path(eval_sets.tar(tmp_path / "s.tar", files))
    index = shards.index_tar(str(path))
    parts.write_table(str(tmp_path / "index.parquet"), index)
    data = bytearray(path.read_bytes())
    for row in index.to_pylist():
        if row["key"] == "0" and row["member"] in ("cls", "txt"):
            data[row["offset"]] ^= 1
    path.write_bytes(bytes(data))
    assert found_labels(str(tmp_path)) == ([("1.jpg", "4")], 1)
    assert found_captions(str(tmp_path)) == ({"1.jpg": ["a dog"]}, 1)
