"""Hosts that fail in a row, and hosts that throttle: when each is left alone, and for how long.

No I/O and no clock of its own: every call is given the time, in seconds that only grow.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from curate.download.outcomes import Refused

MOST_WAIT_S = 30.0  # for a Retry-After; a host that asks for more is down
_KEPT = 10_000
_FAILURES_IN_A_ROW = 30
_DOWN_S = 30.0
_LONGEST_DOWN_S = 600.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_FAILURES = frozenset({
    "dns", "refused", "timeout.connect", "timeout.first_byte", "timeout.total",
    "http.429", "http.503",
})  # fmt: skip
_THROTTLED = frozenset({"http.429", "http.503"})


@dataclass(frozen=True, slots=True)
class Advice:
    """What an answer means for what waits for the host."""

    is_down: bool = False  # ends all of it
    trial_is_over: bool = False
    pause_s: float = 0.0


class _Health:
    __slots__ = ("asked_s", "failures", "trying", "until_s")

    def __init__(self) -> None:
        self.failures = 0
        self.until_s = self.asked_s = -math.inf  # down till either; the second as the host asked
        self.trying = False


class Healths:
    """Hosts that failed many times in a row are left alone for a while; then one request is let through to try."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Health] = OrderedDict()
        self._throttles = Throttles()

    def learn(self, host: str, refusal: Refused | None, began_s: float, now_s: float) -> Advice:
        """What the end of a request says of its host; None: it was answered as it should be."""
        if refusal is not None and refusal.passing:
            return Advice()
        kind = "" if refusal is None else refusal.kind
        after_s = None if refusal is None else refusal.retry_after_s
        if kind != "http.429" and not kind.startswith("http.5"):
            after_s = None
        if after_s is not None and after_s > MOST_WAIT_S:
            self.put_down(host, after_s, now_s)
            return Advice(is_down=True)
        failed = kind in _FAILURES or after_s is not None
        down = failed and self.failed(host, now_s)
        over = not failed and self.answered(host, now_s)
        if kind in _THROTTLED and after_s is None:
            after_s = self._throttles.refused(host, began_s, now_s)
        elif kind not in _THROTTLED:
            self._throttles.answered(host, began_s)
        return Advice(down, over, after_s or 0.0)

    def failed(self, host: str, now_s: float) -> bool:
        """A request got nothing out of the host. True where the host counts as down from now on."""
        health = self._of(host)
        health.failures += 1
        if health.failures < _FAILURES_IN_A_ROW:
            return False
        health.until_s, health.trying = now_s + _DOWN_S, False
        return True

    def put_down(self, host: str, for_s: float, now_s: float) -> None:
        """The host itself asked to be left alone, for longer than anybody waits."""
        health = self._of(host)
        health.failures = max(health.failures, _FAILURES_IN_A_ROW)
        health.asked_s = max(health.asked_s, now_s + min(for_s, _LONGEST_DOWN_S))
        health.trying = False

    def answered(self, host: str, now_s: float) -> bool:
        """The host gave an answer. True where that ends a trial; a time it asked for itself goes on."""
        health = self._kept.get(host)
        if health is None or (now_s < health.asked_s and not health.trying):
            return False
        del self._kept[host]
        return health.trying

    def is_down(self, host: str, now_s: float) -> bool:
        """Whether nothing should be asked of the host."""
        health = self._kept.get(host)
        if health is None or health.trying:
            return False
        return now_s < max(health.until_s, health.asked_s)

    def is_trial(self, host: str) -> bool:
        """Whether the request about to start is the one that tries a host that was down; then it is marked so."""
        health = self._kept.get(host)
        if health is None or health.failures < _FAILURES_IN_A_ROW or health.trying:
            return False
        health.trying = True
        return True

    def _of(self, host: str) -> _Health:
        health = self._kept.setdefault(host, _Health())
        self._kept.move_to_end(host)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return health


class Throttles:
    """Pauses of hosts that say "too much" without saying how long: doubled each time, none after a success.

    Only what began after the last pause was set counts: the answers of requests that ran at once are one.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()  # set at, pause in s

    def refused(self, host: str, began_s: float, now_s: float) -> float | None:
        """For how many seconds to pause the host, None where an earlier answer saw to it."""
        set_s, pause_s = self._kept.get(host, (-math.inf, _FIRST_PAUSE_S / 2))
        if began_s < set_s:
            return None
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self._kept[host] = (now_s, pause_s)
        self._kept.move_to_end(host)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return pause_s

    def answered(self, host: str, began_s: float) -> None:
        """The host gave a request what it asked for."""
        if host in self._kept and began_s >= self._kept[host][0]:
            del self._kept[host]
