"""Rows from tables of (URL, alt-text): parquet, csv, tsv, jsonl, json or txt, one file or many.

Every row of the files is a row of the pool, good or bad. A bad one has its reason and shows what was
found, with undecodable bytes replaced; its uid is that of the bytes. The formats are those of
img2dataset's reader; a list of URLs without captions may be taken in, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

from curate.contract import storage
from curate.source.base import (
    LISTED,
    RESERVED,
    Marks,
    empty_source,
    files_of,
    identity_files,
    marks_of,
    names_and_sizes,
    rows_table,
)
from curate.source.tables import EXTENSIONS, Table, check_columns, has_captions, holds, open_table
from curate.stage import Part, SourceStage, path_option, tuning_option

_USE = "source.url_table"
_THREADS = 8
_THREADS_AWAY = 64  # footers of remote files are waited for together


@dataclass(frozen=True, kw_only=True)
class UrlTable(SourceStage):
    """Tables of image URLs and captions.

    Options:
        path: a file, a glob, a folder, or a list of these; local or any fsspec URL. Of a folder, json
            and txt files are taken only where `format` says so.
        url, caption: the columns' names. Strings, or binary that holds UTF-8. ``caption = ""`` for
            tables without captions: every row's is then empty, so that stages which match words
            refuse it and only pictures can be judged.
        format: parquet, csv, tsv, jsonl, json (one list of objects, or an object of columns) or txt (a
            URL a line, never a caption); empty means by each file's extension (`.gz` allowed for
            all but parquet, at the price of unpacking from the start for each part).
        quoting: whether ``"`` encloses fields; by default on for csv and off for tsv.
        keep_columns: further columns to carry along, with their types in the first file.
        max_caption_bytes: a longer caption (or URL) is refused as ``too_long`` and shown cut.
        rows_per_part: rows of one resumable part.
    """

    path: str | tuple[str, ...] = path_option()
    url: str = "url"
    caption: str = "caption"
    format: Literal["", "parquet", "csv", "tsv", "jsonl", "json", "txt"] = ""
    quoting: bool | None = None
    keep_columns: tuple[str, ...] = ()
    max_caption_bytes: int = 100_000
    rows_per_part: int = tuning_option(10_000)

    def writes(self) -> pa.Schema:
        return self._own

    def inputs(self) -> tuple[str, ...]:
        return identity_files(self._files)

    def sizes_bytes(self) -> dict[str, int]:
        return {path: size for path, (size, _) in self._marks.items()}

    def versions(self) -> dict[str, tuple[int, str]]:
        return self._marks

    def identity(self) -> str:
        return names_and_sizes(self._marks)

    def check(self) -> None:
        if self.rows_per_part < 1 or self.max_caption_bytes < 1:
            raise ValueError(
                "rows_per_part and max_caption_bytes must be 1 or more. hint: leave them out for the defaults"
            )
        taken = [name for name in self.keep_columns if name in RESERVED]
        if taken or len(set(self.keep_columns)) < len(self.keep_columns):
            what = (
                f"keep_columns names {taken[0]!r}" if taken else "keep_columns names a column twice"
            )
            raise ValueError(
                f"{what}. hint: {', '.join(RESERVED)} are the pool's own columns; each other one goes in once"
            )
        check_columns(self._first, self._wanted(self._first))

    def parts(self) -> list[Part]:
        fields = list(self._own)
        away = storage.is_url(self._files[0])
        with ThreadPoolExecutor(_THREADS_AWAY if away else _THREADS) as pool:
            slices = list(pool.map(lambda path: self._slices(path, fields), self._files))
        found = [
            {"path": path, **piece}
            for path, pieces in zip(self._files, slices, strict=True)
            for piece in pieces
        ]
        if not found:
            raise empty_source(self._files)
        return [Part(number, payload) for number, payload in enumerate(found)]

    def produce(self, part: Part) -> Iterator[pa.Table]:
        fields = list(self._own)
        table = self._table(part.payload["path"])
        captions = self._has_captions(table)
        caption = self.caption if captions else self.url  # whose cells are then not looked at
        for chunk in table.read(part.payload, self.url, caption, fields):
            yield rows_table(_USE, chunk, fields, self.max_caption_bytes, captions)

    @cached_property
    def _files(self) -> list[str]:
        return files_of(
            self.path, [self.format, f"{self.format}.gz"] if self.format else EXTENSIONS
        )

    @cached_property
    def _own(self) -> pa.Schema:
        if not self.keep_columns:
            return pa.schema([])
        schema = check_columns(self._first, self._wanted(self._first))
        types = {name: schema.field(name).type for name in self.keep_columns}
        # Nothing is known of a column that begins with nulls alone: texts hold whatever comes.
        return pa.schema(
            [
                (name, pa.string() if pa.types.is_null(kind) else kind)
                for name, kind in types.items()
            ]
        )

    @cached_property
    def _marks(self) -> Marks:
        return marks_of(self._files)

    def __getstate__(self) -> dict[str, Any]:
        """Without the list of files: it may be long, and workers get theirs with their part."""
        return {name: value for name, value in self.__dict__.items() if name not in LISTED}

    @cached_property
    def _first(self) -> Table:
        """The first file that has columns. Raises ValueError where none has (all are empty)."""
        for path in self._files:
            table = self._table(path)
            if table.schema().names:
                return table
        raise empty_source(self._files)

    def _wanted(self, table: Table) -> dict[str, str]:
        """Option -> name of each column that the table must have."""
        captions = {"caption": self.caption} if self._has_captions(table) else {}
        own = {f"keep_columns.{n}": name for n, name in enumerate(self.keep_columns)}
        return {"url": self.url} | captions | own

    def _has_captions(self, table: Table) -> bool:
        return bool(self.caption) and has_captions(table.path, self.format)

    def _table(self, path: str) -> Table:
        return open_table(path, self.format, self.quoting)

    def _slices(self, path: str, fields: list[pa.Field]) -> list[dict[str, Any]]:
        """The file's slices. Raises ValueError where its columns are not those of the first file."""
        table = self._table(path)
        pieces = table.slices(self.rows_per_part)
        if not pieces:
            return []
        schema = check_columns(table, self._wanted(table))
        for item in fields:
            if not holds(schema.field(item.name).type, item.type):
                raise ValueError(
                    f"{path}: column {item.name!r} is {schema.field(item.name).type}, in the first file it is {item.type}. "
                    "hint: leave it out of keep_columns, or write the files with equal types"
                )
        return pieces
