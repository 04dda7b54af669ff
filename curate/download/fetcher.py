"""Fetches many URLs at once in one thread of its own: libcurl's multi interface, driven by epoll.

Every URL submitted ends in one call of ``done``, with a ``Body`` or a ``Refused``. See `guard` for what is
refused, `pace` for how many at once, `transfer` for one request, `fetch_loop` for the thread's work.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from curate.download.desk import COSTS, MOST_BODIES, Desk
from curate.download.fetch_loop import Loop
from curate.download.guard import Policy
from curate.download.outcomes import Refused

_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD, _MALLOC_ARENA_MAX = -1, -3, -8  # of mallopt(3)
_ARENAS = 2
IDLE_S = 5.0  # without work, after which the thread ends; the next URL starts another


@dataclass(frozen=True, slots=True)
class Body:
    """A body that came whole, without its coding. ``Fetcher.release(len(data))`` when done with it."""

    data: bytes


class _Call:
    """The key of a blocking ``get``."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.result: bytes | Refused | None = None


class Fetcher:
    """Submits URLs from any thread; ``done(key, Body or Refused)`` is called on the fetch thread, once for each.

    The thread starts with the first URL and ends when idle. It holds at most ``memory_bytes`` of bodies, in
    flight and handed out but not released, plus one body of ``max_bytes``, so that there is progress. At most
    ``most_bodies`` are handed out and not released, so that little is lost where the process is killed.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        most_requests: int,
        memory_bytes: int,
        done: Callable[[Any, Body | Refused], None],
        most_bodies: int = MOST_BODIES,
    ) -> None:
        self._done = done
        self._loop: Loop | None = None
        self._desk = Desk(
            policy, most_requests, memory_bytes, self._deliver, self._wake, most_bodies
        )
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._submitted = 0
        self._told = dict.fromkeys(COSTS, 0.0)

    def submit(self, key: Any, url: str | None) -> None:
        """Queue a URL. Never blocks. Raises RuntimeError once closed."""
        with self._lock:
            if self._desk.closing:
                raise RuntimeError("the fetcher is closed")
            self._submitted += 1
            self._desk.inbox.append((key, url))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)
                self._thread.start()
        self._wake()

    def release(self, size_bytes: int) -> None:
        """The consumer is done with a body of that length. From any thread."""
        self._desk.released.append(size_bytes)
        self._wake()

    def waiting(self) -> int:
        """URLs submitted and not yet started."""
        return max(0, self._submitted - self._desk.begun)

    def costs(self) -> dict[str, float]:
        """Sums since the last call: CPU seconds of the thread, counts, seconds in TLS handshakes, bytes of bodies."""
        now = dict(self._desk.totals)
        spent = {name: now[name] - self._told[name] for name in COSTS}
        self._told = now
        return spent

    def get(self, url: str | None) -> bytes:
        """One body, waited for. Raises Refused. Never call it from ``done``."""
        call = _Call()
        self.submit(call, url)
        call.ended.wait()
        if isinstance(call.result, bytes):
            self.release(len(call.result))
            return call.result
        raise call.result or Refused("other", "no result")

    def close(self) -> None:
        """End at once. URLs still under way end as ``other``: that says nothing about the web."""
        with self._lock:
            self._desk.closing = True
            thread = self._thread
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            loop.wire.wake()

    def _deliver(self, key: Any, result: bytes | Refused) -> None:
        if isinstance(key, _Call):
            key.result = result
            key.ended.set()
            return
        try:
            self._done(key, Body(result) if isinstance(result, bytes) else result)
        except Exception:
            traceback.print_exc()  # the consumer's fault; other URLs still have to come

    def _run(self) -> None:
        _keep_freed_memory()
        loop: Loop | None = None
        try:
            loop = self._loop = Loop(self._desk)
            self._turn_until_idle(loop)
        except BaseException as fault:
            with self._lock:
                self._desk.closing = True  # nobody would serve what is submitted now
            words = f"the fetch thread failed: {fault!r}"
            if loop is not None:
                loop.refuse_all(words)
            for key, _ in self._desk.inbox:
                self._deliver(key, Refused("other", words))
            raise
        finally:
            if loop is not None:
                loop.close()

    def _turn_until_idle(self, loop: Loop) -> None:
        busy_s = time.monotonic()
        while not self._desk.closing:
            if not loop.is_idle:
                busy_s = time.monotonic()
            elif time.monotonic() - busy_s >= IDLE_S and self._may_end(loop):
                return
            loop.turn()
        loop.refuse_all("the fetcher was closed before the URL was done")

    def _may_end(self, loop: Loop) -> bool:
        with self._lock:
            if not loop.is_idle:
                return False
            self._thread = self._loop = None
            return True


@functools.cache
def _keep_freed_memory() -> None:
    """Let malloc keep up to 8 MB that were freed, instead of giving every body's memory back at once.

    Getting it anew from the kernel, page by page, is more than half of what a body costs: 0.32 against
    0.14 ms of CPU for 250 KB over HTTP (measured). Two heaps for all threads, not one for each: what is
    freed in one is of no use in another. glibc only; elsewhere nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MALLOC_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(_MALLOC_TRIM_THRESHOLD, 8 << 20)
        libc.mallopt(_MALLOC_ARENA_MAX, _ARENAS)
