"""Files behind fsspec that appear when they are whole: held back as its transactions do, each by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

_OPENING = threading.Lock()  # a filesystem, and so its transaction, may be shared by threads


@contextmanager
def committed(fs: Any, inner: str, mode: str) -> Iterator[IO[Any]]:
    """A file of a filesystem that appears only if the block ends without an exception."""
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
