"""Which reader a table file gets: by its extension, or by the format that was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pyarrow as pa

from curate.source.base import Chunk, missing_column
from curate.source.json_table import JsonTable
from curate.source.parquet_table import ParquetTable
from curate.source.text_table import TextTable

FORMATS = (*ParquetTable.formats, *TextTable.formats, *JsonTable.formats)
# What is taken from a folder unasked. A json or txt file there is more often a note than a table.
EXTENSIONS = (
    "parquet",
    *(f"{name}{end}" for name in ("csv", "tsv", "jsonl") for end in ("", ".gz")),
)
WITHOUT_CAPTIONS = ("txt",)
_INSIDE = ("csv", "tsv", "jsonl")  # tables that may lie inside a tar


class Table(Protocol):
    """A file of rows that can be cut into slices and read slice by slice."""

    @property
    def path(self) -> str: ...

    def schema(self) -> pa.Schema: ...

    def slices(self, rows: int) -> list[dict[str, Any]]: ...

    def read(
        self, piece: dict[str, Any], url: str, caption: str, own: Sequence[pa.Field]
    ) -> Iterator[Chunk]: ...


def open_table(path: str, format: str = "", quoting: bool | None = None) -> Table:
    """The reader of one file. ``quoting`` None means on for csv, off for tsv.

    Raises ValueError for a file whose extension says no known format while ``format`` is empty.
    """
    kind = format or format_of(path)
    if kind == "parquet":
        return ParquetTable(path)
    if kind in JsonTable.formats:
        return JsonTable(path)
    return TextTable(path, kind, kind == "csv" if quoting is None else quoting)


def open_bytes(name: str, data: bytes) -> Table:
    """The reader of a csv, tsv or jsonl file that lies inside another file. ``name`` is for messages."""
    kind = format_of(name)
    if kind not in _INSIDE:
        raise ValueError(
            f"{name}: a {kind} table inside a tar. hint: use one of {', '.join(_INSIDE)}"
        )
    return TextTable(name, kind, kind == "csv", data)


def format_of(path: str) -> str:
    """parquet, csv, tsv, jsonl, txt or json, from the file's name. Raises ValueError."""
    name = path.rsplit("/", 1)[-1].lower().removesuffix(".gz")
    for kind in FORMATS:
        if name.endswith(f".{kind}"):
            return kind
    raise ValueError(
        f"{path}: the name says no known format. hint: set `format` to one of {', '.join(FORMATS)}"
    )


def has_captions(path: str, format: str = "") -> bool:
    """Whether a file's format can hold captions beside its URLs."""
    return (format or format_of(path)) not in WITHOUT_CAPTIONS


def holds(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of one file can be taken for one of another's type.

    A column of which the first rows of a JSON file are null has no type of its own.
    """
    return found == wanted or pa.types.is_null(found)


def check_columns(table: Table, wanted: dict[str, str]) -> pa.Schema:
    """The table's schema; every column of ``wanted`` (option -> name) is in it, else ValueError."""
    schema = table.schema()
    for option, name in wanted.items():
        if name not in schema.names:
            raise missing_column(table.path, name, schema.names, option)
        if schema.names.count(name) > 1:
            raise ValueError(
                f"{table.path}: two columns are named {name!r}. hint: rename one, or set `{option}`"
            )
    return schema
