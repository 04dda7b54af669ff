"""A file is whole or not there, on disk and behind fsspec."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.contract import storage


def write_and_fail(path: Path) -> None:
    with storage.committed(str(path)) as file:
        file.write(b"half")
        raise KeyError


def test_a_failed_block_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    with pytest.raises(KeyError):
        write_and_fail(path)
    assert list(path.parent.iterdir()) == []


def test_a_failed_block_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    storage.write_text(str(path), "first")
    with pytest.raises(KeyError):
        write_and_fail(path)
    assert path.read_text() == "first"


def test_memory_filesystem_reads_back() -> None:
    path = "memory://room/deep/file.txt"
    storage.write_text(path, "hello")
    assert storage.exists(path)
    assert storage.read_text(path) == "hello"
    assert storage.size_bytes(path) == 5
    assert storage.glob("memory://room/deep/*") == [storage.glob("memory://room/deep/*")[0]]
    assert storage.read_text(storage.glob("memory://room/deep/*")[0]) == "hello"
    storage.remove("memory://room")
    assert not storage.exists(path)


def test_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b") == str(tmp_path / "b")
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"


def test_the_lists_that_come_along() -> None:
    path = "clip-pipe://small"
    assert storage.absolute(path) == path
    assert storage.exists(path)
    assert storage.size_bytes(path) == len(storage.read_text(path).encode()) > 10_000
    assert storage.modified(path)
    for use in (storage.exists, storage.open_file, storage.size_bytes):
        with pytest.raises(ValueError, match=r"no such list.*hint: there is clip-pipe://small$"):
            use("clip-pipe://smal")
