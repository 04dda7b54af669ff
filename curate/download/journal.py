"""Finished outcomes of one part, noted as they come, so that a killed run fetches nothing of them again.

A record is a key, lengths and a CRC-32 before the outcome as JSON and its picture. Each writer has a
file of its own under a random name, and that name is the key: a picture, which may hold any bytes,
can't look like a record. All files of the folder are read. On a local disk a record is one append, which
outlives the process at once (no fsync: a power cut may cost some). Behind fsspec nothing can be
appended to, so there records are gathered and committed as segments, every few seconds or 8 MB; what
comes while a slow store still takes the last one is held up to 16 MB, and beyond that not noted.

What another attempt may end otherwise is not noted: a run that comes back asks again.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from curate.contract import storage
from curate.download.outcomes import Outcome, is_transient

_LOG = logging.getLogger("clip_pipe")
_HEAD = struct.Struct("<16sIII")  # key, bytes of JSON, bytes of picture, CRC-32 of both
_KEY_DIGITS = 32
_SUFFIX = ".journal"
_FIELDS = (
    "kind", "error_message", "width", "height", "original_width", "original_height",
    "sha256", "exif", "wire_bytes",
)  # fmt: skip
_SEGMENT_BYTES = 8 << 20
_MOST_GATHERED_BYTES = 16 << 20
_SEGMENT_S = 5.0
# Not transient as a kind, and yet no word on the URL: the host may be up again, this machine less busy.
_PASSING = frozenset({"host_down", "decode.timeout", "decode.crashed", "other"})


@dataclass(frozen=True)
class Place:
    """Where a noted picture lies: ``length`` bytes from ``offset`` of a file."""

    path: str
    offset: int
    length: int

    def read(self) -> bytes | None:
        """The picture, or None where the file is gone or cut short."""
        try:
            with storage.open_file(self.path) as file:
                file.seek(self.offset)
                data = file.read(self.length)
        except OSError:
            return None
        return data if len(data) == self.length else None


@dataclass(frozen=True)
class Noted:
    """An outcome read back, without its picture, and where the picture lies (None for a refusal)."""

    outcome: Outcome
    place: Place | None

    def whole(self) -> Outcome | None:
        """The outcome with its picture, or None where that can't be read any more."""
        if self.place is None:
            return self.outcome
        image = self.place.read()
        return None if image is None else replace(self.outcome, image=image)


class Journal:
    """The notes on one part: ``folder`` is a path or an fsspec URL, made by the first write. Thread-safe."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._writer: _File | _Segments | None = None
        self._usable = True
        self.reads_at_once = not storage.is_url(folder)

    def read(self) -> dict[str, Noted]:
        """What earlier writers noted, by uid; of several notes on a uid any one. Damage is told and skipped."""
        found: dict[str, Noted] = {}
        for path in storage.listed(self._folder):
            if path.endswith(_SUFFIX):
                found.update(_read_file(path))
        return found

    def write(self, uid: str, outcome: Outcome) -> Place | None:
        """Note an outcome. Returns where its picture can be read at once, None where it can't.

        A disk that takes no more ends the notes, with a warning, and not the run.
        """
        if not lasts(outcome.kind):
            return None
        image = outcome.image or b""
        words = json.dumps([uid, {name: getattr(outcome, name) for name in _FIELDS}]).encode()
        lengths_and_crc = len(words), len(image), zlib.crc32(image, zlib.crc32(words))
        with self._lock:
            if not self._usable:
                return None
            try:
                if self._writer is None:
                    self._writer = _writer(self._folder)
                head = _HEAD.pack(self._writer.key, *lengths_and_crc)
                end = self._writer.append(head + words, image)
            except OSError as fault:
                self._usable = False
                _LOG.warning(
                    "%s: %s. Downloads of this part are not noted, so a killed run fetches them again",
                    self._folder, fault.strerror or fault,
                )  # fmt: skip
                return None
            if end is None or not image:
                return None
            return Place(self._writer.path, end - len(image), len(image))

    def close(self, keep: bool = True) -> None:
        """No more writes. ``keep`` False: the notes will not be read, so nothing more is committed."""
        with self._lock:
            if self._writer is not None:
                self._writer.close(keep)
            self._writer, self._usable = None, False


def lasts(kind: str | None) -> bool:
    """Whether an outcome of this kind is worth a note: a success, or what another attempt would not change."""
    return kind is None or not (kind in _PASSING or is_transient(kind))


def _writer(folder: str) -> _File | _Segments:
    return _Segments(folder) if storage.is_url(folder) else _File(folder)


class _File:
    """A local file that grows by one append for each record."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        name = uuid.uuid4()
        self.key = name.bytes
        self.path = storage.join(folder, name.hex + _SUFFIX)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self._size = 0

    def append(self, head: bytes, image: bytes) -> int:
        """Returns the file's length. Raises OSError where not all was taken."""
        written = os.writev(self._file, [head, image])
        self._size += written
        if written < len(head) + len(image):
            raise OSError(f"{self.path}: only {written} bytes of a record were taken")
        return self._size

    def close(self, keep: bool) -> None:
        os.close(self._file)


class _Segments:
    """Records gathered into objects, each committed whole by a thread of its own.

    A thread of its own also since fsspec's transactions belong to a thread: one that is open for a
    part's pictures must not be ended from here.
    """

    path = ""  # nothing can be read before it is committed

    def __init__(self, folder: str) -> None:
        self._folder = folder
        name = uuid.uuid4()
        self.key, self._name = name.bytes, name.hex
        self._segments = 0
        self._records: list[bytes] = []
        self._bytes = 0
        self._since_s = time.monotonic()
        self._committing: threading.Thread | None = None

    def append(self, head: bytes, image: bytes) -> None:
        busy = self._committing is not None and self._committing.is_alive()
        if busy and self._bytes >= _MOST_GATHERED_BYTES:
            return
        self._records += (head, image)
        self._bytes += len(head) + len(image)
        late = time.monotonic() - self._since_s >= _SEGMENT_S
        if (late or self._bytes >= _SEGMENT_BYTES) and not busy:
            self._commit()

    def close(self, keep: bool) -> None:
        if self._committing is not None:
            self._committing.join()  # or it could appear after the folder was removed
        if keep and self._records:
            self._commit()
            assert self._committing is not None
            self._committing.join()
        self._records = []

    def _commit(self) -> None:
        path = storage.join(self._folder, f"{self._name}-{self._segments:05d}{_SUFFIX}")
        self._segments += 1
        records, self._records, self._bytes = self._records, [], 0
        self._since_s = time.monotonic()
        self._committing = threading.Thread(target=_put, args=(path, records), daemon=True)
        self._committing.start()


def _put(path: str, records: list[bytes]) -> None:
    try:
        with storage.committed(path) as file:
            file.writelines(records)
    except Exception as fault:  # whatever a filesystem's client raises; the run does without notes
        _LOG.warning("%s: %s. A killed run would fetch these pictures again", path, fault)


def _read_file(path: str) -> Iterator[tuple[str, Noted]]:
    try:
        key = bytes.fromhex(path.replace("\\", "/").rpartition("/")[2][:_KEY_DIGITS])
    except ValueError:
        key = b""
    if len(key) != _KEY_DIGITS // 2:
        _LOG.warning("%s: no name that a writer of notes gives, left out", path)
        return
    with storage.open_file(path) as file:
        if storage.is_url(path):
            yield from _records(path, key, file.read())
        elif os.fstat(file.fileno()).st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield from _records(path, key, mapped)


def _records(path: str, key: bytes, data: bytes | mmap.mmap) -> Iterator[tuple[str, Noted]]:
    """The whole records. Damage in between is told; a record cut short at the end is not: a kill does that."""
    start = 0
    while start < len(data):
        found = _record(path, key, data, start)
        if found is not None:
            start, uid, noted = found
            if noted is None:
                _LOG.warning("%s: the record before byte %d can't be read, left out", path, start)
            elif lasts(noted.outcome.kind):
                yield uid, noted
            continue
        following = data.find(key, start + 1)
        while following >= 0 and _record(path, key, data, following) is None:
            following = data.find(key, following + 1)  # another that is damaged or cut
        if following < 0:
            return
        _LOG.warning(
            "%s: damaged at byte %d, %d bytes left out; their pictures are fetched again",
            path, start, following - start,
        )  # fmt: skip
        start = following


def _record(
    path: str, key: bytes, data: bytes | mmap.mmap, start: int
) -> tuple[int, str, Noted | None] | None:
    """(end, uid, what was noted, None where it is out of form) of the record that starts here; None where none does."""
    if start + _HEAD.size > len(data):
        return None
    found, words_bytes, image_bytes, crc = _HEAD.unpack_from(data, start)
    image_at = start + _HEAD.size + words_bytes
    end = image_at + image_bytes
    if found != key or end > len(data):
        return None
    with memoryview(data) as view, view[start + _HEAD.size : end] as body:
        if zlib.crc32(body) != crc:
            return None
        words = bytes(body[:words_bytes])
    try:
        uid, fields = json.loads(words)
        outcome = Outcome(**{name: fields.get(name) for name in _FIELDS})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return end, "", None
    if not isinstance(uid, str) or not isinstance(outcome.kind, str | None):
        return end, "", None
    place = Place(path, image_at, image_bytes) if outcome.kind is None else None
    return end, uid, Noted(outcome, place)
