"""Libraries are held to a task's CPUs, loaded or not."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pipelines import threads


def test_threads_are_those_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    loaded = SimpleNamespace(set_num_threads=told.append, setNumThreads=told.append)
    for name in ("torch", "cv2"):
        monkeypatch.setitem(sys.modules, name, loaded)
    for name in threads.VARIABLES:
        monkeypatch.setenv(name, "9")
    before = pa.cpu_count()
    try:
        threads.limit(2.5)
        assert (pa.cpu_count(), told) == (2, [2, 2])
        assert {os.environ[name] for name in threads.VARIABLES} == {"2"}
        threads.limit(0.5)
        assert (pa.cpu_count(), told[2:]) == (1, [1, 1])
    finally:
        pa.set_cpu_count(before)


def test_a_new_process_is_told() -> None:
    assert threads.environment()["OMP_NUM_THREADS"] == "1"
