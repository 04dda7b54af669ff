"""Paths on disk, in object stores or behind fsspec, and the one way anything is committed: whole.

A file that exists is whole: on disk it is written beside its name and renamed. ``s3://``, ``gs://`` and
``az://`` show a put when it is complete (``objects``); every other protocol is fsspec's.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import fsspec

from curate.contract import deferred, disk, object_client, objects

_logger = logging.getLogger(__name__)
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

_COPY_BYTES = 1 << 20
TEMPORARY = disk.TEMPORARY
_SWAPPING = threading.Lock()
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
            f"{path}: {fault}. hint: {protocol}:// needs a package of its own for fsspec, such as huggingface_hub for hf://"
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
    if objects.handles(folder):
        name = disk.temporary_name("probe")
        if not objects.prepare(folder, name):
            _logger.warning(
                "%s: this store lets a second writer overwrite the first (no If-None-Match): two runs there are not "
                "kept apart. hint: run one command at a time on it",
                folder,
            )
        return
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
    if objects.handles(path):
        return objects.exists(path)
    fs, inner = _filesystem(path)
    return bool(fs.exists(inner))


def glob(pattern: str, only_files: bool = False) -> list[str]:
    """Sorted matches of a pattern, local or remote, each usable with ``open_file``; folders too, or not."""
    if objects.handles(pattern):
        return objects.glob(pattern, only_files)
    fs, inner = _filesystem(pattern)
    about: dict[str, Any] = fs.glob(inner, detail=True)
    found = sorted(path for path in about if not only_files or about[path]["type"] != "directory")
    return [fs.unstrip_protocol(path) for path in found] if is_url(pattern) else found


def inside(folder: str, pattern: str) -> list[str]:
    """Sorted files of a folder whose own names match; nothing in the folder's name is a pattern."""
    if not any(letter in folder for letter in "*?["):
        return glob(join(folder, pattern))
    return [path for path in listed(folder) if fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern)]


def below(folder: str) -> list[str]:
    """Every file under a folder, sorted, each usable with ``open_file``."""
    if objects.handles(folder):
        return objects.every(folder)
    fs, inner = _filesystem(folder)
    found = sorted(str(name) for name in fs.find(inner))
    return [str(fs.unstrip_protocol(name)) for name in found] if is_url(folder) else found


def named(folder: str) -> str:
    """A folder as the names of what lies in it begin: ``memory://x`` is ``memory:///x`` there."""
    if objects.handles(folder):
        return folder.rstrip("/")
    fs, inner = _filesystem(folder)
    return str(fs.unstrip_protocol(inner)) if is_url(folder) else str(inner)


def is_file(path: str) -> bool:
    """Whether there is a file of that name: not a folder."""
    if objects.handles(path):
        return objects.is_file(path)
    fs, inner = _filesystem(path)
    return bool(fs.isfile(inner))


def size_bytes(path: str) -> int:
    if not is_url(path):
        return os.path.getsize(path)
    if objects.handles(path):
        return objects.meta(path)[0]
    fs, inner = _filesystem(path)
    return int(fs.size(inner))


def modified(path: str) -> str:
    """The time a file was last changed, as text; '' where the filesystem does not tell."""
    if not is_url(path):
        return str(os.stat(path).st_mtime_ns)
    return mark(path)[1]


def mark(url: str) -> tuple[int, str]:
    """(size in bytes, what the server calls this version), by one question; -1 and '' where it does not tell."""
    if objects.handles(url):
        return objects.meta(url)
    fs, inner = _filesystem(url)
    return _mark(fs.info(inner))


def _mark(info: dict[str, Any]) -> tuple[int, str]:
    size = info.get("size")
    version = next((info[name] for name in _VERSIONS if info.get(name)), "")
    return -1 if size is None else int(size), str(version)


def marks(folder: str) -> dict[str, tuple[int, str]]:
    """``mark`` of each file of a remote folder, by one listing (of as many pages as it takes)."""
    if objects.handles(folder):
        return objects.marks(folder)
    fs, inner = _filesystem(folder)
    return {
        str(fs.unstrip_protocol(str(entry["name"]))): _mark(entry)
        for entry in fs.ls(inner, detail=True)
        if entry.get("type") == "file"
    }


def sizes(folder: str) -> dict[str, int]:
    """The size in bytes of each file of a remote folder, by one listing; without those it does not tell."""
    return {path: size for path, (size, _) in marks(folder).items() if size >= 0}


def fetch(url: str, target: str) -> None:
    """Copy a remote file to a path on disk; once this returns its bytes are on the disk."""
    if objects.handles(url):
        object_client.ask("download", url, target)
        return
    fs, inner = _filesystem(url)
    fs.get_file(inner, target)
    disk.sync(target)


def open_file(path: str, mode: str = "rb") -> IO[Any]:
    if not is_url(path):
        return open(path, mode)
    if objects.handles(path):
        if mode != "rb":
            raise ValueError(f"{path}: opened to be written ({mode}). hint: storage.committed()")
        return cast(IO[Any], objects.ObjectFile(path))
    fs, inner = _filesystem(path)
    return fs.open(inner, mode)


def read_range(path: str, offset: int, size: int) -> bytes:
    """Some bytes of a file, by one request for just these where it is remote."""
    if not size:
        return b""
    if objects.handles(path):
        return bytes(object_client.ask("get_many", path, offset, offset + size, ""))
    if is_url(path):
        fs, inner = _filesystem(path)
        return bytes(fs.cat_file(inner, start=offset, end=offset + size))
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def open_shard(path: str) -> BinaryIO:
    """A file to be read, seekable: large ranges are asked for, and ahead of a reader that goes straight on."""
    return cast(BinaryIO, open_file(path))


def is_empty(folder: str) -> bool:
    """Whether a folder is not there or holds nothing but files that were never committed."""
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
            with suppress(FileNotFoundError):  # whoever wrote it has ended with it meanwhile
                if TEMPORARY in name and disk.is_abandoned(os.path.join(root, name)):
                    os.remove(os.path.join(root, name))


def listed(folder: str) -> list[str]:
    """What lies in a folder, sorted, each usable with ``open_file``; nothing where there is no folder."""
    if objects.handles(folder):
        return objects.listed(folder)
    fs, inner = _filesystem(folder)
    if not fs.exists(inner):
        return []
    found = sorted(str(path) for path in fs.ls(inner, detail=False))
    return [str(fs.unstrip_protocol(path)) for path in found] if is_url(folder) else found


def remove(path: str) -> None:
    """Delete a file or a folder with all it holds; nothing happens if it is not there."""
    if objects.handles(path):
        objects.remove(path)
        return
    fs, inner = _filesystem(path)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)


def move(source: str, target: str) -> None:
    """Give a file another name, over whatever has it; nothing happens if it is not there."""
    if not is_url(source):
        with suppress(FileNotFoundError):
            os.replace(source, target)
        return
    if objects.handles(source):
        with suppress(FileNotFoundError):  # both are there for a moment, and never neither
            link_or_copy(source, target)
            remove(source)
        return
    fs, inner = _filesystem(source)
    if fs.exists(inner):
        fs.mv(inner, _filesystem(target)[1])


def link_or_copy(source: str, target: str) -> None:
    """The same content under another name, whole or not there; a hard link where the disk has them.

    Neither name is ever written to again: what is committed stays as it is.
    """
    if objects.handles(source) and objects.handles(target) and objects.copy(source, target):
        return
    if objects.handles(target) and not is_url(source):
        object_client.ask("upload", target, source)
        return
    if is_url(source) or is_url(target):
        with open_file(source) as file, committed(target) as copy:
            shutil.copyfileobj(file, copy, _COPY_BYTES)
        return
    disk.link_or_copy(source, target)


@contextmanager
def committed(path: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under ``path`` only if the block ends without an exception."""
    if objects.handles(path):
        with objects.committed(path) as file:
            yield file
        return
    if is_url(path):
        with deferred.committed(*_filesystem(path), mode) as file:
            yield file
        return
    with disk.committed(path, mode) as file:
        yield file


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


def create_text(path: str, text: str) -> bool:
    """Write a file only if nothing is there; True if it is ours. Of several writers one wins, on any machine."""
    return _swap_away(path, text, None) if is_url(path) else disk.create(path, text)


def swap_text(path: str, text: str, expected: str | None) -> bool:
    """Write a file only if it holds ``expected`` (None: if nothing is there); True if it is ours."""
    if expected is None:
        return create_text(path, text)
    return (_swap_away if is_url(path) else disk.swap)(path, text, expected)


def _swap_away(path: str, text: str, expected: str | None) -> bool:
    """Object stores decide themselves. Other filesystems can't be asked to: threads of this process only."""
    if objects.handles(path):
        return objects.swap(path, text, expected)
    with _SWAPPING:
        found = read_text(path) if exists(path) else None
        if found != expected:
            return False
        write_text(path, text)
        return True


def write_text(path: str, text: str) -> None:
    with committed(path) as file:
        file.write(text.encode())


def read_text(path: str) -> str:
    if objects.handles(path):
        return bytes(object_client.ask("get", path)).decode()
    with open_file(path) as file:
        return file.read().decode()
