"""The pool's layout: parts of rows, sidecar columns, pictures; each committed whole or not at all.

POOL/pool.json                                      schema version, part count, source
POOL/rows/part-00000.parquet                        uid, url, caption + the source's own columns
POOL/images/<fingerprint>/part-00000.tar            pictures as fetched and resized
POOL/columns/<stage>-<fingerprint8>/part-00000.parquet   uid + that stage's new columns only
POOL/columns/<stage>-<fingerprint8>/manifest.json
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract import storage, tars

_STATS_KEY = b"clip_pipe"
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
) -> None:
    """Commit a parquet file; ``stats`` (JSON) travel in its footer."""
    if stats is not None:
        metadata = {**(table.schema.metadata or {}), _STATS_KEY: json.dumps(stats).encode()}
        table = table.replace_schema_metadata(metadata)
    with storage.committed(path) as file:
        pq.write_table(
            table,
            file,
            compression=_compression(table.schema),
            row_group_size=row_group_rows,
            use_dictionary=repetitive(table.schema),
        )


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
    with storage.open_file(path) as file:
        found = pq.ParquetFile(file).read(columns, use_threads=False)  # a task has one CPU
    if columns is not None:
        found = found.select(columns)
    return found.replace_schema_metadata(None)


def read_stats(path: str) -> dict[str, Any]:
    """The ``stats`` a table was written with; {} where there are none. Reads the footer only."""
    with storage.open_file(path) as file:
        metadata = pq.read_schema(file).metadata or {}
    return json.loads(metadata.get(_STATS_KEY, b"{}"))


def write_images(path: str, uids: list[str], images: list[bytes | None]) -> None:
    """Commit a tar with one member per picture, named by uid; a uid's first picture counts."""
    written: set[str] = set()
    with storage.committed(path) as file:
        for uid, image in zip(uids, images, strict=True):
            if image is None or uid in written:
                continue
            written.add(uid)
            file.write(tars.member(f"{uid}.{tars.image_extension(image)}", image))
        file.write(tars.END)


def read_images(path: str) -> dict[str, bytes]:
    """uid -> encoded picture, of one part."""
    with storage.open_file(path) as file:
        return {member.name.split(".", 1)[0]: member.data for member in tars.walk(file, path)}


class Pictures:
    """The pictures of one part, each read when it is asked for: all of them may take a gigabyte.

    Behind fsspec the tar is fetched whole, since small reads of an object store take a journey each.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: IO[Any] | None = None
        self._places: dict[str, tuple[int, int]] = {}

    def __call__(self, uids: list[str]) -> list[bytes | None]:
        """The encoded pictures in the order of ``uids``, None where there is none."""
        if self._file is None:
            self._file = self._opened()
            for name, offset, size in tars.places(self._file, self._path):
                self._places[name.split(".", 1)[0]] = (offset, size)
        return [self._read(self._file, *self._places.get(uid, (0, 0))) for uid in uids]

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
