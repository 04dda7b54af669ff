"""Pictures, captions and embeddings of evaluation sets, from the files in which such sets are kept.

A path names a file, a glob, ``{00000..00012}.tar`` or a folder with all that is below it. Understood are
pictures, tars and tar.gz of pictures, parquet tables with a column ``image`` (bytes, or a struct with
``bytes``) or ``phash``; captions as text (one a line) or a table with a column ``caption``, also inside
tars; embeddings as npy or parquet. An item is named ``<set>/<member>``, after the path's last part.
"""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import shards, storage, tars
from curate.source.base import PICTURE_EXTENSIONS, ROWS_PER_TABLE, files_of
from curate.source.tables import Table, open_bytes, open_table

_TARS = ("tar", "tar.gz", "tgz")
_TABLES = ("csv", "tsv", "jsonl")
PICTURE_FILES = (*PICTURE_EXTENSIONS, *_TARS, "parquet")
CAPTION_FILES = ("txt", *_TABLES, *_TARS, "parquet")
EMBEDDING_FILES = ("npy", "parquet")
_NAMES = ("item", "uid", "key", "filepath", "file_name", "url")  # columns that may name a row
_READ_ROWS = 4096
_ONE_ARRAY = "hint: save one array with numpy.save"


def set_files(paths: tuple[str, ...], extensions: tuple[str, ...]) -> dict[str, str]:
    """The files of evaluation sets -> what their items' names start with. Raises ValueError."""
    found: dict[str, str] = {}
    for path in paths:
        folder = path.rstrip("/").rpartition("/")[0]
        matches = shards.list_tars(path) if "{" in path else files_of(path, extensions)
        for file in matches:
            start = len(folder) + 1 if file.startswith(f"{folder}/") else file.rfind("/") + 1
            found.setdefault(file, _without_extension(file[start:]))
    return found


def pictures(file: str, name: str) -> Iterator[tuple[str, bytes]]:
    """(item, encoded picture) for each picture of one file. Raises ValueError for a damaged file."""
    if file.endswith(".parquet"):
        for row, image in _rows(file, "image"):
            data = image.get("bytes") if isinstance(image, dict) else image
            if isinstance(data, bytes):
                yield f"{name}/{row}", data
    elif file.lower().endswith(_TARS):
        for member, data in _members(file):
            if member.lower().rpartition(".")[2] in PICTURE_EXTENSIONS:
                yield f"{name}/{member}", data
    else:
        with storage.open_file(file) as opened:
            yield f"{name}.{file.rpartition('.')[2]}", opened.read()


def hashes(file: str, name: str) -> Iterator[tuple[str, bytes | None]]:
    """(item, perceptual hash or None) for each row of a table of ours that has a column ``phash``."""
    for row, value in _rows(file, "phash"):
        yield f"{name}/{row}", value if isinstance(value, bytes) else None


def has_hashes(file: str) -> bool:
    """Whether a file is a table in which the hashes are stored already."""
    return file.endswith(".parquet") and "phash" in _schema(file).names


def captions(file: str, name: str) -> Iterator[tuple[str, str]]:
    """(item, caption) for each caption of one file. Raises ValueError for one without captions."""
    if file.lower().endswith(_TARS):
        for member, data in _members(file):
            kind = member.rpartition(".")[2].lower()
            inner = f"{name}/{_without_extension(member)}"
            if kind == "txt":
                yield from _lines(data, inner)
            elif kind in _TABLES:
                table = open_bytes(member, data)
                if "caption" in table.schema().names:  # a labels.csv has none
                    yield from _captions_of(table, inner)
    elif file.lower().endswith(".txt"):
        with storage.open_file(file) as opened:
            yield from _lines(opened.read(), name)
    else:
        table = open_table(file)
        if "caption" not in table.schema().names:
            raise ValueError(
                f"{file}: no column 'caption'; it has {', '.join(table.schema().names)}. hint: rename the column"
            )
        yield from _captions_of(table, name)


def embeddings(file: str, name: str, column: str) -> tuple[list[str], np.ndarray]:
    """Items and their embeddings, float32 of shape (items, D), of one file. Raises ValueError."""
    if file.endswith(".npy"):
        with storage.open_file(file) as opened:
            data = opened.read()
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as fault:
            what = str(fault).rstrip(".") if data else "empty"
            raise ValueError(f"{file}: {what}. {_ONE_ARRAY}") from fault
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{file}: an archive of several arrays. {_ONE_ARRAY}")
        items = [f"{name}/{row}" for row in range(len(array))] if array.ndim == 2 else []
    else:
        rows = list(_rows(file, column))
        items = [f"{name}/{row}" for row, value in rows if value is not None]
        try:
            array = np.array([value for _, value in rows if value is not None], np.float32)
        except (ValueError, TypeError) as fault:
            raise ValueError(
                f"{file}: the rows of {column!r} are no lists of equally many numbers. hint: make all of them with one model"
            ) from fault
    if array.ndim != 2 or not len(array) or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{file}: an array of shape {array.shape} and type {array.dtype}. hint: one row of floats for each picture"
        )
    return items, array.astype(np.float32)


def _rows(file: str, column: str) -> Iterator[tuple[str, Any]]:
    """(name, value) for each row of a parquet table; rows without a name are numbered."""
    names = _schema(file).names
    if column not in names:
        raise ValueError(
            f"{file}: no column {column!r}; it has {', '.join(names)}. hint: rename the column"
        )
    naming = next((name for name in _NAMES if name in names), None)
    wanted = [column] if naming is None else [column, naming]
    number = 0
    with _parquet(file) as table:
        for batch in table.iter_batches(_READ_ROWS, columns=wanted):
            for row in batch.to_pylist():
                yield str(number if naming is None else row[naming]), row[column]
                number += 1


def _schema(file: str) -> pa.Schema:
    with _parquet(file) as table:
        return table.schema_arrow


@contextmanager
def _parquet(file: str) -> Iterator[pq.ParquetFile]:
    """A parquet file to read from; what is wrong with it is a ValueError that names it."""
    try:
        with storage.open_file(file) as opened:
            yield pq.ParquetFile(opened)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as fault:
        raise ValueError(
            f"{file}: can't be read as parquet: {str(fault).rstrip('.')}. hint: fetch or write it again"
        ) from fault


def _captions_of(table: Table, name: str) -> Iterator[tuple[str, str]]:
    number = 0
    for piece in table.slices(ROWS_PER_TABLE):
        for chunk in table.read(piece, "caption", "caption", ()):
            found = chunk.captions
            for caption in found.to_pylist() if isinstance(found, pa.Array) else found:
                if caption:
                    yield f"{name}/{number}", caption.decode("utf-8", "replace")
                number += 1


def _lines(data: bytes, name: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines()):
        if line.strip():
            yield f"{name}/{number}", line


def _members(file: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file in a tar or tar.gz. Raises ValueError for a damaged one."""
    try:
        with _unpacked(file) as opened:
            for member in tars.walk(opened, file):
                yield member.name.removeprefix("./"), member.data
    except (tars.TarDamage, gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise ValueError(f"{file}: damaged: {fault}. hint: fetch it again") from fault


@contextmanager
def _unpacked(file: str) -> Iterator[IO[Any]]:
    with storage.open_file(file) as opened:
        if file.endswith(".tar"):
            yield opened
        else:
            with gzip.GzipFile(fileobj=opened) as packed:
                yield packed  # type: ignore[misc]


def _without_extension(name: str) -> str:
    for extension in (*_TARS, *EMBEDDING_FILES, *CAPTION_FILES, *PICTURE_EXTENSIONS):
        if name.lower().endswith(f".{extension}"):
            return name[: -len(extension) - 1]
    return name
