"""Careful mode: a stage's ``process`` runs in a child process, which may hang, die or eat memory.

A part that was lost twice under Ray is run so. The child has a deadline and a memory limit for each
batch; when it is lost, `fused.attempt` halves the batch, until the row at fault is alone. That row gets
the reason ``error.<stage>.hung``, ``.died`` or ``.memory``, and every other row its value. The child is
started again where it was lost, and opens its stages anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.stage import StageError

_CODE = "import sys; sys.path[:] = {path!r}; from pipelines.careful import main; main()"
_LOOK_EVERY_S = 0.02  # how soon a child that eats memory is seen
_LENGTH = struct.Struct("<cQ")
_READ_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_ON: list[Child] = []


@dataclass(frozen=True)
class Limits:
    """What a batch may take. ``row_s`` is for a row alone: after it the row is given up."""

    batch_s: float
    row_s: float
    open_s: float = 1800.0
    memory_bytes: int = 0  # that the child may hold; 0: half of what is free when it starts


class Lost(Exception):
    """The child was lost over a batch, or raised. ``kind`` ends the reason of a row that was alone in it."""

    def __init__(self, kind: str, told: str) -> None:
        super().__init__(told)
        self.kind = kind


@contextlib.contextmanager
def mode(limits: Limits) -> Iterator[None]:
    """Meanwhile `fused.attempt` asks a child process."""
    child = Child(limits)
    _ON.append(child)
    try:
        yield
    finally:
        _ON.remove(child)
        child.end()


def child() -> Child | None:
    """The process to ask in careful mode."""
    return _ON[-1] if _ON else None


class Child:
    """One process that opens stages and runs their batches, started when it is first asked."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._opened: set[str] = set()
        self._most_bytes = 0

    def process(self, planned: Any, batch: pa.Table) -> pa.Table:
        """What ``planned.stage.process`` gives. Raises Lost, or StageError as the stage did."""
        key = f"{planned.fingerprint} {planned.options}"
        if self._process is None:
            self._start()
        if key not in self._opened:
            self._open(key, planned)
        seconds = self._limits.row_s if len(batch) == 1 else self._limits.batch_s
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_table(batch)
        kind, answer = self._ask(b"P", pickle.dumps((key, sink.getvalue().to_pybytes())), seconds)
        if kind == b"T":
            return pa.ipc.open_stream(answer).read_all()
        raise _as_raised(pickle.loads(answer))

    def end(self) -> None:
        """Kill the process; the next question starts another."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and what it has started itself
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process.wait()
        self._process = None
        self._opened.clear()

    def _start(self) -> None:
        self._most_bytes = self._limits.memory_bytes or free_bytes() // 2
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )

    def _open(self, key: str, planned: Any) -> None:
        try:
            kind, answer = self._ask(b"O", pickle.dumps((key, planned.stage)), self._limits.open_s)
        except Lost as lost:
            # A model that can't be loaded is no row's fault.
            raise StageError(
                f"{planned.use} could not be opened: {lost}. hint: check its files and options"
            ) from lost
        if kind == b"E":
            raise StageError(
                f"{planned.use} could not be opened: {_as_raised(pickle.loads(answer))}. hint: check its files and options"
            )
        self._opened.add(key)

    def _ask(self, kind: bytes, question: bytes, seconds: float) -> tuple[bytes, bytes]:
        assert self._process is not None
        until = time.monotonic() + seconds
        try:
            self._send(_LENGTH.pack(kind, len(question)) + question, until, seconds)
            found, length = _LENGTH.unpack(self._read(_LENGTH.size, until, seconds))
            return found, self._read(length, until, seconds)
        except Lost:
            self.end()
            raise

    def _send(self, data: bytes, until: float, seconds: float) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        number = self._process.stdin.fileno()
        os.set_blocking(number, False)
        left = memoryview(data)
        while left:
            self._look(until, seconds)
            if _is_ready(number, select.POLLOUT):
                try:
                    left = left[os.write(number, left[:_READ_BYTES]) :]
                except OSError as fault:
                    raise self._died() from fault

    def _read(self, count: int, until: float, seconds: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        number = self._process.stdout.fileno()
        found = bytearray()
        while len(found) < count:
            self._look(until, seconds)
            if _is_ready(number, select.POLLIN):
                more = os.read(number, min(count - len(found), _READ_BYTES))
                if not more:
                    raise self._died()
                found += more
        return bytes(found)

    def _look(self, until: float, seconds: float) -> None:
        """Raise Lost where the child takes too long or holds too much."""
        assert self._process is not None
        held = held_bytes(self._process.pid)
        if held > self._most_bytes:
            raise Lost(
                "memory", f"it held {held >> 20:,} MiB, {self._most_bytes >> 20:,} are allowed"
            )
        if time.monotonic() > until:
            raise Lost("hung", f"it did not answer within {seconds:.3g} s")

    def _died(self) -> Lost:
        assert self._process is not None
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Lost("died", f"its process died ({how})")


def _is_ready(number: int, event: int) -> bool:
    """Whether a pipe can be read or written, or has ended. (``select.select`` takes no number over 1,023.)"""
    poll = select.poll()
    poll.register(number, event)
    return bool(poll.poll(_LOOK_EVERY_S * 1000))


def _as_raised(told: tuple[str, str, bool]) -> Exception:
    name, words, is_stage_error = told
    return StageError(words) if is_stage_error else Lost(name, words)


def held_bytes(process: int | str = "self") -> int:
    """Memory of its own that a process holds; 0 where the system does not tell."""
    try:
        with open(f"/proc/{process}/status") as file:
            line = next((line for line in file if line.startswith("RssAnon:")), "RssAnon: 0 kB")
    except OSError:
        return 0
    return int(line.split()[1]) << 10


def free_bytes() -> int:
    """Memory that can be had here: of the machine, or of the container where that has less."""
    free = 1 << 62
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo") as file:
        free = int(next(line for line in file if line.startswith("MemAvailable:")).split()[1]) << 10
    with (
        contextlib.suppress(OSError, ValueError),
        open("/sys/fs/cgroup/memory.max") as limit,
        open("/sys/fs/cgroup/memory.current") as now,
    ):
        free = min(free, max(0, int(limit.read()) - int(now.read())))
    return free


def main() -> None:
    """The child: opens stages and runs batches, one question after another, until there are no more."""
    if sys.platform == "linux":  # so that it ends with its parent, however that ends
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a stage prints is no answer
    opened: dict[str, tuple[Any, Any]] = {}
    while head := questions.read(_LENGTH.size):
        kind, length = _LENGTH.unpack(head)
        key, given = pickle.loads(questions.read(length))
        try:
            answer = _answer(kind, key, given, opened)
        except Exception as fault:
            told = (type(fault).__name__, str(fault), isinstance(fault, StageError))
            answer = b"E", pickle.dumps(told)
        answers.write(_LENGTH.pack(answer[0], len(answer[1])) + answer[1])
        answers.flush()


def _answer(
    kind: bytes, key: str, given: Any, opened: dict[str, tuple[Any, Any]]
) -> tuple[bytes, bytes]:
    if kind == b"O":
        opened[key] = given, given.open()
        return b"O", b""
    stage, state = opened[key]
    done = stage.process(pa.ipc.open_stream(given).read_all(), state)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, done.schema) as writer:
        writer.write_table(done)
    return b"T", sink.getvalue().to_pybytes()
