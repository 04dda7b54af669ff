"""Signs of life: work that goes on in steps says so now and then, to whoever waits for its end.

A worker that says nothing is taken for hung (`task_pool`), so a part that takes hours must not be silent.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar, cast

ALIVE = "alive"
_EVERY_S = 5.0
Found = TypeVar("Found")


def given(working: Generator[None, None, Found]) -> Generator[Any, None, Found]:
    """Do all steps; ALIVE between two of them where the last one was some seconds ago. Returns what they return."""
    told_s = time.monotonic()
    while True:
        try:
            next(working)
        except StopIteration as end:
            return cast(Found, end.value)
        if time.monotonic() - told_s >= _EVERY_S:
            yield ALIVE
            told_s = time.monotonic()


def kept_back(working: Generator[None, None, Found]) -> Found:
    """Do all steps; what they return."""
    while True:
        try:
            next(working)
        except StopIteration as end:
            return cast(Found, end.value)
