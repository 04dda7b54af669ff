"""Shards at rest: which members a sample has, what the index says, and how foreign tars join in.

    SHARDS/00000.tar ... sizes.json index.parquet manifest.json ledger.parquet report.html

Members of a sample: ``{uid}.jpg`` (or the picture's own format), ``{uid}.txt`` (the alt-text),
``{uid}.json`` (captions, scores, provenance). open_clip, img2dataset and plain webdataset read them
unchanged, and shards of theirs are read here: an index is made by walking their tars.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import storage, tars

INDEX_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # file name of the tar, relative to the folder
        ("key", pa.string()),
        ("member", pa.string()),  # extension after the key: jpg, txt, json
        ("offset", pa.int64()),  # of the member's data, bytes from the tar's start
        ("size", pa.int64()),
        ("crc32", pa.uint32()),
    ]
)
UNFINISHED = ".clip-pipe-writing.json"  # in a folder whose shards are still being written
_ASKED_AT_ONCE = 32
_NAMED = 5  # of missing tars
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "avif")


def shard_name(number: int) -> str:
    return f"{number:05d}.tar"


def sample_block(
    key: str, members: Sequence[tuple[str, bytes]]
) -> tuple[bytes, list[dict[str, Any]]]:
    """The tar bytes of one sample, and its index rows with offsets relative to the block's start."""
    blocks: list[bytes] = []
    length = 0
    rows: list[dict[str, Any]] = []
    for extension, data in members:
        rows.append(
            {
                "key": key,
                "member": extension,
                "offset": length + tars.BLOCK_BYTES,
                "size": len(data),
                "crc32": zlib.crc32(data),
            }
        )
        blocks.append(tars.member(f"{key}.{extension}", data))
        length += len(blocks[-1])
    return b"".join(blocks), rows


def sample_json(record: dict[str, Any]) -> bytes:
    """Canonical JSON of a sample's record: equal content is equal bytes."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, default=str).encode(
        "utf-8", "replace"
    )


def list_tars(path: str) -> list[str]:
    """The tars of a shard set in order. ``path`` is a folder, one tar, a glob, or ``{000..012}.tar``.

    Raises ValueError for a path that holds no tar, and for a range of which some are missing.
    """
    if re.search(r"\{\d+\.\.\d+\}", path):
        found = _of_range(path)
    elif path.endswith(".tar") and "*" not in path:
        found = [path] if storage.exists(path) else []
    else:
        found = storage.glob(path) if "*" in path else storage.inside(path, "*.tar")
    if not found:
        raise ValueError(
            f"{path}: no tar files found. hint: give a folder of webdataset shards, one .tar, a glob, "
            "or a range like {00000..00012}.tar"
        )
    return found


def _of_range(path: str) -> list[str]:
    """The tars of a range; none at all where none is there."""
    names = _expand_braces(path)
    with ThreadPoolExecutor(_ASKED_AT_ONCE if storage.is_url(path) else 1) as pool:
        there = list(pool.map(storage.exists, names))
    missing = [
        name.rsplit("/", 1)[-1] for name, is_there in zip(names, there, strict=True) if not is_there
    ]
    if missing and len(missing) < len(names):
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ValueError(
            f"{path}: {', '.join(missing[:_NAMED])}{more} of {len(names)} are not there. "
            "hint: fetch them; a glob like *.tar takes what is there"
        )
    return [] if missing else names


def _expand_braces(path: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if match is None:
        return [path]
    width = len(match[1])
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [path[: match.start()] + f"{n:0{width}d}" + path[match.end() :] for n in numbers]


def index_tar(path: str, name: str = "") -> pa.Table:
    """The index of one tar by reading all of it, under ``name`` or the file's own.

    Raises tars.TarDamage, naming file and offset.
    """
    rows: list[dict[str, Any]] = []
    shard = name or path.rsplit("/", 1)[-1]
    with storage.open_file(path) as file:
        for member in tars.walk(file, path):
            key, extension = split_name(member.name)
            rows.append(
                {
                    "shard": shard,
                    "key": key,
                    "member": extension,
                    "offset": member.offset,
                    "size": member.size,
                    "crc32": zlib.crc32(member.data),
                }
            )
    return pa.Table.from_pylist(rows, INDEX_SCHEMA)


def split_name(name: str) -> tuple[str, str]:
    """(key of the sample, what stands behind its first dot in small letters) of a member's name."""
    folder, _, own = name.removeprefix("./").rpartition("/")
    key, _, extension = own.partition(".")
    return f"{folder}/{key}" if folder else key, extension.lower()


def tar_names(path: str) -> dict[str, str]:
    """The name that the index has for each tar of a set -> its path.

    Names are taken below the folder that all of them share: tars of one name in several folders
    stay apart.
    """
    found = list_tars(path)
    folders = [name.split("/")[:-1] for name in found]
    shared = 0
    while all(len(folder) > shared and folder[shared] == folders[0][shared] for folder in folders):
        shared += 1
    return {"/".join(name.split("/")[shared:]): name for name in found}


def load_index(path: str) -> pa.Table:
    """The index of a shard set: its ``index.parquet``, or made by walking tars that have none.

    Rows are in shard order, then in the order of members in the tar. Raises ValueError for a folder
    without tars, or whose index names tars that are not there.
    """
    found = tar_names(path)
    index_path = storage.join(path, "index.parquet")
    if path.endswith(".tar") or "*" in path or "{" in path or not storage.exists(index_path):
        return pa.concat_tables([index_tar(name, shard) for shard, name in found.items()])
    with storage.open_file(index_path) as file:
        index = pq.read_table(file, schema=INDEX_SCHEMA)
    missing = set(index["shard"].unique().to_pylist()) - set(found)
    if missing:
        raise ValueError(
            f"{index_path} names {sorted(missing)[0]}, which is not there. "
            "hint: the folder was copied incompletely; copy it again or run `clip-pipe curate` again"
        )
    return index


def read_member(file: IO[Any], offset: int, size: int, crc32: int, name: str) -> bytes:
    """One member's bytes by its index row. Raises tars.TarDamage where they are not what was indexed."""
    file.seek(offset)
    data = file.read(size)
    if len(data) != size or zlib.crc32(data) != crc32:
        raise tars.TarDamage(
            f"{name}: {len(data)} of {size} bytes at {offset}, checksum differs from the index"
        )
    return data


def captions_of(caption: str, record: dict[str, Any]) -> list[str]:
    """The alt-text and every added caption of a sample's ``json`` member, alt-text first.

    Foreign shards may hold anything there: texts are taken from strings and from objects with a
    ``text``, and whatever else stands in the list is no caption.
    """
    added = record.get("captions")
    texts = (
        [entry.get("text") if isinstance(entry, dict) else entry for entry in added]
        if isinstance(added, list)
        else []
    )
    return [caption, *(text for text in texts if isinstance(text, str) and text)]
