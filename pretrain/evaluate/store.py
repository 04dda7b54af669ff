"""Files of an evaluation set by name, whether they lie in a folder, in tars or in a tar.gz.

Tars are read through `curate.contract.shards`, so that damage is found by checksum and named.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Protocol

from curate.contract import shards, storage

IMAGE_EXTENSIONS = frozenset(shards.IMAGE_EXTENSIONS)
_PACKED = (".tar.gz", ".tgz")


class Store(Protocol):
    """Named files. ``names`` are in the set's own order, with lower-case extensions."""

    path: str
    names: list[str]

    def read(self, name: str) -> bytes: ...


class FolderStore:
    """A folder, local or behind fsspec; names are relative to it and sorted."""

    def __init__(self, path: str) -> None:
        self.path = path
        root = len(storage.named(path).rstrip("/")) + 1
        self._places = {lower_extension(name[root:]): name for name in storage.below(path)}
        self.names = list(self._places)

    def read(self, name: str) -> bytes:
        with storage.open_file(self._places[name]) as file:
            return file.read()


class TarStore:
    """The members of one or more tars, found through their index and checked when read."""

    def __init__(self, path: str, files: ExitStack) -> None:
        self.path = path
        self._files = files
        self._open: dict[str, IO[Any]] = {}
        self._tars = shards.tar_names(path)
        self._rows: dict[str, tuple[str, int, int, int]] = {}
        for shard, key, member, offset, size, crc32 in zip(
            *(column.to_pylist() for column in shards.load_index(path).columns)
        ):
            name = f"{key}.{member}" if member else key
            # Foreign shard sets may use a key again in the next tar: keep both.
            self._rows[name if name not in self._rows else f"{shard}/{name}"] = (
                shard,
                offset,
                size,
                crc32,
            )
        self.names = list(self._rows)

    def read(self, name: str) -> bytes:
        """The bytes of a member. Raises tars.TarDamage where the checksum differs."""
        shard, offset, size, crc32 = self._rows[name]
        if shard not in self._open:
            self._open[shard] = self._files.enter_context(storage.open_file(self._tars[shard]))
        return shards.read_member(self._open[shard], offset, size, crc32, f"{shard}: {name}")


@contextmanager
def open_store(path: str) -> Iterator[Store]:
    """A folder of files, a folder of tars, one tar, a glob or range of tars, or one tar.gz.

    Raises ValueError for a path that is not there or is empty, tars.TarDamage for a cut tar.
    """
    path = storage.absolute(path)
    with ExitStack() as files:
        store: Store
        if path.endswith(_PACKED):
            store = TarStore(_unpacked(path, files), files)
            store.path = path
        elif path.endswith(".tar") or any(sign in path for sign in "*{"):
            store = TarStore(path, files)
        elif not storage.exists(path):
            raise ValueError(
                f"{path}: not there. hint: `path` names the folder, tar or tar.gz of the evaluation set"
            )
        elif storage.glob(storage.join(path, "*.tar")):
            store = TarStore(path, files)
        else:
            store = FolderStore(path)
        if not store.names:
            raise ValueError(
                f"{path}: holds no files. hint: give a folder of class folders, or a tar"
            )
        yield store


def _unpacked(path: str, files: ExitStack) -> str:
    """The tar inside a tar.gz, as a temporary file that lives as long as ``files``."""
    if not storage.exists(path):
        raise ValueError(
            f"{path}: not there. hint: `path` names the folder, tar or tar.gz of the evaluation set"
        )
    folder = files.enter_context(tempfile.TemporaryDirectory(prefix="clip-pipe-eval-"))
    target = os.path.join(folder, "set.tar")
    try:
        with storage.open_file(path) as packed, gzip.open(packed) as tar, open(target, "wb") as out:
            shutil.copyfileobj(tar, out, 1 << 20)
    except (gzip.BadGzipFile, EOFError) as fault:
        raise ValueError(f"{path}: not a whole gzip file: {fault}. hint: fetch it again") from fault
    return target


def lower_extension(name: str) -> str:
    """``a/B.JPG`` as ``a/B.jpg``: the form in which a store names its files."""
    stem, dot, extension = name.rpartition(".")
    return f"{stem}.{extension.lower()}" if dot and "/" not in extension else name
