"""Host names resolved in threads of their own, many at once, and kept for some minutes.

libcurl has 20 threads for this, so that 20 names whose servers do not answer (a list of dead links has them)
hold up every other name for as long as the resolver waits; and it waits for them when it is closed.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from curate.download.outcomes import Refused

# The resolver's own troubles (no answer from a name server, no memory, no files): no word on the name.
_OURS = frozenset(
    getattr(socket, name)
    for name in ("EAI_AGAIN", "EAI_MEMORY", "EAI_SYSTEM")
    if hasattr(socket, name)
)

_MOST_THREADS = 128
_THREAD_IDLE_S = 5.0
_KEPT = 20_000
_KEPT_S = 300.0
_FAILURE_KEPT_S = 60.0


class Names:
    """Asked and read on one thread; ``wake`` is called from others when an answer came."""

    def __init__(self, wake: Callable[[], None], timeout_s: float) -> None:
        self._wake = wake
        self._timeout_s = timeout_s
        self._kept: OrderedDict[str, tuple[float, list[str] | Refused]] = OrderedDict()
        self._pending: OrderedDict[str, float] = OrderedDict()  # name -> when it is given up
        self._answers: deque[tuple[str, list[str] | Refused]] = deque()
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._load = 0  # load: names queued or being looked up

    def addresses(self, name: str, now_s: float) -> list[str] | Refused | None:
        """The IP addresses of a name, or ``dns``; None where it has to be asked for."""
        until_s, found = self._kept.get(name, (now_s, None))
        return found if now_s < until_s else None

    def ask(self, name: str, now_s: float) -> None:
        """Have a name looked up; `take` tells when there is an answer."""
        if name in self._pending:
            return
        self._pending[name] = now_s + self._timeout_s
        with self._lock:
            self._queue.put(name)
            self._load += 1
            if self._load > self._threads and self._threads < _MOST_THREADS:
                self._threads += 1
                threading.Thread(target=self._work, name="names", daemon=True).start()

    def take(self, now_s: float) -> list[tuple[str, list[str] | Refused]]:
        """Names asked for that were answered, or given up, since the last call."""
        found = []
        while self._answers:
            name, answer = self._answers.popleft()
            self._keep(name, answer, now_s)
            if self._pending.pop(name, None) is not None:
                found.append((name, answer))
        while self._pending and next(iter(self._pending.values())) <= now_s:
            name, _ = self._pending.popitem(last=False)
            words = f"{name} was not resolved within {self._timeout_s:g} s"
            found.append((name, Refused("timeout.connect", words)))
        return found

    def next_s(self) -> float | None:
        """When the next name is given up."""
        return next(iter(self._pending.values()), None)

    def _keep(self, name: str, answer: list[str] | Refused, now_s: float) -> None:
        if isinstance(answer, Refused) and answer.passing:
            return
        kept_s = _FAILURE_KEPT_S if isinstance(answer, Refused) else _KEPT_S
        self._kept[name] = (now_s + kept_s, answer)
        self._kept.move_to_end(name)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _work(self) -> None:
        while True:
            try:
                name = self._queue.get(timeout=_THREAD_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._queue.empty():
                        self._threads -= 1
                        return
                continue
            self._answers.append((name, _look_up(name)))
            with self._lock:
                self._load -= 1
            self._wake()


def _look_up(name: str) -> list[str] | Refused:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as fault:
        passing = isinstance(fault, socket.gaierror) and fault.errno in _OURS
        return Refused("dns", f"{name}: {fault}"[:200], passing=passing)
    return list(dict.fromkeys(str(info[4][0]) for info in found))
