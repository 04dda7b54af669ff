"""Children hang, crash and run out of memory; each loses the one picture it had, and the rest goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.download import decoders
from curate.download.child import Child
from curate.download.decoders import Decoders
from curate.download.outcomes import Outcome
from curate.download.pictures import PictureOptions, outcome
from tests.tiny.pictures import encoded, shared_data, tar_files

OPTIONS = PictureOptions(image_size=64, hash_name="md5")


class Answers:
    """Collects outcomes by key; each key may come once."""

    def __init__(self) -> None:
        self.found: dict[Any, Outcome] = {}
        self._came = threading.Condition()

    def __call__(self, key: Any, found: Outcome) -> None:
        with self._came:
            assert key not in self.found
            self.found[key] = found
            self._came.notify_all()

    def wait(self, count: int, timeout_s: float = 120.0) -> dict[Any, Outcome]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.found) >= count, timeout_s), self.found
            return self.found


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def made(answers: Answers) -> Iterator[Any]:
    open_ones = []

    def make(options: PictureOptions = OPTIONS, **settings: Any) -> Decoders:
        settings = {"processes": 1, "timeout_s": 60.0, "memory_bytes": 1280 << 20, **settings}
        found = Decoders(options, done=answers, **settings)
        open_ones.append(found)
        return found

    yield make
    for found in open_ones:
        found.close()


def body(seed: int = 0, side: int = 200) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return encoded(pixels, "JPEG")


def until(true: Callable[[], object]) -> None:
    end_s = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.005)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[Decoders], int]:
    """SIGSTOP for the child; the time for a picture then counts for it alone, not for those that work."""
    stopped: list[int] = []
    real = Child.ask

    def ask(child: Child, body: bytes, expected: str | None, timeout_s: float) -> Any:
        return real(child, body, expected, timeout_s if child.pid in stopped else 60.0)

    monkeypatch.setattr(Child, "ask", ask)

    def stop(made_decoders: Decoders) -> int:
        stopped.append(child_of(made_decoders).pid)
        os.kill(stopped[-1], signal.SIGSTOP)
        return stopped[-1]

    return stop


def child_of(made_decoders: Decoders) -> Child:
    (child,) = made_decoders._children
    return child


def status_kb(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def test_answers_are_those_of_the_pure_function(made: Any, answers: Answers) -> None:
    bodies = [body(n) for n in range(20)] + [
        b"<html>",
        b"",
        body(99)[:-3000],
        body(5) + b"j" * (5 << 20),
    ]
    hashes = [None if n % 3 else "0" * 32 for n in range(len(bodies))]
    ours = made(processes=2)
    for key, (data, expected) in enumerate(zip(bodies, hashes, strict=True)):
        ours.submit(key, data, expected)
    found = answers.wait(len(bodies))
    for key, (data, expected) in enumerate(zip(bodies, hashes, strict=True)):
        assert found[key] == outcome(data, OPTIONS, expected), key
    costs = ours.costs()
    assert costs["pictures"] == len(bodies)
    assert 0 < costs["decode_cpu_s"] < costs["decoder_cpu_s"]
    assert costs["decoder_cpu_s"] > 0.08  # the start of two processes is in it
    assert set(ours.costs().values()) == {0.0}


def test_a_child_is_small_and_keeps_its_descriptors_to_itself(made: Any, answers: Answers) -> None:
    ours = made()
    ours.submit(0, body())
    answers.wait(1)
    pid = child_of(ours).pid
    assert status_kb(pid, "VmRSS") < 90 * 1024
    assert status_kb(pid, "Threads") == 1
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in (0, 1, 2)} == {os.devnull}


def test_one_that_hangs_is_killed_in_time(
    made: Any, answers: Answers, stop: Callable[[Decoders], int]
) -> None:
    ours = made(timeout_s=0.7)
    ours.submit("warm", body())
    answers.wait(1)
    stopped = stop(ours)
    began_s = time.monotonic()
    ours.submit("small", body())
    ours.submit("next", body(1))
    found = answers.wait(3)
    assert time.monotonic() - began_s < 60
    assert found["small"].kind == "decode.timeout"
    assert found["small"].sha256 == outcome(body(), OPTIONS).sha256
    assert found["next"] == outcome(body(1), OPTIONS)
    assert not Path(f"/proc/{stopped}").exists()


def test_one_that_hangs_before_it_took_the_body_is_killed_too(
    made: Any, answers: Answers, stop: Callable[[Decoders], int]
) -> None:
    ours = made(timeout_s=0.7)
    ours.submit("warm", body())
    answers.wait(1)
    stop(ours)
    ours.submit("large", body() + b"j" * (8 << 20))  # more than the pipe and the memory hold
    assert answers.wait(2)["large"].kind == "decode.timeout"


def test_one_that_dies_loses_one_picture(
    made: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, send = list[int](), Child._send

    def counted(*arguments: Any) -> None:
        send(*arguments)
        sent.append(1)

    monkeypatch.setattr(Child, "_send", counted)
    ours = made()
    ours.submit("warm", body())
    answers.wait(1)
    pid = child_of(ours).pid
    os.kill(pid, signal.SIGSTOP)
    ours.submit("lost", body())
    for key in range(5):
        ours.submit(key, body(key))
    until(lambda: len(sent) == 2)  # it has the body that it is to lose
    os.kill(pid, signal.SIGKILL)
    found = answers.wait(7)
    assert found["lost"].kind == "decode.crashed"
    assert "SIGKILL" in (found["lost"].error_message or "")
    assert [found[key].kind for key in range(5)] == [None] * 5


def test_memory_is_limited(made: Any, answers: Answers) -> None:
    ours = made(PictureOptions(image_size=64, quality="exact"), memory_bytes=400 << 20)
    large = encoded(np.zeros((8000, 8000, 3), np.uint8), "JPEG")
    ours.submit("large", large)
    ours.submit("next", body())
    found = answers.wait(2)
    assert found["large"].kind == "decode.crashed"
    assert found["next"].kind is None


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python"])
def test_a_child_that_cannot_start_is_told_and_each_key_answered(
    program: str, made: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    told: list[Exception] = []
    ours = made(failed=told.append)
    for key in range(3):
        ours.submit(key, body())
    assert {found.kind for found in answers.wait(3).values()} == {"decode.crashed"}
    assert "decod" in str(told[0])


def kill_child(ours: Decoders) -> None:
    pid = child_of(ours).pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))


def test_one_that_died_while_idle_costs_no_picture(made: Any, answers: Answers) -> None:
    ours = made()
    ours.submit(0, body())
    answers.wait(1)
    kill_child(ours)
    ours.submit(1, body(1))
    assert answers.wait(2)[1].kind is None
    monkey = child_of(ours)
    monkey.is_alive = lambda: True  # type: ignore[method-assign]  # it dies right after we looked
    kill_child(ours)
    ours.submit(2, body(2))
    monkey.is_alive = lambda: False  # type: ignore[method-assign]
    assert answers.wait(3)[2].kind is None


def test_a_start_that_fails_for_a_moment_is_tried_again(
    made: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Exception] = []
    ours = made(failed=told.append)
    ours.submit(0, body())
    answers.wait(1)
    real, calls = subprocess.Popen, []

    def busy(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= 2:
            raise OSError(errno.EPERM, "not now")
        return real(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", busy)
    kill_child(ours)
    ours.submit(1, body())
    assert answers.wait(2)[1].kind is None
    assert len(calls) == 3
    assert told == []


def test_whatever_fails_each_key_is_answered_and_the_thread_goes_on(
    made: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(decoders, "_PAUSES_S", (0.01,))
    monkeypatch.setattr(os, "memfd_create", none_left)
    ours = made()
    ours.submit(0, body())
    assert answers.wait(1)[0].kind == "decode.crashed"
    monkeypatch.undo()
    ours.submit(1, body())
    assert answers.wait(2)[1].kind is None
    monkeypatch.setattr(child_of(ours), "_receive", lambda _: 1 / 0)
    ours.submit(2, body())
    ours.submit(3, body())
    found = answers.wait(4)
    assert (found[2].kind, found[3].kind) == ("decode.crashed", None)
    assert "ZeroDivisionError" in (found[2].error_message or "")


def test_children_may_start_before_the_first_body(made: Any, answers: Answers) -> None:
    ours = made(processes=2)
    ours.warm(1)
    until(lambda: ours._idle)
    pid = child_of(ours).pid
    ours.submit(0, body())
    answers.wait(1)
    assert child_of(ours).pid == pid


def test_an_empty_hash_is_no_right_hash(made: Any, answers: Answers) -> None:
    ours = made()
    for key, expected in enumerate((None, "", "0" * 32)):
        ours.submit(key, body(), expected)
    found = answers.wait(3)
    assert [found[key].kind for key in range(3)] == [None, "hash", "hash"]


def test_a_child_gets_no_secrets(
    made: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    ours = made()
    ours.submit(0, body())
    answers.wait(1)
    assert b"s3cret" not in Path(f"/proc/{child_of(ours).pid}/environ").read_bytes()


def test_children_end_when_idle_and_come_back(
    made: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "_IDLE_S", 0.2)
    ours = made()
    ours.submit(0, body())
    answers.wait(1)
    until(lambda: not ours._children and not ours._threads)
    ours.submit(1, body())
    assert answers.wait(2)[1].kind is None


def test_close_does_not_wait_for_a_picture(made: Any, answers: Answers) -> None:
    ours = made()
    ours.submit(0, body())
    answers.wait(1)
    pid = child_of(ours).pid
    os.kill(pid, signal.SIGSTOP)
    for key in range(1, 4):
        ours.submit(key, body())
    began_s = time.monotonic()
    ours.close()
    assert time.monotonic() - began_s < 30
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RuntimeError):
        ours.submit(9, body())


def test_a_failing_receiver_stops_nothing(made: Any, answers: Answers) -> None:
    def receive(key: Any, found: Outcome) -> None:
        if key == 0:
            raise ValueError("not mine")
        answers(key, found)

    ours = made()
    ours._done = receive
    ours.submit(0, body())
    ours.submit(1, body())
    assert answers.wait(1)[1].kind is None


def test_children_go_with_their_parent() -> None:
    code = (
        "import os, threading\n"
        "from curate.download.decoders import Decoders\n"
        "from curate.download.pictures import PictureOptions\n"
        "came = threading.Event()\n"
        "ours = Decoders(PictureOptions(), processes=1, timeout_s=20, memory_bytes=1 << 30,"
        " done=lambda *_: came.set())\n"
        "ours.submit(0, b'')\n"
        "came.wait()\n"
        "print(next(iter(ours._children)).pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120
    )
    pid = int(done.stdout)
    until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    """Runs, and is no zombie that waits for an init that does not come."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_every_awkward_file_gets_a_decision(
    made: Any, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tar_files(shared_data("awkward.tar"))
    files = {name: data for name, data in files.items() if "manifest" not in name}
    ours = made(PictureOptions(image_size=256), timeout_s=20.0)
    for name, data in files.items():
        ours.submit(name, data)
    found = answers.wait(len(files), 300)
    assert len(ours._children) == 1  # nothing crashed it, so this peak is of all
    assert status_kb(child_of(ours).pid, "VmHWM") < 1536 * 1024
    by_category: dict[str, Counter[str | None]] = defaultdict(Counter)
    for name, result in found.items():
        by_category[name.split("/")[1]][result.kind] += 1
        assert (result.image is None) == (result.kind is not None), name
    assert not {"decode.timeout", "decode.crashed", "other"} & {r.kind for r in found.values()}
    for category in ("cmyk", "depth16", "animated", "exif_bad", "multi_picture_mpo"):
        assert set(by_category[category]) == {None}, category
    for category in ("not_an_image", "svg"):
        assert set(by_category[category]) == {"not_an_image"}, category
    assert by_category["bomb_or_huge_header"]["too_large.pixels"] == 6
    assert by_category["exif_orientation"][None] == 20
    assert by_category["truncated_or_broken"]["decode"] >= 10
    assert sum(result.kind is None for result in found.values()) >= 130
