"""csv, tsv, jsonl and txt tables, read by byte ranges that start at record starts; `.gz` as well.

One splitter finds records both when a file is cut into slices and when a slice is read, so every cut
gives the same rows. Quoted fields follow RFC 4180 and may span lines. A record that does not (a quote
that never closes, text after a closing quote, a wrong number of fields) costs one line and no more:
that line is a bad row and reading goes on at the next. Blank lines are no rows. A txt file has one
column, `url`, and no header: each line is a URL, commas and quotes included.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import pyarrow as pa

from curate.contract import storage
from curate.source import json_rows
from curate.source.base import ROWS_PER_TABLE, BadRow, Chunk

_READ_BYTES = 1 << 20
_SPAN_BYTES = 1 << 20  # a quoted field that has not closed within this many bytes never does
_DELIMITERS = {"csv": b",", "tsv": b"\t"}


@dataclass(frozen=True)
class TextTable:
    """One csv, tsv, jsonl or txt file.

    ``quoting``: whether ``"`` encloses fields (csv and tsv). ``data``: the file's bytes where it lies
    inside another file; ``path`` then only names it.
    """

    path: str
    format: str
    quoting: bool
    data: bytes | None = None
    formats: ClassVar[tuple[str, ...]] = ("csv", "tsv", "jsonl", "txt")

    def schema(self) -> pa.Schema:
        """Column names and types: strings in csv, tsv and txt, what the first 1,000 rows hold in jsonl."""
        with self._open() as file:
            if self.format == "jsonl":
                lines = _records(_Window(file, 0), None, b"", False)
                return json_rows.schema(json_rows.parsed(line.raw) for line in lines)
            names, _ = self._header(file)
        return pa.schema([(name, pa.string()) for name in names])

    def slices(self, rows: int) -> list[dict[str, Any]]:
        """Byte ranges of at most ``rows`` rows each. Reads the whole file once."""
        found: list[dict[str, Any]] = []
        with self._open() as file:
            width, first = self._width(file)
            window = _Window(file, first)
            for number, record in enumerate(_records(window, width, self._delimiter, self.quoting)):
                if number % rows == 0:
                    found.append({"start": record.offset, "rows": 0})
                found[-1]["rows"] += 1
            ends = [entry["start"] for entry in found] + [window.position]
        return [{**entry, "end": end} for entry, end in zip(found, ends[1:], strict=False)]

    def read(
        self, piece: dict[str, Any], url: str, caption: str, own: Sequence[pa.Field]
    ) -> Iterator[Chunk]:
        """The rows of one slice."""
        names = [url, caption, *(item.name for item in own)]
        chunk = json_rows.chunk
        with self._open() as file:
            header, _ = ([], 0) if self.format == "jsonl" else self._header(file)
            window = _Window(file, piece["start"])
            width = len(header) or None
            places = [header.index(name) for name in names] if header else []
            rows: list[list[Any] | BadRow] = []
            for record in _records(window, width, self._delimiter, self.quoting):
                if record.offset >= piece["end"]:
                    break
                rows.append(self._values(record, places, names, own))
                if len(rows) == ROWS_PER_TABLE:
                    yield chunk(rows, own)
                    rows = []
        if rows:
            yield chunk(rows, own)

    def _values(
        self, record: _Record, places: list[int], names: list[str], own: Sequence[pa.Field]
    ) -> list[Any] | BadRow:
        """url and caption cells, then the extra columns' values."""
        bad = BadRow("bad_row", f"{self.path.rsplit('/', 1)[-1]}@{record.offset}", record.raw)
        if self.format == "jsonl":
            return json_rows.values(json_rows.parsed(record.raw), names, own) or bad
        if record.fields is None:
            return bad
        if self.format == "txt":
            line = record.raw.removeprefix(b"" if record.offset else json_rows.BOM)
            return [_without_newline(line)] * len(names)
        cells: list[Any] = [record.fields[place] for place in places]
        return [*cells[:2], *(cell.decode("utf-8", "replace") for cell in cells[2:])]

    @property
    def _delimiter(self) -> bytes:
        return _DELIMITERS.get(self.format, b"")

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The file's bytes, unpacked. Raises ValueError where a `.gz` file is damaged."""
        with storage.open_file(self.path) if self.data is None else io.BytesIO(self.data) as file:
            if not self.path.endswith(".gz"):
                yield file
                return
            try:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked
            except (EOFError, gzip.BadGzipFile, zlib.error) as fault:
                what = f"damaged gzip: {fault}".rstrip(".")
                raise ValueError(
                    f"{self.path}: {what}. hint: copy the file again, or leave it out"
                ) from fault

    def _width(self, file: IO[Any]) -> tuple[int | None, int]:
        if self.format == "jsonl":
            return None, 0
        names, first = self._header(file)
        return len(names), first

    def _header(self, file: IO[Any]) -> tuple[list[str], int]:
        """Column names, and the offset of the first byte after them."""
        if self.format == "txt":
            return (["url"], 0) if file.read(1) else ([], 0)
        window = _Window(file, 0)
        record = next(_records(window, None, self._delimiter, self.quoting), None)
        if record is None or record.fields is None:
            return [], window.position
        names = [
            cell.removeprefix(json_rows.BOM if n == 0 else b"")
            for n, cell in enumerate(record.fields)
        ]
        return [
            name.decode("utf-8", "replace").strip().strip('"') for name in names
        ], window.position


@dataclass(frozen=True)
class _Record:
    offset: int
    raw: bytes
    fields: list[bytes] | None  # None where the line can't be taken apart


class _Window:
    """A moving view of a file: bytes from ``position`` on, read as far as asked."""

    def __init__(self, file: IO[Any], start: int) -> None:
        file.seek(start)
        self._file, self._base, self.at = file, start, 0
        self.data = b""
        self.ended = False

    @property
    def position(self) -> int:
        """Offset in the file of the next unread byte."""
        return self._base + self.at

    def have(self, count: int) -> bool:
        """Whether ``count`` bytes lie ahead; reads more where they do not. False at the file's end."""
        while len(self.data) - self.at < count and not self.ended:
            # What is read doubles, so that a huge line costs linear time.
            more = self._file.read(max(_READ_BYTES, count, len(self.data)))
            self.ended = not more
            self._base += self.at
            self.data = self.data[self.at :] + more
            self.at = 0
        return len(self.data) - self.at >= count

    def line_end(self) -> int:
        """Index in ``data`` after the current line's newline; the end of data on the last line."""
        searched = 0
        while (found := self.data.find(b"\n", self.at + searched)) < 0:
            searched = len(self.data) - self.at
            if not self.have(searched + 1):
                return len(self.data)
        return found + 1


def _records(
    window: _Window, width: int | None, delimiter: bytes, quoting: bool
) -> Iterator[_Record]:
    """Every record from the window's position on. ``width`` is the number of fields asked for, if any."""
    pattern = _field_pattern(delimiter) if quoting and delimiter else None
    while window.have(1):
        offset, end = window.position, window.line_end()
        line = window.data[window.at : end]  # `at` is read after `line_end`, which may move it
        fields: list[bytes] | None = [line]
        if pattern is not None and b'"' in line:
            fields, end = _quoted(window, pattern, len(line))
        elif delimiter:
            fields = _without_newline(line).split(delimiter)
        if fields is None or width not in (None, len(fields)):
            fields, end = None, window.at + len(line)
        window.at = end
        if line.strip(b"\r\n"):
            yield _Record(offset, line, fields)


def _without_newline(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _field_pattern(delimiter: bytes) -> re.Pattern[bytes]:
    """One field and what ends it. Possessive, so that a long field costs one pass."""
    bare = rb'[^"\n%b][^\n%b]*+|' % (delimiter, delimiter)
    return re.compile(rb'(?:"((?:[^"]++|"")*+)"|(%b))(?:(%b)|(\r?\n)|(\r?\Z))' % (bare, delimiter))


def _quoted(
    window: _Window, pattern: re.Pattern[bytes], line_bytes: int
) -> tuple[list[bytes] | None, int]:
    """Fields of a record with quotes in its first line, and its end in ``window.data``; else None."""
    most = max(line_bytes, _SPAN_BYTES)
    window.have(most + 1)
    limit = min(len(window.data), window.at + most)
    fields: list[bytes] = []
    at = window.at
    while (match := pattern.match(window.data, at, limit)) is not None:
        quoted, bare, more, newline, _ = match.groups()
        cell = quoted.replace(b'""', b'"') if quoted is not None else bare
        fields.append(cell if more or quoted is not None else _without_newline(cell))
        at = match.end()
        if more:
            continue
        whole = newline is not None or (window.ended and limit == len(window.data))
        return (fields, at) if whole else (None, at)
    return None, at
