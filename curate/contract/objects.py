"""Files in an object store: names, folders, reading with read-ahead, and writing that shows only whole files.

What ``storage`` does for a path it asks here where the path is ``s3://``, ``gs://`` or ``az://``. A folder is
what lies below its name: there is nothing to make, and an empty one is not there.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any

from curate.contract import object_client, object_login

_WILD = re.compile(r"[*?\[]")
_FIRST_BYTES = 256 << 10  # of a reader that goes here and there
_MOST_BYTES = 16 << 20  # of one that goes straight on
_AHEAD_FROM_BYTES = 2 << 20


def handles(path: str) -> bool:
    """Whether a path lies in an object store."""
    return path.partition("://")[0] in object_login.SCHEMES and "://" in path


def _named(url: str, key: str) -> str:
    scheme, bucket, _ = object_login.split(url)
    return f"{scheme}://{bucket}/{key}" if key else f"{scheme}://{bucket}"


def is_file(path: str) -> bool:
    if not object_login.split(path)[2]:
        return False
    try:
        object_client.ask("head", path)
    except FileNotFoundError:
        return False
    return True


def exists(path: str) -> bool:
    """Whether there is a file of that name, or anything below it."""
    return is_file(path) or bool(object_client.ask("below", path, True))


def meta(path: str) -> tuple[int, str]:
    """(bytes, version) of a file. Raises FileNotFoundError."""
    size, version, changed = object_client.ask("head", path)
    return size, version or changed


def listed(folder: str) -> list[str]:
    """What lies right below, files and folders, sorted."""
    folders, files = object_client.ask("level", folder)
    return sorted(_named(folder, key) for key in [*folders, *(key for key, _ in files)])


def marks(folder: str) -> dict[str, tuple[int, str]]:
    """(bytes, version) of each file right below, by one listing."""
    _, files = object_client.ask("level", folder)
    return {_named(folder, key): (size, tag or changed) for key, (size, tag, changed) in files}


def every(folder: str) -> list[str]:
    """All files below a folder, sorted."""
    return sorted(_named(folder, key) for key in object_client.ask("below", folder))


def glob(pattern: str, only_files: bool = False) -> list[str]:
    """Sorted matches, folders too or not; ``*`` and ``?`` stay within a folder, ``**`` goes through all of them."""
    _, bucket, key = object_login.split(pattern)
    if _WILD.search(bucket):
        raise ValueError(f"{pattern}: a bucket's name can't be a pattern. hint: write it out")
    names = key.split("/")
    if not _WILD.search(key):
        there = is_file(pattern) or (not only_files and exists(pattern))
        return [_named(pattern, key)] if there else []
    fixed = next(at for at, name in enumerate(names) if _WILD.search(name))
    if "**" in key:
        begin = _named(pattern, "/".join(names[:fixed]))
        wanted = _through(names)
        return [path for path in every(begin) if wanted.fullmatch(object_login.split(path)[2])]
    return sorted(_matches(pattern, names[:fixed], names[fixed:], only_files))


def _through(names: list[str]) -> re.Pattern[str]:
    """A pattern with ``**`` as a regular expression over whole keys."""
    parts = []
    for at, name in enumerate(names):
        last = at == len(names) - 1
        if name == "**":
            parts.append(".*" if last else "(?:[^/]+/)*")
        else:
            inner = fnmatch.translate(name)[4:-3].replace(".*", "[^/]*")
            parts.append(inner + ("" if last else "/"))
    return re.compile("".join(parts), re.DOTALL)


def _matches(pattern: str, fixed: list[str], rest: list[str], only_files: bool) -> Iterator[str]:
    folder = _named(pattern, "/".join(fixed))
    if not rest:
        yield folder
        return
    if not _WILD.search(rest[0]):
        following = [*fixed, rest[0]]
        path = _named(pattern, "/".join(following))
        if len(rest) > 1:
            yield from _matches(pattern, following, rest[1:], only_files)
        elif is_file(path) or (not only_files and exists(path)):
            yield path
        return
    folders, files = object_client.ask("level", folder)
    keys = [] if only_files and len(rest) == 1 else list(folders)
    keys += [key for key, _ in files] if len(rest) == 1 else []
    for key in keys:
        if fnmatch.fnmatchcase(key.rpartition("/")[2], rest[0]):
            yield from _matches(pattern, key.split("/"), rest[1:], only_files)


def remove(path: str) -> None:
    """Delete a file, or all below a folder."""
    _, _, key = object_login.split(path)
    if not key:
        raise ValueError(f"{path}: a whole bucket is not removed. hint: name a folder in it")
    object_client.ask("delete", path, [*object_client.ask("below", path), key])


def copy(source: str, target: str) -> bool:
    """The same content under another name, by the server; False where that can't be."""
    return bool(object_client.ask("copy", source, target))


def prepare(folder: str, name: str) -> bool:
    """Find out before any work whether a file can be written; whether the store refuses a second writer.

    Raises ValueError that says why not.
    """
    probe = f"{folder.rstrip('/')}/{name}"
    try:
        return bool(object_client.ask("probe", probe))
    except (OSError, ValueError) as fault:
        raise ValueError(str(fault).replace(probe, folder)) from fault


@contextmanager
def committed(path: str) -> Iterator[IO[bytes]]:
    """A file that is written to local disk ($TMPDIR), and put there if the block ends without an exception."""
    with tempfile.NamedTemporaryFile(prefix="clip-pipe-") as file:
        yield file
        file.flush()
        file.version = object_client.ask("upload", path, file.name)  # type: ignore[attr-defined]


def swap(path: str, text: str, expected: str | None) -> bool:
    wanted = None if expected is None else expected.encode()
    return bool(object_client.ask("swap", path, text.encode(), wanted))


class ObjectFile(io.BufferedIOBase):
    """A file read by ranges. Raises FileNotFoundError when it is opened.

    Who reads straight on gets ever larger ranges, up to 16 MiB, and the next is fetched meanwhile. A file
    that is written anew while it is read is an error, never a mixture.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self.size, self._version, _ = object_client.ask("head", path)
        self._at = 0
        self._begin, self._block = 0, memoryview(b"")
        self._window = _FIRST_BYTES
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, int, Future[Any]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(22, "a negative place in a file")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        left = max(0, self.size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        if not count:
            return b""
        first = self._held(count)[:count]
        self._at += len(first)
        if len(first) == count:
            found = bytes(first)
            used_up = self._at == self._begin + len(self._block)
            if used_up and len(self._block) > _FIRST_BYTES:  # as large as a shard, perhaps
                self._begin, self._block = self._at, memoryview(b"")
            return found
        pieces = [first]
        while (missing := count - sum(map(len, pieces))) > 0:
            pieces.append(self._held(missing)[:missing])
            self._at += len(pieces[-1])
        return b"".join(pieces)

    def read1(self, size: int = -1) -> bytes:
        if size is not None and size >= 0:
            return self.read(size)
        return self.read(len(self.peek()))

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        found = self.read(len(target))
        target[: len(found)] = found
        return len(found)

    readinto1 = readinto

    def peek(self, size: int = 0) -> bytes:
        """Some of the next bytes, without moving on."""
        return bytes(self._held(1)[: max(size, 8192)]) if self._at < self.size else b""

    def _held(self, count: int) -> memoryview:
        """Bytes from here on, at least one, fetched if need be; ``count`` are wanted now."""
        within = self._at - self._begin
        if not 0 <= within < len(self._block):
            self._fetch(count)
            within = self._at - self._begin
        return self._block[within:]

    def _fetch(self, count: int) -> None:
        goes_on = self._at == self._begin + len(self._block)
        self._window = min(self._window * 2, _MOST_BYTES) if goes_on else _FIRST_BYTES
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] <= self._at < ahead[1]:
            self._begin, self._block = ahead[0], memoryview(ahead[2].result())
        else:
            is_small = (
                self.size <= _FIRST_BYTES
            )  # a sidecar: all of it, or each column is a request
            begin = 0 if is_small else self._at
            end = min(self.size, self._at + max(count, self._window))
            self._block = memoryview(b"")  # two are never held
            self._block = memoryview(self._get(begin, end))
            self._begin = begin
        end = self._begin + len(self._block)
        if goes_on and self._window >= _AHEAD_FROM_BYTES and end < self.size:
            following = min(self.size, end + self._window)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "read-ahead")
            self._ahead = (end, following, self._pool.submit(self._get, end, following))

    def _get(self, begin: int, end: int) -> Any:
        return object_client.ask("get_many", self.name, begin, end, self._version, self.size)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._ahead, self._block = None, memoryview(b"")
        super().close()
