"""Parquet tables, read by row ranges. Strings come as raw bytes: parquet does not promise valid UTF-8.

A range that starts inside a large row group decodes the group up to it, so files with row groups near
``rows_per_part`` rows are the cheapest. Rows on pages that can't be decoded become bad rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import storage
from curate.source.base import ROWS_PER_TABLE, BadRow, Cell, Chunk, NotText, text_cell


@dataclass(frozen=True)
class ParquetTable:
    """One parquet file."""

    path: str
    formats: ClassVar[tuple[str, ...]] = ("parquet",)

    def schema(self) -> pa.Schema:
        """Column names and types, dictionaries as their values' type. Raises ValueError if unreadable."""
        return self._footer[0]

    def slices(self, rows: int) -> list[dict[str, Any]]:
        """Row ranges of at most ``rows`` rows each."""
        count = self._footer[1]
        return [
            {"start": start, "rows": min(rows, count - start)} for start in range(0, count, rows)
        ]

    def read(
        self, piece: dict[str, Any], url: str, caption: str, own: Sequence[pa.Field]
    ) -> Iterator[Chunk]:
        """The rows of one slice; row group by row group, so that damage ends with its group."""
        # Columns are named once: a column may be both the caption and an extra one.
        names = list(dict.fromkeys([url, caption, *(item.name for item in own)]))
        with storage.open_file(self.path) as file:
            whole = self._opened(file)
            for span in _spans(whole.metadata, piece["start"], piece["rows"]):
                done = 0
                try:
                    for batch in _batches(whole, span, names):
                        yield _chunk(batch, url, caption, own)
                        done += len(batch)
                except (OSError, pa.ArrowException) as fault:
                    if not _is_damage(fault):
                        raise
                    yield self._lost(span.first_row + done, span.rows - done, own)

    @cached_property
    def _footer(self) -> tuple[pa.Schema, int]:
        """(columns, rows), by one opening: a source may have 40,000 files, each a journey away."""
        with storage.open_file(self.path) as file:
            whole = self._opened(file)
            fields = [(item.name, _value_type(item.type)) for item in whole.schema_arrow]
            return pa.schema(fields), int(whole.metadata.num_rows)

    def _opened(self, file: Any) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(file)
        except (OSError, pa.ArrowException) as fault:
            if not _is_damage(fault):
                raise
            what = str(fault).splitlines()[0].rstrip(".")
            raise ValueError(
                f"{self.path}: unreadable parquet: {what}. hint: copy the file again, or leave it out"
            ) from fault

    def _lost(self, first: int, count: int, own: Sequence[pa.Field]) -> Chunk:
        """Rows that can't be decoded: ``count`` of them from row ``first`` of the file on."""
        name = self.path.rsplit("/", 1)[-1]
        bad = {n: BadRow("unreadable", f"{name}@row {first + n}") for n in range(count)}
        nothing: list[Cell] = [None] * count
        return Chunk(nothing, list(nothing), [pa.nulls(count, item.type) for item in own], bad)


@dataclass(frozen=True)
class _Span:
    """Some rows of one row group. ``first_row`` counts from the file's start, ``skip`` from the group's."""

    group: int
    first_row: int
    skip: int
    rows: int


def _spans(metadata: Any, start: int, rows: int) -> Iterator[_Span]:
    """The parts of row groups that rows ``start`` to ``start + rows`` of a file lie in."""
    at = 0
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        first, last = max(start, at), min(start + rows, at + size)
        if first < last:
            yield _Span(group, first, first - at, last - first)
        at += size


def _batches(whole: pq.ParquetFile, span: _Span, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Record batches of exactly the span's rows. They are cut alike for every span of a row group."""
    skip, left = span.skip, span.rows
    for batch in whole.iter_batches(ROWS_PER_TABLE, [span.group], names):
        part = batch.slice(skip, left)
        skip = max(skip - len(batch), 0)
        left -= len(part)
        if len(part):
            yield part
        if not left:
            return


def _is_damage(fault: Exception) -> bool:
    """Whether Arrow could not decode the bytes. Failing disks and networks say so otherwise."""
    return isinstance(fault, pa.ArrowException) or (type(fault) is OSError and fault.errno is None)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _chunk(batch: pa.RecordBatch, url: str, caption: str, own: Sequence[pa.Field]) -> Chunk:
    extra = [_valid(_plain(batch.column(item.name))).cast(item.type) for item in own]
    return Chunk(_cells(batch.column(url)), _cells(batch.column(caption)), extra)


def _cells(column: pa.Array) -> list[Cell] | pa.Array:
    """Each value's bytes; what is neither string nor binary becomes NotText."""
    column = _plain(column)
    if _is_text(column.type) or pa.types.is_binary(column.type):
        # Nothing is validated by this cast: invalid UTF-8 gets its reason later.
        return column.cast(pa.large_binary())
    elif pa.types.is_temporal(column.type):
        return [
            text_cell(value if value is None else NotText(value.encode()))
            for value in column.cast(pa.string()).to_pylist()
        ]
    return [text_cell(value) for value in column.to_pylist()]


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _valid(column: pa.Array) -> pa.Array:
    """An extra column whose strings are valid UTF-8: damaged ones are decoded with replacement."""
    if not _is_text(column.type):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        cells = column.cast(pa.large_binary()).to_pylist()
        shown = [None if cell is None else cell.decode("utf-8", "replace") for cell in cells]
        return pa.array(shown, column.type)
    return column
