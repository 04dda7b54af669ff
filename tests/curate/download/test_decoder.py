"""The child's side of the pipe: requests in any pieces, answers whole, and the end of the pipe ends it."""

from __future__ import annotations

import mmap
import os
import threading

import pytest

from curate.download.decoder import NO_HASH, REQUEST, SHARED_BYTES, _request, _write


@pytest.fixture
def pipe() -> tuple[int, int]:
    return os.pipe()


def asked(
    pipe: tuple[int, int], data: bytes, piece: int, shared: mmap.mmap | None = None
) -> object:
    def send() -> None:
        for at in range(0, len(data), piece):
            os.write(pipe[1], data[at : at + piece])
        os.close(pipe[1])

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return _request(pipe[0], shared, memoryview(bytearray(1 << 16)))
    finally:
        thread.join()
        os.close(pipe[0])


@pytest.mark.parametrize("piece", [1, 7, 8, 9, 50, 100_000])
@pytest.mark.parametrize("length", [0, 1, 300])
def test_a_request_may_come_in_pieces(pipe: tuple[int, int], piece: int, length: int) -> None:
    body = bytes(range(256))[:length] * 2
    data = REQUEST.pack(4, len(body)) + b"abcd" + body
    assert asked(pipe, data, piece) == ("abcd", body)


def test_no_hash_is_not_an_empty_one(pipe: tuple[int, int]) -> None:
    assert asked(pipe, REQUEST.pack(NO_HASH, 3) + b"abc", 100) == (None, b"abc")


def test_a_body_may_lie_in_memory(pipe: tuple[int, int]) -> None:
    shared = mmap.mmap(-1, SHARED_BYTES)
    shared[:5] = b"bytes"
    assert asked(pipe, REQUEST.pack(2, 5) + b"ab", 3, shared) == ("ab", b"bytes")


def test_one_too_large_for_the_memory_comes_by_pipe(pipe: tuple[int, int]) -> None:
    shared = mmap.mmap(-1, SHARED_BYTES)
    body = b"x" * (SHARED_BYTES + 1)
    assert asked(pipe, REQUEST.pack(0, len(body)) + body, 1 << 16, shared) == ("", body)


@pytest.mark.parametrize("length", [0, 3, REQUEST.size, REQUEST.size + 2])
def test_the_end_of_the_pipe_is_the_end(pipe: tuple[int, int], length: int) -> None:
    assert asked(pipe, (REQUEST.pack(2, 5) + b"ab")[:length], 100) is None


def test_an_answer_larger_than_the_pipe_goes_whole(pipe: tuple[int, int]) -> None:
    words, image = b"w" * 1000, b"i" * 3_000_000
    parts: list[bytes] = []

    def read() -> None:
        while part := os.read(pipe[0], 1 << 16):
            parts.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    _write(pipe[1], words, image)
    os.close(pipe[1])
    thread.join()
    os.close(pipe[0])
    assert b"".join(parts) == words + image
