"""Files behind fsspec appear when they are whole."""

from __future__ import annotations

import fsspec
import pytest

from curate.contract import deferred


def test_a_file_is_not_there_before_its_block_ends() -> None:
    fs = fsspec.filesystem("memory")
    with deferred.committed(fs, "/deferred/a", "wb") as file:
        file.write(b"x")
        assert not fs.exists("/deferred/a")
    assert fs.cat_file("/deferred/a") == b"x"

    def fails() -> None:
        with deferred.committed(fs, "/deferred/b", "wb") as file:
            file.write(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert not fs.exists("/deferred/b")
    fs.rm("/deferred", recursive=True)
