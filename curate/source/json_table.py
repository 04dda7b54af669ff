"""One JSON file as a table: a list of objects, or an object of columns as pandas writes it; `.gz` as well.

A list is cut at its objects, so a slice is read without the rest of the file; an object of columns is read
whole for each slice. What is no JSON is found before any work, and named with its place. An element that
is no object is a bad row.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from curate.contract import storage
from curate.source import json_rows
from curate.source.base import ROWS_PER_TABLE, BadRow, Chunk

_SPACE = re.compile(r"[ \t\r\n]*")
_SHAPES = "hint: it must be a list of objects, or an object of columns; one object a line is jsonl"


@dataclass(frozen=True)
class JsonTable:
    """One JSON file; the whole of it is in memory while it is cut into slices."""

    path: str
    formats: ClassVar[tuple[str, ...]] = ("json",)

    def schema(self) -> pa.Schema:
        """Column names and types, as the first 1,000 rows have them. Raises ValueError."""
        text = self._text(0, None)
        if _is_list(text):
            found = (text[start:end] for start, end in self._elements(text))
            return json_rows.schema(json_rows.parsed(_bytes(element)) for element in found)
        return json_rows.schema(self._records(text))

    def slices(self, rows: int) -> list[dict[str, Any]]:
        """Byte ranges of a list, row ranges of columns, of at most ``rows`` rows each. Raises ValueError."""
        text = self._text(0, None)
        if _is_list(text):
            places = list(self._elements(text))
            cuts = [places[first : first + rows] for first in range(0, len(places), rows)]
            return [{"start": cut[0][0], "end": cut[-1][1], "rows": len(cut)} for cut in cuts]
        count = len(self._records(text))
        return [{"row": first, "rows": min(rows, count - first)} for first in range(0, count, rows)]

    def read(
        self, piece: dict[str, Any], url: str, caption: str, own: Sequence[pa.Field]
    ) -> Iterator[Chunk]:
        """The rows of one slice."""
        names = [url, caption, *(item.name for item in own)]
        found: list[list[Any] | BadRow] = []
        for place, record, raw in self._piece(piece):
            bad = BadRow("bad_row", f"{self.path.rsplit('/', 1)[-1]}@{place}", raw)
            found.append(json_rows.values(record, names, own) or bad)
            if len(found) == ROWS_PER_TABLE:
                yield json_rows.chunk(found, own)
                found = []
        if found:
            yield json_rows.chunk(found, own)

    def _piece(self, piece: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any] | None, bytes]]:
        """(offset or row number, object, its bytes) of each row of a slice."""
        if "row" in piece:
            records = self._records(self._text(0, None))
            for number in range(piece["row"], piece["row"] + piece["rows"]):
                yield number, records[number], b""
            return
        text = self._text(piece["start"], piece["end"])
        for start, end in self._elements(f"[{text}]"):
            raw = _bytes(text[start - 1 : end - 1])  # a bracket stands before it
            yield piece["start"] + start - 1, json_rows.parsed(raw), raw

    def _elements(self, text: str) -> Iterator[tuple[int, int]]:
        """Where each element of a JSON list begins and ends. Raises ValueError for what is none."""
        decoder = json.JSONDecoder()
        at = _after_space(text, 0) + 1
        while True:
            at = _after_space(text, at)
            if text[at : at + 1] == "]":
                break
            try:
                _, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as fault:
                raise self._broken(at) from fault
            yield at, end
            at = _after_space(text, end)
            if text[at : at + 1] == ",":
                at += 1
            elif text[at : at + 1] != "]":
                raise self._broken(at)
        if _after_space(text, at + 1) < len(text):
            raise self._broken(at + 1)

    def _records(self, text: str) -> list[dict[str, Any]]:
        """The rows of an object of columns, in the order in which their names first come."""
        try:
            columns = (
                json.loads(_bytes(text).decode("utf-8", "surrogateescape")) if text.strip() else {}
            )
        except (ValueError, RecursionError) as fault:
            raise self._broken(getattr(fault, "pos", 0)) from fault
        if not isinstance(columns, dict):
            raise self._broken(0)
        rows: dict[Any, dict[str, Any]] = {}
        lengths = {len(column) for column in columns.values() if isinstance(column, list)}
        for name, column in columns.items():
            if not isinstance(column, list | dict) or len(lengths) > 1:
                raise ValueError(
                    f"{self.path}: the column {name!r} is no list or object of values, or of another length. {_SHAPES}"
                )
            pairs = column.items() if isinstance(column, dict) else enumerate(column)
            for row, value in pairs:
                rows.setdefault(str(row), {})[name] = value
        return list(rows.values())

    def _broken(self, at: int) -> ValueError:
        return ValueError(f"{self.path}: no JSON from byte {at} on. {_SHAPES}")

    def _text(self, start: int, end: int | None) -> str:
        """Bytes of the file, a character for each, so that places in it are places in the file."""
        try:
            with storage.open_file(self.path) as file:
                if self.path.endswith(".gz"):
                    with gzip.GzipFile(fileobj=file) as unpacked:
                        return _read(unpacked, start, end)
                return _read(file, start, end)
        except (EOFError, gzip.BadGzipFile, zlib.error) as fault:
            what = f"damaged gzip: {fault}".rstrip(".")
            raise ValueError(
                f"{self.path}: {what}. hint: copy the file again, or leave it out"
            ) from fault


def _read(file: Any, start: int, end: int | None) -> str:
    file.seek(start)
    data: bytes = file.read(-1 if end is None else end - start)
    if not start and data.startswith(json_rows.BOM):
        data = data.replace(json_rows.BOM, b"   ", 1)  # places stay what they are
    return data.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # it may be empty
    return match.end()


def _is_list(text: str) -> bool:
    at = _after_space(text, 0)
    return text[at : at + 1] == "["
