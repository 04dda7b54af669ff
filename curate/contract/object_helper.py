"""A process that asks the object store for one that was forked and so has none of the client's threads.

Questions go through a pipe, answers come back by another. It is started by the first question, and ends
when the process that asks does.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from typing import Any

from curate.contract import object_client


def ask(name: str, arguments: tuple[Any, ...]) -> Any:
    """The answer to a question of ``object_client``, or what it raised."""
    return _helper().ask(name, arguments)


class _Helper:
    """A process that asks for one that was forked. It ends with its pipe."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from curate.contract import object_helper as h; h.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def ask(self, name: str, arguments: tuple[Any, ...]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                pickle.dump((name, arguments), self._process.stdin)
                self._process.stdin.flush()
                failed, answer = pickle.load(self._process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError) as fault:
                self._end()
                raise object_client.StoreError(
                    f"{arguments[0]}: the process that asks the store ended. hint: was memory short? the same command goes on"
                ) from fault
            except (
                BaseException
            ):  # interrupted: the answer to come would be taken for the next one's
                self._end()
                raise
        if failed:
            raise answer
        return answer

    def _end(self) -> None:
        _HELPERS.clear()
        self._process.kill()
        self._process.wait()


_HELPERS: list[_Helper] = []
_STARTING = threading.Lock()


def _forked() -> None:
    """Another thread may have held the lock in the parent."""
    global _STARTING
    _STARTING = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def _helper() -> _Helper:
    with _STARTING:
        if not _HELPERS or _HELPERS[0].pid != os.getpid():
            _HELPERS[:] = [_Helper()]
        return _HELPERS[0]


def serve() -> None:
    """Answer questions from stdin on stdout until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints is no answer
    while True:
        try:
            name, arguments = pickle.load(source)
        except EOFError:
            return
        try:
            answer = False, _plain(object_client.ask(name, *arguments))
        except Exception as fault:
            answer = True, fault
        pickle.dump(answer, target)
        target.flush()


def _plain(answer: Any) -> Any:
    return answer if isinstance(answer, bool | int | str | list | tuple | None) else bytes(answer)
