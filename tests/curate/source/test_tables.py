"""The right reader for a file's name, and columns checked with a hint."""

from __future__ import annotations

import pyarrow as pa
import pytest

from curate.source.json_table import JsonTable
from curate.source.parquet_table import ParquetTable
from curate.source.tables import (
    EXTENSIONS,
    FORMATS,
    check_columns,
    format_of,
    has_captions,
    holds,
    open_bytes,
    open_table,
)
from curate.source.text_table import TextTable


@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("a/b.parquet", "parquet"),
        ("s3://x/B.CSV", "csv"),
        ("a.tsv.gz", "tsv"),
        ("part-0.snappy.parquet", "parquet"),
        ("a.jsonl", "jsonl"),
        ("a.json.gz", "json"),
        ("urls.txt", "txt"),
    ],
)
def test_the_name_says_the_format(path: str, format: str) -> None:
    assert format_of(path) == format


def test_an_unknown_name_asks_for_the_format() -> None:
    with pytest.raises(
        ValueError,
        match=r"a\.dat: the name says no known format\. hint: set `format` to one of parquet",
    ):
        open_table("a.dat")
    assert open_table("a.dat", "tsv") == TextTable("a.dat", "tsv", False)
    assert open_table("a.dat", "parquet") == ParquetTable("a.dat")


def test_quoting_is_on_for_csv_off_for_tsv_and_can_be_told() -> None:
    assert open_table("a.csv") == TextTable("a.csv", "csv", True)
    assert open_table("a.tsv") == TextTable("a.tsv", "tsv", False)
    assert open_table("a.tsv", quoting=True) == TextTable("a.tsv", "tsv", True)


def test_a_table_in_memory_is_text() -> None:
    assert open_bytes("x.tar:c.tsv", b"a\tb\n").schema().names == ["a", "b"]
    with pytest.raises(ValueError, match="hint: use one of csv, tsv, jsonl"):
        open_bytes("x.tar:c.parquet", b"")


def test_json_and_txt_are_known_by_name_and_not_taken_from_folders() -> None:
    assert open_table("a.json") == JsonTable("a.json")
    assert open_table("a.dat", "txt") == TextTable("a.dat", "txt", False)
    assert {"parquet", "csv.gz", "jsonl"} < set(EXTENSIONS)
    assert not {"json", "txt", "json.gz", "txt.gz", "parquet.gz"} & set(EXTENSIONS)


def test_only_txt_has_no_captions() -> None:
    assert [name for name in FORMATS if not has_captions(f"a.{name}")] == ["txt"]
    assert has_captions("a.txt", "csv")


def test_nulls_alone_fit_any_type() -> None:
    assert holds(pa.null(), pa.int64())
    assert holds(pa.int64(), pa.int64())
    assert not holds(pa.string(), pa.int64())
    assert not holds(pa.int64(), pa.null())


def test_missing_and_double_columns_are_refused() -> None:
    table = open_bytes("c.csv", b"url,text,text\n")
    with pytest.raises(ValueError, match="no column 'caption'; it has: url, text, text"):
        check_columns(table, {"url": "url", "caption": "caption"})
    with pytest.raises(ValueError, match="two columns are named 'text'"):
        check_columns(table, {"caption": "text"})
    assert check_columns(table, {"url": "url"}).names == ["url", "text", "text"]
