"""Connections that carry many requests at once and went dead: which they are, and when to keep off them.

libcurl puts new requests of HTTP/2 on the connection that is there, also on one that answers nothing any
more. A connection is told by its local port: it is dead where a request on it ran out of time and nothing
came on it since that request began. Until all that is on it ended, the host gets fresh connections.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from curate.download.outcomes import Refused

if TYPE_CHECKING:
    from curate.download.transfer import Transfer

_KEPT = 4096


class Streams:
    """What was heard on which connection, by host and local port. For transfers that multiplex, no others."""

    def __init__(self) -> None:
        self._heard_s: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._dead: dict[str, list[tuple[Transfer, int]]] = {}  # transfers, each with its run

    def ended(
        self, transfer: Transfer, result: object, active: Iterable[Transfer], now_s: float
    ) -> None:
        """A request ends, and its handle is about to be taken out; with it a connection found dead."""
        if not transfer.multiplexes:
            return
        host, port = transfer.job.host, transfer.port
        if not isinstance(result, Refused) or result.kind.startswith("http."):
            self._heard_s[host, port] = now_s
            self._heard_s.move_to_end((host, port))
            while len(self._heard_s) > _KEPT:
                self._heard_s.popitem(last=False)
        elif result.kind.startswith("timeout."):
            transfer.forbid_reuse()
            if port and self._heard_s.get((host, port), -1.0) < transfer.began_s:
                self._leave(host, port, active)

    def _leave(self, host: str, port: int, active: Iterable[Transfer]) -> None:
        for other in active:
            if other.multiplexes and other.job.host == host and other.port == port:
                other.forbid_reuse()
                self._dead.setdefault(host, []).append((other, other.runs))

    def wants_fresh(self, host: str, active: Container[Transfer]) -> bool:
        """Whether a request must not join a connection of the host."""
        if host not in self._dead:
            return False
        left = [(one, run) for one, run in self._dead[host] if one in active and one.runs == run]
        if left:
            self._dead[host] = left
        else:
            del self._dead[host]
        return bool(left)
