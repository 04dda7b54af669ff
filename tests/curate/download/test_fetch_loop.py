"""The fetch thread's bookkeeping, turn by turn, without another thread."""

from __future__ import annotations

import gzip
import time
from typing import Any

import pycurl
import pytest

from curate.download import fetch_loop
from curate.download.desk import Desk, Job, Memory
from curate.download.fetch_loop import Loop
from curate.download.guard import Policy, Redirect, clean_url
from curate.download.outcomes import Refused
from curate.download.transfer import Transfer
from tests.tiny.local_server import keep_alive_server, ok

LOCAL = frozenset({"127.0.0.1"})


class Bench:
    """A loop and what it delivered."""

    def __init__(self, memory_bytes: int = 1 << 20, most: int = 8, **limits: Any) -> None:
        self.got: dict[Any, bytes | str] = {}
        policy = Policy(**{"allow_hosts": LOCAL, "timeout_s": 30.0, **limits})
        self.desk = Desk(policy, most, memory_bytes, self._deliver, lambda: None)
        self.loop = Loop(self.desk)

    def _deliver(self, key: Any, result: bytes | Refused) -> None:
        assert key not in self.got
        self.got[key] = result.kind if isinstance(result, Refused) else result

    def job(self, url: str = "http://127.0.0.1/") -> Job:
        self.loop._seq += 1
        job = Job(self.loop._seq, self.loop._seq, clean_url(url), self.desk.policy.max_bytes)
        job.begun = True
        self.loop._jobs[job.seq] = job
        return job

    def job_started(self, url: str = "http://127.0.0.1:1/") -> Job:
        """A job as it is when its host gave it out."""
        job = self.job(url)
        self.loop._admit(job, 0.0)
        assert self.loop._hosts.pop(0.0) == (job.host, job)
        return job

    def turn_until(self, count: int) -> None:
        end_s = time.monotonic() + 60
        while len(self.got) < count and time.monotonic() < end_s:
            self.loop.turn()
        assert len(self.got) == count


@pytest.mark.net
def test_turns_bring_everything_in() -> None:
    bench = Bench()
    with keep_alive_server(lambda path: ok(path.encode())) as seen:
        for number in range(5):
            bench.desk.inbox.append((number, f"{seen.base}/{number}"))
        bench.desk.inbox.append((5, "file:///etc/passwd"))
        bench.turn_until(6)
        assert bench.got == {**{n: f"/{n}".encode() for n in range(5)}, 5: "scheme"}
        assert bench.desk.memory.handed_out_bytes == 10
        assert not bench.loop.is_idle or not bench.desk.released
        bench.desk.released.extend([2] * 5)
        assert not bench.loop.is_idle
        bench.loop.turn()
        assert bench.loop.is_idle
        assert bench.desk.memory.handed_out_bytes == 0
        assert bench.desk.begun == 6
        bench.loop.close()


@pytest.mark.parametrize(
    ("refusal", "attempt", "low_s", "high_s"),
    [
        (Refused("http.404", ""), 0, None, None),
        (Refused("dns", ""), 0, None, None),
        (Refused("dns", "", passing=True), 0, 0.25, 0.75),
        (Refused("host_down", ""), 0, None, None),
        (Refused("http.500", ""), 0, 0.25, 0.75),
        (Refused("timeout.total", ""), 1, 0.5, 1.5),
        (Refused("connection", ""), 9, 30.0, 30.0),
        (Refused("http.503", "", 7.0), 0, 7.0, 7.0),
        (Refused("http.429", "", 31.0), 0, None, None),
        (Refused("refused", ""), 10, None, None),  # the last attempt
    ],
)
def test_waits_between_attempts(
    refusal: Refused, attempt: int, low_s: float | None, high_s: float | None
) -> None:
    bench = Bench(retries=10)
    job = bench.job()
    job.attempt = attempt
    wait_s = bench.loop._wait_s(job, refusal)
    assert bench.loop._wait_s(job, refusal) == wait_s  # drawn from the URL, not at random
    if low_s is None or high_s is None:
        assert wait_s is None
    else:
        assert wait_s is not None
        assert low_s <= wait_s <= high_s
    bench.loop.close()


def test_another_attempt_begins_at_the_first_url_again() -> None:
    bench = Bench(retries=1)
    job = bench.job("http://127.0.0.1/a")
    bench.loop._follow(job, Redirect("/b"), 0.0)
    assert (job.target.path, job.hops) == ("/b", 1)
    job.spent_s = 3.0
    bench.loop._try_again_or_end(job, Refused("http.500", ""), 1.0)
    assert (job.target.path, job.hops, job.spent_s, job.attempt) == ("/a", 0, 0.0, 1)
    bench.loop._try_again_or_end(job, Refused("http.500", ""), 2.0)
    assert bench.got == {1: "http.500"}
    bench.loop.close()


def test_packed_bodies_wait_for_room_and_come_in_order() -> None:
    bench = Bench(memory_bytes=1000, max_bytes=5000)
    bench.desk.memory.hand_out(900)
    for size in (800, 4000, 6000):
        bench.loop._packed.push(bench.job(), gzip.compress(b"\0" * size), "gzip")
    bench.loop._room_changed(0.0)
    assert not bench.got
    assert not bench.loop._has_room()
    for step, released in enumerate((900, 800, 4000)):
        bench.desk.released.append(released)
        bench.loop._take_in(0.0)
        assert len(bench.got) >= step + 1
    assert {key: len(found) for key, found in bench.got.items() if isinstance(found, bytes)} == {
        1: 800,
        2: 4000,
    }
    assert bench.got[3] == "too_large.bytes"
    assert bench.desk.memory.in_flight_bytes == 0
    bench.loop.close()


def test_a_host_is_paused_for_as_long_as_it_asks_or_is_down() -> None:
    bench = Bench()
    job, waiting = bench.job(), bench.job()
    job.host = "127.0.0.1:80"
    bench.loop._admit(waiting, 90.0)
    bench.loop._learn_of_host(job, Refused("http.503", "", 5.0), 100.0, 99.0)
    assert bench.desk.hosts.next_s() == 105.0
    bench.loop._learn_of_host(job, Refused("http.503", "", 1.0), 100.1, 99.0)
    assert bench.desk.hosts.next_s() == 105.0  # the longer one holds
    assert not bench.got
    bench.loop._learn_of_host(job, Refused("http.429", "", 86400.0), 101.0, 99.0)
    assert bench.got == {waiting.key: "host_down"}
    late = bench.job()
    bench.loop._admit(late, 700.0)
    assert bench.got[late.key] == "host_down"
    bench.loop._admit(bench.job(), 702.0)
    assert len(bench.desk.hosts) == 1
    bench.loop.close()


def test_what_waits_for_a_host_that_went_down_ends() -> None:
    bench = Bench()
    waiting = [bench.job() for _ in range(3)]
    for job in waiting:
        bench.loop._admit(job, 0.0)
    failed = bench.job()
    failed.host = waiting[0].host
    for _ in range(30):
        bench.loop._learn_of_host(failed, Refused("dns", ""), 0.0, 0.0)
    assert bench.got == dict.fromkeys((1, 2, 3), "host_down")
    late = bench.job()
    bench.loop._admit(late, 29.0)
    assert bench.got[late.key] == "host_down"
    bench.loop._admit(bench.job(), 31.0)
    assert len(bench.desk.hosts) == 1
    bench.loop.close()


def test_refusing_all_tells_everybody_once() -> None:
    bench = Bench()
    bench.loop._admit(bench.job(), 0.0)
    bench.desk.inbox.append(("late", "http://127.0.0.1/"))
    bench.loop.refuse_all("closed")
    assert bench.got == {1: "other", "late": "other"}
    bench.loop.close()


@pytest.mark.parametrize("kind", sorted(fetch_loop._OVERLOAD))
def test_signs_of_overload_are_told_to_the_crowd(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"http.429", "http.503", "timeout.first_byte", "connection"} <= fetch_loop._OVERLOAD
    bench = Bench()
    told: list[bool] = []
    monkeypatch.setattr(bench.desk.crowd, "note", lambda **note: told.append(note["overload"]))
    for port, found in enumerate((Refused(kind, ""), Refused("http.404", ""), b"body"), 1):
        bench.loop._begin_at(bench.job_started(f"http://127.0.0.1:{port}/"), [], 0.0)
        transfer = next(iter(bench.loop._active))
        bench.loop._finish(transfer, found, 1.0)
        bench.loop._finish(transfer, found, 1.0)  # told twice, it counts once
    assert told == [True, False, False]
    bench.loop.close()


def test_a_url_that_libcurl_takes_not_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise pycurl.error(43, "a bad argument")

    bench = Bench()
    with monkeypatch.context() as patch:
        patch.setattr("curate.download.transfer.Transfer.begin", fail)
        bench.loop._begin_at(bench.job_started(), [], 0.0)
    assert bench.got == {1: "bad_url"}
    assert (len(bench.loop._active), len(bench.desk.hosts._hosts)) == (0, 0)
    bench.loop._begin_at(bench.job_started(), [], 0.0)
    assert len(bench.loop._active) == 1
    bench.loop.close()


def test_without_files_there_are_fewer_at_once_and_the_url_is_tried_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(most=100)
    job = bench.job_started()
    for _ in range(21):
        bench.loop._begin_at(job, [], 0.0)
        transfer = next(iter(bench.loop._active))
        transfer._no_files = True
        assert not bench.got
        bench.loop._finish(transfer, transfer.result(pycurl.E_COULDNT_CONNECT, ""), 1.0)
        if bench.loop._later:
            at_s, _, later = bench.loop._later.pop()
            assert (at_s, later.attempt) == (1.5, 0)
            bench.loop._hosts.push(job.host, job.seq, job, 1.0)
            bench.loop._hosts.pop(1.0)
    assert bench.got == {1: "other"}
    assert bench.desk.crowd.most == 8
    assert not bench.desk.healths._kept
    bench.loop.close()


def test_another_threads_first_transfer_is_left_alone() -> None:
    bench, other = Bench(), Transfer(Policy(), Memory(0, 0))
    bench.desk.memory.first = other
    bench.loop.close()
    assert bench.desk.memory.first is other
    other.close()


def test_a_robots_txt_is_asked_for_through_five_redirects_at_least() -> None:
    bench = Bench(max_redirects=0)
    asking = bench.job_started()
    asking.robots_of = asking.first.origin
    bench.loop._parked[asking.robots_of] = []
    for _ in range(5):
        bench.loop._follow(asking, Redirect("/x"), 0.0)
        assert not bench.desk.robots.knows(asking.first, 0.0)
    bench.loop._follow(asking, Redirect("/x"), 0.0)
    assert bench.desk.robots.knows(asking.first, 0.0)
    bench.loop.close()
