"""What this machine keeps between runs: the folder for it, locks that end with their process, arrays on disk.

Several processes may need one thing at once: whoever has the lock makes it, the others wait and find
it. What is there is whole, so a folder that several machines share is safe too.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np

from curate.contract import storage

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_LOCKS = 1024  # files per kind of lock
_ABOUT = "about.json"

Put = Callable[[dict[str, np.ndarray]], None]


def folder(chosen: str = "") -> str:
    """The cache folder: as chosen, else $CLIP_PIPE_CACHE, else ``clip-pipe`` in the user's own."""
    if chosen or (chosen := os.environ.get("CLIP_PIPE_CACHE", "")):
        return storage.absolute(chosen)
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(users, "clip-pipe")


def key(*parts: object) -> str:
    """The name under which something made of ``parts`` is kept, 32 hex."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "replace")).hexdigest()[:32]


@contextmanager
def locked(root: str, kind: str, name: str, wait: bool = True) -> Iterator[bool]:
    """One process and thread at a time per (kind, name). The kernel frees it when the holder dies.

    Gives whether it is held: without ``wait``, not if another one has it.
    Within a lock of kind "index" or "tar" one of kind "copy" may be taken, and within that "room";
    never the other way round. Two names may share a lock, so none is taken within its own kind.
    """
    path = os.path.join(root, "locks", f"{kind}-{zlib.crc32(name.encode()) % _LOCKS:04d}")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as fault:
        if fault.errno in NO_DESCRIPTORS:
            raise
        raise ValueError(
            f"{root}: the cache folder can't be written: {fault.strerror or fault}. "
            "hint: set train.cache, or CLIP_PIPE_CACHE, to a folder on a local disk"
        ) from fault
    try:
        # A network disk may have no locks: then work is done twice, and what is committed is whole.
        held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        except OSError:
            pass
        yield held
    finally:
        # Closing is not enough: a process forked meanwhile has the descriptor, and the lock with it.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


class Arrays:
    """Named arrays and what is to be known about them (JSON), in memory or mapped from a folder.

    One that is mapped travels to other processes as its path.
    """

    def __init__(self, path: str, found: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        self.path, self.found, self.about = path, found, about

    def __getitem__(self, name: str) -> np.ndarray:
        return self.found[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path} if self.path else dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state if "found" in state else _mapped(state["path"]).__dict__)


def arrays(path: str, make: Callable[[Put], dict[str, Any]]) -> Arrays:
    """The arrays in the folder ``path``, made and committed there if need be; "" keeps them in memory.

    ``make(put)`` gives them piece by piece, to be concatenated, and returns what is to be known about
    them. Made by one process at a time where the caller holds a lock.
    """
    if not path:
        kept: dict[str, list[np.ndarray]] = {}

        def put(piece: dict[str, np.ndarray]) -> None:
            for name, rows in piece.items():
                kept.setdefault(name, []).append(rows)

        about = make(put)
        return Arrays("", {name: np.concatenate(pieces) for name, pieces in kept.items()}, about)
    if not os.path.exists(os.path.join(path, _ABOUT)):
        _commit(path, make)
    return _mapped(path)


def _commit(path: str, make: Callable[[Put], dict[str, Any]]) -> None:
    mine = f"{path}{storage.TEMPORARY}{os.uname().nodename}-"
    for left in glob.glob(glob.escape(mine) + "*"):  # the caller has the lock: its maker is dead
        shutil.rmtree(left, ignore_errors=True)
    temporary = f"{mine}{os.getpid()}-0"
    os.makedirs(temporary)
    files: dict[str, IO[bytes]] = {}
    shapes: dict[str, Any] = {}

    def put(piece: dict[str, np.ndarray]) -> None:
        for name, rows in piece.items():
            if name not in files:
                files[name] = storage.open_file(os.path.join(temporary, name), "wb")
                shapes[name] = [
                    rows.dtype.descr if rows.dtype.names else rows.dtype.str,
                    *rows.shape[1:],
                ]
            rows.tofile(files[name])

    try:
        about = make(put)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        storage.write_text(
            os.path.join(temporary, _ABOUT), json.dumps({"arrays": shapes, "about": about})
        )
        with suppress(OSError):  # another machine was faster, with the same content
            os.rename(temporary, path)
    finally:
        for file in files.values():
            file.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _mapped(path: str) -> Arrays:
    told = json.loads(storage.read_text(os.path.join(path, _ABOUT)))
    found: dict[str, np.ndarray] = {}
    for name, (kind, *rest) in told["arrays"].items():
        dtype = np.dtype(kind if isinstance(kind, str) else [_field(entry) for entry in kind])
        file = os.path.join(path, name)
        rows = os.path.getsize(file) // (dtype.itemsize * int(np.prod(rest)))
        shape = (rows, *rest)
        found[name] = np.memmap(file, dtype, "r", shape=shape) if rows else np.zeros(shape, dtype)
    return Arrays(path, found, told["about"])


def _field(entry: list[Any]) -> tuple[Any, ...]:
    """A field of a structured type, as JSON has it."""
    name, kind, *shape = entry
    return (name, kind, *(tuple(size) for size in shape))
