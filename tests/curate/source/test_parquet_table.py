"""Parquet: any cut gives the same rows, any string type is read as bytes, damage costs its rows only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.source.base import Chunk, NotText
from curate.source.parquet_table import ParquetTable


def read(table: ParquetTable, rows: int, own: list[pa.Field] | None = None) -> list[Chunk]:
    return [
        chunk
        for piece in table.slices(rows)
        for chunk in table.read(piece, "url", "caption", own or [])
    ]


def pairs(chunks: list[Chunk]) -> list[Any]:
    listed = [chunk.listed() for chunk in chunks]
    return [pair for chunk in listed for pair in zip(chunk.urls, chunk.captions, strict=True)]


def write(path: Path, columns: dict[str, Any], **options: Any) -> ParquetTable:
    pq.write_table(pa.table(columns), path, **options)
    return ParquetTable(str(path))


@pytest.mark.parametrize("group", [1, 7, 64, 1000])
def test_every_cut_gives_the_same_rows(tmp_path: Path, group: int) -> None:
    texts = [str(n) for n in range(100)]
    table = write(
        tmp_path / "t.parquet",
        {"url": texts, "caption": texts, "n": range(100)},
        row_group_size=group,
    )
    own = [pa.field("n", pa.int64())]
    for rows in (1, 6, 33, 1000):
        chunks = read(table, rows, own)
        assert pairs(chunks) == [(text.encode(), text.encode()) for text in texts]
        assert [n for chunk in chunks for n in chunk.own[0].to_pylist()] == list(range(100))
        assert max(piece["rows"] for piece in table.slices(rows)) <= rows


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.string_view(),
    ],
)
def test_any_text_type_comes_as_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    caption = pa.array(["a", None, "caf\u00e9"]).cast(kind)
    table = write(tmp_path / "t.parquet", {"url": ["1", "2", "3"], "caption": caption})
    assert pairs(read(table, 2)) == [(b"1", b"a"), (b"2", None), (b"3", "caf\u00e9".encode())]


def test_invalid_utf8_in_a_string_column_does_not_crash(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"caf\xe9"]).buffers())
    table = write(tmp_path / "t.parquet", {"url": ["1", "2"], "caption": broken, "title": broken})
    chunks = read(table, 9, [pa.field("title", pa.string())])
    assert pairs(chunks) == [(b"1", b"ok"), (b"2", b"caf\xe9")]
    assert chunks[0].own[0].to_pylist() == ["ok", "caf\ufffd"]


@pytest.mark.parametrize(
    "column", [pa.array([1, None]), pa.array([0.5, 1.5]), pa.array([["a"], ["b"]])]
)
def test_a_column_of_another_type_is_not_text_row_by_row(tmp_path: Path, column: pa.Array) -> None:
    table = write(tmp_path / "t.parquet", {"url": ["1", "2"], "caption": column})
    cells = [caption for _, caption in pairs(read(table, 9))]
    assert [cell is None or isinstance(cell, NotText) for cell in cells] == [True, True]
    assert [cell is None for cell in cells] == [value is None for value in column.to_pylist()]


def test_a_column_may_be_caption_and_extra_at_once(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", {"url": ["1"], "caption": ["a"]})
    assert read(table, 9, [pa.field("caption", pa.string())])[0].own[0].to_pylist() == ["a"]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all, but text" * 50])
def test_an_unreadable_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(data)
    for work in (ParquetTable(str(path)).schema, lambda: ParquetTable(str(path)).slices(5)):
        with pytest.raises(ValueError, match=r"t\.parquet: unreadable parquet: .*hint: "):
            work()


def test_a_damaged_page_costs_its_rows_and_no_more(tmp_path: Path) -> None:
    texts = [f"caption {n}" for n in range(100)]
    path = tmp_path / "t.parquet"
    table = write(
        path,
        {"url": texts, "caption": texts},
        row_group_size=50,
        compression="zstd",
        use_dictionary=False,
    )
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset + 30
    data[start : start + 60] = b"\xaa" * 60
    path.write_bytes(bytes(data))
    chunks = read(table, 20)
    assert sum(len(chunk.urls) for chunk in chunks) == 100
    assert pairs(chunks)[:50] == [(text.encode(), text.encode()) for text in texts[:50]]
    lost = [bad for chunk in chunks for bad in chunk.bad.values()]
    assert {bad.kind for bad in lost} == {"unreadable"}
    assert [bad.place for bad in lost] == [f"t.parquet@row {n}" for n in range(50, 100)]


def test_a_missing_file_is_not_taken_for_damage(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", {"url": ["1"], "caption": ["a"]})
    piece = table.slices(5)[0]
    (tmp_path / "t.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        list(table.read(piece, "url", "caption", []))
