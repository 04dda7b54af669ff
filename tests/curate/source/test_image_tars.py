"""source.image_tars: webdataset samples and captions tables, faults named, damage never silent."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.contract import tars
from curate.source.image_tars import ImageTars

JPG = b"\xff\xd8\xff picture one"
PNG = b"\x89PNG\r\n\x1a\n picture two"


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> str:
    path.write_bytes(b"".join(tars.member(name, data) for name, data in members) + tars.END)
    return str(path)


def rows_of(stage: ImageTars) -> list[dict[str, Any]]:
    stage.check()
    tables = [table for part in stage.parts() for table in stage.produce(part)]
    assert all(
        table.schema.names == ["uid", "url", "caption", "keep", "reason", *stage.writes().names]
        for table in tables
    )
    return pa.concat_tables(tables).to_pylist()


def kinds(rows: list[dict[str, Any]]) -> list[str | None]:
    return [
        row["reason"] and row["reason"].removeprefix("error.source.image_tars.") for row in rows
    ]


def test_webdataset_samples_in_order(tmp_path: Path) -> None:
    record = json.dumps({"url": "http://host/a", "caption": "from json"}).encode()
    path = write_tar(
        tmp_path / "00000.tar",
        [
            ("a.jpg", JPG),
            ("a.txt", b"from text\n"),
            ("a.json", record),
            ("d/b.v2.json", record),
            ("d/b.png", PNG),
            ("c.json", record),
            ("c.webp", JPG),
        ],
    )
    rows = rows_of(ImageTars(path=path))
    assert [(row["url"], row["caption"], row["image"]) for row in rows] == [
        ("http://host/a", "from text", JPG),
        ("00000.tar/d/b", None, PNG),  # `v2.json` is no extension of ours
        ("http://host/a", "from json", JPG),
    ]
    assert kinds(rows) == [None, "null_caption", None]
    assert rows[0]["sha256"] == hashlib.sha256(JPG).hexdigest()


def test_members_that_do_not_stand_together_are_one_sample(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "t.tar",
        [
            ("./a.jpg", JPG),
            ("./b.png", PNG),
            ("./a.txt", b"a"),
            ("./b.txt", b"b"),
            ("./._a.jpg", b"x"),
            ("./a.cls", b"3"),
        ],
    )
    assert [(row["caption"], row["image"]) for row in rows_of(ImageTars(path=path))] == [
        ("a", JPG),
        ("b", PNG),
    ]


def test_faults_of_single_samples_are_named(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "t.tar",
        [
            *[("ok.jpg", JPG), ("ok.txt", b"fine")],
            *[("lone.txt", b"no picture")],
            *[("mute.jpg", JPG), ("mute.txt", b" ")],
            *[("torn.jpg", JPG), ("torn.txt", b"x"), ("torn.json", b"{")],
            *[("latin.jpg", JPG), ("latin.txt", b"caf\xe9")],
            *[("long.jpg", JPG), ("long.txt", b"x" * 101)],
            *[("number.jpg", JPG), ("number.json", b'{"caption": 5}')],
            *[("page.jpg", b"<html>"), ("page.txt", b"x")],
            *[("twice.jpg", JPG), ("twice.txt", b"first"), ("twice.jpg", PNG)],
        ],
    )
    rows = rows_of(ImageTars(path=path, max_caption_bytes=100))
    assert kinds(rows) == [
        None,
        "no_image",
        "null_caption",
        "bad_row",
        "not_utf8",
        "too_long",
        "not_text",
        "not_image",
        None,
        "null_caption",
    ]
    assert rows[1]["caption"] == "no picture"
    assert rows[9]["image"] == PNG


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_damage_keeps_what_came_before_and_is_a_row(tmp_path: Path, damage: str) -> None:
    path = write_tar(
        tmp_path / "t.tar", [("a.jpg", JPG), ("a.txt", b"a"), ("b.jpg", PNG * 100), ("b.txt", b"b")]
    )
    data = bytearray(Path(path).read_bytes())
    if damage == "cut":
        del data[2048 + 700 :]
    else:
        data[2048 + 10] ^= 255
    Path(path).write_bytes(bytes(data))
    rows = rows_of(ImageTars(path=path))
    assert kinds(rows) == [None, "damaged_tar"]
    assert rows[1]["url"] == "t.tar@2048"
    assert "at byte 2048" in rows[1]["caption"]


def test_one_part_per_tar_over_every_way_to_name_them(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number:05d}.tar", [("a.jpg", JPG), ("a.txt", b"%d" % number)])
    here = str(tmp_path)
    for path in (
        here,
        f"{here}/*.tar",
        here + "/{00000..00002}.tar",
        (f"{here}/00000.tar", f"{here}/*.tar"),
    ):
        stage = ImageTars(path=path)
        assert len(stage.parts()) == 3
        assert [row["caption"] for row in rows_of(stage)] == ["0", "1", "2"]


def test_tars_with_equal_names_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", [("a.jpg", JPG), ("a.txt", b"same")])
    rows = rows_of(ImageTars(path=(str(tmp_path / "x"), str(tmp_path / "y"))))
    assert [row["url"] for row in rows] == ["x/0.tar/a", "y/0.tar/a"]


TABLE = b"filepath\tcaption\nimages/a.jpg\tone\nimages/a.jpg\ttwo\nimages/none.jpg\tx\nimages/b.png\t\nshort\n"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("folder", ["", "set/"])
def test_a_captions_table_gives_a_row_per_line(tmp_path: Path, first: bool, folder: str) -> None:
    members = [(f"{folder}images/a.jpg", JPG), (f"{folder}images/b.png", PNG)]
    table = [(f"{folder}captions.tsv", TABLE)]
    path = write_tar(tmp_path / "t.tar", table + members if first else members + table)
    rows = rows_of(ImageTars(path=path, captions="captions.tsv"))
    assert [(row["caption"], row["image"]) for row in rows[:2]] == [("one", JPG), ("two", JPG)]
    assert kinds(rows) == [None, None, "no_image", "null_caption", "bad_row"]
    assert rows[0]["url"] == "t.tar/images/a.jpg"
    assert rows[4]["url"] == "t.tar:captions.tsv@83"


def test_a_table_that_is_not_there_is_told_before_the_run_and_later_is_a_row(
    tmp_path: Path,
) -> None:
    good = write_tar(tmp_path / "a.tar", [("captions.tsv", TABLE), ("images/a.jpg", JPG)])
    bad = write_tar(tmp_path / "b.tar", [("images/a.jpg", JPG)])
    with pytest.raises(ValueError, match=r"b\.tar: no 'captions\.tsv' in it\. hint: "):
        ImageTars(path=bad, captions="captions.tsv").parts()
    with pytest.raises(
        ValueError,
        match=r"no column 'file'; it has: filepath, caption\. hint: did you mean 'filepath'",
    ):
        ImageTars(path=good, captions="captions.tsv", filepath="file").parts()
    rows = rows_of(ImageTars(path=(good, bad), captions="captions.tsv"))
    assert kinds(rows)[-1] == "bad_table"
    assert rows[-1]["url"] == "b.tar@captions.tsv"


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tar files found\. hint: "):
        ImageTars(path=str(tmp_path)).check()
    with pytest.raises(ValueError, match="no known format"):
        ImageTars(path=write_tar(tmp_path / "t.tar", []), captions="captions").check()
    with pytest.raises(
        ValueError, match=r"t\.tar: the source is empty, no tar holds a picture\. hint: "
    ):
        ImageTars(path=str(tmp_path / "t.tar")).parts()


def test_long_names_of_other_writers_are_read(tmp_path: Path) -> None:
    name = "folder/" * 30 + "a"
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "t.tar", "w", format=format) as tar:
            for extension, data in (("jpg", JPG), ("txt", b"far away")):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        (row,) = rows_of(ImageTars(path=str(tmp_path / "t.tar")))
        assert (row["url"], row["caption"], row["image"]) == (f"t.tar/{name}", "far away", JPG)


def test_real_shards_and_real_tables_come_in_whole(shared_data: Path) -> None:
    rows = rows_of(ImageTars(path=str(shared_data / "webshard-laion400m-50.tar")))
    assert len(rows) == 50
    assert all(row["keep"] and row["url"].startswith("http") and row["image"] for row in rows)
    rows = rows_of(
        ImageTars(path=str(shared_data / "pairs-coco-mini-val.tar"), captions="captions.tsv")
    )
    assert len(rows) == 395
    assert len({row["sha256"] for row in rows}) == 79
    assert all(row["keep"] for row in rows)


def test_a_format_that_shards_do_not_hold_is_a_row(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.bmp", b"BM" + bytes(60)), ("a.txt", b"a")])
    (row,) = rows_of(ImageTars(path=path))
    assert (row["caption"], kinds([row])) == ("a", ["not_image"])


def test_a_damaged_tar_names_its_rows_alike_wherever_it_stands(tmp_path: Path) -> None:
    uids = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        path = Path(write_tar(tmp_path / folder / "t.tar", [("a.jpg", JPG), ("a.txt", b"a")]))
        path.write_bytes(path.read_bytes()[:1536])
        uids.append([row["uid"] for row in rows_of(ImageTars(path=str(path)))])
    assert len(uids[0]) == 2
    assert uids[0] == uids[1]


def test_any_damage_gives_rows_and_never_an_exception(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "t.tar"
    members = [
        (f"{n}.{end}", data) for n in range(4) for end, data in (("jpg", JPG), ("txt", b"w"))
    ]
    whole = Path(write_tar(path, members)).read_bytes()
    noticed = 0
    for _ in range(60):
        damaged = bytearray(whole[: rng.randrange(1, len(whole))] if rng.random() < 0.3 else whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        rows = rows_of(ImageTars(path=str(path)))
        at = [n for n, kind in enumerate(kinds(rows)) if kind == "damaged_tar"]
        assert at in ([], [len(rows) - 1])
        noticed += bool(at)
    assert noticed > 10, "the damage hit no header"


def test_names_with_dots_are_rows_too(tmp_path: Path) -> None:
    from tests.conformance.examples import picture

    members = [
        ("IMG.2020.jpg", picture(1)),
        ("IMG.2020.txt", b"a dog"),
        ("b.jpg", picture(2)),
        ("b.txt", b"a cat"),
    ]
    (tmp_path / "x.tar").write_bytes(
        b"".join(tars.member(*member) for member in members) + tars.END
    )
    source = ImageTars(path=str(tmp_path / "x.tar"))
    rows = [
        row
        for part in source.parts()
        for table in source.produce(part)
        for row in table.to_pylist()
    ]
    assert [(row["url"], row["caption"], row["keep"]) for row in rows] == [
        ("x.tar/IMG.2020", "a dog", True),
        ("x.tar/b", "a cat", True),
    ]
