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
        assert seen.connections == 2
        wire.close()
    assert files_open() <= before


def test_waking_ends_a_wait_that_goes_on_or_comes() -> None:
    wire = Wire(8)
    threading.Timer(0.1, wire.wake).start()
    began_s = time.monotonic()
    wire.wait(5.0)
    assert 0.05 < time.monotonic() - began_s < 2.0
    for _ in range(10_000):
        wire.wake()
    wire.wait(5.0)
    began_s = time.monotonic()
    wire.wait(0.1)
    assert time.monotonic() - began_s > 0.05
    wire.close()
    wire.wake()  # nobody is there
