"""Pictures decoded in child processes: one that hangs is killed, one that dies loses one picture.

Each child has a thread here that hands it one body at a time and waits for the answer (see `child`).
Children start when work is there or announced and end when there is none for some seconds; when this
process dies, their pipe ends and they with it. One that died while it had nothing to do costs nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from curate.download.child import CannotStart, Child, Died, Gone
from curate.download.outcomes import Outcome
from curate.download.pictures import PictureOptions

_IDLE_S = 10.0
_PAUSES_S = (0.1, 0.5, 2.0, 5.0)  # before another attempt to start a child
_COSTS = ("decode_cpu_s", "resize_cpu_s", "encode_cpu_s", "decoder_cpu_s")
_log = logging.getLogger(__name__)


class Decoders:
    """Up to ``processes`` children. ``done(key, outcome)`` is called once per key, on a child's thread.

    ``failed(fault)`` is called where no child can be started at all; keys are answered nevertheless.
    ``timeout_s`` is for one picture. ``memory_bytes`` is the address space of one child, of which its
    libraries take 300 MB (60 MB of them resident); 1.25 GiB let a plain picture of 100 megapixels in.
    """

    def __init__(
        self,
        options: PictureOptions,
        *,
        processes: int,
        timeout_s: float,
        memory_bytes: int,
        done: Callable[[Any, Outcome], None],
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self._argument = json.dumps(
            {"options": dataclasses.asdict(options), "memory_bytes": memory_bytes}
        )
        self._processes = max(1, processes)
        self._timeout_s = timeout_s
        self._done = done
        self._failed = failed
        self._came_up = False  # any child, ever
        self._work: deque[tuple[Any, bytes, str | None]] = deque()
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._children: set[Child] = set()
        self._idle = 0
        self._closed = False
        self._spent = dict.fromkeys((*_COSTS, "pictures"), 0.0)

    def submit(self, key: Any, body: bytes, expected_hash: str | None = None) -> None:
        """Queue one body. Never blocks; the queue is as long as the caller makes it."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the decoders are closed")
            self._work.append((key, body, expected_hash))
            if len(self._work) <= self._idle or len(self._threads) >= self._processes:
                self._changed.notify()
                return
            self._start_thread()

    def warm(self, count: int) -> None:
        """Start up to ``count`` children where there are none, so that the first bodies need not wait."""
        with self._changed:
            if not self._closed and not self._threads:
                for _ in range(min(count, self._processes)):
                    self._start_thread()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads for this user
            self._threads.discard(thread)
            if not self._threads:
                raise

    def costs(self) -> dict[str, float]:
        """CPU seconds since the last call by kind of work, ``decoder_cpu_s`` of all, and ``pictures``."""
        with self._changed:
            found, self._spent = self._spent, dict.fromkeys(self._spent, 0.0)
        return found

    def close(self) -> None:
        """End the children, the pictures they are at included. What is queued is dropped unanswered."""
        with self._changed:
            self._closed = True
            self._work.clear()
            self._changed.notify_all()
            threads = list(self._threads)
            for child in self._children:
                child.kill()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        child = self._ready(None)  # before there is work, as it takes a moment
        while (work := self._next()) is not None:
            key, body, expected_hash = work
            found = None
            for _ in range(2):  # a second time where the child was gone before it was asked
                if found is None and (child := self._ready(child)) is not None:
                    found = self._found(child, body, expected_hash)
            if child is not None and not child.well:
                self._bury(child)
                child = None
            if not self._closed:
                self._answer(key, found or _lost("decode.crashed", "no process to decode in", body))
        if child is not None:
            self._bury(child)

    def _found(self, child: Child, body: bytes, expected_hash: str | None) -> Outcome | None:
        """What becomes of a body, whatever goes wrong; None where the child had gone before."""
        try:
            found, cpu_s = child.ask(body, expected_hash, self._timeout_s)
            self._count(cpu_s)
            return found
        except TimeoutError:
            return _lost("decode.timeout", f"not decoded within {self._timeout_s:g} s", body)
        except Gone:
            return None
        except Died as fault:
            return _lost("decode.crashed", str(fault), body)
        except Exception as fault:
            _log.exception("a decoding process could not be asked")
            child.well = False
            return _lost("decode.crashed", f"{type(fault).__name__}: {fault}", body)

    def _ready(self, child: Child | None) -> Child | None:
        """This child, or another in its place; None where none can be started, which is then told."""
        if child is not None:
            if child.is_alive():
                return child
            self._bury(child)
        for pause_s in (*_PAUSES_S, None):
            if self._closed:
                return None
            try:
                return self._born()
            except Exception as fault:
                passing = isinstance(fault, CannotStart) and (fault.passing or self._came_up)
                if pause_s is None or not passing:
                    self._tell(fault)
                    return None
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause_s)
        return None

    def _tell(self, fault: Exception) -> None:
        if self._closed:
            return
        _log.warning("no process to decode in: %s", fault)
        if self._failed is not None:
            self._failed(fault)

    def _born(self) -> Child:
        """A child that is up. Raises CannotStart."""
        child = Child(self._argument)
        with self._changed:
            self._children.add(child)
            if self._closed:
                child.kill()
        try:
            child.wait_until_up()
        except BaseException:
            self._bury(child)
            raise
        self._came_up = True
        return child

    def _bury(self, child: Child) -> None:
        try:
            child.end()
        except Exception:
            _log.exception("a decoding process could not be ended")
        with self._changed:
            self._children.discard(child)

    def _next(self) -> tuple[Any, bytes, str | None] | None:
        """The next body, or None when this thread is no longer needed."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._work or self._closed, _IDLE_S)
            self._idle -= 1
            if self._work:
                return self._work.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def _count(self, cpu_s: list[float]) -> None:
        with self._changed:
            for name, seconds in zip(_COSTS, cpu_s, strict=True):
                self._spent[name] += seconds
            self._spent["pictures"] += 1

    def _answer(self, key: Any, found: Outcome) -> None:
        try:
            self._done(key, found)
        except Exception:
            _log.exception("what a decoded picture was handed to failed")


def _lost(kind: str, words: str, body: bytes) -> Outcome:
    sha256 = hashlib.sha256(body).hexdigest()
    return Outcome(kind=kind, error_message=words[:500], sha256=sha256, wire_bytes=len(body))
