"""A word to ranks that no signal reaches: a file in the run's folder, on disk or behind a URL.

It is written from a signal's handler and looked for after every step. Behind a URL both would wait for the
store, so threads do it there, and a rank hears of it some seconds later.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from curate.contract import storage

NAME = ".stop"
_LOOK_EVERY_S = 2.0


class StopFile:
    """The file of a run's folder. The driver clears and writes it, the first rank looks for it."""

    def __init__(self, out: str) -> None:
        self.path = storage.join(out, NAME)
        self._is_away = storage.is_url(out)
        self._writing: threading.Thread | None = None
        self._looking: threading.Thread | None = None
        self._seen = threading.Event()

    def write(self) -> None:
        """May be called in a signal's handler."""
        if not self._is_away:
            self._put()
            return
        self._writing = threading.Thread(target=self._put, name="stop-file", daemon=True)
        self._writing.start()

    def clear(self) -> None:
        """No run is told to stop by what is left of another."""
        if self._writing is not None:
            self._writing.join()
        storage.remove(self.path)

    def is_there(self) -> bool:
        """Whether it was written; behind a URL as of some seconds ago."""
        if not self._is_away:
            return os.path.exists(self.path)
        if self._looking is None:
            self._looking = threading.Thread(target=self._look, name="stop-file", daemon=True)
            self._looking.start()
        return self._seen.is_set()

    def _put(self) -> None:
        storage.write_text(self.path, "")

    def _look(self) -> None:
        while not self._seen.wait(_LOOK_EVERY_S):
            with suppress(Exception):  # a store that does not answer now may do so later
                if storage.exists(self.path):
                    self._seen.set()


def watched(out: str) -> Callable[[], bool]:
    """Whether a run's folder says that it is to stop."""
    return StopFile(out).is_there
