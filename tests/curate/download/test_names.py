"""Names resolved beside the caller: kept, given up in time, asked for once, in few threads."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from curate.download import names as module
from curate.download.names import Names
from curate.download.outcomes import Refused


def until(found: Callable[[], object]) -> None:
    end_s = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_an_answer_is_told_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def look_up(name: str) -> list[str] | Refused:
        asked.append(name)
        return ["192.0.2.7"] if name == "good" else Refused("dns", "none")

    monkeypatch.setattr(module, "_look_up", look_up)
    woken = threading.Semaphore(0)
    names = Names(woken.release, timeout_s=5.0)
    assert names.addresses("good", 0.0) is None
    names.ask("good", 0.0)
    names.ask("good", 0.0)
    names.ask("bad", 0.0)
    assert woken.acquire(timeout=60)
    assert woken.acquire(timeout=60)
    found = dict(names.take(1.0))
    assert found["good"] == ["192.0.2.7"]
    assert isinstance(found["bad"], Refused)
    assert sorted(asked) == ["bad", "good"]
    assert names.take(1.0) == []
    assert names.addresses("good", 300.0) == ["192.0.2.7"]
    assert names.addresses("good", 302.0) is None
    assert names.addresses("bad", 62.0) is None


def test_a_name_is_given_up_in_time_and_its_late_answer_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    def look_up(name: str) -> list[str]:
        release.wait(60)
        return ["192.0.2.1"]

    monkeypatch.setattr(module, "_look_up", look_up)
    names = Names(lambda: None, timeout_s=2.0)
    names.ask("slow", 10.0)
    assert names.next_s() == 12.0
    assert names.take(11.9) == []
    ((name, found),) = names.take(12.0)
    assert (name, names.next_s()) == ("slow", None)
    assert isinstance(found, Refused)
    assert found.kind == "timeout.connect"
    release.set()
    until(lambda: names.take(13.0) or names.addresses("slow", 13.0))
    assert names.addresses("slow", 13.0) == ["192.0.2.1"]


def test_threads_are_few_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_look_up", lambda name: time.sleep(0.01) or [])
    monkeypatch.setattr(module, "_MOST_THREADS", 4)
    monkeypatch.setattr(module, "_THREAD_IDLE_S", 0.05)
    names = Names(lambda: None, timeout_s=60.0)
    for number in range(50):
        names.ask(str(number), 0.0)
        assert names._threads <= 4
    found: list[object] = []
    until(lambda: found.extend(names.take(1.0)) or len(found) == 50)
    until(lambda: names._threads == 0)
    names.ask("again", 0.0)
    until(lambda: names.take(1.0))


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 3)
    names = Names(lambda: None, timeout_s=1.0)
    for number in range(5):
        names._keep(str(number), [], 0.0)
    assert list(names._kept) == ["2", "3", "4"]


@pytest.mark.net
def test_the_resolver_of_the_machine() -> None:
    assert "127.0.0.1" in module._look_up("localhost") or "::1" in module._look_up("localhost")  # type: ignore[operator]
    for name in ("nothing.invalid", "a" * 300, "x\ud800"):
        found = module._look_up(name)
        assert isinstance(found, Refused)
        assert found.kind == "dns"


def test_the_resolvers_own_troubles_are_passing_and_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised = [0]

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(raised[0], "words")

    monkeypatch.setattr(module.socket, "getaddrinfo", fail)  # type: ignore[attr-defined]
    names = Names(lambda: None, timeout_s=5.0)
    for code, passing in ((socket.EAI_AGAIN, True), (socket.EAI_NONAME, False)):
        raised[0] = code
        found = module._look_up("name.example")
        assert isinstance(found, Refused)
        assert (found.kind, found.passing) == ("dns", passing)
        names._keep("name.example", found, 0.0)
        assert (names.addresses("name.example", 1.0) is None) == passing
