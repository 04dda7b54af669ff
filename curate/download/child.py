"""One decoding process as its parent sees it: start it, ask it about one body at a time, end it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from curate.download.decoder import ANSWER, NO_HASH, REQUEST, SHARED_BYTES
from curate.download.outcomes import KINDS, Outcome

_ROOT = str(Path(__file__).resolve().parent.parent.parent)
_CODE = (
    f"import sys; sys.path[:] = [{_ROOT!r}, *filter(None, sys.path)]\n"
    "from curate.download.decoder import main; main()"
)
_START_S = 120.0  # a cold disk takes its time over the libraries
_END_S = 5.0
_PIPE_BYTES = 1 << 20  # a body goes over in one piece, so neither side waits for the other
_READ_BYTES = 1 << 18
_MOST_WORDS_BYTES = 1 << 24
_MOST_IMAGE_BYTES = 1 << 30
_MOST_NUMBER = (1 << 31) - 1  # of the columns of whole numbers
_MOST_CPU_S = 1e6
# What a start of Python and of its libraries may need; no credentials, no proxies.
_INHERITED = (
    "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8",
    "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR",
)  # fmt: skip
# Picture buffers stay in the heap: mapping and zeroing fresh pages is a tenth of a full decode.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
}
_OUT_OF_FORM = "the decoder answered out of form"
# What a child may say of a picture. A host or a URL is not its business.
_KINDS = {"hash"} | {kind for kind in KINDS if Outcome(kind=kind).status == "failed_to_resize"}
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a pair, which no column takes
_PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_TYPES: dict[str, type] = {
    "kind": str, "error_message": str, "sha256": str, "exif": str, "wire_bytes": int,
    "width": int, "height": int, "original_width": int, "original_height": int,
}  # fmt: skip


def _shared_memory() -> tuple[int, mmap.mmap | None]:
    """Memory for one body and its descriptor; -1, None where the system has none: all goes by pipe there."""
    if not hasattr(os, "memfd_create"):
        return -1, None
    memory = os.memfd_create("body")
    try:
        os.ftruncate(memory, SHARED_BYTES)
        return memory, mmap.mmap(memory, SHARED_BYTES)
    except BaseException:
        os.close(memory)
        raise


class Died(Exception):
    """The child ended, or answered what no healthy child answers."""


class Gone(Died):
    """The child ended before it was asked: what it was to decode had no part in that."""


class CannotStart(Exception):
    """The child did not come up. ``passing``: for want of something that may be there in a moment."""

    def __init__(self, words: str, passing: bool = False) -> None:
        super().__init__(words)
        self.passing = passing


class Child:
    """A process of `decoder`, in a session of its own, so that Ctrl-C is the parent's to handle."""

    def __init__(self, argument: str) -> None:
        memory, self._shared = -1, None
        try:
            memory, self._shared = _shared_memory()
            self._process = subprocess.Popen(
                [sys.executable or "python3", "-c", _CODE, argument, str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                bufsize=0,
                pass_fds=[memory] if memory >= 0 else [],
                start_new_session=True,
            )
        except (OSError, MemoryError, ValueError) as fault:
            if self._shared is not None:
                self._shared.close()
            passing = isinstance(fault, MemoryError) or getattr(fault, "errno", 0) in _PASSING
            raise CannotStart(f"no process to decode in: {fault}", passing) from fault
        finally:
            if memory >= 0:
                os.close(memory)
        assert self._process.stdin
        assert self._process.stdout
        self._requests = self._process.stdin.fileno()
        self._answers = self._process.stdout.fileno()
        self._started_s = time.monotonic()
        self._start_cpu_s = 0.0
        self._up = False
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._poll = select.poll()
        self.well = True
        for pipe in (self._requests, self._answers):
            os.set_blocking(pipe, False)
            with contextlib.suppress(OSError, AttributeError):  # a limit per user, or no Linux
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it runs, and is to be asked again."""
        return self.well and self._process.poll() is None

    def ask(
        self, body: bytes, expected_hash: str | None, timeout_s: float
    ) -> tuple[Outcome, list[float]]:
        """The outcome of ``body``; CPU seconds: decode, resize, encode, and of all that the child did.

        After TimeoutError, Died, Gone or CannotStart the child is no longer ``well``.
        """
        try:
            self.wait_until_up()
            deadline_s = time.monotonic() + timeout_s
            expected = (expected_hash or "").encode()
            hash_length = NO_HASH if expected_hash is None else len(expected)
            lengths = REQUEST.pack(hash_length, len(body))
            if self._shared is not None and len(body) <= SHARED_BYTES:
                self._shared[: len(body)] = body
                body = b""
            self._send(lengths + expected, body, deadline_s)
            words, image = self._receive(deadline_s)
            cpu_s = _seconds(words.pop("cpu_s", None))
            cpu_s[3] += self._start_cpu_s
            self._start_cpu_s = 0.0
            return _outcome(words, image), cpu_s
        except BaseException:
            self.well = False
            raise

    def wait_until_up(self) -> None:
        """Return once the child is ready to be asked. Raises CannotStart with its last words."""
        if self._up:
            return
        try:
            words, _ = self._receive(self._started_s + _START_S)
            self._start_cpu_s = _seconds(words.get("cpu_s"))[3]
        except (Died, TimeoutError) as fault:
            self.well = False
            last = self._last_words()
            raise CannotStart(
                f"the decoding process did not start: {last or fault}. hint: try `{sys.executable} -c 'import cv2, numpy'`"
            ) from fault
        self._up = True

    def _last_words(self) -> str:
        assert self._process.stderr
        os.set_blocking(self._process.stderr.fileno(), False)
        said = self._process.stderr.read() or b""
        return said.decode(errors="replace").strip().rpartition("\n")[2][-300:]

    def _send(self, start: bytes, body: bytes, deadline_s: float) -> None:
        """In one call where the pipe takes it, so that the child wakes once."""
        pieces = [memoryview(start), memoryview(body)]
        while pieces:
            try:
                sent = os.writev(self._requests, pieces)
            except BlockingIOError:
                self._wait(self._requests, select.POLLOUT, deadline_s)
                continue
            except BrokenPipeError:
                raise Gone(self._how_it_died()) from None
            pieces = _behind(pieces, sent)

    def _receive(self, deadline_s: float) -> tuple[dict[str, Any], bytes]:
        start = self._take(ANSWER.size, deadline_s)
        words_length, image_length = ANSWER.unpack_from(start)
        if words_length > _MOST_WORDS_BYTES or image_length > _MOST_IMAGE_BYTES:
            raise Died(_OUT_OF_FORM)
        image_at = ANSWER.size + words_length
        whole = image_at + image_length
        answer = (
            start if len(start) >= whole else start + self._take(whole - len(start), deadline_s)
        )
        try:
            found = json.loads(answer[ANSWER.size : image_at])
        except (ValueError, RecursionError) as fault:
            raise Died(_OUT_OF_FORM) from fault
        if not isinstance(found, dict) or len(answer) > whole:
            raise Died(_OUT_OF_FORM)
        return found, answer[image_at:]

    def _take(self, length: int, deadline_s: float) -> bytes:
        """At least ``length`` bytes, and all that has come by then."""
        parts: list[bytes] = []
        while length > 0:
            self._wait(self._answers, select.POLLIN, deadline_s)
            taken = os.readv(self._answers, [self._buffer])
            if not taken:
                raise Died(self._how_it_died())
            parts.append(bytes(self._buffer[:taken]))
            length -= taken
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _wait(self, pipe: int, event: int, deadline_s: float) -> None:
        left_s = deadline_s - time.monotonic()
        self._poll.register(pipe, event)
        try:
            if left_s <= 0 or not self._poll.poll(left_s * 1000):
                raise TimeoutError
        finally:
            self._poll.unregister(pipe)

    def _how_it_died(self) -> str:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "the decoding process closed its pipe"
        if code < 0:
            return f"the decoding process died of {_signal_name(-code)}"
        return f"the decoding process ended with code {code}"

    def kill(self) -> None:
        """SIGKILL; ``ask`` in another thread then raises Died. Safe to call at any time."""
        self._process.kill()

    def end(self) -> None:
        """End the process and wait for it; killed if it is not well or does not end by itself."""
        if not self.well:
            self._process.kill()
        if self._shared is not None:
            self._shared.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _behind(pieces: list[memoryview], sent: int) -> list[memoryview]:
    """What is left of ``pieces`` behind their first ``sent`` bytes."""
    left = []
    for piece in pieces:
        left.append(piece[sent:])
        sent = max(0, sent - len(piece))
    return [piece for piece in left if piece]


def _environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, **_ENVIRONMENT}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"


def _is_in_form(value: object, kind: type) -> bool:
    """Of its type, a number that a column holds, a text that is one."""
    if type(value) is not kind:
        return False
    if isinstance(value, int):
        return 0 <= value <= _MOST_NUMBER
    return not _SURROGATE.search(str(value))


def _seconds(found: object) -> list[float]:
    if (
        isinstance(found, list)
        and len(found) == 4
        and all(isinstance(second, int | float) for second in found)
        and all(0 <= second <= _MOST_CPU_S for second in found)
    ):
        return [float(second) for second in found]
    raise Died(_OUT_OF_FORM)


def _outcome(words: dict[str, Any], image: bytes) -> Outcome:
    """The answer as an Outcome, every field of the type it should have: a child may be taken over."""
    if set(words) != set(_TYPES) or not all(
        value is None or _is_in_form(value, _TYPES[name]) for name, value in words.items()
    ):
        raise Died(_OUT_OF_FORM)
    kind = words["kind"]
    if (kind is None) != bool(image) or (kind is not None and kind not in _KINDS):
        raise Died(_OUT_OF_FORM)
    return Outcome(image=image or None, **words)
