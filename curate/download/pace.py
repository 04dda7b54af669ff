"""How many requests at once: in all (grows with throughput), and for one host.

No I/O and no clock of its own: every call is given the time, in seconds that only grow.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

_FEWEST = 8
_FIRST = 32
_WINDOW_S = 0.3
_LONGEST_WINDOW_S = 5.0
_FEWEST_NOTES = 12
_WINDOW_NOTES = 48
_HOLD_S = 5.0
_LONGEST_HOLD_S = 40.0
_FALL = 0.7
_FALLS = 2  # without getting better, after which they are taken back
_WORTH = 0.3  # share of proportional growth at which more requests still pay
_SHORTEST_S = 1e-4
_HARDLY_ANY = 0.2  # share of good answers below which there is nothing to compare


@dataclass(frozen=True, slots=True)
class _Rate:
    """Requests that ended per second, the share of good ones, and what their time promises (Little's law)."""

    ended: float
    good: float
    promised: float

    def over(self, before: _Rate) -> float:
        """How many times the rate before this is."""
        if min(before.good, self.good) < _HARDLY_ANY:
            return math.inf  # what is dead loads nobody, and as usual there is little else
        counted = self.ended / before.ended
        # Errors of overload may be quick.
        return max(counted, self.promised / before.promised) * min(1.0, self.good / before.good)


class Crowd:
    """The number of requests at once. Doubles while answers per second grow with it, then probes now and then.

    Growth is told twice, and either will do: by answers counted per second, and by how long they take: n at
    once that take t each are n / t per second (Little's law). The first lags where many requests hang until
    their timeout; the second takes their slots for load. Where hardly any answer is good, and that is usual,
    there is nothing to compare, and it climbs. Where the share of errors that overload brings is well above
    the run's usual share, the number falls; if that does not make it better, the list is like this, the share
    becomes the usual one, and what was taken is given back.
    """

    def __init__(self, most: int) -> None:
        self.most = max(1, most)
        self.limit = min(_FIRST, self.most)
        self._usual = 0.02
        self._before: tuple[int, _Rate] | None = None  # limit and rate before the last rise
        self._factor = 2.0
        self._next_hold_s = _HOLD_S
        self._hold_until_s = -math.inf
        self._fell: tuple[int, float] | None = None  # limit and share of errors before falls began
        self._falls = 0
        self._changed_s = self._first_s = self._opened_s = -math.inf
        self._notes = self._bad = self._fulls = 0
        self._log_s = 0.0

    def lower(self, most: int) -> None:
        """Never more than this from now on, for want of files."""
        self.most = max(1, min(self.most, max(_FEWEST, most)))
        self.limit = min(self.limit, self.most)

    def note(self, *, overload: bool, full: bool, took_s: float, now_s: float) -> None:
        """One request ended. ``full``: nothing but ``limit`` kept a further one from starting."""
        if now_s - took_s < self._changed_s:
            return  # what began under another limit says nothing about this one
        if self._opened_s <= self._changed_s:
            # Not before a good answer: by then the server has what the new limit lets it have, and
            # errors that come sooner than answers are no larger a part than they are.
            if self._first_s <= self._changed_s:
                self._first_s = now_s
            if not overload or now_s - self._first_s >= _LONGEST_WINDOW_S:
                self._open(now_s)
            return
        self._notes += 1
        self._bad += overload
        self._log_s += 0.0 if overload else math.log(max(took_s, _SHORTEST_S))
        self._fulls += full
        passed_s = now_s - self._opened_s
        enough = self._notes >= max(_WINDOW_NOTES, 2 * self.limit)
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
            if self._fulls * 2 < self._notes:
                self._before = None  # held up elsewhere: says nothing about the limit
            else:
                self._climb(self._rate(now_s), now_s)

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

    def _rate(self, now_s: float) -> _Rate:
        passed_s, good = now_s - self._opened_s, self._notes - self._bad
        typical_s = math.exp(self._log_s / good) if good else math.inf
        share = good / self._notes
        return _Rate(self._notes / passed_s, share, self.limit / typical_s)

    def _climb(self, rate: _Rate, now_s: float) -> None:
        if self._before is not None:
            limit, before = self._before
            if rate.over(before) < 1 + _WORTH * (self.limit / limit - 1):
                self._before, self._factor = None, 1.5
                self._hold(now_s)
                self._set(limit, now_s)
                return
            self._next_hold_s = _HOLD_S
        self._before = (self.limit, rate)
        self._set(min(self.most, math.ceil(self.limit * self._factor)), now_s)

    def _set(self, limit: int, now_s: float) -> None:
        if limit != self.limit:
            self.limit, self._changed_s = limit, now_s


class _Host:
    __slots__ = ("active", "gap_s", "next_s", "paused_s", "queue", "version")

    def __init__(self, gap_s: float) -> None:
        self.queue: deque[tuple[int, Any]] = deque()
        self.active = 0
        self.next_s = self.paused_s = -math.inf  # no start before either
        self.gap_s = gap_s
        self.version = 0

    @property
    def free_s(self) -> float:
        return max(self.next_s, self.paused_s)


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
                state.next_s = now_s + state.gap_s
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
        """Start nothing for the host before ``until_s``; a pause that goes on longer stays."""
        state = self._state(host)
        state.paused_s = max(state.paused_s, until_s)
        self._place(host, state, now_s)

    def resume(self, host: str, now_s: float) -> None:
        """End the host's pause; the time between two starts is kept."""
        state = self._hosts.get(host)
        if state is not None:
            state.paused_s = -math.inf
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
