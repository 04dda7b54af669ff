"""libcurl's multi handle driven by epoll: work per event, not per open connection, and no limit of 1024 files."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator
from typing import Any

import pycurl

_EPOLL = hasattr(select, "epoll")


class Wire:
    """Runs the handles added to it. All methods on one thread, but ``wake``."""

    def __init__(self, most_connections: int) -> None:
        self._poll: Any = select.epoll() if _EPOLL else select.poll()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._poll.register(self._read_fd, select.POLLIN)
        self._lock = threading.Lock()
        self._woken = self._closed = False
        self._sockets: set[int] = set()
        self._timer_s: float | None = None
        self._multi: Any = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._socket_changed)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._timer_changed)
        self._multi.setopt(pycurl.M_MAXCONNECTS, most_connections)

    def wake(self) -> None:
        """End the ``wait`` that is going on, or the next one. From any thread, also after ``close``."""
        if self._woken:
            return
        with self._lock:
            if not self._woken and not self._closed:
                self._woken = True
                os.write(self._write_fd, b"w")

    def wait(self, longest_s: float) -> None:
        """Let data flow until there was some, a timer of libcurl's ended, or ``wake``."""
        if self._timer_s is not None:
            longest_s = min(longest_s, self._timer_s - time.monotonic())
        for fd, events in self._poll.poll(max(0.0, longest_s) * (1 if _EPOLL else 1000)):
            if fd == self._read_fd:
                # In this order: a wake in between writes nothing, and the caller looks at what came
                # in only after this. The other way round its byte is read and the flag stays set.
                os.read(fd, 64)
                self._woken = False
                continue
            mask = pycurl.CSELECT_IN if events & ~select.POLLOUT else 0
            mask |= pycurl.CSELECT_OUT if events & select.POLLOUT else 0
            self._multi.socket_action(fd, mask)
        if self._timer_s is not None and self._timer_s <= time.monotonic():
            self._timer_s = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)

    def add(self, curl: Any) -> None:
        """Start the request that is set on a handle."""
        self._multi.add_handle(curl)

    def remove(self, curl: Any) -> None:
        """Take a handle out; a request that is not done is broken off."""
        self._multi.remove_handle(curl)

    def finished(self) -> Iterator[tuple[Any, int, str]]:
        """Handles whose requests ended, with libcurl's code (0: well) and words."""
        left = 1
        while left:
            left, good, bad = self._multi.info_read()
            for curl in good:
                yield curl, 0, ""
            yield from bad

    def close(self) -> None:
        """Close all connections. Handles must have been removed."""
        with self._lock:
            self._closed = True
        self._multi.close()
        self._poll_closed()
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _poll_closed(self) -> None:
        if _EPOLL:
            self._poll.close()

    def _socket_changed(self, what: int, fd: int, _multi: Any, _data: Any) -> None:
        if what == pycurl.POLL_REMOVE:
            if fd in self._sockets:
                self._sockets.discard(fd)
                with contextlib.suppress(OSError, ValueError, KeyError):  # closed already
                    self._poll.unregister(fd)
            return
        events = select.POLLIN if what & pycurl.POLL_IN else 0
        events |= select.POLLOUT if what & pycurl.POLL_OUT else 0
        if fd in self._sockets:
            self._poll.modify(fd, events)
        else:
            self._sockets.add(fd)
            self._poll.register(fd, events)

    def _timer_changed(self, after_ms: int) -> None:
        self._timer_s = None if after_ms < 0 else time.monotonic() + after_ms / 1000
