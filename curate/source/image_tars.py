"""Rows from tars that hold pictures with their captions: webdataset shards, or a table in the tar.

A sample is what shares a name up to its first dot, as in webdataset. Members may be in any order; a
second picture or text under one name is a second sample. A damaged tar keeps the rows before the
damage and has one more row that says where it is; webdataset drops the rest of such a tar silently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from curate.contract import shards, storage, tars
from curate.source.base import (
    LISTED,
    PICTURE_EXTENSIONS,
    PICTURES_PER_TABLE,
    ROWS_PER_TABLE,
    BadRow,
    Cell,
    Chunk,
    Marks,
    identity_files,
    marks_of,
    names_and_sizes,
    picture_columns,
    picture_fault,
    picture_fields,
    rows_table,
    text_cell,
    text_file_cell,
)
from curate.source.tables import Table, check_columns, format_of, open_bytes
from curate.stage import Part, SourceStage, path_option

_USE = "source.image_tars"
_KINDS = {**dict.fromkeys(PICTURE_EXTENSIONS, "image"), "txt": "txt", "json": "json"}


@dataclass(frozen=True, kw_only=True)
class ImageTars(SourceStage):
    """Tars of pictures and captions; one part each.

    Options:
        path: a folder of tars, one tar, a glob, ``{00000..00012}.tar``, or a list of these.
        captions: name of a csv, tsv or jsonl table inside each tar that gives a row for each
            picture and caption; empty means webdataset samples (picture, ``.txt`` or ``.json``).
        filepath, caption: that table's columns.
        max_caption_bytes: a longer caption is refused as ``too_long`` and shown cut.

    ``url`` is the json's ``url``, else ``<tar name>/<member name>`` (with the tar's folder where two
    tars have one name); a caption is the ``.txt``, else
    the json's ``caption``. Rows of one picture with several captions have one ``sha256``, so
    ``filter.duplicate_image`` would leave one of them.
    """

    path: str | tuple[str, ...] = path_option()
    captions: str = ""
    filepath: str = "filepath"
    caption: str = "caption"
    max_caption_bytes: int = 100_000

    def writes(self) -> pa.Schema:
        return pa.schema(picture_fields())

    def inputs(self) -> tuple[str, ...]:
        return identity_files(self._files)

    def sizes_bytes(self) -> dict[str, int]:
        return {path: size for path, (size, _) in self._marks.items()}

    def versions(self) -> dict[str, tuple[int, str]]:
        return self._marks

    def identity(self) -> str:
        return names_and_sizes(self._marks)

    def check(self) -> None:
        if self.captions:
            format_of(self.captions)
        if not self._files:
            raise ValueError("path names no tar. hint: name a folder of tars, a tar or a glob")

    def parts(self) -> list[Part]:
        if not any(_has_rows(path) for path in self._files):
            raise ValueError(
                f"{self._files[0]}: the source is empty, no tar holds a picture. hint: check `path`"
            )
        if self.captions:
            _Tar(self._files[0]).check_table(self.captions, self.filepath, self.caption)
        names = _names(self._files)
        return [
            Part(number, {"path": path, "name": names[path]})
            for number, path in enumerate(self._files)
        ]

    def produce(self, part: Part) -> Iterator[pa.Table]:
        tar = _Tar(part.payload["path"], part.payload["name"])
        rows: list[_Row] = []
        for row in self._rows(tar):
            rows.append(row)
            if len(rows) == PICTURES_PER_TABLE:
                yield self._table(rows)
                rows = []
        if rows:
            yield self._table(rows)

    @cached_property
    def _files(self) -> list[str]:
        entries = [self.path] if isinstance(self.path, str) else self.path
        return list(dict.fromkeys(name for entry in entries for name in shards.list_tars(entry)))

    @cached_property
    def _marks(self) -> Marks:
        return marks_of(self._files)

    def __getstate__(self) -> dict[str, Any]:
        """Without the list of files: it may be long, and workers get theirs with their part."""
        return {name: value for name, value in self.__dict__.items() if name not in LISTED}

    def _rows(self, tar: _Tar) -> Iterator[_Row]:
        yield from (
            tar.table_rows(self.captions, self.filepath, self.caption)
            if self.captions
            else tar.sample_rows()
        )
        if tar.damage is not None:
            yield _Row(None, None, None, tar.damage)

    def _table(self, rows: list[_Row]) -> pa.Table:
        bad = {n: row.bad for n, row in enumerate(rows) if row.bad is not None}
        images = [row.image for row in rows]
        chunk = Chunk(
            [row.url for row in rows], [row.caption for row in rows], picture_columns(images), bad
        )
        return rows_table(_USE, chunk, picture_fields(), self.max_caption_bytes)


@dataclass(frozen=True)
class _Row:
    url: Cell
    caption: Cell
    image: bytes | None
    bad: BadRow | None = None


class _Tar:
    """All of one tar in memory, as far as it can be read."""

    def __init__(self, path: str, name: str = "") -> None:
        self.path, self.name = path, name or path.rsplit("/", 1)[-1]
        self.damage: BadRow | None = None

    def members(self) -> Iterator[tars.Member]:
        """Members up to the end or the damage."""
        end = 0
        with storage.open_file(self.path) as file:
            try:
                for member in tars.walk(file, self.path):
                    end = member.offset + member.size + -member.size % tars.BLOCK_BYTES
                    yield member
            except tars.TarDamage as fault:
                # Without the folder's name: the row's uid must not change when the tar is moved.
                what = str(fault).removeprefix(f"{self.path}: ").encode("utf-8", "replace")
                self.damage = BadRow("damaged_tar", f"{self.name}@{end}", what)

    def sample_rows(self) -> Iterator[_Row]:
        """A row for each webdataset sample, in the order of their first members."""
        samples: list[tuple[str, dict[str, bytes]]] = []
        newest: dict[str, dict[str, bytes]] = {}
        for member in self.members():
            key, kind = _key_and_kind(member.name)
            if kind is None:
                continue
            if kind in newest.get(key, {kind: b""}):
                newest[key] = {}
                samples.append((key, newest[key]))
            newest[key][kind] = member.data
        newest.clear()
        samples.reverse()
        while samples:  # taken off one by one, so that a picture is not held twice
            yield self._sample_row(*samples.pop())

    def _sample_row(self, key: str, sample: dict[str, bytes]) -> _Row:
        record, bad = _record(sample.get("json"))
        url = text_cell(record.get("url")) or f"{self.name}/{key}".encode(
            "utf-8", "surrogateescape"
        )
        caption = (
            text_file_cell(sample["txt"]) if "txt" in sample else text_cell(record.get("caption"))
        )
        image = sample.get("image")
        kind = "bad_row" if bad else picture_fault(image)
        return _Row(url, caption, image, BadRow(kind) if kind else None)

    def table_rows(self, table_name: str, filepath: str, caption: str) -> Iterator[_Row]:
        """A row for each line of the tar's own captions table; several lines may name one picture."""
        found = {member.name.removeprefix("./"): member.data for member in self.members()}
        try:
            reader, folder = self._reader(found, table_name, filepath, caption)
        except ValueError as fault:
            yield _Row(
                None,
                None,
                None,
                BadRow("bad_table", f"{self.name}@{table_name}", str(fault).encode()),
            )
            return
        for piece in reader.slices(ROWS_PER_TABLE):
            for chunk in reader.read(piece, filepath, caption, ()):
                yield from self._chunk_rows(chunk, folder, found)

    def check_table(self, table_name: str, filepath: str, caption: str) -> None:
        """Raises ValueError where the tar has no such table, or the table lacks a column."""
        self._reader(
            {member.name.removeprefix("./"): member.data for member in self.members()},
            table_name,
            filepath,
            caption,
        )

    def _reader(
        self, found: dict[str, bytes], table_name: str, filepath: str, caption: str
    ) -> tuple[Table, str]:
        """The captions table's reader, and the folder inside the tar that it stands in."""
        at = next(
            (name for name in found if name == table_name or name.endswith(f"/{table_name}")), None
        )
        if at is None:
            raise ValueError(
                f"{self.path}: no {table_name!r} in it. hint: set `captions` to the table's name, or leave it out"
            )
        reader = open_bytes(f"{self.name}:{table_name}", found[at])
        check_columns(reader, {"filepath": filepath, "caption": caption})
        return reader, at[: -len(table_name)]

    def _chunk_rows(self, chunk: Chunk, folder: str, found: dict[str, bytes]) -> Iterator[_Row]:
        for n, (file, text) in enumerate(zip(chunk.urls, chunk.captions, strict=True)):
            bad = chunk.bad.get(n)
            if bad is not None or not file:
                yield _Row(file, text, None, bad)
                continue
            name = file.decode("utf-8", "surrogateescape")
            image = found.get(folder + name.removeprefix("./"))
            fault = picture_fault(image)
            url = f"{self.name}/".encode() + file
            yield _Row(url, text, image, BadRow(fault) if fault else None)


def _names(paths: list[str]) -> dict[str, str]:
    """A name for each tar: its file name, with as many of its folders as set all apart."""
    for depth in range(1, max(path.count("/") for path in paths) + 2):
        names = {path: "/".join(path.split("/")[-depth:]) for path in paths}
        if len(set(names.values())) == len(paths):
            return names
    return {path: path for path in paths}


def _key_and_kind(name: str) -> tuple[str, str | None]:
    """The sample a member belongs to, and image, txt, json or None for what is none of these.

    A key ends at the first dot, as webdataset has it. Where what follows is no known kind, a picture
    or text is keyed up to its last dot, so that `IMG.2020.jpg` is a row too.
    """
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    if stem and extension.lower() not in _KINDS:
        last = base.rpartition(".")
        if _KINDS.get(last[2].lower()) in ("image", "txt"):
            stem, _, extension = last
    return folder + slash + stem, _KINDS.get(extension.lower()) if stem else None


def _record(data: bytes | None) -> tuple[dict[str, Any], bool]:
    """A sample's json, and whether it is there but no JSON object."""
    if data is None:
        return {}, False
    try:
        record = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return {}, True
    return (record, False) if isinstance(record, dict) else ({}, True)


def _has_rows(path: str) -> bool:
    """Whether a tar holds anything that becomes a row: a picture, a text, or damage."""
    tar = _Tar(path)
    return (
        any(_key_and_kind(member.name)[1] is not None for member in tar.members())
        or tar.damage is not None
    )
