"""The work of the fetch thread: which URL starts when, and what happens to each that ended.

Deadlines, retries, host limits and the byte budget are kept here and not in libcurl, since a transfer that
we hold up ourselves (no room for its body, its host is full) must not lose its own time by that.
"""

from __future__ import annotations

import heapq
import time

import pycurl

from curate.contract.draw import draw
from curate.download.desk import Desk, Job
from curate.download.files import free_files
from curate.download.guard import Redirect, clean_url, next_target
from curate.download.health import MOST_WAIT_S
from curate.download.outcomes import Refused, is_tried_at_once
from curate.download.packed import Packed
from curate.download.robots import MAX_BYTES, MOST_HOPS, Robots
from curate.download.streams import Streams
from curate.download.transfer import DRAINED_S, Transfer
from curate.download.wire import Wire

_BACKOFF_S = 0.5
_TAKEN_AT_ONCE = 256
_TYPICAL_BYTES = 256 << 10
_LONGEST_TURN_S = 1.0
_MOST_SHORTAGES = 20
_SHORTAGE_S = 0.5
_OVERLOAD = frozenset({
    "timeout.connect", "timeout.first_byte", "timeout.total", "connection", "http.429", "http.503",
})  # fmt: skip


class Loop:
    """What lives as long as one fetch thread: connections, and the jobs under way."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._policy = desk.policy
        self._memory = desk.memory
        self._hosts = desk.hosts
        files = free_files() // 2  # as many connections again may be kept open without use
        desk.crowd.lower(files)
        self.wire = Wire(min(files, max(64, 2 * desk.most_requests)))
        self._jobs: dict[int, Job] = {}
        self._seq = 0
        self._active: dict[Transfer, None] = {}  # in the order of their start
        self._spare: list[Transfer] = []
        self._packed = Packed(desk.memory)
        self._streams = Streams()
        self._later: list[tuple[float, int, Job]] = []  # retries
        self._unnamed: dict[str, list[Job]] = {}  # started, by the name that is being looked up
        self._unnamed_jobs = 0
        self._parked: dict[str, list[Job]] = {}  # by the origin whose robots.txt is under way
        self._deadlines: list[tuple[float, int, int, Transfer]] = []
        self._deadline_number = 0
        self._full = False
        self._typical_bytes = float(_TYPICAL_BYTES)
        self._cpu_s = time.thread_time()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not (self._desk.inbox or self._desk.released or self._jobs or self._active)

    def turn(self) -> None:
        """Start what may start, wait for something, and deal with all of it."""
        now_s = time.monotonic()
        self._take_in(now_s)
        self._start(now_s)
        self.wire.wait(self._longest_wait_s(now_s))
        now_s = time.monotonic()
        for curl, code, words in self.wire.finished():
            self._finish(curl.transfer, curl.transfer.result(code, words), now_s)
        while self._memory.draining:
            transfer, run = self._memory.draining.popleft()
            if transfer in self._active and transfer.runs == run:
                self._watch(transfer, now_s + DRAINED_S)
        self._look_at_deadlines(now_s)
        cpu_s = time.thread_time()
        self._desk.totals["fetch_cpu_s"] += cpu_s - self._cpu_s
        self._cpu_s = cpu_s

    def refuse_all(self, words: str) -> None:
        """End everything under way as ``other``."""
        for job in list(self._jobs.values()):
            self._give(job, Refused("other", words))
        while self._desk.inbox:
            self._desk.begun += 1
            self._desk.deliver(self._desk.inbox.popleft()[0], Refused("other", words))

    def close(self) -> None:
        """Break off what is under way, without a word to anybody."""
        for transfer in self._active:
            self.wire.remove(transfer.curl)
            transfer.drop()
        self._packed.forget()
        self._memory.draining.clear()
        self.wire.close()
        for transfer in (*self._active, *self._spare):
            transfer.close()
        if self._memory.first in self._active:  # not another thread's by now
            self._memory.first = None

    def _longest_wait_s(self, now_s: float) -> float:
        if self._desk.inbox or self._desk.closing:
            return 0.0
        times = [now_s + _LONGEST_TURN_S]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        if self._later:
            times.append(self._later[0][0])
        for at_s in (self._hosts.next_s(), self._desk.names.next_s()):
            if at_s is not None:
                times.append(at_s)
        return min(times) - now_s

    # What comes in

    def _take_in(self, now_s: float) -> None:
        desk = self._desk
        if desk.released:
            while desk.released:
                self._memory.give_back(desk.released.popleft())
            self._room_changed(now_s)
        for name, found in desk.names.take(now_s):
            for job in self._unnamed.pop(name, ()):
                self._unnamed_jobs -= 1
                job.spent_s += now_s - job.asked_s
                self._begin_at(job, found, now_s)
        while self._later and self._later[0][0] <= now_s:
            self._admit(heapq.heappop(self._later)[2], now_s)
        for _ in range(min(len(desk.inbox), _TAKEN_AT_ONCE)):
            key, url = desk.inbox.popleft()
            self._seq += 1
            try:
                job = Job(key, self._seq, clean_url(url), self._policy.max_bytes)
            except Refused as refusal:
                desk.begun += 1
                desk.deliver(key, refusal)
                continue
            self._jobs[job.seq] = job
            self._admit(job, now_s)

    def _admit(self, job: Job, now_s: float) -> None:
        """Queue a job for its host, unless the host is down or its robots.txt says otherwise."""
        target = job.target
        job.host = f"{target.host}:{target.port}"
        if self._desk.healths.is_down(job.host, now_s):
            self._end(job, _host_down(job), now_s)
            return
        if self._policy.robots_txt and job.robots_of is None:
            robots = self._desk.robots
            if not robots.knows(target, now_s):
                self._park(job, now_s)
                return
            refusal = robots.verdict(target)
            if refusal is not None:
                self._end(job, refusal, now_s)
                return
            self._hosts.slow(job.host, robots.delay_s(target))
        self._hosts.push(job.host, job.seq, job, now_s)

    def _park(self, job: Job, now_s: float) -> None:
        origin = job.target.origin
        self._parked.setdefault(origin, []).append(job)
        if len(self._parked[origin]) == 1:
            url = Robots.url(job.target)
            asking = Job(None, job.seq, url, MAX_BYTES, robots_of=origin, begun=True)
            self._admit(asking, now_s)

    # What goes out

    def _start(self, now_s: float) -> None:
        self._full = False
        while self._has_room():
            if len(self._active) + self._unnamed_jobs >= self._desk.crowd.limit:
                self._full = self._hosts.has_ready(now_s)
                return
            found = self._hosts.pop(now_s)
            if found is None:
                return
            host, job = found
            if self._desk.healths.is_trial(host):
                self._hosts.pause(host, now_s + 2 * self._policy.timeout_s, now_s)
            self._find(job, now_s)

    def _has_room(self) -> bool:
        """Whether the bodies of the running requests and one more will probably fit."""
        if self._packed.wants_room:
            return False
        whole = self._memory.handed_out + len(self._packed)
        if whole + len(self._active) >= self._memory.most_bodies + self._desk.crowd.limit:
            return False
        if not self._active:
            return self._memory.room_bytes > 0
        coming = max(self._memory.in_flight_bytes, len(self._active) * self._typical_bytes)
        free = self._memory.budget_bytes - self._memory.handed_out_bytes - coming
        return free >= self._typical_bytes

    def _find(self, job: Job, now_s: float) -> None:
        """Begin a job at the addresses of its host, once they are known."""
        if not job.begun:
            job.begun = True
            self._desk.begun += 1
        name = job.target.host
        if job.target.is_address:
            self._begin_at(job, [], now_s)
            return
        found = self._desk.names.addresses(name, now_s)
        if found is not None:
            self._begin_at(job, found, now_s)
            return
        job.asked_s = now_s
        self._unnamed.setdefault(name, []).append(job)
        self._unnamed_jobs += 1
        self._desk.names.ask(name, now_s)

    def _begin_at(self, job: Job, addresses: list[str] | Refused, now_s: float) -> None:
        if isinstance(addresses, Refused):
            self._hosts.done(job.host, now_s)
            self._learn_of_host(job, addresses, now_s, now_s)
            self._try_again_or_end(job, addresses, now_s)
            return
        job.addresses = addresses
        transfer = self._spare.pop() if self._spare else Transfer(self._policy, self._memory)
        try:
            fresh = self._streams.wants_fresh(job.host, self._active)
            transfer.begin(job, now_s, fresh=fresh)
            self.wire.add(transfer.curl)
        except pycurl.error as fault:  # libcurl won't have it: that one job's end, not the thread's
            transfer.close()
            self._hosts.done(job.host, now_s)
            self._end(job, Refused("bad_url", f"libcurl takes it not: {fault}"[:200]), now_s)
            return
        if not self._active:
            self._memory.first = transfer
        self._active[transfer] = None
        self._desk.totals["requests"] += 1
        self._watch(transfer, transfer.first_look_s(now_s))

    def _watch(self, transfer: Transfer, at_s: float) -> None:
        self._deadline_number += 1
        heapq.heappush(self._deadlines, (at_s, self._deadline_number, transfer.runs, transfer))

    def _look_at_deadlines(self, now_s: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, _, run, transfer = heapq.heappop(self._deadlines)
            if transfer.runs != run or transfer not in self._active:
                continue
            found = transfer.overdue(now_s)
            if isinstance(found, float):
                self._watch(transfer, found)
            else:
                self._finish(transfer, found, now_s)

    # What came of it

    def _finish(self, transfer: Transfer, result: bytes | Redirect | Refused, now_s: float) -> None:
        if transfer not in self._active:
            return
        job, coding, began_s = transfer.job, transfer.coding, transfer.began_s
        transfer.count(self._desk.totals)
        self._streams.ended(transfer, result, self._active, now_s)
        self.wire.remove(transfer.curl)
        del self._active[transfer]
        self._hosts.done(job.host, now_s)
        job.spent_s = transfer.spent_s(now_s)
        transfer.drop()
        self._spare.append(transfer)
        if transfer.is_short_of_files:
            self._put_off(job, now_s)
            return
        overload = isinstance(result, Refused) and result.kind in _OVERLOAD
        took_s = now_s - began_s - transfer.paused_s
        self._desk.crowd.note(overload=overload, full=self._full, took_s=took_s, now_s=now_s)
        self._learn_of_host(job, result, now_s, began_s)
        if isinstance(result, Redirect):
            self._follow(job, result, now_s)
        elif isinstance(result, Refused):
            self._try_again_or_end(job, result, now_s)
        else:
            self._packed.push(job, result, coding)
        self._room_changed(now_s)

    def _put_off(self, job: Job, now_s: float) -> None:
        """No file was left for a connection: fewer at once from now on, and this one a little later."""
        self._desk.crowd.lower(len(self._active))
        self._room_changed(now_s)
        job.shortages += 1
        if job.shortages > _MOST_SHORTAGES:
            self._end(job, Refused("other", "too many open files on this machine"), now_s)
            return
        heapq.heappush(self._later, (now_s + _SHORTAGE_S, job.seq, job))

    def _learn_of_host(
        self, job: Job, result: bytes | Redirect | Refused, now_s: float, began_s: float
    ) -> None:
        host = job.host
        refusal = result if isinstance(result, Refused) else None
        advice = self._desk.healths.learn(host, refusal, began_s, now_s)
        if advice.is_down:
            self._drain(host, now_s)
        elif advice.trial_is_over:
            self._hosts.resume(host, now_s)
        if advice.pause_s:
            self._hosts.pause(host, now_s + advice.pause_s, now_s)

    def _drain(self, host: str, now_s: float) -> None:
        """The host is down: what waits for it ends."""
        self._hosts.resume(host, now_s)
        for waiting in self._hosts.drain(host, now_s):
            self._end(waiting, _host_down(waiting), now_s)

    def _follow(self, job: Job, redirect: Redirect, now_s: float) -> None:
        job.hops += 1
        try:
            most = self._policy.max_redirects
            most = max(most, MOST_HOPS) if job.robots_of is not None else most
            if job.hops > most:
                raise Refused("redirect", f"more than {most} redirects")
            if job.spent_s >= self._policy.timeout_s:
                raise Refused("timeout.total", f"not done within {self._policy.timeout_s:g} s")
            job.target = next_target(job.target, redirect.location)
        except Refused as refusal:
            self._try_again_or_end(job, refusal, now_s)
            return
        self._admit(job, now_s)

    def _try_again_or_end(self, job: Job, refusal: Refused, now_s: float) -> None:
        wait_s = self._wait_s(job, refusal)
        if wait_s is None:
            self._end(job, refusal, now_s)
            return
        job.attempt += 1
        job.target, job.hops, job.spent_s = job.first, 0, 0.0
        heapq.heappush(self._later, (now_s + wait_s, job.seq, job))

    def _wait_s(self, job: Job, refusal: Refused) -> float | None:
        """How long to wait before the next attempt, or None where there is none."""
        if job.attempt >= self._policy.retries:
            return None
        if not (refusal.passing or is_tried_at_once(refusal.kind)):
            return None
        if refusal.retry_after_s is not None:
            return refusal.retry_after_s if refusal.retry_after_s <= MOST_WAIT_S else None
        jitter = 0.5 + draw(job.first.url, f"download:{job.attempt}")
        return min(MOST_WAIT_S, _BACKOFF_S * 2**job.attempt * jitter)

    def _room_changed(self, now_s: float) -> None:
        """Hand out what can be inflated now, and let paused transfers go on, the first one always."""
        while found := self._packed.pop(alone=not self._active):
            self._end(*found, now_s)
        self._memory.first = next(iter(self._active), None)
        if not self._memory.paused:
            return
        room_bytes = float(self._memory.room_bytes)
        for transfer in list(self._active):
            if transfer not in self._memory.paused:
                continue
            first = transfer is self._memory.first
            if room_bytes + (self._memory.slack_bytes if first else 0) <= 0:
                return
            room_bytes -= (transfer.length or self._typical_bytes) - transfer.size_bytes
            try:
                transfer.resume(now_s)
            except pycurl.error as fault:
                code, words = (*fault.args, "")[:2]
                self._finish(transfer, transfer.result(code, words), now_s)
                return

    def _end(self, job: Job, result: bytes | Refused, now_s: float) -> None:
        if job.robots_of is not None:
            self._desk.robots.learn(job.robots_of, result, now_s, reached=job.hops > 0)
            for waiting in self._parked.pop(job.robots_of):
                self._admit(waiting, now_s)
            return
        if isinstance(result, bytes):
            self._memory.hand_out(len(result))
            self._typical_bytes += 0.05 * (len(result) - self._typical_bytes)
        self._give(job, result)

    def _give(self, job: Job, result: bytes | Refused) -> None:
        del self._jobs[job.seq]
        if not job.begun:
            self._desk.begun += 1
        self._desk.deliver(job.key, result)


def _host_down(job: Job) -> Refused:
    return Refused(
        "host_down", f"{job.host} failed too often in a row; it is left alone for a while"
    )
