"""A file is whole or not there, on disk and behind fsspec."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curate.contract import storage


def write_and_fail(path: Path | str) -> None:
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


@pytest.mark.parametrize("link", [True, False])
def test_a_second_name_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    source, target = tmp_path / "a", tmp_path / "deep" / "b"
    source.write_bytes(b"one")
    if not link:

        def refuse(*_: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr("os.link", refuse)
    storage.link_or_copy(str(source), str(target))
    assert target.read_bytes() == b"one"
    assert target.samefile(source) == link
    # What is committed anew under one name leaves the other as it was.
    storage.write_text(str(source), "two")
    storage.link_or_copy(str(source), str(target))
    storage.write_text(str(target), "three")
    assert source.read_bytes() == b"two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b"]


def test_a_second_name_behind_fsspec(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    storage.link_or_copy(str(tmp_path / "a"), "memory://copies/a")
    storage.link_or_copy("memory://copies/a", "memory://copies/deep/b")
    assert storage.size_bytes("memory://copies/deep/b") == 3_000_000
    storage.remove("memory://copies")


def test_two_files_behind_fsspec_are_written_side_by_side() -> None:
    root = "memory://beside"
    with storage.committed(f"{root}/one") as one:
        one.write(b"1")
        with pytest.raises(KeyError):
            write_and_fail(f"{root}/two")
        with storage.committed(f"{root}/three") as three:
            three.write(b"3")
            assert not storage.exists(f"{root}/three")
        assert storage.read_text(f"{root}/three") == "3"
        assert not storage.exists(f"{root}/one")
        one.write(b"11")
    assert storage.read_text(f"{root}/one") == "111"
    assert not storage.exists(f"{root}/two")
    storage.remove(root)


def test_behind_fsspec_a_failed_block_keeps_what_was_there(tmp_path: Path) -> None:
    for root in ("memory://kept", f"file://{tmp_path}"):
        storage.write_text(f"{root}/a", "first")
        with pytest.raises(KeyError):
            write_and_fail(f"{root}/a")
        assert storage.read_text(f"{root}/a") == "first"
    storage.remove("memory://kept")


def test_a_filesystem_that_can_t_hold_a_file_back_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Plain(io.BytesIO):
        pass

    monkeypatch.setattr(MemoryFileSystem, "_open", lambda *_, **__: Plain())
    with pytest.raises(ValueError, match=r"MemoryFileSystem can't write .* hint: "):
        storage.write_text("memory://plain/a", "x")


def test_a_copy_is_on_the_disk_before_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    def replace(*paths: str) -> None:
        done.append("named")
        Path(paths[0]).rename(paths[1])

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("os.fsync", lambda _: done.append("synced"))
    monkeypatch.setattr("os.replace", replace)
    (tmp_path / "a").write_bytes(b"one")
    storage.link_or_copy(str(tmp_path / "a"), str(tmp_path / "b"))
    assert done == ["synced", "named"]


def test_another_machine_s_new_link_to_an_old_file_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, link = tmp_path / "old", tmp_path / f"b{storage.TEMPORARY}elsewhere-1-abcdef01"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    os.link(old, link)
    storage.sweep(str(tmp_path))
    assert link.exists()
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 2 * 86_400)
    storage.sweep(str(tmp_path))
    assert old.exists()
    assert not link.exists()


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


@pytest.mark.parametrize(
    "info",
    [
        {"ETag": "v"},
        {"ETag": "", "Last-Modified": "v"},  # a plain web server
        {"updated": "v"},  # gcs
        {"etag": None, "last_modified": "v"},  # azure
        {"LastModified": "v"},
    ],
    ids=str,
)
def test_a_version_is_found_by_whatever_name(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, str]
) -> None:
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_, **__: {"size": 3, **info})
    assert storage.mark("memory://a") == (3, "v")


def test_a_fetched_file_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_text("memory://synced/a", "abc")
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    storage.fetch("memory://synced/a", str(tmp_path / "a"))
    assert len(synced) == 1
    storage.remove("memory://synced")


def test_a_remote_file_is_marked_and_fetched_whole(tmp_path: Path) -> None:
    path = "memory://marked/a"
    with storage.committed(path) as file:
        file.write(b"abc")
    size, version = storage.mark(path)
    assert size == 3
    assert storage.modified(path) == version
    storage.fetch(path, str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == b"abc"
    storage.remove(path)


def test_sizes_of_a_remote_folder_come_by_one_listing() -> None:
    store = MemoryFileSystem()
    store.pipe({"/sizes/a.tar": b"abc", "/sizes/b.tar": b"", "/sizes/below/c.tar": b"x"})
    try:
        assert storage.sizes("memory://sizes") == {
            "memory:///sizes/a.tar": 3,
            "memory:///sizes/b.tar": 0,
        }
        assert set(storage.glob("memory://sizes/*.tar")) == set(storage.sizes("memory://sizes"))
    finally:
        store.rm("/sizes", recursive=True)


def test_marks_and_ranges_of_a_remote_folder_are_asked_for_together() -> None:
    try:
        for name in ("a", "b"):
            storage.write_text(f"memory://marks/{name}.txt", f"0123{name}")
        found = storage.marks("memory://marks")
        assert {name.rsplit("/", 1)[-1]: size for name, (size, _) in found.items()} == {
            "a.txt": 5,
            "b.txt": 5,
        }
        assert all(storage.mark(name) == mark for name, mark in found.items())
        assert storage.read_range("memory://marks/a.txt", 2, 3) == b"23a"
        assert storage.read_range("memory://marks/a.txt", 2, 0) == b""
    finally:
        storage.remove("memory://marks")


def test_a_range_of_a_file_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456")
    assert storage.read_range(str(tmp_path / "a"), 2, 3) == b"234"
