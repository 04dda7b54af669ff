"""The pictures of one stage and part, streamed to a tar that appears when it is committed."""

from __future__ import annotations

import time

from curate.contract import done, tars
from curate.contract.done import Written


class PictureTar:
    """A tar at ``path``: ``add`` pictures, ``finish``, ``commit``; ``close`` in any case. ``cpu_s``: spent on adding."""

    def __init__(self, path: str) -> None:
        self._context = done.hashing(path)
        self._file = self._context.__enter__()
        self._open = True
        self.cpu_s = 0.0

    def add(self, uids: list[str], images: list[bytes | None]) -> None:
        """Those that there are, each under its uid."""
        started = time.thread_time()
        for uid, image in zip(uids, images, strict=True):
            if image is not None:
                self._file.write(tars.member(f"{uid}.{tars.image_extension(image)}", image))
        self.cpu_s += time.thread_time() - started

    def finish(self) -> None:
        """Everything is on the disk, under no name yet."""
        self._file.write(tars.END)
        self._file.sync()

    def commit(self) -> Written:
        """Give the tar its name."""
        self._open = False
        self._context.__exit__(None, None, None)
        return self._file.written

    def close(self) -> None:
        """Drop what was not committed."""
        if self._open:
            self._open = False
            fault = RuntimeError("not committed")
            try:
                self._context.__exit__(RuntimeError, fault, None)
            except RuntimeError as raised:
                if raised is not fault:
                    raise
