"""The copy is of the moment; one write at a time; a fault of the thread is raised, not lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from pretrain.loop.writer import Writer


def test_what_is_written_is_what_the_tensors_held_at_the_step() -> None:
    go, written = threading.Event(), []

    def write(content: dict[str, Any]) -> None:
        assert go.wait(60)
        written.append(content["nest"]["list"][0].tolist())

    rows = torch.zeros(3)
    writer = Writer(write)
    writer.begin({"nest": {"list": [rows]}, "name": "a"})
    rows += 1  # the next optimizer step
    go.set()
    writer.wait()
    assert written == [[0, 0, 0]]
    writer.begin({"nest": {"list": [rows]}, "name": "b"})
    writer.wait()
    assert written[1] == [1, 1, 1]


def test_the_next_one_waits_for_the_one_in_flight() -> None:
    order: list[str] = []
    go = threading.Event()

    def write(content: dict[str, Any]) -> None:
        order.append(f"begin {content['n']}")
        assert go.wait(60)
        order.append(f"end {content['n']}")

    writer = Writer(write)
    writer.begin({"n": 1})
    threading.Timer(0.05, go.set).start()
    writer.begin({"n": 2})
    writer.wait()
    assert order == ["begin 1", "end 1", "begin 2", "end 2"]


def test_a_fault_of_the_thread_is_raised_by_the_next_call_once() -> None:
    def write(content: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    writer = Writer(write)
    writer.begin({})
    writer._thread.join()  # type: ignore[union-attr]
    assert writer.failed
    with pytest.raises(OSError, match="No space left"):
        writer.begin({})
    assert not writer.failed
    writer.wait()
    writer.begin({})
    with pytest.raises(OSError, match="No space left"):
        writer.wait()


def test_buffers_follow_shape_and_type() -> None:
    written: list[Any] = []
    writer = Writer(lambda content: written.append((content["w"].shape, content["w"].dtype)))
    for rows in (torch.zeros(2), torch.zeros(3), torch.zeros(3, dtype=torch.int64)):
        writer.begin({"w": rows})
    writer.wait()
    assert written == [((2,), torch.float32), ((3,), torch.float32), ((3,), torch.int64)]


def test_settling_waits_and_says_nothing() -> None:
    go, done = threading.Event(), []

    def write(content: dict[str, Any]) -> None:
        assert go.wait(60)
        done.append(1)
        raise OSError(28, "No space left on device")

    writer = Writer(write)
    writer.settle()
    writer.begin({})
    threading.Timer(0.05, go.set).start()
    writer.settle()
    assert done
