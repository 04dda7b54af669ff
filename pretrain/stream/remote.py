"""Shards in an object store, behind https or any fsspec URL: whole copies in the cache folder, fetched ahead of need.

Processes of one machine share the copies. A copy is named by URL, size and what the server calls its
version, appears when it is whole, and goes, least recently used first, when room is needed. Who
reads it at that moment reads on. Paths on disk are read in place. Credentials and endpoints are those of
``storage``, in the environment.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from curate.contract import storage
from curate.contract.object_client import StoreError
from pretrain.stream import cache

_logger = logging.getLogger(__name__)
_ATTEMPTS = 6
_FIRST_WAIT_S = 0.5  # doubled each time: about 15 s in all
_FETCHERS = 2  # threads that fetch ahead, per process; the processes share the work
_ROOM_WITHIN_S = 600  # others' files are whole, or given up, long before that
_ROOM_POLL_S = 0.1
_LOCAL = "file://"


class Unreachable(Exception):
    """A file that can't be had, however often it was asked for. The message has the path and a hint."""


class Copies:
    """Local copies of remote files in ``root``, at most ``limit_bytes`` of them. Travels to workers."""

    def __init__(self, root: str, limit_bytes: int) -> None:
        self.root, self.limit_bytes = root, limit_bytes
        self._folder = os.path.join(root, "copies")
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._names: dict[str, tuple[str, int]] = {}
        self._wanted: list[str] = []
        self._tried: set[str] = set()  # of those wanted, by any thread
        self._news = threading.Condition()
        self._threads: list[threading.Thread] = []

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("root", "limit_bytes", "_folder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def open(self, path: str) -> int:
        """A descriptor of the file on disk, or of a copy that is fetched now if it is not there yet.

        Raises Unreachable, and ValueError for a file larger than all the room.
        """
        if on_disk(path):
            try:
                return os.open(path.removeprefix(_LOCAL), os.O_RDONLY)
            except OSError as fault:
                if fault.errno in cache.NO_DESCRIPTORS:
                    raise
                raise Unreachable(
                    f"{path}: {fault.strerror or fault}. hint: put it back; --resume goes on from the last checkpoint"
                ) from fault
        while True:  # another process may take the copy away again to make room
            copy = self._copy(path, keep=())
            assert copy is not None
            with suppress(FileNotFoundError):
                return os.open(copy, os.O_RDONLY)

    def ahead(self, paths: Sequence[str]) -> None:
        """These will be needed soon, in this order; takes the place of what was said before."""
        if self._pid != os.getpid():  # a forked process has no threads of its parent
            self._begin()
        wanted = [path for path in paths if not on_disk(path)]
        with self._news:
            if set(wanted) != set(self._wanted):  # there may be room now for what had none
                self._tried = set()
            self._wanted = wanted
            self._news.notify_all()
            if self._wanted and not self._threads:
                for _ in range(_FETCHERS):
                    thread = threading.Thread(target=self._fetch_ahead, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _fetch_ahead(self) -> None:
        while True:
            with self._news:
                found = next((path for path in self._wanted if path not in self._tried), None)
                if found is None:
                    self._news.wait()
                    continue
                self._tried.add(found)
                keep = tuple(self._wanted[: self._wanted.index(found) + 1])  # none wanted later
            # Whatever goes wrong here comes up again, with its message, when the file is needed.
            with suppress(Exception):
                self._copy(found, keep)

    def _copy(self, url: str, keep: Sequence[str]) -> str | None:
        """The copy of ``url``.

        With ``keep``, None where there is no room for it beside those, or another is fetching it.
        """
        wait_s = _FIRST_WAIT_S
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                name, size = self._name(url)
                copy = os.path.join(self._folder, name)
                if not _touched(copy, size):
                    with cache.locked(self.root, "copy", name, wait=not keep) as held:
                        if not held:
                            return None
                        if not _touched(copy, size) and not self._fetch(url, copy, size, keep):
                            return None
                return copy
            # Filesystems raise what they like for a server that is away for a moment.
            except (ValueError, Unreachable):
                raise
            except Exception as fault:
                if getattr(fault, "errno", 0) in cache.NO_DESCRIPTORS:
                    raise
                self._names.pop(url, None)
                # Object stores are asked again by ``storage``; who is not allowed to is not asked again.
                final = isinstance(fault, FileNotFoundError | PermissionError | StoreError)
                if attempt == _ATTEMPTS or final:
                    raise Unreachable(
                        f"{url}: asked {attempt} times: {type(fault).__name__}: {fault}. "
                        "hint: once the server is there and has it, --resume goes on from the last checkpoint"
                    ) from fault
                _logger.warning("%s: %s; asked again in %.1f s", url, fault, wait_s)
                time.sleep(wait_s)
                wait_s *= 2
        return None

    def _name(self, url: str) -> tuple[str, int]:
        """The copy's file name, and the size it must have (-1: the server does not tell)."""
        if url not in self._names:
            size, version = storage.mark(url)
            self._names[url] = cache.key(url, size, version), size
        return self._names[url]

    def _fetch(self, url: str, copy: str, size: int, keep: Sequence[str]) -> bool:
        os.makedirs(self._folder, exist_ok=True)
        kept = {self._names[path][0] for path in keep if path in self._names}
        # The name says how much room is taken, from now on.
        owner = f"{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}"
        partial = f"{copy}.{max(size, 0)}{storage.TEMPORARY}{owner}"
        try:
            if not self._make_room(url, max(size, 0), kept, partial):
                return False
            storage.fetch(url, partial)
            found = os.path.getsize(partial)
            if size >= 0 and found != size:
                raise OSError(f"{found} of {size} bytes came")
            if size < 0 and not self._fits(url, found, kept, partial):
                return False
            os.replace(partial, copy)
        finally:
            with suppress(FileNotFoundError):
                os.remove(partial)
        return True

    def _make_room(self, url: str, size: int, kept: Iterable[str], partial: str) -> bool:
        """Remove the copies used longest ago until ``size`` bytes fit, and begin ``partial``, or keep it.

        False where that takes one of ``kept``. Without these it waits until others' files are whole.
        """
        self._check_size(url, size)
        until_s = time.monotonic() + _ROOM_WITHIN_S
        while time.monotonic() < until_s:
            with cache.locked(self.root, "room", ""):
                if self._freed(size, kept, partial):
                    with open(partial, "ab"):
                        pass
                    return True
            if kept:
                return False
            time.sleep(_ROOM_POLL_S)
        raise Unreachable(
            f"{url}: no room for {size} bytes: other files on their way fill the cache ({self.limit_bytes} bytes). "
            "hint: raise train.cache_gb"
        )

    def _fits(self, url: str, found: int, kept: Iterable[str], partial: str) -> bool:
        """Whether a file whose size nobody knew may stay. Raises OSError where others' leave no room for it now."""
        self._check_size(url, found)
        with cache.locked(self.root, "room", ""):
            if self._freed(found, kept, partial):
                return True
            os.remove(partial)  # or two of them would wait for each other
        if kept:
            return False
        raise OSError(f"no room for its {found} bytes beside other files on their way")

    def _check_size(self, url: str, size: int) -> None:
        if size > self.limit_bytes:
            raise ValueError(
                f"{url}: {size} bytes, more than the cache may hold ({self.limit_bytes}). hint: raise train.cache_gb"
            )

    def _freed(self, size: int, kept: Iterable[str], partial: str) -> bool:
        """Whether ``size`` bytes fit, once no more of the other copies are gone than that takes."""
        storage.sweep(self._folder)
        told = sorted(filter(None, map(_told, os.scandir(self._folder))))
        free = self.limit_bytes - sum(taken for _, taken, path in told if path != partial)
        leaving = [
            one
            for one in told
            if storage.TEMPORARY not in one[2] and os.path.basename(one[2]) not in kept
        ]
        if free + sum(taken for _, taken, _ in leaving) < size:
            return False
        for _, taken, path in leaving:
            if free >= size:
                break
            with suppress(FileNotFoundError):
                os.remove(path)
            free += taken
        return True


def _told(entry: os.DirEntry[str]) -> tuple[float, int, str] | None:
    """(when it was used last, bytes taken, path) of a copy, or of one that is being fetched."""
    try:
        found = entry.stat()
    except FileNotFoundError:
        return None
    begun, _, _ = entry.name.partition(storage.TEMPORARY)
    taken = int(begun.rpartition(".")[2]) if begun != entry.name else 0
    return found.st_mtime, max(taken, found.st_size), entry.path


def on_disk(path: str) -> bool:
    """Whether a file is read in place."""
    return not storage.is_url(path) or path.startswith(_LOCAL)


def _touched(path: str, size: int) -> bool:
    """Whether the copy is there and whole; then it counts as used now. Size -1 is not known."""
    try:
        if size >= 0 and os.stat(path).st_size != size:  # a disk or a machine that failed
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
