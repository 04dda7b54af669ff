"""Rows from a folder of pictures: each with a text file of the same name, or named in a captions table."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from curate.contract import storage
from curate.source.base import (
    LISTED,
    PICTURE_EXTENSIONS,
    PICTURES_PER_TABLE,
    BadRow,
    Cell,
    Chunk,
    Marks,
    below,
    identity_files,
    marks_of,
    names_and_sizes,
    picture_columns,
    picture_fault,
    picture_fields,
    rows_table,
    text_file_cell,
)
from curate.source.tables import Table, check_columns, open_table
from curate.stage import Part, SourceStage, path_option, tuning_option

_USE = "source.folder"
# What a name in a table can lead to besides a file. A failing disk is none of these and ends the run.
_NOT_THERE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES)


@dataclass(frozen=True, kw_only=True)
class Folder(SourceStage):
    """A folder (and all below it) of pictures and captions; ``url`` is the path inside the folder.

    Options:
        path: the folder, local or any fsspec URL.
        captions: a parquet, csv, tsv or jsonl table inside the folder with a row for each picture
            and caption; empty means a ``.txt`` beside each picture.
        filepath, caption: that table's columns; file paths are relative to the folder.
        max_caption_bytes: a longer caption is refused as ``too_long`` and shown cut.
        rows_per_part: rows of one resumable part. Beyond a million pictures, pack tars instead.
    """

    path: str = path_option()
    captions: str = ""
    filepath: str = "filepath"
    caption: str = "caption"
    max_caption_bytes: int = 100_000
    rows_per_part: int = tuning_option(1000)

    def writes(self) -> pa.Schema:
        return pa.schema(picture_fields())

    def inputs(self) -> tuple[str, ...]:
        # The table first: it is hashed even where the pictures are only sampled.
        table = [storage.join(self.path, self.captions)] if self.captions else []
        return identity_files(list(dict.fromkeys([*table, *self._files])))

    def versions(self) -> dict[str, tuple[int, str]]:
        return self._marks

    def identity(self) -> str:
        return names_and_sizes(self._marks, self.path.rstrip("/"))

    def check(self) -> None:
        if self.rows_per_part < 1 or self.max_caption_bytes < 1:
            raise ValueError(
                "rows_per_part and max_caption_bytes must be 1 or more. hint: leave them out for the defaults"
            )
        if self._files == [self.path]:
            raise ValueError(
                f"{self.path}: a file, not a folder. hint: name the folder that holds it"
            )
        if not self._files:
            what = "the folder is empty" if storage.exists(self.path) else "no such folder"
            raise ValueError(
                f"{self.path}: {what}. hint: check the path; a relative one is taken from the folder you run in"
            )
        if self.captions:
            self._reader()

    def parts(self) -> list[Part]:
        pieces = (
            self._reader().slices(self.rows_per_part) if self.captions else self._named_pieces()
        )
        if not pieces:
            raise ValueError(
                f"{self.path}: the source is empty, no picture or caption in it. hint: check `path` and `captions`"
            )
        return [Part(number, piece) for number, piece in enumerate(pieces)]

    def produce(self, part: Part) -> Iterator[pa.Table]:
        chunks = (
            self._table_chunks(part.payload)
            if self.captions
            else [self._named_chunk(part.payload["samples"])]
        )
        for chunk in chunks:
            for start in range(0, len(chunk.urls), PICTURES_PER_TABLE):
                yield self._table(
                    chunk, range(start, min(start + PICTURES_PER_TABLE, len(chunk.urls)))
                )

    @cached_property
    def _files(self) -> list[str]:
        return below(self.path)

    @cached_property
    def _marks(self) -> Marks:
        return marks_of(self._files)

    def __getstate__(self) -> dict[str, Any]:
        """Without the list of files: it may be long, and workers get theirs with their part."""
        return {name: value for name, value in self.__dict__.items() if name not in LISTED}

    def _reader(self) -> Table:
        path = storage.join(self.path, self.captions)
        if not storage.exists(path):
            raise ValueError(
                f"{path}: no such captions table. hint: `captions` is its path inside the folder"
            )
        table = open_table(path)
        check_columns(table, {"filepath": self.filepath, "caption": self.caption})
        return table

    def _named_pieces(self) -> list[dict[str, Any]]:
        """Parts that name their samples, so that files which come later do not move anything."""
        root = len(storage.named(self.path).rstrip("/")) + 1
        samples = _samples([name[root:] for name in self._files])
        step = self.rows_per_part
        return [
            {"samples": samples[start : start + step]} for start in range(0, len(samples), step)
        ]

    def _named_chunk(self, samples: list[list[str]]) -> Chunk:
        """Rows of [picture, text] pairs of names; '' for the one that is missing."""
        urls: list[Cell] = [
            (image or text).encode("utf-8", "surrogateescape") for image, text in samples
        ]
        captions = [text_file_cell(self._read(text)) for _, text in samples]
        return Chunk(
            urls,
            captions,
            bad={n: BadRow("no_image") for n, (image, _) in enumerate(samples) if not image},
        )

    def _table_chunks(self, piece: dict[str, Any]) -> Iterator[Chunk]:
        for chunk in self._reader().read(piece, self.filepath, self.caption, ()):
            yield chunk.listed()

    def _table(self, chunk: Chunk, rows: range) -> pa.Table:
        """Some rows of a chunk with their pictures."""
        bad = {n - rows.start: chunk.bad[n] for n in rows if n in chunk.bad}
        images: list[bytes | None] = []
        for n in rows:
            url = chunk.urls[n]
            image = (
                None
                if url is None or n in chunk.bad
                else self._read(url.decode("utf-8", "surrogateescape"))
            )
            fault = picture_fault(image)
            if fault is not None and url:
                bad.setdefault(n - rows.start, BadRow(fault))
            images.append(image)
        some = slice(rows.start, rows.stop)
        piece = Chunk(chunk.urls[some], chunk.captions[some], picture_columns(images), bad)
        return rows_table(_USE, piece, picture_fields(), self.max_caption_bytes)

    def _read(self, name: str) -> bytes | None:
        """A file of the folder, or None where there is none. A name never leads out of the folder."""
        if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
            return None
        try:
            with storage.open_file(storage.join(self.path, name)) as file:
                return file.read()
        except OSError as fault:
            if fault.errno in _NOT_THERE or isinstance(fault, FileNotFoundError):
                return None
            raise


def _samples(names: list[str]) -> list[list[str]]:
    """[picture, text] for every picture (its text may be '') and every text that has no picture."""
    names = [name for name in names if not name.rpartition("/")[2].startswith(".")]
    texts = {name[: -len(".txt")]: name for name in names if name.endswith(".txt")}
    images = [name for name in names if name.rpartition(".")[2].lower() in PICTURE_EXTENSIONS]
    stems = {name.rpartition(".")[0] for name in images}
    paired = [[name, texts.get(name.rpartition(".")[0], "")] for name in images]
    return sorted(
        [*paired, *(["", text] for stem, text in texts.items() if stem not in stems)],
        key=lambda pair: pair[0] or pair[1],
    )
