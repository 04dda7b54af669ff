"""JSON objects as cells and columns: what fits a type, and what has none."""

from __future__ import annotations

import pyarrow as pa
import pytest

from curate.source import json_rows
from curate.source.base import BadRow, NotText

OWN = [pa.field("n", pa.int64()), pa.field("tag", pa.string())]


def test_cells_and_extra_values() -> None:
    record = {"url": "u", "caption": "\udce9", "n": 3, "tag": 4}
    assert json_rows.values(record, ["url", "caption", "n", "tag"], OWN) == [b"u", b"\xe9", 3, "4"]
    numbers = json_rows.values({"url": 5, "caption": None}, ["url", "caption"], [])
    assert numbers == [NotText(b"5"), None]
    assert isinstance(numbers[0], NotText)


@pytest.mark.parametrize("value", ["many", 1.5, 2**80, [1]])
def test_a_value_of_another_type_spoils_the_row(value: object) -> None:
    record = {"url": "u", "caption": "c", "n": value}
    assert json_rows.values(record, ["url", "caption", "n"], OWN[:1]) is None
    assert json_rows.values(None, ["url", "caption"], []) is None


@pytest.mark.parametrize("text", [b"[1]", b"{", b"", b"[" * 100_000, b"1"])
def test_what_is_no_object(text: bytes) -> None:
    assert json_rows.parsed(text) is None
    assert json_rows.parsed(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


def test_columns_have_the_types_of_their_first_rows() -> None:
    rows = [None, {"a": 1, "b": None, "c": True, "d": 1, "e": "x"}, {"a": 2.5, "b": None, "e": 1}]
    assert json_rows.schema(rows) == pa.schema(
        [("a", pa.float64()), ("b", pa.null()), ("c", pa.bool_()), ("d", pa.int64()), ("e", pa.string())]
    )  # fmt: skip


def test_bad_rows_keep_their_place() -> None:
    bad = BadRow("bad_row", "f@3", b"raw")
    chunk = json_rows.chunk([[b"u", b"c", 1, None], bad], OWN)
    assert (chunk.urls, chunk.captions, chunk.bad) == ([b"u", None], [b"c", None], {1: bad})
    assert chunk.own[0].to_pylist() == [1, None]
    assert chunk.own[1].type == pa.string()
