"""libcurl over epoll: requests end, waking works from any thread, and nothing is left open."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pycurl
import pytest

from curate.download.wire import Wire
from tests.tiny.local_server import keep_alive_server, ok


def files_open() -> int:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("no /proc here to count open files in")
    return len(os.listdir(folder))


@pytest.mark.net
def test_requests_end_with_their_code_and_connections_are_kept() -> None:
    before = files_open()
    wire = Wire(8)
    bodies: list[bytes] = []
    with keep_alive_server(lambda path: ok(b"x" * 100_000)) as seen:
        for round_number in range(3):
            curls = []
            for url in (seen.base, seen.base, "http://127.0.0.1:1/"):
                curl = pycurl.Curl()
                curl.setopt(pycurl.URL, url)
                curl.setopt(pycurl.WRITEFUNCTION, bodies.append)
                wire.add(curl)
                curls.append(curl)
            ended: list[int] = []
            while len(ended) < 3:
                wire.wait(1.0)
                for curl, code, _ in wire.finished():
                    ended.append(code)
                    wire.remove(curl)
                    curl.close()
            assert sorted(ended) == [0, 0, pycurl.E_COULDNT_CONNECT]
            assert sum(map(len, bodies)) == 200_000 * (round_number + 1)
        assert seen.connections <= 3  # of 6 requests; two at once may have needed one more
        wire.close()
    end_s = time.monotonic() + 60
    while files_open() > before and time.monotonic() < end_s:
        time.sleep(0.01)  # the server's side closes in threads of its own
    assert files_open() <= before


def test_waking_ends_a_wait_that_goes_on_or_comes() -> None:
    wire = Wire(8)
    began_s = time.monotonic()
    threading.Timer(0.1, wire.wake).start()
    wire.wait(60.0)
    assert 0.05 < time.monotonic() - began_s < 30
    for _ in range(10_000):
        wire.wake()
    wire.wait(60.0)
    began_s = time.monotonic()
    wire.wait(0.1)
    assert time.monotonic() - began_s > 0.05
    wire.close()
    wire.wake()  # nobody is there


def test_a_wake_while_another_is_read_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(8)
    real = os.read

    def read(fd: int, size: int) -> bytes:
        wire.wake()  # another thread, at the worst moment
        return real(fd, size)

    monkeypatch.setattr("curate.download.wire.os.read", read)
    wire.wake()
    wire.wait(60.0)
    monkeypatch.setattr("curate.download.wire.os.read", real)
    wire.wake()
    began_s = time.monotonic()
    wire.wait(60.0)
    assert time.monotonic() - began_s < 30
    wire.close()


def test_waking_from_many_threads_at_once() -> None:
    wire = Wire(8)
    asked = [0] * 4
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            asked[number] += 1
            wire.wake()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    end_s = time.monotonic() + 0.5
    longest_s = 0.0
    while time.monotonic() < end_s:
        began_s = time.monotonic()
        wire.wait(60.0)
        longest_s = max(longest_s, time.monotonic() - began_s)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert longest_s < 30
    wire.close()
