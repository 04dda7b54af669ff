"""What lies in a folder, with sizes and times: one listing a folder, however many files it has.

For whoever looks at a pool as a whole (status, gc, verify); to run needs none of it. Works where ``storage``
does. A file that goes while it is listed is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

from curate.contract import object_client, object_login, objects, storage

_AT_ONCE = 16
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


class Entry(NamedTuple):
    """One file. ``modified_s``: seconds since 1970, 0 where that is not told. ``links``: its names on disk."""

    path: str
    bytes: int
    modified_s: float
    links: int = 1

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


def files(folder: str, ending: str = "") -> list[Entry]:
    """The files right below a folder, of names that end so, sorted; [] where there is no folder."""
    if storage.is_url(folder):
        return sorted(one for one in _found(folder, deep=False) if one.name.endswith(ending))
    return sorted(_on_disk(folder, deep=False, ending=ending))


def tree(folder: str) -> list[Entry]:
    """All files below a folder, sorted; [] where there is no folder."""
    return sorted(_found(folder, deep=True))


def folders(folder: str) -> list[str]:
    """The folders right below a folder, sorted."""
    if not storage.is_url(folder):
        try:
            with os.scandir(folder) as found:
                return sorted(one.path for one in found if one.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
    if objects.handles(folder):
        keys, _ = object_client.ask("level", folder)
        return sorted(_named(folder, key.rstrip("/")) for key in keys)
    return sorted(path for path, info in _asked(folder, deep=False) if info["type"] == "directory")


def remove_files(paths: Iterable[str]) -> None:
    """Delete files, many at once where that takes a journey each; nothing happens for those that are gone."""
    paths = list(paths)
    if not paths:
        return
    if objects.handles(paths[0]):
        object_client.ask("delete", paths[0], [object_login.split(path)[2] for path in paths])
    elif storage.is_url(paths[0]):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(storage.remove, paths))
    else:
        for path in paths:
            if os.path.lexists(path):
                os.remove(path)


def _found(folder: str, deep: bool) -> Iterator[Entry]:
    if not storage.is_url(folder):
        yield from _on_disk(folder, deep)
    elif objects.handles(folder):
        keys, keyed = object_client.ask("level", folder)
        for key, (size, _, changed) in keyed:
            yield Entry(_named(folder, key), size, _seconds(changed))
        for key in keys if deep else ():
            yield from _found(_named(folder, key.rstrip("/")), deep)
    else:
        for path, info in _asked(folder, deep):
            if info["type"] == "file":
                when = next((info[name] for name in _TIMES if info.get(name)), 0.0)
                yield Entry(path, int(info.get("size") or 0), _seconds(when))


def _on_disk(folder: str, deep: bool, ending: str = "") -> Iterator[Entry]:
    try:
        with os.scandir(folder) as found:
            for one in found:
                if not one.name.endswith(ending):
                    continue
                if one.is_dir(follow_symlinks=False):
                    if deep:
                        yield from _on_disk(one.path, deep)
                    continue
                try:
                    told = one.stat()
                except FileNotFoundError:
                    continue
                yield Entry(one.path, told.st_size, told.st_mtime, told.st_nlink)
    except (FileNotFoundError, NotADirectoryError):
        return


def _asked(folder: str, deep: bool) -> list[tuple[str, dict[str, Any]]]:
    fs, inner = storage._filesystem(folder)
    if not fs.exists(inner):
        return []
    found = fs.find(inner, detail=True).values() if deep else fs.ls(inner, detail=True)
    return [(str(fs.unstrip_protocol(str(info["name"]))), info) for info in found]


def _named(url: str, key: str) -> str:
    scheme, bucket, _ = object_login.split(url)
    return f"{scheme}://{bucket}/{key}"


def _seconds(told: Any) -> float:
    """A time as a filesystem tells it: seconds, a datetime or its text."""
    if isinstance(told, int | float):
        return float(told)
    try:
        when = told if isinstance(told, datetime) else datetime.fromisoformat(str(told))
        return when.timestamp()
    except ValueError:
        return 0.0
