"""The right reader for a file's name, and columns checked with a hint."""

from __future__ import annotations

import pytest

from curate.source.parquet_table import ParquetTable
from curate.source.tables import check_columns, format_of, open_bytes, open_table
from curate.source.text_table import TextTable


@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("a/b.parquet", "parquet"),
        ("s3://x/B.CSV", "csv"),
        ("a.tsv.gz", "tsv"),
        ("part-0.snappy.parquet", "parquet"),
        ("a.jsonl", "jsonl"),
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


def test_missing_and_double_columns_are_refused() -> None:
    table = open_bytes("c.csv", b"url,text,text\n")
    with pytest.raises(ValueError, match="no column 'caption'; it has: url, text, text"):
        check_columns(table, {"url": "url", "caption": "caption"})
    with pytest.raises(ValueError, match="two columns are named 'text'"):
        check_columns(table, {"caption": "text"})
    assert check_columns(table, {"url": "url"}).names == ["url", "text", "text"]
