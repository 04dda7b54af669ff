"""Paths on disk or behind fsspec, and the one way anything is committed: written beside, renamed.

A file that exists is whole. Object stores make a put visible when it is complete, so there the
write goes straight to its name.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec

# What filesystems call the version of a file, by the most exact first: s3, http, gcs, azure, sftp.
_VERSIONS = (
    "ETag",
    "etag",
    "Content-MD5",
    "mtime",
    "LastModified",
    "Last-Modified",
    "updated",
    "last_modified",
)

_DAY_S = 86_400
_COPY_BYTES = 1 << 20
TEMPORARY = ".tmp-"  # in the name of a file that is being written
_OPENING = threading.Lock()  # a filesystem, and so its transaction, may be shared by threads
_OURS = "clip-pipe://"  # an entry list that comes with the tool, on whichever machine opens it
_OUR_LISTS = Path(__file__).resolve().parent.parent / "entries" / "lists"


def is_url(path: str) -> bool:
    """Whether ``path`` names a protocol (``s3://``, ``memory://``) and not a local file."""
    return "://" in path


def _filesystem(path: str) -> tuple[Any, str]:
    """(filesystem, path inside it). Raises ValueError for a protocol that can't be used here."""
    if path.startswith(_OURS):
        return fsspec.filesystem("file"), _our_list(path)
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as fault:
        protocol = path.partition("://")[0]
        raise ValueError(
            f"{path}: {fault}. hint: {protocol}:// needs a package of its own for fsspec, such as s3fs for s3://"
        ) from fault


def _our_list(path: str) -> str:
    """The file behind ``clip-pipe://NAME``. Raises ValueError for a name that there is none of."""
    lists = {file.stem: str(file) for file in _OUR_LISTS.glob("*.txt")}
    name = path.removeprefix(_OURS)
    if name not in lists:
        raise ValueError(
            f"{path}: no such list comes with clip-pipe. hint: there is {', '.join(_OURS + known for known in sorted(lists))}"
        )
    return lists[name]


def prepare(folder: str) -> None:
    """Make a folder, or find out before any work that nothing can be written there. Raises ValueError."""
    if is_url(folder):
        _filesystem(folder)
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as fault:
        raise ValueError(
            f"{folder}: can't be written: {fault.strerror or fault}. hint: name another folder"
        ) from fault


def absolute(path: str) -> str:
    """The path with ``~`` and the current folder resolved; URLs unchanged."""
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


def join(root: str, *names: str) -> str:
    return "/".join([root.rstrip("/"), *names])


def exists(path: str) -> bool:
    if not is_url(path):
        return os.path.exists(path)
    fs, inner = _filesystem(path)
    return bool(fs.exists(inner))


def glob(pattern: str) -> list[str]:
    """Sorted matches of a pattern, local or remote, each usable with ``open_file``."""
    fs, inner = _filesystem(pattern)
    found = sorted(str(path) for path in fs.glob(inner))
    return [fs.unstrip_protocol(path) for path in found] if is_url(pattern) else found


def inside(folder: str, pattern: str) -> list[str]:
    """Sorted files of a folder whose own names match; nothing in the folder's name is a pattern."""
    if not any(letter in folder for letter in "*?["):
        return glob(join(folder, pattern))
    return [path for path in listed(folder) if fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern)]


def size_bytes(path: str) -> int:
    if not is_url(path):
        return os.path.getsize(path)
    fs, inner = _filesystem(path)
    return int(fs.size(inner))


def modified(path: str) -> str:
    """The time a file was last changed, as text; '' where the filesystem does not tell."""
    if not is_url(path):
        return str(os.stat(path).st_mtime_ns)
    return mark(path)[1]


def mark(url: str) -> tuple[int, str]:
    """(size in bytes, what the server calls this version), by one question; -1 and '' where it does not tell."""
    fs, inner = _filesystem(url)
    info = fs.info(inner)
    size = info.get("size")
    version = next((info[name] for name in _VERSIONS if info.get(name)), "")
    return -1 if size is None else int(size), str(version)


def fetch(url: str, target: str) -> None:
    """Copy a remote file to a path on disk, in one stream; once this returns its bytes are on the disk."""
    fs, inner = _filesystem(url)
    fs.get_file(inner, target)
    _sync(target)


def open_file(path: str, mode: str = "rb") -> IO[Any]:
    if not is_url(path):
        return open(path, mode)
    fs, inner = _filesystem(path)
    return fs.open(inner, mode)


def is_empty(folder: str) -> bool:
    """Whether a folder is not there or holds nothing but files that were never committed."""
    if not exists(folder):
        return True
    return all(TEMPORARY in path.rsplit("/", 1)[-1] for path in listed(folder))


def sweep(folder: str) -> None:
    """Remove what runs that died left half-written in this folder and below.

    A file of a living process of this machine stays, and one of another machine for a day. An object
    store never shows a half-written object.
    """
    if is_url(folder):
        return
    for root, _, names in os.walk(folder):
        for name in names:
            if TEMPORARY in name and _is_abandoned(os.path.join(root, name)):
                os.remove(os.path.join(root, name))


def _is_abandoned(path: str) -> bool:
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


def listed(folder: str) -> list[str]:
    """What lies in a folder, sorted, each usable with ``open_file``; nothing where there is no folder."""
    fs, inner = _filesystem(folder)
    if not fs.exists(inner):
        return []
    found = sorted(str(path) for path in fs.ls(inner, detail=False))
    return [str(fs.unstrip_protocol(path)) for path in found] if is_url(folder) else found


def remove(path: str) -> None:
    """Delete a file or a folder with all it holds; nothing happens if it is not there."""
    fs, inner = _filesystem(path)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)


def link_or_copy(source: str, target: str) -> None:
    """The same content under another name, whole or not there; a hard link where the disk has them.

    Neither name is ever written to again: what is committed stays as it is.
    """
    if is_url(source) or is_url(target):
        with open_file(source) as file, committed(target) as copy:
            shutil.copyfileobj(file, copy, _COPY_BYTES)
        return
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    temporary = _temporary(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            _sync(temporary)
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _sync(path: str) -> None:
    """Have a file's bytes on the disk before another name says that they are."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _temporary(path: str) -> str:
    """A name beside a file, which says whose it is while it is written."""
    return f"{path}{TEMPORARY}{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


@contextmanager
def committed(path: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under ``path`` only if the block ends without an exception."""
    if is_url(path):
        with _committed_away(path, mode) as file:
            yield file
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextmanager
def _committed_away(path: str, mode: str) -> Iterator[IO[Any]]:
    fs, inner = _filesystem(path)
    fs.makedirs(inner.rsplit("/", 1)[0], exist_ok=True)
    file = _deferred(fs, inner, mode)
    try:
        with file:
            yield file
    except BaseException:
        file.discard()
        raise
    file.commit()


def _deferred(fs: Any, inner: str, mode: str) -> Any:
    """A file that appears when its own ``commit`` is called.

    A transaction holds all files that are opened in it, and ends for all of them at once: where two are
    written side by side, each is taken out of it again as soon as it is open.
    """
    with _OPENING, fs.transaction:
        file = fs.open(inner, mode)
        fs.transaction.files.clear()
    if not (hasattr(file, "commit") and hasattr(file, "discard")):
        file.close()
        raise ValueError(
            f"{inner}: {type(fs).__name__} can't write a file that appears only when it is whole. "
            "hint: name a folder on disk or in an object store"
        )
    return file


def read_json(path: str, where: str) -> dict[str, Any]:
    """A JSON object of ours. Raises ValueError for anything else under that name."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, OSError) as fault:
        raise ValueError(
            f"{where}: {path} can't be read as JSON: {fault}. hint: it was changed by hand or by another tool; name a new folder"
        ) from fault
    if not isinstance(found, dict):
        raise ValueError(
            f"{where}: {path} holds no JSON object. hint: it is not clip-pipe's; name a new folder"
        )
    return found


def write_text(path: str, text: str) -> None:
    with committed(path) as file:
        file.write(text.encode())


def read_text(path: str) -> str:
    with open_file(path) as file:
        return file.read().decode()
