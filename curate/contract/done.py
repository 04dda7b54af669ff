"""What says that a part is done: a manifest of ours beside its parquet file, written last and only once.

    part-00003.parquet      the columns
    part-00003.json         rows, counts, costs, bytes and sha256 of it, and of the pictures that belong to it

A file without a manifest is what an attempt left that died; it is never read, and written over. Of two attempts
at one part (a task on a node that was believed lost) the first manifest counts: the other attempt keeps it, and
takes the part back where the files are not those that it names. Sizes are looked at whenever a part is read,
hashes by ``verify``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from curate.contract import storage

ASIDE = ".damaged"  # behind the name of a file that was set aside
_TRIES = 3
_CHUNK_BYTES = 1 << 20
Beside = Mapping[str, str]  # name in the manifest -> path of what else belongs to a part: "images"


class Damaged(Exception):
    """Files of a part that are not what its manifest says, or a part without one. ``path``: which."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


class Written(NamedTuple):
    """What was committed under one name; the hash is '' where nobody has made one.

    ``mark`` tells this very file from another of the same size under its name; it is in no manifest.
    """

    bytes: int
    sha256: str
    mark: str = ""

    def told(self) -> dict[str, Any]:
        """As a manifest has it."""
        return {"bytes": self.bytes, "sha256": self.sha256}


def written_as(path: str, sha256: str = "") -> Written:
    """What lies under a name, just committed by this process in some other way."""
    size, mark = _told_of(path)
    return Written(size, sha256, mark)


def mark_of(path: str) -> str:
    """What tells a file from any other that was put in its place; '' where the store does not say."""
    return _told_of(path)[1]


def _told_of(path: str) -> tuple[int, str]:
    """(bytes, mark) by one question."""
    if storage.is_url(path):
        size, version = storage.mark(path)
        return size, _bare(version)
    found = os.stat(path)
    return found.st_size, f"{found.st_ino} {found.st_mtime_ns}"


class Hashing:
    """A file that is being written, its bytes counted and hashed on the way."""

    def __init__(self, file: IO[Any]) -> None:
        self._file, self._digest, self._bytes = file, hashlib.sha256(), 0
        self.mark = ""

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._bytes += len(data)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    @property
    def written(self) -> Written:
        return Written(self._bytes, self._digest.hexdigest(), self.mark)

    def sync(self) -> None:
        """Have all of it on the disk, so that to commit it takes no time."""
        self._file.flush()
        if hasattr(self._file, "fileno") and not hasattr(self._file, "commit"):
            os.fsync(self._file.fileno())


@contextmanager
def hashing(path: str) -> Iterator[Hashing]:
    """``storage.committed`` with the bytes hashed while they are written."""
    with storage.committed(path) as file:
        hashed = Hashing(file)
        yield hashed
        if not storage.is_url(path):
            file.flush()
            found = os.fstat(file.fileno())
            hashed.mark = f"{found.st_ino} {found.st_mtime_ns}"
    if storage.is_url(path):  # an object store's answer says it: a moment later it may be another's
        hashed.mark = _bare(getattr(file, "version", "")) or mark_of(path)


def _bare(version: str) -> str:
    """An ETag without its quotes, which not every answer of a store has."""
    return version.removeprefix("W/").strip('"')


class Seen(NamedTuple):
    """A part as found: its manifest where all is well; else what is wrong, '' where it was never done."""

    stats: dict[str, Any] | None
    fault: str = ""
    path: str = ""  # the file that is at fault


def manifest_path(path: str) -> str:
    """``part-00003.json`` for ``part-00003.parquet``."""
    return path.rpartition(".")[0] + ".json"


def read(path: str) -> dict[str, Any] | None:
    """The manifest of a part, None where it has none. Raises Damaged for one that is no JSON object."""
    name = manifest_path(path)
    try:
        found = json.loads(storage.read_text(name))
    except FileNotFoundError:
        return None
    except ValueError as fault:
        raise Damaged(name, f"can't be read as JSON: {fault}") from fault
    if not isinstance(found, dict):
        raise Damaged(name, "holds no JSON object")
    return found


def look(path: str, beside: Beside | None = None, listed: Mapping[str, int] | None = None) -> Seen:
    """A part's manifest, and whether the files are of the sizes that it names.

    ``listed``: the sizes that a listing told, file by file; of others, and where one does not fit, it is asked.
    """
    try:
        stats = read(path)
    except Damaged as fault:
        return Seen(None, fault.what, fault.path)
    if stats is None:
        return Seen(None)
    for file, told in _files(path, stats, beside or {}):
        if listed and told.bytes >= 0 and listed.get(file) == told.bytes:
            continue
        what = _size_fault(file, told)
        if what:
            return Seen(None, what, file)
    return Seen(stats)


def is_done(path: str, beside: Beside | None = None) -> bool:
    """Whether a part has a manifest, and files of the sizes that it names."""
    return look(path, beside).stats is not None


def checked(path: str, listed: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The manifest of a part whose parquet file is about to be read. Raises Damaged. ``listed``: see ``look``."""
    seen = look(path, listed=listed)
    if seen.stats is None:
        raise Damaged(seen.path or path, seen.fault or "was never committed: it has no manifest")
    return seen.stats


def commit(
    path: str, stats: Mapping[str, Any], own: Written, others: Mapping[str, tuple[str, Written]]
) -> tuple[dict[str, Any], bool]:
    """Say that a part is done, its files being there; (the manifest that counts, whether it is of these files).

    ``others``: name -> (path, what was written) of what belongs to it. Raises Damaged where another attempt
    was at it at the same time, and what is there is of neither: then the part is taken back.
    """
    mine = {**stats, **own.told(), **{name: w.told() for name, (_, w) in others.items()}}
    beside = {name: file for name, (file, _) in others.items()}
    text = json.dumps(mine) + "\n"
    for _ in range(_TRIES):
        if storage.create_text(manifest_path(path), text):
            if all(_is_still(file, told) for file, told in ((path, own), *others.values())):
                return mine, True
            break
        try:
            theirs = read(path)
        except Damaged:
            break
        if theirs is None:
            continue  # taken back in this moment
        if _hashes(theirs, beside) == _hashes(mine, beside):
            return theirs, True
        if not faults(path, theirs, beside):
            return theirs, False
        break
    set_aside(path, beside)
    raise Damaged(path, "two attempts at this part were made at the same time, and mixed")


def set_aside(path: str, beside: Beside | None = None) -> None:
    """Take a part back, its manifest first; what there is of it stays, under names that end in ``.damaged``."""
    for file in (manifest_path(path), path, *(beside or {}).values()):
        storage.move(file, file + ASIDE)


def withdraw(path: str) -> None:
    """Take a part back and delete its parquet file: its values count for nothing, nor those set aside before."""
    for file in (manifest_path(path), manifest_path(path) + ASIDE, path):
        storage.remove(file)


def aside_stats(path: str) -> dict[str, Any] | None:
    """The manifest that a part had before it was set aside; None where it had none that can be read."""
    try:
        found = json.loads(storage.read_text(manifest_path(path) + ASIDE))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def adopt(path: str, stats: Mapping[str, Any], beside: Beside | None = None) -> bool:
    """Write the manifest of a part that was committed before there were any: sizes, and no hashes."""
    there = {
        name: {"bytes": storage.size_bytes(f), "sha256": ""} for name, f in (beside or {}).items()
    }
    own = {"bytes": storage.size_bytes(path), "sha256": ""}
    return storage.create_text(manifest_path(path), json.dumps({**stats, **own, **there}) + "\n")


def verify(path: str, beside: Beside | None = None) -> list[str]:
    """Everything that is wrong with a part, each as ``path: what``, its files read whole; [] for a whole one.

    A part that was never done is not wrong: ask ``is_done`` too.
    """
    try:
        stats = read(path)
    except Damaged as fault:
        return [str(fault)]
    return [] if stats is None else faults(path, stats, beside or {})


def faults(path: str, stats: Mapping[str, Any], beside: Beside) -> list[str]:
    """Where the files of a part are not what ``stats`` says, by size and hash."""
    found = []
    for file, told in _files(path, stats, beside):
        fault = _size_fault(file, told)
        if not fault and told.sha256:
            digest = digest_of(file)
            if digest != told.sha256:
                fault = f"its bytes have another hash: {digest[:16]}, not {told.sha256[:16]}"
        if fault:
            found.append(f"{file}: {fault}")
    return found


def digest_of(path: str) -> str:
    """sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with storage.open_file(path) as file:
        while data := file.read(_CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _files(path: str, stats: Mapping[str, Any], beside: Beside) -> Iterator[tuple[str, Written]]:
    yield path, _written(stats)
    for name, file in beside.items():
        yield file, _written(stats.get(name, {}))


def _written(told: Mapping[str, Any]) -> Written:
    return Written(int(told.get("bytes", -1)), str(told.get("sha256", "")))


def _size_fault(path: str, told: Written) -> str:
    try:
        found = storage.size_bytes(path)
    except FileNotFoundError:
        return "is not there, though its manifest is"
    if told.bytes < 0:
        return "its manifest does not name it"
    return "" if found == told.bytes else f"{found:,} of {told.bytes:,} bytes"


def _is_still(path: str, told: Written) -> bool:
    """Whether a file is the one that was committed, and not one that another attempt put in its place."""
    try:
        size, mark = _told_of(path)
        return size == told.bytes and told.mark in ("", mark)
    except FileNotFoundError:
        return False


def _hashes(stats: Mapping[str, Any], beside: Beside) -> list[Written]:
    return [_written(stats), *(_written(stats.get(name, {})) for name in beside)]
