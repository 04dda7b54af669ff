"""source.url_table: all formats give the same rows, no row is lost, unusable sources are refused at once."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.contract import storage
from curate.contract.draw import pair_uid
from curate.source.url_table import UrlTable
from curate.stage import Part

ROWS = [(f"http://host/{n}.jpg", f"caption, number {n}") for n in range(25)]


def rows_of(stage: UrlTable) -> pa.Table:
    parts = stage.parts()
    assert [part.index for part in parts] == list(range(len(parts)))
    json.dumps([part.payload for part in parts])
    return pa.concat_tables([table for part in parts for table in stage.produce(part)])


def _checked_parts(stage: UrlTable) -> list[Part]:
    stage.check()
    return stage.parts()


def write(folder: Path, format: str) -> str:
    path = folder / f"rows.{format}"
    if format == "parquet":
        pq.write_table(
            pa.table({"url": [u for u, _ in ROWS], "caption": [c for _, c in ROWS]}),
            path,
            row_group_size=10,
        )
    elif format == "jsonl":
        path.write_text("".join(json.dumps({"url": u, "caption": c}) + "\n" for u, c in ROWS))
    else:
        mark, quote = ("\t", "") if format == "tsv" else (",", '"')
        path.write_text(
            f"url{mark}caption\n" + "".join(f"{u}{mark}{quote}{c}{quote}\n" for u, c in ROWS)
        )
    return str(path)


@pytest.mark.parametrize("format", ["parquet", "csv", "tsv", "jsonl"])
def test_every_format_and_cut_gives_the_same_rows(tmp_path: Path, format: str) -> None:
    path = write(tmp_path, format)
    for rows in (1, 7, 10_000):
        stage = UrlTable(path=path, rows_per_part=rows)
        stage.check()
        table = rows_of(stage)
        assert table["uid"].to_pylist() == [pair_uid(*row) for row in ROWS]
        assert (
            list(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)) == ROWS
        )
        assert table["keep"].to_pylist() == [True] * len(ROWS)


def test_bad_rows_stay_with_a_reason(tmp_path: Path) -> None:
    good = b"http://host/a.jpg"
    urls = [good, None, good, good, good, b"http://host/\xff", good]
    captions = [b"fine", b"x", None, b"  ", b"caf\xe9", b"x", b"y" * 1_000_000]
    pq.write_table(
        pa.table({"url": pa.array(urls, pa.binary()), "caption": pa.array(captions, pa.binary())}),
        tmp_path / "t.parquet",
    )
    table = rows_of(UrlTable(path=str(tmp_path / "t.parquet"), rows_per_part=3))
    kinds = [
        None if reason is None else reason.removeprefix("error.source.url_table.")
        for reason in table["reason"].to_pylist()
    ]
    assert kinds == [
        None,
        "null_url",
        "null_caption",
        "null_caption",
        "not_utf8",
        "not_utf8",
        "too_long",
    ]
    assert table["keep"].to_pylist() == [True] + [False] * 6
    table.validate(full=True)  # what is shown is valid UTF-8
    assert table["uid"].to_pylist() == [pair_uid(*row) for row in zip(urls, captions, strict=True)]


def test_a_whole_column_of_numbers_is_not_text_row_by_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["a", "b"], "caption": [1, 2]}), tmp_path / "t.parquet")
    table = rows_of(UrlTable(path=str(tmp_path / "t.parquet")))
    assert table["reason"].to_pylist() == ["error.source.url_table.not_text"] * 2
    assert table["caption"].to_pylist() == ["1", "2"]


def test_extra_columns_come_along_with_their_types(tmp_path: Path) -> None:
    columns = {
        "URL": ["a", None],
        "TEXT": ["x", "y"],
        "similarity": pa.array([0.5, None], pa.float32()),
        "n": [1, 2],
    }
    for name in ("a", "b"):
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    stage = UrlTable(
        path=str(tmp_path), url="URL", caption="TEXT", keep_columns=("n", "similarity")
    )
    stage.check()
    assert stage.writes() == pa.schema([("n", pa.int64()), ("similarity", pa.float32())])
    table = rows_of(stage)
    assert table["n"].to_pylist() == [1, 2, 1, 2]
    assert table["similarity"].to_pylist() == [0.5, None, 0.5, None]
    pq.write_table(pa.table({**columns, "n": ["1", "2"]}), tmp_path / "c.parquet")
    with pytest.raises(
        ValueError, match=r"c\.parquet: column 'n' is string, in the first file it is int64\. hint"
    ):
        UrlTable(path=str(tmp_path), url="URL", caption="TEXT", keep_columns=("n",)).parts()


def test_several_files_keep_their_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.csv").write_text(f"url,caption\n{name}1,x\n{name}2,x\n")
    assert rows_of(UrlTable(path=f"{tmp_path}/*.csv"))["url"].to_pylist() == [
        "a1",
        "a2",
        "b1",
        "b2",
    ]
    both = (f"{tmp_path}/b.csv", f"{tmp_path}/a.csv")
    assert rows_of(UrlTable(path=both, rows_per_part=1))["url"].to_pylist() == [
        "b1",
        "b2",
        "a1",
        "a2",
    ]
    assert UrlTable(path=both).inputs() == both


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("empty.csv", b"url,caption\n", "the source is empty, it has no rows"),
        ("bad.parquet", b"not parquet" * 9, "unreadable parquet"),
        (
            "other.csv",
            b"url,captoin\na,b\n",
            "no column 'caption'; it has: url, captoin. hint: did you mean 'captoin'?",
        ),
        ("none.csv", b"", "the source is empty, it has no rows"),
        ("rows.dat", b"x", "the name says no known format"),
        (None, b"", "no such file or folder"),
    ],
)
def test_an_unusable_source_is_refused_before_any_work(
    tmp_path: Path, name: str | None, data: bytes, found: str
) -> None:
    if name:
        (tmp_path / name).write_bytes(data)
    path = str(tmp_path / (name or "nowhere.parquet"))
    with pytest.raises(ValueError, match="hint: ") as caught:
        _checked_parts(UrlTable(path=path))
    assert path in str(caught.value)
    assert found in str(caught.value)


def test_an_empty_first_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.csv").write_text("url,caption\n1,x\n")
    stage = UrlTable(path=str(tmp_path))
    stage.check()
    assert rows_of(stage)["url"].to_pylist() == ["1"]


def test_a_later_file_without_the_column_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\n1,x\n")
    (tmp_path / "b.csv").write_text("url,text\n1,x\n")
    with pytest.raises(ValueError, match=r"b\.csv: no column 'caption'"):
        UrlTable(path=str(tmp_path)).parts()


@pytest.mark.parametrize(
    "options", [{"keep_columns": ("uid",)}, {"keep_columns": ("n", "n")}, {"rows_per_part": 0}]
)
def test_options_that_cannot_work_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "a.csv").write_text("url,caption,n,uid\n")
    with pytest.raises(ValueError, match="hint: "):
        UrlTable(path=str(tmp_path), **options).check()


def test_a_pickled_stage_carries_no_list_of_files(tmp_path: Path) -> None:
    for n in range(200):
        (tmp_path / f"{n:03d}.csv").write_text("url,caption,n\n1,x,2\n")
    stage = UrlTable(path=str(tmp_path), keep_columns=("n",))
    parts = stage.parts()
    data = pickle.dumps(stage)
    assert len(data) < 2000
    assert next(iter(pickle.loads(data).produce(parts[-1])))["n"].to_pylist() == ["2"]


def test_a_column_that_is_null_at_first_keeps_the_first_files_type(tmp_path: Path) -> None:
    """A jsonl file that begins with nulls alone says nothing of a type."""
    lines = ['{"url": "1", "caption": "a", "n": 7}', '{"url": "2", "caption": "b", "n": null}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text("\n".join([lines[1]] * 1000 + [lines[0]]))
    table = rows_of(UrlTable(path=str(tmp_path), keep_columns=("n",)))
    assert table["n"].type == pa.int64()
    assert table["n"].to_pylist() == [7, None, *[None] * 1000, 7]
    assert table["keep"].to_pylist() == [True] * 1003


def test_a_column_of_nulls_alone_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"url": "1", "caption": "a", "n": null}')
    (tmp_path / "b.jsonl").write_text('{"url": "2", "caption": "b", "n": "word"}')
    table = rows_of(UrlTable(path=str(tmp_path), keep_columns=("n",)))
    assert table["n"].type == pa.string()
    assert table["n"].to_pylist() == [None, "word"]


@pytest.mark.parametrize("rows", [1, 100])
def test_a_list_of_urls_has_empty_captions(tmp_path: Path, rows: int) -> None:
    urls = ["http://a.example/1", "http://b.example/2", "caf\u00e9", "   ", "y" * 200]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    stage = UrlTable(path=str(tmp_path / "list.txt"), rows_per_part=rows, max_caption_bytes=100)
    stage.check()
    table = rows_of(stage)
    assert table["caption"].to_pylist() == [""] * 5
    ends = [None if r is None else r.rpartition(".")[2] for r in table["reason"].to_pylist()]
    assert ends == [None, None, None, "null_url", "too_long"]
    assert table["uid"].to_pylist()[0] == pair_uid(b"http://a.example/1", b"")


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl", "json"])
def test_tables_without_captions(tmp_path: Path, format: str) -> None:
    records = [{"url": "1", "n": 5}, {"url": "2", "n": 6}]
    path = tmp_path / f"t.{format}"
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        text = {
            "csv": "url,n\n1,5\n2,6\n,7,8\n",
            "jsonl": "\n".join(map(json.dumps, records)) + "\n[]",
            "json": json.dumps([*records, []]),
        }[format]
        path.write_text(text)
    stage = UrlTable(path=str(path), caption="", keep_columns=("n",))
    stage.check()
    table = rows_of(stage)
    assert table["caption"].to_pylist()[:2] == ["", ""]
    assert [str(n) for n in table["n"].to_pylist()[:2]] == ["5", "6"]
    assert table["keep"].to_pylist() == [True, True, *[False] * (format != "parquet")]
    if format != "parquet":  # a row that can't be taken apart is shown as ever
        assert table["reason"].to_pylist()[2] == "error.source.url_table.bad_row"
        assert table["caption"].to_pylist()[2] in (",7,8\n", "[]")


def test_json_and_txt_of_a_folder_are_taken_where_asked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\n1,x\n")
    (tmp_path / "README.txt").write_text("what this is\n")
    (tmp_path / "state.json").write_text('{"ended": true}')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.json.gz").write_bytes(gzip.compress(b'[{"url": "2", "caption": "y"}]'))
    assert rows_of(UrlTable(path=str(tmp_path)))["url"].to_pylist() == ["1"]
    found = rows_of(UrlTable(path=str(tmp_path / "more"), format="json"))
    assert found["url"].to_pylist() == ["2"]
    mixed = UrlTable(path=(str(tmp_path / "a.csv"), str(tmp_path / "README.txt")))
    assert rows_of(mixed)["caption"].to_pylist() == ["x", ""]


def test_any_fsspec_path_is_read() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe("/url_table_test/a.csv", b"url,caption\n1,x\n2,y\n")
    try:
        for path in (
            "memory://url_table_test/a.csv",
            "memory://url_table_test/*.csv",
            "memory://url_table_test",
        ):
            assert rows_of(UrlTable(path=path, rows_per_part=1))["url"].to_pylist() == ["1", "2"]
    finally:
        fs.rm("/url_table_test", recursive=True)


def test_real_alt_texts_all_come_in(shared_data: Path) -> None:
    stage = UrlTable(path=str(shared_data / "captions-webalt.parquet"), keep_columns=("source",))
    table = rows_of(stage)
    assert len(table) == 20_685
    assert table["keep"].to_pylist().count(False) == 0
    assert set(table["source"].to_pylist()) >= {"cc3m-val"}


@pytest.mark.slow
def test_forty_thousand_files_are_planned_with_one_look_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A billion rows: 40,000 files of 25,000."""
    seed = tmp_path / "seed.parquet"
    column = pa.array(["x"] * 25_000)
    pq.write_table(pa.table({"url": column, "caption": column}), seed)
    (tmp_path / "many").mkdir()
    for number in range(40_000):
        if number % 20_000 == 0:  # a file has 65,000 names at most
            copy = tmp_path / f"copy-{number}"
            copy.write_bytes(seed.read_bytes())
        os.link(copy, tmp_path / "many" / f"{number:05d}.parquet")
    opened: list[str] = []
    open_file = storage.open_file
    monkeypatch.setattr(storage, "open_file", lambda path: opened.append(path) or open_file(path))
    stage = UrlTable(path=str(tmp_path / "many"))
    stage.check()
    stage.identity()
    sizes, parts = stage.sizes_bytes(), stage.parts()
    assert (len(sizes), len(parts)) == (40_000, 120_000)
    assert [part.payload["rows"] for part in parts[:3]] == [10_000, 10_000, 5_000]
    assert len(pickle.dumps(stage)) < 10_000  # what every worker is sent
    assert len(opened) <= 40_000 + 2  # the first file's columns are asked for by themselves
