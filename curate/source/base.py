"""What sources share: finding files, judging raw cells, and one table layout for good and bad rows.

A cell travels as the bytes that were found, so that a uid names what is in the file and not what a
decoder made of it. A bad row keeps its place and its count and gets ``error.<source>.<kind>``.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import shards, storage, tars
from curate.contract.columns import ROW_FIELDS
from curate.contract.columns import field as column_field
from curate.contract.draw import pair_uid
from curate.stage import KEEP, REASON, decision, error

ROWS_PER_TABLE = 4096
PICTURES_PER_TABLE = 256
RESERVED = ("uid", "url", "caption", "keep", "reason", "image", "part", "row")
# What a file or member must end in to be taken for a picture. Formats that shards do not hold are
# here too, so that such a picture is a row with the reason ``not_image`` and not passed over.
PICTURE_EXTENSIONS = (
    *shards.IMAGE_EXTENSIONS,
    "jfif",
    "bmp",
    "tif",
    "tiff",
    "heic",
    "heif",
    "jp2",
    "jxl",
)
_IDENTITY_FILES = 1000
_LISTED_FROM = 8  # files of one remote folder that are worth a listing of it
_ASKED_AT_ONCE = 32
LISTED = ("_files", "_marks")  # what a source found out of its files, and no worker needs
Marks = dict[str, tuple[int, str]]  # file -> (size in bytes, what its server calls this version)
_SHOWN_BYTES = 1000
_PICTURE_FIELDS = [column_field("sha256"), column_field("image")]


class NotText(bytes):
    """A cell whose value is no text (a number, a list): these bytes show it."""


Cell = bytes | None


@dataclass(frozen=True)
class BadRow:
    """A row that could not be taken apart: what is wrong, where it stands, and its bytes."""

    kind: str
    place: str = ""  # "<file name>@<offset>", shown as its url where it has none
    raw: bytes = b""  # shown as its caption then


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of a table: the two text columns as found, extra columns as Arrow.

    A text column is a list of cells, or a large_binary array of the bytes as found.
    """

    urls: list[Cell] | pa.Array
    captions: list[Cell] | pa.Array
    own: list[pa.Array] = field(default_factory=list)
    bad: dict[int, BadRow] = field(default_factory=dict)  # by position in this chunk

    def listed(self) -> Chunk:
        """The same with lists of cells."""
        return replace(self, urls=_listed(self.urls), captions=_listed(self.captions))


def files_of(path: str | Sequence[str], extensions: Iterable[str]) -> list[str]:
    """The files a ``path`` option names, in order and each once.

    A file stands for itself, a glob for its sorted matches, a folder for the files below it whose
    names end in one of ``extensions`` (sorted; names that start with ``_`` or ``.`` are left out).
    Raises ValueError where one of the paths yields nothing.
    """
    endings = tuple(f".{extension}" for extension in extensions)
    found: list[str] = []
    for entry in [path] if isinstance(path, str) else path:
        if not entry:
            raise ValueError("path is empty. hint: name a file, a glob or a folder")
        matches = _files_of_one(entry, endings)
        if not matches:
            raise ValueError(f"{entry}: {_nothing_found(entry, endings)}")
        found += matches
    if not found:
        raise ValueError("path names no file. hint: name a file, a glob or a folder")
    return list(dict.fromkeys(found))


def _files_of_one(entry: str, endings: tuple[str, ...]) -> list[str]:
    if storage.is_file(entry):
        return [entry]
    if not storage.exists(entry):  # a name that is there is never taken for a pattern
        return _globbed(entry) if _is_pattern(entry) else []
    return [
        name
        for name in below(entry)
        if name.lower().endswith(endings) and not name.rsplit("/", 1)[-1].startswith(("_", "."))
    ]


def _is_pattern(entry: str) -> bool:
    return any(letter in entry for letter in "*?[")


def _globbed(pattern: str) -> list[str]:
    """Sorted files that match; folders that do are left out."""
    return storage.glob(pattern, only_files=True)


def below(folder: str) -> list[str]:
    """Every file under a folder, sorted, each usable with ``storage.open_file``."""
    return storage.below(folder)


def _nothing_found(entry: str, endings: tuple[str, ...]) -> str:
    if _is_pattern(entry):
        return "no file matches. hint: check the pattern; a relative one is taken from the folder you run in"
    if not storage.exists(entry):
        return "no such file or folder. hint: check the path; a relative one is taken from the folder you run in"
    return f"the folder has no {', '.join(endings)} file. hint: name the files themselves, or set `format`"


def identity_files(files: Sequence[str]) -> tuple[str, ...]:
    """Files whose content stands for the source in fingerprints: all, or an even sample of very many.

    The plan reads each of them and every manifest names them, so a source of a million files can't
    list them all. Names and sizes of all are in ``names_and_sizes``; of more than 1,000 files, a change
    that keeps the size goes unseen in one that is not in the sample or has a name that is not UTF-8.
    """
    named = [name for name in files if _is_utf8(name.encode("utf-8", "surrogateescape"))]
    count = min(len(named), _IDENTITY_FILES)
    return tuple(named[n * len(named) // count] for n in range(count))


def marks_of(files: Sequence[str]) -> Marks:
    """Size in bytes and version of every file; '' for the version of those on disk.

    A remote folder is listed once for all of its files: a question for each of 40,000 takes minutes.
    """
    found: Marks = {name: (os.stat(name).st_size, "") for name in files if not storage.is_url(name)}
    away = [name for name in files if name not in found]
    folders = Counter(name.rpartition("/")[0] for name in away)
    for folder in (one for one, count in folders.items() if count >= _LISTED_FROM):
        with suppress(OSError, ValueError, NotImplementedError):  # a web server may list nothing
            found.update(storage.marks(folder))
    left = [name for name in away if found.get(name, (-1, ""))[0] < 0]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        found.update(zip(left, pool.map(storage.mark, left), strict=True))
    return {name: found[name] for name in files}


def names_and_sizes(marks: Mapping[str, tuple[int, str]], root: str = "") -> str:
    """A hash of every file's size and name, for ``Stage.identity``.

    Names are taken below ``root``, or below the folder that all files share: moving a source as a
    whole changes nothing.
    """
    files = list(marks)
    folders = [root.split("/")] if root else [name.split("/")[:-1] for name in files]
    shared = 0
    while folders and all(
        len(folder) > shared and folder[shared] == folders[0][shared] for folder in folders
    ):
        shared += 1
    digest = hashlib.sha256()
    for name in files:
        known = f"{'/'.join(name.split('/')[shared:])}\0{marks[name][0]}\n"
        digest.update(known.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def empty_source(files: Sequence[str]) -> ValueError:
    """The error for files that hold no row at all."""
    more = f" (and {len(files) - 1} more files)" if len(files) > 1 else ""
    return ValueError(f"{files[0]}{more}: the source is empty, it has no rows. hint: check `path`")


def missing_column(path: str, name: str, found: Sequence[str], option: str) -> ValueError:
    """The error for a column that a table lacks, with the nearest name and all there are."""
    lowered = {column.lower(): column for column in found}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    guess = f"did you mean {lowered[near[0]]!r}? " if near else ""
    columns = ", ".join(found[:30]) + (", ..." if len(found) > 30 else "")
    return ValueError(
        f"{path}: no column {name!r}; it has: {columns or 'none'}. hint: {guess}set the option `{option}`"
    )


def rows_table(
    use: str,
    chunk: Chunk,
    own_fields: Sequence[pa.Field],
    max_text_bytes: int,
    captions: bool = True,
) -> pa.Table:
    """A chunk as uid, url, caption, keep, reason and the source's own columns.

    Without ``captions`` those of the chunk are of no account: every good row has an empty one.
    """
    schema = pa.schema([*ROW_FIELDS, KEEP, REASON, *own_fields])
    if not captions:
        judged = _judged(use, chunk, max_text_bytes, captions)
        return pa.table([*judged, *chunk.own], schema=schema)
    plain = _plain_rows(chunk, max_text_bytes)
    if plain.all() and len(plain):
        return pa.table([*_plain_columns(chunk.urls, chunk.captions), *chunk.own], schema=schema)
    if not plain.any():
        return pa.table([*_judged(use, chunk, max_text_bytes), *chunk.own], schema=schema)
    mask = pa.array(plain)
    odd = Chunk(chunk.urls.filter(pc.invert(mask)), chunk.captions.filter(pc.invert(mask)))  # type: ignore[union-attr]
    columns = _plain_columns(chunk.urls.filter(mask), chunk.captions.filter(mask))  # type: ignore[union-attr]
    # Back into the order of the rows: a plain row's place is its rank among the plain ones.
    places = pa.array(np.where(plain, np.cumsum(plain), plain.sum() + np.cumsum(~plain)) - 1)
    whole = [
        pa.concat_arrays([one.cast(item.type), other.cast(item.type)]).take(places)
        for one, other, item in zip(columns, _judged(use, odd, max_text_bytes), schema)
    ]
    return pa.table([*whole, *chunk.own], schema=schema)


def _judged(
    use: str, chunk: Chunk, max_text_bytes: int, has_captions: bool = True
) -> list[pa.Array]:
    """uid, url, caption, keep, reason of each row, looked at one by one."""
    uids: list[str] = []
    urls: list[str | None] = []
    captions: list[str | None] = []
    reasons: list[str | None] = []
    for n, (url, caption) in enumerate(
        zip(_listed(chunk.urls), _listed(chunk.captions), strict=True)
    ):
        bad, most = chunk.bad.get(n), max_text_bytes
        if bad is not None and url is None and caption is None:
            url, caption, most = bad.place.encode("utf-8", "replace"), bad.raw, _SHOWN_BYTES
        elif not has_captions:
            caption = b""
        kind = bad.kind if bad is not None else judge(url, caption, max_text_bytes, has_captions)
        uids.append(pair_uid(url, caption))
        urls.append(_shown(url, most))
        captions.append(_shown(caption, most))
        reasons.append(None if kind is None else error(use, kind))
    return [
        *(pa.array(values, pa.string()) for values in (uids, urls, captions)),
        *decision(reasons),
    ]


def _listed(cells: list[Cell] | pa.Array) -> list[Cell]:
    return cells if isinstance(cells, list) else cells.to_pylist()


def _plain_columns(urls: pa.Array, captions: pa.Array) -> list[pa.Array]:
    """uid, url, caption, keep, reason of rows that need no look one by one."""
    joined = pc.binary_join_element_wise(urls, captions, pa.scalar(b"\0", pa.large_binary()))
    sha256 = hashlib.sha256  # as pair_uid, without its calls
    uids = [sha256(pair).hexdigest()[:32] for pair in joined.to_pylist()]
    keep = pa.array(np.ones(len(urls), dtype=bool))
    texts = [urls.cast(pa.string()), captions.cast(pa.string())]
    return [pa.array(uids, pa.string()), *texts, keep, pa.nulls(len(urls), REASON.type)]


def _plain_rows(chunk: Chunk, max_text_bytes: int) -> np.ndarray:
    """Rows that are good without a closer look: both texts UTF-8, not long, and begin with a visible ASCII letter."""
    count = len(chunk.urls)
    if chunk.bad or isinstance(chunk.urls, list) or isinstance(chunk.captions, list):
        return np.zeros(count, dtype=bool)
    plain = np.ones(count, dtype=bool)
    for column in (chunk.urls, chunk.captions):
        _, offset_bytes, bytes_ = column.buffers()
        offsets = np.frombuffer(offset_bytes, np.int64)[column.offset :][: count + 1]
        data = np.frombuffer(bytes_, np.uint8)
        lengths = np.diff(offsets)
        plain &= (lengths > 0) & (lengths <= max_text_bytes) & np.asarray(column.is_valid())
        first = data[np.minimum(offsets[:-1], max(len(data) - 1, 0))] if len(data) else 0
        plain &= (first > 32) & (first < 127)
        try:
            column.cast(pa.string())  # validates
        except pa.ArrowInvalid:
            return np.zeros(count, dtype=bool)
    return plain


def judge(url: Cell, caption: Cell, max_text_bytes: int, has_captions: bool = True) -> str | None:
    """What is wrong with a pair, or None: null_url, null_caption, not_text, not_utf8, too_long."""
    if url is None or _is_blank(url):
        return "null_url"
    if caption is None or (has_captions and _is_blank(caption)):
        return "null_caption"
    if isinstance(url, NotText) or isinstance(caption, NotText):
        return "not_text"
    if not (_is_utf8(url) and _is_utf8(caption)):
        return "not_utf8"
    return "too_long" if max(len(url), len(caption)) > max_text_bytes else None


def picture_fields() -> list[pa.Field]:
    """The columns of a source that brings pictures: sha256 of the bytes as found, and the bytes."""
    return list(_PICTURE_FIELDS)


def picture_fault(image: bytes | None) -> str | None:
    """no_image, not_image for bytes that begin like no picture the shards can hold, or None."""
    if image is None:
        return "no_image"
    return "not_image" if tars.image_extension(image) == "bin" else None


def picture_columns(images: Sequence[bytes | None]) -> list[pa.Array]:
    """The columns of ``picture_fields()`` for encoded pictures, null where there is none."""
    hashes = [None if image is None else hashlib.sha256(image).hexdigest() for image in images]
    return [pa.array(hashes, pa.string()), pa.array(images, pa.binary())]


def text_file_cell(data: bytes | None) -> Cell:
    """A whole text file as a cell: without the newline that ends it."""
    return None if data is None else data.removesuffix(b"\n").removesuffix(b"\r")


def text_cell(value: Any) -> Cell:
    """A Python value as a cell. Raw bytes that a ``surrogateescape`` decoder hid come back as they were."""
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return NotText(str(value)[:_SHOWN_BYTES].encode("utf-8", "replace"))
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON can hold: no UTF-8 either way
        return value.encode("utf-8", "surrogatepass")


def _is_blank(cell: bytes) -> bool:
    if cell and b" " < cell[:1] < b"\x7f":  # nearly every cell; spares the decoding
        return False
    return not cell.decode("utf-8", "replace").strip()


def _is_utf8(cell: bytes) -> bool:
    if cell.isascii():
        return True
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _shown(cell: Cell, most: int) -> str | None:
    return None if cell is None else cell[:most].decode("utf-8", "replace")
