"""The child process that decodes: bodies come in on a pipe, outcomes go out, and it may die.

Image decoders meet hostile bytes here, so little else is here: no open files or sockets of the parent,
a short list of its environment without credentials, a limit on memory; the parent reads its answers as
data. It is no sandbox: it runs as the same user, and could open files and connections of its own.

A request is `REQUEST` (lengths of the expected hash, -1 for none, and of the body), then both; a body of up to
`SHARED_BYTES` comes in shared memory instead, which saves four copies. An answer is `ANSWER`
(lengths), then JSON and the encoded picture. The first answer comes unasked: it says that the child is
up. The descriptors of the two pipes are private; 0, 1 and 2 are the null device, whatever a library prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import resource
import struct
import sys
import time

from curate.download.outcomes import Outcome
from curate.download.pictures import PictureOptions, Spent, measured

REQUEST = struct.Struct("<iI")
NO_HASH = -1
ANSWER = struct.Struct("<II")
SHARED_BYTES = 4 << 20  # nearly all bodies
_READ_BYTES = 1 << 20
_LEAST_BYTES = 64 << 20
_FIELDS = tuple(field.name for field in dataclasses.fields(Outcome) if field.name != "image")


def main() -> None:
    """Entry of the child. Arguments: JSON (``options``, ``memory_bytes``); descriptor of the memory, or -1."""
    arguments = json.loads(sys.argv[1])
    options = PictureOptions(**arguments["options"])
    requests, answers = _private_pipes()
    import cv2

    cv2.setNumThreads(1)
    _limit_memory(arguments["memory_bytes"])
    os.dup2(1, 2)  # errors until here are the parent's to show
    memory = int(sys.argv[2])
    _serve(requests, answers, mmap.mmap(memory, SHARED_BYTES) if memory >= 0 else None, options)


def _private_pipes() -> tuple[int, int]:
    pipes = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return pipes


def _limit_memory(memory_bytes: int) -> None:
    """Address space, libraries included; no dump of a crash; the first to go when memory is short."""
    with contextlib.suppress(OSError, ValueError):  # not Linux: no limit is better than a wrong one
        with open("/proc/self/statm") as file:
            held_bytes = int(file.read().split()[0]) * resource.getpagesize()
        most_bytes = max(memory_bytes, held_bytes + _LEAST_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")


def _serve(requests: int, answers: int, shared: mmap.mmap | None, options: PictureOptions) -> None:
    """Answer until the pipe ends."""
    reported_s, buffer = 0.0, memoryview(bytearray(_READ_BYTES))
    image, spent = b"", Spent()
    answer: dict[str, object] = {"up": True}
    while True:
        now_s = time.process_time()
        answer["cpu_s"] = [spent.decode_s, spent.resize_s, spent.encode_s, now_s - reported_s]
        reported_s = now_s
        words = json.dumps(answer).encode()
        _write(answers, ANSWER.pack(len(words), len(image)) + words, image)
        request = _request(requests, shared, buffer)
        if request is None:
            return
        expected_hash, body = request
        spent = Spent()
        found = measured(body, options, expected_hash, spent)
        answer = {name: getattr(found, name) for name in _FIELDS}
        image = found.image or b""


def _request(
    pipe: int, shared: mmap.mmap | None, buffer: memoryview
) -> tuple[str | None, bytes] | None:
    """The expected hash, if any, and the body; None at the end of the pipe."""
    start = _read(pipe, REQUEST.size, buffer)
    if start is None:
        return None
    hash_length, body_length = REQUEST.unpack_from(start)
    has_hash, hash_length = hash_length != NO_HASH, max(0, hash_length)
    in_memory = shared is not None and body_length <= SHARED_BYTES
    whole = REQUEST.size + hash_length + (0 if in_memory else body_length)
    rest = _read(pipe, whole - len(start), buffer)
    if rest is None:
        return None
    request = start + rest if rest else start
    body_at = REQUEST.size + hash_length
    body = shared[:body_length] if shared is not None and in_memory else request[body_at:]
    return request[REQUEST.size : body_at].decode() if has_hash else None, body


def _read(pipe: int, length: int, buffer: memoryview) -> bytes | None:
    """At least ``length`` bytes and all that has come by then, None at the end of the pipe."""
    parts: list[bytes] = []
    while length > 0:
        taken = os.readv(pipe, [buffer])
        if not taken:
            return None
        parts.append(bytes(buffer[:taken]))
        length -= taken
    return b"".join(parts)


def _write(pipe: int, words: bytes, image: bytes) -> None:
    sent = os.writev(pipe, [words, image])
    if sent < len(words) + len(image):
        view = memoryview(words + image)[sent:]
        while view:
            view = view[os.write(pipe, view) :]


if __name__ == "__main__":
    main()
