"""Paths on disk or behind fsspec, and the one way anything is committed: written beside, renamed.

A file that exists is whole. Object stores make a put visible when it is complete, so there the
write goes straight to its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import fsspec


def is_url(path: str) -> bool:
    """Whether ``path`` names a protocol (``s3://``, ``memory://``) and not a local file."""
    return "://" in path


def absolute(path: str) -> str:
    """The path with ``~`` and the current folder resolved; URLs unchanged."""
    return path if is_url(path) else os.path.abspath(os.path.expanduser(path))


def join(root: str, *names: str) -> str:
    return "/".join([root.rstrip("/"), *names])


def exists(path: str) -> bool:
    if not is_url(path):
        return os.path.exists(path)
    fs, inner = fsspec.core.url_to_fs(path)
    return bool(fs.exists(inner))


def glob(pattern: str) -> list[str]:
    """Sorted matches of a pattern, local or remote, each usable with ``open_file``."""
    fs, inner = fsspec.core.url_to_fs(pattern)
    found = sorted(str(path) for path in fs.glob(inner))
    return [fs.unstrip_protocol(path) for path in found] if is_url(pattern) else found


def size_bytes(path: str) -> int:
    if not is_url(path):
        return os.path.getsize(path)
    fs, inner = fsspec.core.url_to_fs(path)
    return int(fs.size(inner))


def open_file(path: str, mode: str = "rb") -> IO[Any]:
    if not is_url(path):
        return open(path, mode)
    fs, inner = fsspec.core.url_to_fs(path)
    return fs.open(inner, mode)


def remove(path: str) -> None:
    """Delete a file or a folder with all it holds; nothing happens if it is not there."""
    fs, inner = fsspec.core.url_to_fs(path)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)


@contextmanager
def committed(path: str, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that appears under ``path`` only if the block ends without an exception."""
    if is_url(path):
        fs, inner = fsspec.core.url_to_fs(path)
        fs.makedirs(inner.rsplit("/", 1)[0], exist_ok=True)
        with fs.transaction, fs.open(inner, mode) as file:
            yield file
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def write_text(path: str, text: str) -> None:
    with committed(path) as file:
        file.write(text.encode())


def read_text(path: str) -> str:
    with open_file(path) as file:
        return file.read().decode()
