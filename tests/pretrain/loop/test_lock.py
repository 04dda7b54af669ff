"""One run at a time: another process, and this one again, are refused by name; the dead hold nothing."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pretrain.loop import lock
from pretrain.loop.world import World

ANOTHER = """
import fcntl, json, os, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
json.dump({"host": "elsewhere", "pid": os.getpid()}, file)
file.flush()
if os.fork():
    print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_named_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    out = str(tmp_path)
    other = subprocess.Popen(
        [sys.executable, "-S", "-c", ANOTHER, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    words = f"is being trained into by process {other.pid} on elsewhere. hint: wait"
    for _ in range(2):  # to have asked changes nothing
        with pytest.raises(ValueError, match=words):
            lock.take(out)
    other.kill()  # its child lives on, as loaders do for a while
    other.wait()
    held = lock.take(out)
    assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()
    held.release()
    assert not (tmp_path / ".lock").exists()
    assert other.stdin is not None
    other.stdin.close()
    other.stdout.close()


def test_this_process_does_not_take_it_twice(tmp_path: Path) -> None:
    out = str(tmp_path / "new")
    held = lock.take(out)
    with pytest.raises(ValueError, match=r"is being trained into by this process"):
        lock.take(out)
    held.release()
    lock.take(out).release()


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with caplog.at_level(logging.WARNING):
        lock.take(str(tmp_path)).release()
    assert "can't be locked (No locks available)" in caplog.text


def test_it_is_held_in_the_block_and_free_after_a_fault(tmp_path: Path) -> None:
    world = World(0, 1, torch.device("cpu"))
    out = str(tmp_path)

    def fails() -> None:
        with lock.hold(out, world):
            assert (tmp_path / ".lock").exists()
            with lock.hold(out, world):
                pytest.fail("it was held")

    for _ in range(2):
        with pytest.raises(ValueError, match="by this process"):
            fails()
    with lock.hold(out, world), lock.hold("s3://bucket/run", world):
        assert (tmp_path / ".lock").exists()


def test_behind_a_url_the_caller_s_way_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    world = World(0, 1, torch.device("cpu"))
    asked: list[str] = []

    @contextmanager
    def alone(out: str) -> Iterator[Callable[[], None]]:
        asked.append(out)
        if len(asked) > 1:
            raise ValueError(lock.refusal(out, "process 7 on elsewhere"))
        yield lambda: asked.append("still")
        asked.append("free")

    with lock.hold("s3://b/run", world, alone) as still:
        still()
        with (
            pytest.raises(
                ValueError, match="s3://b/run is being trained into by process 7 on elsewhere"
            ),
            lock.hold("s3://b/run", world, alone),
        ):
            pass
    assert asked == ["s3://b/run", "still", "s3://b/run", "free"]
    with lock.hold("s3://b/run", world):
        assert "see to it that only one run at a time writes there" in caplog.text
