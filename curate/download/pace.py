"""How many requests at once: in all (grows with throughput), for one host, and none for a host that is down.

No I/O and no clock of its own: every call is given the time, in seconds that only grow.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from typing import Any

_FEWEST = 8
_FIRST = 16
_WINDOW_S = 0.3
_LONGEST_WINDOW_S = 5.0
_FEWEST_NOTES = 12
_WINDOW_NOTES = 24
_HOLD_S = 5.0
_LONGEST_HOLD_S = 40.0
_FALL = 0.7
_FALLS = 2  # without getting better, after which they are taken back
_WORTH = 0.3  # share of proportional growth at which more requests still pay
_SHORTEST_S = 1e-4
_HEALTHS_KEPT = 10_000
_FAILURES_IN_A_ROW = 30
_DOWN_S = 30.0


class Crowd:
    """The number of requests at once. Doubles while answers per second grow with it, then probes now and then.

    Growth is told by how long answers take: n requests at once that take t each are n / t answers per second
    (Little's law), and hangs, which take their timeout however many there are, do not blur it. Where the share
    of errors that overload brings is well above the run's usual share, the number falls; if that does not
    make it better, the list is like this, the share becomes the usual one, and what was taken is given back.
    """

    def __init__(self, most: int) -> None:
        self.most = max(1, most)
        self.limit = min(_FIRST, self.most)
        self._usual = 0.02
        # Limit, log of seconds and share of answers before the last rise.
        self._before: tuple[int, float, float] | None = None
        self._factor = 2.0
        self._next_hold_s = _HOLD_S
        self._hold_until_s = -math.inf
        self._fell: tuple[int, float] | None = None  # limit and share of errors before falls began
        self._falls = 0
        self._changed_s = self._opened_s = -math.inf
        self._notes = self._bad = self._fulls = 0
        self._log_s = 0.0

    def note(self, *, overload: bool, full: bool, took_s: float, now_s: float) -> None:
        """One request ended. ``full``: nothing but ``limit`` kept a further one from starting."""
        if now_s - took_s < self._changed_s:
            return  # what began under another limit says nothing about this one
        if self._opened_s == -math.inf:
            self._opened_s = now_s - took_s
        self._notes += 1
        self._bad += overload
        self._fulls += full
        if not overload:
            self._log_s += math.log(max(took_s, _SHORTEST_S))
        passed_s = now_s - self._opened_s
        enough = self._notes >= max(_WINDOW_NOTES, self.limit)
        late = passed_s >= _LONGEST_WINDOW_S and self._notes >= _FEWEST_NOTES
        if passed_s >= _WINDOW_S and (enough or late):
            self._judge(now_s)
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        self._opened_s = now_s
        self._notes = self._bad = self._fulls = 0
        self._log_s = 0.0

    def _judge(self, now_s: float) -> None:
        share = self._bad / self._notes
        usual, self._usual = self._usual, self._usual + 0.2 * (share - self._usual)
        spread = 3 * math.sqrt(max(usual, 0.02) / self._notes)
        if share > usual + max(0.1, spread):
            self._fall(share, now_s)
        elif now_s >= self._hold_until_s:
            self._fell = None
            if self._fulls * 2 < self._notes or self._bad == self._notes:
                self._before = None  # held up elsewhere: says nothing about the limit
            else:
                self._climb(self._log_s / (self._notes - self._bad), 1 - share, now_s)

    def _fall(self, share: float, now_s: float) -> None:
        before, self._before, self._factor = self._before, None, 1.5
        if self._fell is None:
            self._fell, self._falls = (self.limit, share), 0
        if self._falls == _FALLS and share > 0.7 * self._fell[1]:
            self._set(self._fell[0], now_s)
            self._usual, self._fell = share, None
            return
        self._falls += 1
        lower = int(self.limit * _FALL) if before is None else before[0]
        self._set(max(min(_FEWEST, self.most), lower), now_s)
        self._hold(now_s)

    def _hold(self, now_s: float) -> None:
        self._hold_until_s = now_s + self._next_hold_s
        self._next_hold_s = min(2 * self._next_hold_s, _LONGEST_HOLD_S)

    def _climb(self, log_s: float, good: float, now_s: float) -> None:
        if self._before is not None:
            limit, log_before_s, good_before = self._before
            growth = self.limit / limit * math.exp(log_before_s - log_s)
            growth *= min(1.0, good / good_before)  # errors of overload may be quick
            if growth < 1 + _WORTH * (self.limit / limit - 1):
                self._before, self._factor = None, 1.5
                self._hold(now_s)
                self._set(limit, now_s)
                return
            self._next_hold_s = _HOLD_S
        self._before = (self.limit, log_s, good)
        self._set(min(self.most, math.ceil(self.limit * self._factor)), now_s)

    def _set(self, limit: int, now_s: float) -> None:
        if limit != self.limit:
            self.limit, self._changed_s = limit, now_s


class _Host:
    __slots__ = ("active", "free_s", "gap_s", "queue", "version")

    def __init__(self, gap_s: float) -> None:
        self.queue: deque[tuple[int, Any]] = deque()
        self.active = 0
        self.free_s = -math.inf  # when the next request may start
        self.gap_s = gap_s
        self.version = 0


class Hosts:
    """Waiting items by host, given out in the order of ``seq`` as far as hosts allow. Every call is O(log hosts)."""

    def __init__(self, per_host: int, per_s: float = 0.0) -> None:
        self._per_host = max(1, per_host)
        self._gap_s = 1 / per_s if per_s > 0 else 0.0
        self._hosts: dict[str, _Host] = {}
        # (seq of the head or time, version, host); an entry whose version is old counts for nothing.
        self._ready: list[tuple[int, int, str]] = []
        self._resting: list[tuple[float, int, str]] = []
        self._versions = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, host: str, seq: int, item: Any, now_s: float) -> None:
        """Queue an item; one with a smaller ``seq`` than the host's first goes before it."""
        state = self._state(host)
        self._waiting += 1
        if state.queue and seq > state.queue[0][0]:
            state.queue.append((seq, item))
        else:
            state.queue.appendleft((seq, item))
            self._place(host, state, now_s)

    def pop(self, now_s: float) -> tuple[str, Any] | None:
        """The next item that may start now, with its host. ``done`` must follow."""
        while self._ready_at(now_s):
            _, _, host = heapq.heappop(self._ready)
            state = self._hosts[host]
            if state.free_s > now_s:
                self._place(host, state, now_s)
                continue
            item = state.queue.popleft()[1]
            self._waiting -= 1
            state.active += 1
            if state.gap_s:
                state.free_s = now_s + state.gap_s
            self._place(host, state, now_s)
            return host, item
        return None

    def has_ready(self, now_s: float) -> bool:
        """Whether ``pop`` would give something."""
        return self._ready_at(now_s)

    def done(self, host: str, now_s: float) -> None:
        """A popped item's request is over."""
        state = self._hosts[host]
        state.active -= 1
        self._place(host, state, now_s)

    def pause(self, host: str, until_s: float, now_s: float) -> None:
        """Start nothing for the host before ``until_s``; an earlier time than now ends a pause."""
        state = self._state(host)
        state.free_s = until_s
        self._place(host, state, now_s)

    def slow(self, host: str, gap_s: float) -> None:
        """At least ``gap_s`` between two starts for the host."""
        state = self._state(host)
        state.gap_s = max(self._gap_s, gap_s)

    def drain(self, host: str, now_s: float) -> list[Any]:
        """All waiting items of a host, which leave."""
        state = self._hosts.get(host)
        if state is None:
            return []
        found = [item for _, item in state.queue]
        self._waiting -= len(found)
        state.queue.clear()
        self._place(host, state, now_s)
        return found

    def next_s(self) -> float | None:
        """When the next resting host may start something."""
        while self._resting and not self._is_current(self._resting[0]):
            heapq.heappop(self._resting)
        return self._resting[0][0] if self._resting else None

    def _state(self, host: str) -> _Host:
        state = self._hosts.get(host)
        if state is None:
            state = self._hosts[host] = _Host(self._gap_s)
        return state

    def _is_current(self, entry: tuple[float, int, str]) -> bool:
        state = self._hosts.get(entry[2])
        return state is not None and state.version == entry[1]

    def _ready_at(self, now_s: float) -> bool:
        """Wakes rested hosts; whether a live entry is on top of ``_ready``."""
        while self._resting and self._resting[0][0] <= now_s:
            entry = heapq.heappop(self._resting)
            if self._is_current(entry):
                self._place(entry[2], self._hosts[entry[2]], now_s)
        while self._ready and not self._is_current(self._ready[0]):
            heapq.heappop(self._ready)
        return bool(self._ready)

    def _place(self, host: str, state: _Host, now_s: float) -> None:
        self._versions += 1
        state.version = self._versions
        if state.free_s > now_s:
            if state.active < self._per_host:
                heapq.heappush(self._resting, (state.free_s, state.version, host))
        elif not state.queue:
            if not state.active:
                del self._hosts[host]
        elif state.active < self._per_host:
            heapq.heappush(self._ready, (state.queue[0][0], state.version, host))


class _Health:
    __slots__ = ("failures", "trying", "until_s")

    def __init__(self) -> None:
        self.failures = 0
        self.until_s = -math.inf
        self.trying = False


class Healths:
    """Hosts that failed many times in a row are left alone for a while; then one request is let through to try."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Health] = OrderedDict()

    def failed(self, host: str, now_s: float) -> bool:
        """A request got nothing out of the host. True where the host counts as down from now on."""
        health = self._kept.setdefault(host, _Health())
        self._kept.move_to_end(host)
        while len(self._kept) > _HEALTHS_KEPT:
            self._kept.popitem(last=False)
        health.failures += 1
        if health.failures < _FAILURES_IN_A_ROW:
            return False
        health.until_s, health.trying = now_s + _DOWN_S, False
        return True

    def answered(self, host: str) -> bool:
        """The host gave an answer. True where that ends a trial."""
        health = self._kept.pop(host, None)
        return health is not None and health.trying

    def is_down(self, host: str, now_s: float) -> bool:
        """Whether nothing should be asked of the host."""
        health = self._kept.get(host)
        return health is not None and not health.trying and now_s < health.until_s

    def is_trial(self, host: str) -> bool:
        """Whether the request about to start is the one that tries a host that was down; then it is marked so."""
        health = self._kept.get(host)
        if health is None or health.failures < _FAILURES_IN_A_ROW or health.trying:
            return False
        health.trying = True
        return True
