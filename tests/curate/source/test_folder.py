"""source.folder: pictures with text files or a captions table, and never a file from outside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.source.folder import Folder

JPG = b"\xff\xd8\xff picture one"
PNG = b"\x89PNG\r\n\x1a\n picture two"


def fill(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def rows_of(stage: Folder) -> list[dict[str, Any]]:
    stage.check()
    parts = stage.parts()
    json.dumps([part.payload for part in parts])
    return pa.concat_tables([table for part in parts for table in stage.produce(part)]).to_pylist()


def kinds(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["reason"] and row["reason"].removeprefix("error.source.folder.") for row in rows]


FILES = {
    "b.JPG": JPG,
    "b.txt": b"a dog\r\n",
    "a/x.png": PNG,
    "a/x.txt": "caf\u00e9".encode(),
    "c.webp": JPG,
    "lone.txt": b"no picture",
    "notes.md": b"#",
    ".hidden.jpg": JPG,
}


@pytest.mark.parametrize("rows_per_part", [1, 2, 1000])
def test_pictures_with_text_files(tmp_path: Path, rows_per_part: int) -> None:
    rows = rows_of(Folder(path=fill(tmp_path, FILES), rows_per_part=rows_per_part))
    assert [(row["url"], row["caption"], row["image"]) for row in rows] == [
        ("a/x.png", "caf\u00e9", PNG),
        ("b.JPG", "a dog", JPG),
        ("c.webp", None, JPG),
        ("lone.txt", "no picture", None),
    ]
    assert kinds(rows) == [None, None, "null_caption", "no_image"]
    assert rows[0]["sha256"] != rows[1]["sha256"]


def test_bytes_that_are_no_picture_are_told(tmp_path: Path) -> None:
    rows = rows_of(Folder(path=fill(tmp_path, {"a.jpg": b"<html>", "a.txt": b"x"})))
    assert kinds(rows) == ["not_image"]
    with pytest.raises(ValueError, match=r"a file, not a folder\. hint: "):
        Folder(path=str(tmp_path / "a.txt")).check()


def test_files_that_come_or_go_later_leave_the_parts_as_they_are(tmp_path: Path) -> None:
    stage = Folder(path=fill(tmp_path, FILES), rows_per_part=1)
    parts = stage.parts()
    fill(tmp_path, {"aa.jpg": JPG})
    (tmp_path / "b.JPG").unlink()
    rows = pa.concat_tables(
        [t for part in parts for t in Folder(path=str(tmp_path)).produce(part)]
    ).to_pylist()
    assert [row["url"] for row in rows] == ["a/x.png", "b.JPG", "c.webp", "lone.txt"]
    assert kinds(rows)[1] == "no_image"


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "parquet"])
def test_a_captions_table(tmp_path: Path, format: str) -> None:
    pairs = [
        ("a/x.png", "one"),
        ("a/x.png", "two"),
        ("gone.jpg", "x"),
        ("b.JPG", None),
        (None, "y"),
    ]
    records = [{"file": file, "text": text} for file, text in pairs]
    path = tmp_path / f"captions.{format}"
    fill(tmp_path, FILES)
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif format == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        mark = "," if format == "csv" else "\t"
        path.write_text(
            "\n".join(
                [f"file{mark}text", *(f"{file or ''}{mark}{text or ''}" for file, text in pairs)]
            )
        )
    for rows_per_part in (1, 1000):
        stage = Folder(
            path=str(tmp_path),
            captions=path.name,
            filepath="file",
            caption="text",
            rows_per_part=rows_per_part,
        )
        rows = rows_of(stage)
        assert kinds(rows) == [None, None, "no_image", "null_caption", "null_url"]
        assert [row["image"] for row in rows] == [PNG, PNG, None, JPG, None]


@pytest.mark.parametrize(
    "name",
    ["../secret.jpg", "/etc/hostname", "a/../../secret.jpg", "a", "a/x.png/y", "n" * 5000, ""],
)
def test_a_table_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    fill(
        tmp_path,
        {
            "secret.jpg": JPG,
            "in/a/x.png": PNG,
            "in/captions.csv": f"filepath,caption\n{name},text\n".encode(),
        },
    )
    (row,) = rows_of(Folder(path=str(tmp_path / "in"), captions="captions.csv"))
    assert row["image"] is None
    assert not row["keep"]


@pytest.mark.parametrize(
    ("files", "options", "found"),
    [
        ({}, {}, "the folder is empty"),
        ({"notes.md": b"#"}, {}, "the source is empty, no picture or caption in it"),
        (FILES, {"captions": "captions.csv"}, "no such captions table"),
        (
            {"c.csv": b"filepath,text\na,b\n"},
            {"captions": "c.csv"},
            "no column 'caption'; it has: filepath, text",
        ),
        (FILES, {"rows_per_part": 0}, "must be 1 or more"),
        ({"c.csv": b"filepath,caption\n"}, {"captions": "c.csv"}, "the source is empty"),
        ({"c.xls": b""}, {"captions": "c.xls"}, "the name says no known format"),
    ],
)
def test_unusable_folders_are_refused(
    tmp_path: Path, files: dict[str, bytes], options: dict[str, Any], found: str
) -> None:
    with pytest.raises(ValueError, match=rf"{found}.*hint: "):
        rows_of(Folder(path=fill(tmp_path, files), **options))
    with pytest.raises(ValueError, match="no such folder"):
        Folder(path=str(tmp_path / "nowhere")).check()


def test_a_remote_folder() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe({"/folder_test/in/a.jpg": JPG, "/folder_test/in/a.txt": b"a dog"})
    try:
        (row,) = rows_of(Folder(path="memory://folder_test"))
        assert (row["url"], row["caption"], row["image"]) == ("in/a.jpg", "a dog", JPG)
    finally:
        fs.rm("/folder_test", recursive=True)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = fill(tmp_path, FILES)
    with pytest.raises(ValueError, match=r"b\.JPG: a file, not a folder\. hint: "):
        Folder(path=f"{path}/b.JPG").check()


def test_what_is_no_picture_of_ours_is_a_row(tmp_path: Path) -> None:
    files = {
        "page.jpg": b"<html>",
        "page.txt": b"a page",
        "scan.tif": b"II*\0",
        "scan.txt": b"a scan",
    }
    rows = rows_of(Folder(path=fill(tmp_path, files)))
    assert [row["caption"] for row in rows] == ["a page", "a scan"]
    assert kinds(rows) == ["not_image", "not_image"]


def test_two_pictures_of_one_stem_share_its_text(tmp_path: Path) -> None:
    rows = rows_of(Folder(path=fill(tmp_path, {"a.jpg": JPG, "a.png": PNG, "a.txt": b"both"})))
    assert [(row["url"], row["caption"]) for row in rows] == [("a.jpg", "both"), ("a.png", "both")]


def test_a_name_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    path = fill(tmp_path, {"a.jpg": JPG, "a.txt": b"words"})
    for end, data in ((b"jpg", JPG), (b"txt", b"words")):
        Path(os.fsdecode(os.fsencode(path) + b"/\xe9." + end)).write_bytes(data)
    rows = rows_of(Folder(path=path))
    assert [row["url"] for row in rows] == ["a.jpg", "\ufffd.jpg"]
    assert kinds(rows) == [None, "not_utf8"]
    assert sorted(Folder(path=path).inputs()) == [f"{path}/a.jpg", f"{path}/a.txt"]


def test_the_table_is_an_input_even_where_pictures_are_sampled(tmp_path: Path) -> None:
    files = {f"{n:04d}.jpg": JPG for n in range(1100)} | {"z.csv": b"filepath,caption\n"}
    path = fill(tmp_path, files)
    inputs = Folder(path=path, captions="z.csv").inputs()
    assert inputs[0] == f"{path}/z.csv"
    assert len(set(inputs)) == len(inputs) == 1000
