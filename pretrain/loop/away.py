"""A run whose folder is behind a URL: its files are made whole on this machine's disk, and put from there.

    TMP/clip-pipe-<user id>/<hash of OUT>/metrics.jsonl     grows here; put whole at intervals and before each checkpoint
    TMP/clip-pipe-<user id>/<hash of OUT>/checkpoints/      checkpoints that are whole, and not yet where they belong

What could not be put stays here: the next checkpoint takes its place, and a resumed run on this machine puts it.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from curate.contract import storage
from pretrain.stream import cache

_logger = logging.getLogger(__name__)
_EVERY_S = 30.0  # between two puts of a file that grows
_SHARE = 20  # or so many times what the last one took, if that is longer


class NotPut(OSError):
    """A file that is whole on this disk could not be put where it belongs."""


class FolderLost(RuntimeError):
    """The run's folder is not this run's any more: nothing more may be written there."""


def folder(out: str) -> str:
    """Where this machine keeps what a run behind a URL has not put yet; only its user may look into it.

    Raises ValueError where somebody else made the folder.
    """
    root = os.path.join(tempfile.gettempdir(), f"clip-pipe-{os.getuid()}")
    os.makedirs(root, mode=0o700, exist_ok=True)
    if os.stat(root).st_uid != os.getuid() or os.path.islink(root):
        raise ValueError(
            f"{root} belongs to somebody else. hint: set TMPDIR to a folder of your own"
        )
    return os.path.join(root, cache.key(out.rstrip("/"))[:16])


def local(url: str) -> str:
    """Where a file of a run's folder behind a URL is made on this disk."""
    out, _, name = url.rpartition("/")
    return os.path.join(folder(out), name)


def written_to(out: str) -> str:
    """Where the disk is that files of a run's folder are made on, in words."""
    return f"{folder(out)}, on the way to {out}" if storage.is_url(out) else out


def set_aside(out: str) -> None:
    """Give what a former run of this folder left here another name: it is none of the run that begins now."""
    own = folder(out)
    if os.path.isdir(own) and os.listdir(own):
        number = 1
        while os.path.exists(f"{own}.before-{number}"):
            number += 1
        os.rename(own, f"{own}.before-{number}")


@contextmanager
def on_disk(path: str) -> Iterator[str]:
    """A file on disk inside the block: the file itself, or a copy of one behind a URL, under its own name."""
    if not storage.is_url(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="clip-pipe-") as copies:
        copy = os.path.join(copies, path.rpartition("/")[2])
        storage.fetch(path, copy)
        yield copy


def append(path: str, line: str) -> None:
    """Add a line to a text file, on disk or behind a URL; others may add theirs meanwhile.

    Half a line that a killed process left is ended first. On disk it is one write; an object is swapped
    for a longer one, again if it changed meanwhile.
    """
    if storage.is_url(path):
        while True:
            found = storage.read_text(path) if storage.exists(path) else None
            if storage.swap_text(path, f"{_ended(found or '')}{line}", found):
                return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())


def put_lines(url: str) -> None:
    """Put the lines that a run left here; those that others added there stay."""
    here = local(url)
    if not os.path.exists(here):
        return
    text = storage.read_text(here)
    while True:
        there = storage.read_text(url) if storage.exists(url) else None
        whole = _ended(text) + _theirs(there or "", text)
        if whole == there or storage.swap_text(url, whole, there):
            return


def _theirs(found: str, text: str) -> str:
    """The lines of ``found`` that are none of ``text``."""
    known = set(text.splitlines())
    return "".join(f"{line}\n" for line in found.splitlines() if line not in known)


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"


class Growing:
    """A text file that grows on this disk and is put whole under a URL, beside whatever else goes on.

    Lines that others added to the object meanwhile (`clip-pipe eval`) are taken over, never lost.
    ``may_write`` raises FolderLost where the run's folder is not this run's any more.
    """

    def __init__(self, url: str, local: str, may_write: Callable[[], None]) -> None:
        self.url, self.local, self._may_write = url, local, may_write
        self._there: str | None = None  # what the object holds, as far as is known
        self._adding, self._putting = threading.Lock(), threading.Lock()
        self._put_at_s, self._took_s = float("-inf"), 0.0
        self._thread: threading.Thread | None = None
        self._warned = False

    def begin(self, text: str, there: str | None) -> None:
        """Hold this text from now on. ``there``: what the object holds; it is put if that is another."""
        os.makedirs(os.path.dirname(self.local), exist_ok=True)
        storage.write_text(self.local, text)
        self._there = there
        if there is not None and there != text:
            self.put()

    def add(self, line: str) -> None:
        """Append here, and put it all if it is time; nothing is waited for."""
        self._add(line)
        pause_s = max(_EVERY_S, _SHARE * self._took_s)
        if time.monotonic() - self._put_at_s < pause_s or (
            self._thread is not None and self._thread.is_alive()
        ):
            return
        self._thread = threading.Thread(target=self._beside, name="metrics-put", daemon=True)
        self._thread.start()

    def put(self) -> None:
        """Return when the object holds every line that was added before. Raises as the store does."""
        with self._putting:
            self._may_write()
            began_s = time.monotonic()
            try:
                text = self._read()
                while text != self._there and not storage.swap_text(self.url, text, self._there):
                    text = self._merge(text)
                self._there = text
            finally:
                self._put_at_s = time.monotonic()
                self._took_s = self._put_at_s - began_s
            self._warned = False

    def _merge(self, text: str) -> str:
        """What to put, the object being other than it was thought to be."""
        found = storage.read_text(self.url) if storage.exists(self.url) else None
        before, self._there = self._there or "", found
        if found is None or found == text:  # deleted; or put by us, and the answer was lost
            return text
        if found.startswith(before):  # also where an earlier put of ours raised, and had come there
            self._add(_theirs(found[len(before) :], text))
        else:
            _logger.warning("%s was changed by somebody else: it holds this run's lines again", self.url)  # fmt: skip
        return self._read()

    def _add(self, line: str) -> None:
        with self._adding, open(self.local, "a", encoding="utf-8") as file:
            file.write(line)

    def _read(self) -> str:
        with self._adding:
            return storage.read_text(self.local)

    def _beside(self) -> None:
        try:
            self.put()
        except Exception as fault:
            if not self._warned:
                _logger.warning("%s could not be put: %s; it grows as %s, and is tried again", self.url, fault, self.local)  # fmt: skip
            self._warned = True

    def close(self) -> None:
        """Put what is left; where that can't be done the file here stays, and is named."""
        if self._thread is not None:  # it must not put when the folder is given back
            self._thread.join()
        if not os.path.exists(self.local):
            return
        try:
            self.put()
        except Exception as fault:
            _logger.warning("%s could not be put: %s; all of it is in %s", self.url, fault, self.local)  # fmt: skip
        else:
            os.remove(self.local)
