"""Descriptors of the shards that are read, for all sets of a process together.

As many as its limit allows: a quarter of it, the rest is for sockets, loaders and shared memory. The
one that was used longest ago is closed where there are more, or where the system has none left.
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Container
from itertools import count

from pretrain.stream.cache import NO_DESCRIPTORS

_MOST = 256
_LEAST = 8

_owners = count()


def owner() -> int:
    """A number for who opens files; no two in a process have one."""
    return next(_owners)


class OpenFiles:
    """Open descriptors by (owner, shard), least recently used first."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._open: OrderedDict[tuple[int, int], int] = OrderedDict()

    def get(self, of: int, shard: int, opened: Callable[[], int]) -> int:
        """The descriptor of a shard, by ``opened`` if it is not open yet."""
        if self._pid != os.getpid():  # a forked process has descriptors of its own
            self._begin()
        place = of, shard
        if place in self._open:
            self._open.move_to_end(place)
            return self._open[place]
        while len(self._open) >= _most():
            self._close_oldest()
        while True:
            try:
                self._open[place] = opened()
                return self._open[place]
            except OSError as fault:
                if fault.errno not in NO_DESCRIPTORS or not self._open:
                    raise
                self._close_oldest()

    def close_others(self, of: int, stay: Container[int]) -> None:
        """Close the owner's shards that are not among these."""
        for place in [place for place in self.of(of) if place not in stay]:
            os.close(self._open.pop((of, place)))

    def of(self, of: int) -> list[int]:
        """The owner's open shards, least recently used first."""
        return [shard for one, shard in self._open if one == of]

    def _close_oldest(self) -> None:
        os.close(self._open.popitem(last=False)[1])


def _most() -> int:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return _MOST
    return max(_LEAST, min(_MOST, allowed // 4))


SHARED = OpenFiles()
