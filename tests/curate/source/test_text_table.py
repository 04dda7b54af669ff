"""csv, tsv and jsonl: fields, damage that costs one line, and the same rows for every cut."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.source.text_table import TextTable

OWN: list[pa.Field] = []


def rows_of(table: TextTable, rows: int, own: list[pa.Field] = OWN) -> list[Any]:
    """(url, caption) of good rows, the raw bytes of bad ones, over all slices."""
    found: list[Any] = []
    for piece in table.slices(rows):
        here: list[Any] = []
        for chunk in table.read(piece, "url", "caption", own):
            for n, pair in enumerate(zip(chunk.urls, chunk.captions, strict=True)):
                extra = tuple(column[n].as_py() for column in chunk.own)
                here.append(chunk.bad[n].raw if n in chunk.bad else (*pair, *extra))
        assert len(here) == piece["rows"] <= rows
        found += here
    return found


def table_of(text: str | bytes, format: str, quoting: bool | None = None) -> TextTable:
    data = text.encode() if isinstance(text, str) else text
    return TextTable(f"t.{format}", format, format == "csv" if quoting is None else quoting, data)


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_csv_with_faults_loses_no_row(rows: int) -> None:
    table = table_of(
        'url,caption\r\n1,plain\r\n2,"two\r\nlines"\r\n3,"never closed\r\n4,"a ""word"""\r\n\r\n'
        '5\r\n6,a,b\r\n7,"x" y\r\n8,5" nail\r\n"9",\r\n10,"last"',
        "csv",
    )
    assert rows_of(table, rows) == [
        (b"1", b"plain"),
        (b"2", b"two\r\nlines"),
        b'3,"never closed\r\n',
        (b"4", b'a "word"'),
        b"5\r\n",
        b"6,a,b\r\n",
        b'7,"x" y\r\n',
        (b"8", b'5" nail'),
        (b"9", b""),
        (b"10", b"last"),
    ]


def test_an_open_quote_at_the_end_costs_one_line() -> None:
    table = table_of('url,caption\n1,"open\n2,fine\n3,fine too\n', "csv")
    assert rows_of(table, 2) == [b'1,"open\n', (b"2", b"fine"), (b"3", b"fine too")]


def test_an_open_quote_in_a_large_file_costs_one_line() -> None:
    lines = "".join(f"{n},a caption of some length\n" for n in range(60_000))  # over 1 MiB
    found = rows_of(table_of('url,caption\n0,"open\n' + lines, "csv"), 10_000)
    assert len(found) == 60_001
    assert found[0] == b'0,"open\n'
    assert found[-1] == (b"59999", b"a caption of some length")


def test_a_quoted_megabyte_on_one_line_is_one_cell() -> None:
    long = "a, b " * 500_000
    assert rows_of(table_of(f'url,caption\n1,"{long}"\n2,x\n', "csv"), 1) == [
        (b"1", long.encode()),
        (b"2", b"x"),
    ]


def test_tsv_takes_quotes_as_they_are_unless_asked() -> None:
    text = 'caption\turl\n"a" dog\t1\n"b\t2\n'
    assert rows_of(table_of(text, "tsv"), 1) == [(b"1", b'"a" dog'), (b"2", b'"b')]
    assert rows_of(table_of('caption\turl\n"a\tb"\t1\n', "tsv", quoting=True), 1) == [
        (b"1", b"a\tb")
    ]


def test_invalid_utf8_comes_through_as_bytes() -> None:
    assert rows_of(table_of(b"url,caption\n1,caf\xe9\n", "csv"), 1) == [(b"1", b"caf\xe9")]
    assert rows_of(table_of(b'{"url": "1", "caption": "caf\xe9"}\n', "jsonl"), 1) == [
        (b"1", b"caf\xe9")
    ]


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_jsonl_with_faults_loses_no_row(rows: int) -> None:
    lines = [
        '{"url": "1", "caption": "a\\u00e9"}',
        '{"url": "2"',
        "[1]",
        "",
        '{"url": 3, "caption": null}',
        "[" * 100_000,
        '{"caption": "c"}',
    ]
    found = rows_of(table_of("\n".join(lines), "jsonl"), rows)
    assert found[0] == (b"1", "a\u00e9".encode())
    assert found[1:3] == [b'{"url": "2"\n', b"[1]\n"]
    assert found[3] == (b"3", None)
    assert len(found[4]) == 100_001
    assert found[5] == (None, b"c")


def test_jsonl_columns_have_the_types_they_hold() -> None:
    records = [
        {"url": "1", "caption": "a", "n": 1, "f": 1, "ok": True, "tag": "x"},
        {"url": "2", "caption": "b", "f": 0.5, "tag": None},
    ]
    table = table_of("\n".join(map(json.dumps, records)), "jsonl")
    assert table.schema() == pa.schema(
        [
            ("url", pa.string()),
            ("caption", pa.string()),
            ("n", pa.int64()),
            ("f", pa.float64()),
            ("ok", pa.bool_()),
            ("tag", pa.string()),
        ]
    )
    assert rows_of(table, 9, [table.schema().field(name) for name in ("n", "f", "ok", "tag")]) == [
        (b"1", b"a", 1, 1.0, True, "x"),
        (b"2", b"b", None, 0.5, None, None),
    ]


def test_a_jsonl_value_that_does_not_fit_its_column_is_a_bad_row() -> None:
    table = table_of('{"url": "1", "caption": "a", "n": "many"}', "jsonl")
    assert rows_of(table, 9, [pa.field("n", pa.int64())]) == [
        b'{"url": "1", "caption": "a", "n": "many"}'
    ]


def test_a_byte_order_mark_and_spaces_in_the_header_are_no_part_of_names() -> None:
    table = table_of(b'\xef\xbb\xbf"url", caption\n1,a\n', "csv")
    assert table.schema().names == ["url", "caption"]
    assert rows_of(table, 1) == [(b"1", b"a")]


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_txt_is_a_url_a_line(rows: int) -> None:
    table = table_of(b'\xef\xbb\xbfhttp://a/1,2\r\n\n"http://b"\nhttp://\xe9 \nlast', "txt")
    assert table.schema() == pa.schema([("url", pa.string())])
    found = [
        chunk.urls for piece in table.slices(rows) for chunk in table.read(piece, "url", "url", [])
    ]
    assert [url for urls in found for url in urls] == [
        b"http://a/1,2",
        b'"http://b"',
        b"http://\xe9 ",
        b"last",
    ]
    assert table_of("", "txt").schema().names == []


def test_a_column_of_nulls_has_no_type() -> None:
    table = table_of('{"url": "1", "n": null}\n{"url": "2", "n": null}', "jsonl")
    assert table.schema().field("n").type == pa.null()


def test_an_empty_file_has_no_columns_and_no_slices() -> None:
    for data in ("", "\n\n"):
        assert table_of(data, "csv").schema().names == []
        assert table_of(data, "jsonl").slices(5) == []
    assert table_of("url,caption\n", "csv").slices(5) == []


def test_gz_reads_the_same_and_damage_is_named(tmp_path: Path) -> None:
    data = b"url,caption\n" + b"".join(b"%d,caption number %d\n" % (n, n) for n in range(5000))
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(data))
    assert rows_of(TextTable(str(path), "csv", True), 700) == rows_of(
        TextTable("t.csv", "csv", True, data), 5000
    )
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"t\.csv\.gz: damaged gzip: .*hint: "):
        TextTable(str(path), "csv", True).slices(700)


CELL = st.text(st.sampled_from('ab,"\n\r\t \u00e9'), max_size=8)


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.tuples(CELL, CELL), max_size=12), cut=st.integers(1, 5))
def test_what_a_csv_writer_writes_is_read_back(cells: list[tuple[str, str]], cut: int) -> None:
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("url", "caption"), *cells])
    found = rows_of(table_of(file.getvalue(), "csv"), cut)
    assert found == [(url.encode(), caption.encode()) for url, caption in cells]


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from('ab,"\n\r'), max_size=40), cut=st.integers(1, 4))
def test_any_text_gives_the_same_rows_for_any_cut(text: str, cut: int) -> None:
    table = table_of("url,caption\n" + text, "csv")
    assert rows_of(table, cut) == rows_of(table, 1000)
