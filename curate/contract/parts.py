"""The pool's layout: parts of rows, sidecar columns, pictures; each committed whole or not at all.

POOL/pool.json                                      schema version, part count, source
POOL/rows/part-00000.parquet                        uid, url, caption + the source's own columns
POOL/images/<fingerprint>/part-00000.tar            pictures as fetched and resized
POOL/columns/<stage>-<fingerprint8>/part-00000.parquet   uid + that stage's new columns only
POOL/columns/<stage>-<fingerprint8>/manifest.json
each part-00000.parquet has a part-00000.json, which alone says that it is done (see done.py)
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import done, storage, tars
from curate.contract.done import Damaged, Written

_OLD_STATS_KEY = b"clip_pipe"  # in the footers of pools of schema version 1
_READ_AT_ONCE = 16
_ALL_DIFFER = frozenset({"uid", "url", "caption", "sha256", "value"})


def stage_folder(use: str, fingerprint: str) -> str:
    """``<stage>-<fingerprint8>``: the name of a stage's sidecar folder."""
    return f"{use.replace(':', '.').replace('/', '.')}-{fingerprint[:8]}"


class Pool:
    """One pool on disk or behind fsspec. Holds no state but its root, so it travels to any worker."""

    def __init__(self, root: str) -> None:
        self.root = root

    @property
    def description_path(self) -> str:
        return storage.join(self.root, "pool.json")

    def rows_path(self, part: int) -> str:
        return storage.join(self.root, "rows", f"part-{part:05d}.parquet")

    def images_path(self, fingerprint: str, part: int) -> str:
        return storage.join(self.root, "images", fingerprint, f"part-{part:05d}.tar")

    def columns_folder(self, use: str, fingerprint: str) -> str:
        return storage.join(self.root, "columns", stage_folder(use, fingerprint))

    def columns_path(self, use: str, fingerprint: str, part: int) -> str:
        return storage.join(self.columns_folder(use, fingerprint), f"part-{part:05d}.parquet")

    def work_folder(self, fingerprint: str) -> str:
        """Intermediate state of a global step or of sharding; safe to delete between runs."""
        return storage.join(self.root, "work", fingerprint[:8])

    def describe(self) -> dict[str, Any] | None:
        """The content of pool.json, or None where there is no pool yet."""
        if not storage.exists(self.description_path):
            return None
        return storage.read_json(self.description_path, "pool")


def write_table(
    path: str,
    table: pa.Table,
    stats: dict[str, Any] | None = None,
    row_group_rows: int | None = None,
) -> Written:
    """Commit a parquet file; with ``stats`` also its manifest, as ``write_part`` does."""
    if stats is not None:
        told, _ = write_part(path, table, stats, row_group_rows=row_group_rows)
        return Written(told["bytes"], told["sha256"])  # of whichever attempt counts
    with done.hashing(path) as file:
        pq.write_table(
            table,
            file,
            compression=_compression(table.schema),
            row_group_size=row_group_rows,
            use_dictionary=repetitive(table.schema),
        )
    return file.written


def write_part(
    path: str,
    table: pa.Table,
    stats: Mapping[str, Any],
    others: Mapping[str, tuple[str, Written]] | None = None,
    row_group_rows: int | None = None,
) -> tuple[dict[str, Any], bool]:
    """Commit a part: its table, then the manifest. (The manifest that counts, whether it is this attempt's.)

    ``others``: name -> (path, what was written) of what belongs to the part and is there already.
    """
    beside = {name: file for name, (file, _) in (others or {}).items()}
    before = prior_attempt(path, beside)
    if before is not None:
        return before, False
    own = write_table(path, table, row_group_rows=row_group_rows)
    return done.commit(path, stats, own, others or {})


def prior_attempt(path: str, beside: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """The manifest of a part that somebody has done meanwhile. To be asked before a file of it is written.

    What is there and damaged is set aside.
    """
    seen = done.look(path, beside)
    if seen.fault:
        done.set_aside(path, beside)
    return seen.stats


def _compression(schema: pa.Schema) -> dict[str, str]:
    """zstd for every leaf but the uids: to halve these takes longer than all the rest of a sidecar."""
    leaves = [leaf for item in schema for leaf in _leaves(item.name, item.type)]
    return {leaf: "none" if leaf == "uid" else "zstd" for leaf in leaves}


def _leaves(name: str, kind: pa.DataType) -> Iterator[str]:
    """Parquet's names of the columns that an Arrow column becomes."""
    if pa.types.is_struct(kind):
        for item in kind:
            yield from _leaves(f"{name}.{item.name}", item.type)
    elif pa.types.is_map(kind):
        yield from _leaves(f"{name}.key_value.key", kind.key_type)
        yield from _leaves(f"{name}.key_value.value", kind.item_type)
    elif pa.types.is_nested(kind):
        yield from _leaves(f"{name}.list.element", kind.value_type)
    else:
        yield name


def repetitive(schema: pa.Schema) -> list[str]:
    """Columns worth a parquet dictionary: words that repeat. Elsewhere it costs 2.5 times the CPU and bytes."""
    return [
        item.name
        for item in schema
        if pa.types.is_dictionary(item.type)
        or (pa.types.is_string(item.type) and item.name not in _ALL_DIFFER)
    ]


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """A parquet file of ours. Raises Damaged for one that is none."""
    with storage.open_file(path) as file:
        return _read(file, path, columns)


def _read(file: IO[Any], path: str, columns: list[str] | None) -> pa.Table:
    try:
        found = pq.ParquetFile(file).read(columns, use_threads=False)  # a task has one CPU
    except (pa.ArrowInvalid, OSError) as fault:
        raise Damaged(path, f"can't be read as parquet: {str(fault).splitlines()[0]}") from fault
    if columns is not None:
        found = found.select(columns)
    return found.replace_schema_metadata(None)


def read_part(path: str, columns: list[str] | None = None) -> pa.Table:
    """The table of a part that is done. Raises Damaged for one that is not, or has another size."""
    try:
        file = storage.open_file(path)
    except FileNotFoundError:
        done.checked(path)  # it says what is wrong
        raise
    with file:
        size = getattr(file, "size", None)  # of a remote file: its opening has told it
        done.checked(path, {} if size is None else {path: size})
        return _read(file, path, columns)


def read_parts(paths: Sequence[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The tables of parts that are done, in order; behind a URL some are asked for at once. Raises Damaged."""
    if not paths or not storage.is_url(paths[0]):
        yield from (read_part(path, columns) for path in paths)
        return
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for start in range(0, len(paths), _READ_AT_ONCE):
            some = paths[start : start + _READ_AT_ONCE]
            yield from pool.map(lambda path: read_part(path, columns), some)


def read_stats(path: str) -> dict[str, Any]:
    """The manifest of a part; {} where it has none."""
    return done.read(path) or {}


def adopt(path: str, beside: Mapping[str, str] | None = None) -> bool:
    """Give a part of a pool of schema version 1 the manifest it had in its footer."""
    with storage.open_file(path) as file:
        metadata = pq.read_schema(file).metadata or {}
    return done.adopt(path, json.loads(metadata.get(_OLD_STATS_KEY, b"{}")), beside)


def write_images(path: str, uids: list[str], images: list[bytes | None]) -> Written:
    """Commit a tar with one member per picture, named by uid; a uid's first picture counts."""
    written: set[str] = set()
    with done.hashing(path) as file:
        for uid, image in zip(uids, images, strict=True):
            if image is None or uid in written:
                continue
            written.add(uid)
            file.write(tars.member(f"{uid}.{tars.image_extension(image)}", image))
        file.write(tars.END)
    return file.written


def read_images(path: str) -> dict[str, bytes]:
    """uid -> encoded picture, of one part."""
    with storage.open_file(path) as file:
        return {member.name.split(".", 1)[0]: member.data for member in tars.walk(file, path)}


def uids_in_front(path: str, told: Mapping[str, Any]) -> set[str]:
    """Whose pictures a damaged tar still holds for sure: all, or those in front of where it was cut.

    ``told``: its bytes and sha256 when it was written.
    """
    if not storage.exists(path):
        return set()
    is_cut = storage.size_bytes(path) < int(told.get("bytes", -1))
    if not is_cut and done.digest_of(path) != told.get("sha256"):
        return set()
    found = set()
    with storage.open_file(path) as file, suppress(tars.TarDamage):
        for name, _, _ in tars.places(file, path):
            found.add(name.split(".", 1)[0])
    return found


class Pictures:
    """The pictures of one part, each read when it is asked for: all of them may take a gigabyte.

    Behind fsspec the tar is fetched whole, since small reads of an object store take a journey each.
    ``is_cut``: of a tar that was set aside, what stands in front of its damage.
    """

    def __init__(self, path: str, is_cut: bool = False) -> None:
        self._path, self._is_cut = path, is_cut
        self._file: IO[Any] | None = None
        self._places: dict[str, tuple[int, int]] = {}

    def __call__(self, uids: list[str]) -> list[bytes | None]:
        """The encoded pictures in the order of ``uids``, None where there is none. Raises Damaged."""
        try:
            if self._file is None:
                self._file = self._opened()
                with suppress(tars.TarDamage) if self._is_cut else nullcontext():
                    for name, offset, size in tars.places(self._file, self._path):
                        self._places[name.split(".", 1)[0]] = (offset, size)
            return [self._read(self._file, *self._places.get(uid, (0, 0))) for uid in uids]
        except FileNotFoundError as fault:
            raise Damaged(self._path, "is not there") from fault
        except tars.TarDamage as fault:
            raise Damaged(self._path, str(fault).removeprefix(f"{self._path}: ")) from fault

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> IO[Any]:
        file = storage.open_file(self._path)
        if not storage.is_url(self._path):
            return file
        with file:
            return io.BytesIO(file.read())

    def _read(self, file: IO[Any], offset: int, size: int) -> bytes | None:
        if not offset:
            return None
        file.seek(offset)
        data: bytes = file.read(size)
        if len(data) < size:
            raise tars.TarDamage(f"{self._path}: changed while it was read, at byte {offset}")
        return data
