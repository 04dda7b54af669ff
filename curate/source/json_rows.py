"""JSON objects as rows: cells of the two text columns, extra columns by type, and what types a file's columns have."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from curate.source.base import BadRow, Cell, Chunk, text_cell

BOM = b"\xef\xbb\xbf"
_LOOK_ROWS = 1000  # rows of a file that tell its columns and their types


def values(
    record: dict[str, Any] | None, names: Sequence[str], own: Sequence[pa.Field]
) -> list[Any] | None:
    """The url and caption cells, then the extra columns' values; None for a row that does not fit them."""
    if record is None:
        return None
    found = [record.get(name) for name in names]
    extra = [_fitted(value, item.type) for value, item in zip(found[2:], own, strict=True)]
    if any(
        kept is None and value is not None for kept, value in zip(extra, found[2:], strict=True)
    ):
        return None
    return [*(text_cell(value) for value in found[:2]), *extra]


def parsed(text: bytes) -> dict[str, Any] | None:
    """The object that some bytes are, or None. Bytes that are not UTF-8 come through as they were."""
    try:
        record = json.loads(text.removeprefix(BOM).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def schema(records: Iterable[dict[str, Any] | None]) -> pa.Schema:
    """Columns: string, int64, float64 or bool, as the first 1,000 rows have them; null where all are null."""
    kinds: dict[str, set[type]] = {}
    for record in itertools.islice(records, _LOOK_ROWS):
        for name, value in (record or {}).items():
            kinds.setdefault(name, set()).add(type(value))
    return pa.schema([(name, _type(found)) for name, found in kinds.items()])


def chunk(rows: list[list[Any] | BadRow], own: Sequence[pa.Field]) -> Chunk:
    """Rows as ``values`` gives them, bad ones in between."""
    bad = {n: row for n, row in enumerate(rows) if isinstance(row, BadRow)}
    known = [[None] * (2 + len(own)) if isinstance(row, BadRow) else row for row in rows]
    urls: list[Cell] = [row[0] for row in known]
    captions: list[Cell] = [row[1] for row in known]
    extra = [pa.array([row[2 + n] for row in known], item.type) for n, item in enumerate(own)]
    return Chunk(urls, captions, extra, bad)


def _type(kinds: set[type]) -> pa.DataType:
    known = kinds - {type(None)}
    if not known:
        return pa.null()
    if known <= {int, float}:
        return pa.float64() if float in known else pa.int64()
    return pa.bool_() if known == {bool} else pa.string()


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """The value where it fits the column's type, else None."""
    if pa.types.is_string(kind):
        cell = text_cell(value)
        return None if cell is None else cell.decode("utf-8", "replace")
    if pa.types.is_integer(kind) and isinstance(value, float) and not value.is_integer():
        return None  # Arrow would cut it
    try:
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None
