"""Files on disk that appear whole: written under a name of their own beside it, then renamed or linked."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

TEMPORARY = ".tmp-"  # in the name of a file that is being written
_DAY_S = 86_400
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def temporary_name(path: str) -> str:
    """A name beside a file, which says whose it is while it is written."""
    return f"{path}{TEMPORARY}{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def sync(path: str) -> None:
    """Have a file's bytes on the disk before another name says that they are."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def is_abandoned(path: str) -> bool:
    """Whether whoever wrote a temporary file is dead; of another machine, after a day."""
    host, _, process = path.rpartition(TEMPORARY)[2].rpartition("-")[0].rpartition("-")
    if host == os.uname().nodename and process.isdigit():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    # Of a hard link the time of change is that of its content, long ago; of the link itself it is ctime.
    return time.time() - os.stat(path).st_ctime > _DAY_S


@contextmanager
def committed(path: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under ``path`` only if the block ends without an exception."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = temporary_name(path)
    try:
        with _named(path):
            with open(temporary, mode) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def link_or_copy(source: str, target: str) -> None:
    """The same content under another name, whole or not there; a hard link where the disk has them."""
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    temporary = temporary_name(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            sync(temporary)
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def create(path: str, text: str) -> bool:
    """Write a file only if nothing is there; True if it is ours. Of several writers one wins, on any machine."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = temporary_name(path)
    try:
        with _named(path):
            _write_synced(temporary, text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A network disk may have done it, lost its answer and been asked again.
            return os.stat(temporary).st_nlink == 2 and os.path.samefile(temporary, path)
        except OSError:  # a disk without hard links
            with _alone(path):
                if os.path.exists(path):
                    return False
                os.replace(temporary, path)
        return True
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)


def swap(path: str, text: str, expected: str) -> bool:
    """Write a file only if it holds ``expected``; True if it is ours."""
    with _alone(path):
        try:
            with open(path, "rb") as file:
                held = file.read()
        except FileNotFoundError:
            return False
        if held != expected.encode():
            return False
        with committed(path) as target:
            target.write(text.encode())
        return True


@contextmanager
def _named(path: str) -> Iterator[None]:
    """The system does not say which file there was no room for."""
    try:
        yield
    except OSError as fault:
        if fault.filename is None and fault.errno in _NO_ROOM:
            fault.filename = path
        raise


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """One process and thread at a time for this file, on disk. Whoever holds it when it dies frees it."""
    lock = f"{path}{TEMPORARY}lock"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    is_done = False
    while not is_done:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:  # whatever comes: one that stays open is waited for until this process ends
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_done := _is_named(lock, descriptor):  # else its last holder took the name away
                try:
                    yield
                finally:
                    # While it is held: who waits for it finds another file under the name, or none.
                    with suppress(FileNotFoundError):
                        os.remove(lock)
        finally:
            os.close(descriptor)


def _is_named(path: str, descriptor: int) -> bool:
    """Whether an open file still has this name, which may be taken away at any time."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_synced(path: str, text: str) -> None:
    with open(path, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
