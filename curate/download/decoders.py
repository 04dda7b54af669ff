"""Pictures decoded in child processes: one that hangs is killed, one that dies loses one picture.

Each child has a thread here that hands it one body at a time and waits for the answer (see `child`).
Children start when there is work and end when there is none for some seconds; when this process dies,
their pipe ends and they with it.
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

from curate.download.child import CannotStart, Child, Died
from curate.download.outcomes import Outcome
from curate.download.pictures import PictureOptions

_IDLE_S = 10.0
_COSTS = ("decode_cpu_s", "resize_cpu_s", "encode_cpu_s", "decoder_cpu_s")
_log = logging.getLogger(__name__)


class Decoders:
    """Up to ``processes`` children. ``done(key, outcome)`` is called once per key, on a child's thread.

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
    ) -> None:
        self._argument = json.dumps(
            {"options": dataclasses.asdict(options), "memory_bytes": memory_bytes}
        )
        self._processes = max(1, processes)
        self._timeout_s = timeout_s
        self._done = done
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
            thread = threading.Thread(target=self._run, name="decoder", daemon=True)
            self._threads.add(thread)
        thread.start()

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
        child: Child | None = None
        while (work := self._next()) is not None:
            key, body, expected_hash = work
            found = None
            try:
                child = child or self._born()
                found, cpu_s = child.ask(body, expected_hash, self._timeout_s)
                self._count(cpu_s)
            except TimeoutError:
                found = _lost("decode.timeout", f"not decoded within {self._timeout_s:g} s", body)
            except CannotStart as fault:
                found = _lost("other", str(fault), body)
            except Died as fault:
                found = _lost("decode.crashed", str(fault), body)
            if child is not None and not child.well:
                self._bury(child)
                child = None
            if not self._closed:
                self._answer(key, found)
        if child is not None:
            self._bury(child)

    def _born(self) -> Child:
        child = Child(self._argument)
        with self._changed:
            self._children.add(child)
            if self._closed:
                child.kill()
        return child

    def _bury(self, child: Child) -> None:
        child.end()
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
