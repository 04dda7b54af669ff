"""Many small tables in one file, each read alone: what a part has for every bucket of a global state.

    tables, one after another as Arrow streams | where each begins, and where the last ends (int64, little-endian)

A file for each (part, bucket) would be as many files as their product; a parquet file with a row group for each has
a footer that takes longer to read than the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa

from curate.contract import done, storage
from curate.contract.done import Damaged, Written

_OFFSET_BYTES = 8
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


class Writer:
    """Appends tables; see ``writing``."""

    def __init__(self, file: done.Hashing) -> None:
        self._file = file
        self._ends = [0]
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema, options=_OPTIONS) as stream:
            stream.write_table(table)
        data = sink.getvalue()
        self._file.write(data)
        self._ends.append(self._ends[-1] + data.size)
        self.rows += len(table)

    def finish(self) -> None:
        self._file.write(np.array(self._ends, "<i8").tobytes())

    @property
    def written(self) -> Written:
        return self._file.written


@contextmanager
def writing(path: str) -> Iterator[Writer]:
    """A file of tables that appears only if the block ends without an exception. Say ``done.commit`` after it."""
    with done.hashing(path) as file:
        writer = Writer(file)
        yield writer
        writer.finish()


def read(path: str, number: int, count: int, several: int = 1) -> list[pa.Table]:
    """Table ``number`` of ``count``, and those behind it, ``several`` in all.

    Raises Damaged for a file that has no manifest, or is not as that says.
    """
    size = int(done.checked(path)["bytes"])
    at = size - _OFFSET_BYTES * (count + 1) + _OFFSET_BYTES * number
    with storage.open_file(path) as file:
        ends = _offsets(path, file, at, several + 1)
        return [_table(path, file, *pair) for pair in itertools.pairwise(ends.tolist())]


def read_all(paths: Sequence[str], count: int) -> Iterator[list[pa.Table]]:
    """The tables number 0 of all files, then number 1, and so on; each file is read straight on. Raises Damaged."""
    with ExitStack() as stack:
        opened: list[tuple[str, IO[Any], np.ndarray]] = []
        for path in paths:
            size = int(done.checked(path)["bytes"])
            file = stack.enter_context(storage.open_shard(path))
            at = size - _OFFSET_BYTES * (count + 1)
            opened.append((path, file, _offsets(path, file, at, count + 1)))
        for number in range(count):
            yield [
                _table(path, file, *ends[number : number + 2].tolist())
                for path, file, ends in opened
            ]


def _offsets(path: str, file: IO[Any], at: int, count: int) -> np.ndarray:
    data = b""
    if at >= 0:
        file.seek(at)
        data = file.read(_OFFSET_BYTES * count)
    if len(data) != _OFFSET_BYTES * count:
        raise Damaged(path, "is shorter than the tables it should hold")
    return np.frombuffer(data, "<i8")


def _table(path: str, file: IO[Any], begin: int, end: int) -> pa.Table:
    file.seek(begin)
    data = file.read(end - begin)
    try:
        return pa.ipc.open_stream(data).read_all()
    except (pa.ArrowException, OSError) as fault:
        raise Damaged(path, f"holds no table at byte {begin}: {fault}") from fault
