"""What ``clip-pipe verify`` found: each fault with its file, its place in it, what is wrong and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from typing import Any

from curate.contract import storage

AGAIN = "`clip-pipe verify POOL --set-aside` moves such parts to *.damaged; the next `clip-pipe curate` that needs them makes them anew"
_MOST = 10_000  # that are kept; the rest is counted
_PROCESSES_FROM_BYTES = 4 << 30  # below, to start processes takes longer than they save
_AT_ONCE = 8


@dataclass(frozen=True)
class Fault:
    """``at``: the part, or shard, key and byte."""

    file: str
    at: str
    what: str
    hint: str

    def __str__(self) -> str:
        return f"{self.file}: {self.at + ': ' if self.at else ''}{self.what}"


@dataclass
class Faults:
    """All of a run of verify. ``checked``: how much was looked at, by kind."""

    found: list[Fault] = field(default_factory=list)
    count: int = 0
    notes: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    def add(self, file: str, at: str, what: str, hint: str) -> None:
        self.extend([Fault(file, at, what, hint)])

    def extend(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.count += 1
            if len(self.found) < _MOST:
                self.found.append(fault)

    def saw(self, kind: str, count: int = 1) -> None:
        if count:
            self.checked[kind] = self.checked.get(kind, 0) + count

    def record(self) -> dict[str, Any]:
        return {
            "fine": not self.count,
            "checked": self.checked,
            "faults": [asdict(fault) for fault in self.found],
            "fault_count": self.count,
            "notes": self.notes,
        }


@contextmanager
def spread(root: str, total_bytes: int) -> Iterator[Executor]:
    """Where checks run: threads, which hash and decompress side by side; processes for very much on disk."""
    count = min(_AT_ONCE, len(os.sched_getaffinity(0)))
    if storage.is_url(root):
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            yield threads
    elif total_bytes < _PROCESSES_FROM_BYTES or count < 2:
        with ThreadPoolExecutor(count) as threads:
            yield threads
    else:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as processes:
            yield processes


def mapped(
    pool: Executor, check: Callable[..., Any], calls: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """The results of checks in order, few of them waiting at a time. ``calls`` are made as they are due."""
    due = iter(calls)
    while batch := list(islice(due, 4 * _AT_ONCE)):
        some = [pool.submit(check, *call) for call in batch]
        for future in some:
            yield future.result()


def some(names: Sequence[str], most: int = 3) -> str:
    """A few names of many."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def json_fault(fault: ValueError, where: str, path: str) -> str:
    """What storage.read_json found, without the path, which is told beside it."""
    words = str(fault).partition(" hint:")[0].rstrip(".")
    return words.removeprefix(f"{where}: ").removeprefix(f"{path} ")
