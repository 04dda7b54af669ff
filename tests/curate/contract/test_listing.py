"""Folders listed with sizes and times: on disk, behind fsspec and in an object store alike."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import pytest

from curate.contract import listing, storage


def fill(root: str) -> None:
    for name, size in (("a.json", 3), ("b.parquet", 5), ("deep/c.json", 7), ("deep/er/d", 1)):
        with storage.committed(f"{root}/{name}") as file:
            file.write(b"x" * size)


def check(root: str) -> None:
    fill(root)
    found = listing.files(root)
    assert [(entry.name, entry.bytes) for entry in found] == [("a.json", 3), ("b.parquet", 5)]
    assert all(abs(entry.modified_s - time.time()) < 600 for entry in found)
    assert [entry.name for entry in listing.files(root, ".json")] == ["a.json"]
    assert [entry.path for entry in listing.tree(root)] == [
        f"{root}/{name}" for name in ("a.json", "b.parquet", "deep/c.json", "deep/er/d")
    ]
    assert listing.folders(root) == [f"{root}/deep"]
    assert listing.files(f"{root}/none") == listing.tree(f"{root}/none") == []
    assert listing.folders(f"{root}/none") == []
    listing.remove_files([f"{root}/a.json", f"{root}/deep/er/d", f"{root}/gone"])
    assert [entry.name for entry in listing.tree(root)] == ["b.parquet", "c.json"]


def test_on_disk(tmp_path: Path) -> None:
    check(str(tmp_path))


def test_behind_fsspec() -> None:
    check(f"memory:///listing-{uuid.uuid4().hex}")


@pytest.mark.net
def test_in_an_object_store(bucket: str) -> None:
    check(f"{bucket}/some/folder")


def test_a_file_with_two_names_says_so(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("x")
    os.link(tmp_path / "one", tmp_path / "two")
    assert [entry.links for entry in listing.files(str(tmp_path))] == [2, 2]
