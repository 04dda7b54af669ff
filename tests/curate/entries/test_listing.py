"""A list that is written reads back with the same ids, as lines and as JSON."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from curate.entries import listing
from curate.score.metadata_match import read_entries


@pytest.mark.parametrize("name", ["list.txt", "list.json"])
def test_it_reads_back(tmp_path: Path, name: str) -> None:
    entries = ["dog", "", "hot dog", "カメラ", "", ""]
    path = tmp_path / name
    digest = listing.write(str(path), entries)
    assert read_entries(str(path)) == entries
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert listing.file_sha256(str(path)) == (digest, path.stat().st_size)


@pytest.mark.parametrize("entries", [["a\nb"], ["a\r"], ["", "[b"], ["{"], [" [x"], ["\ufeff[x"]])
def test_what_lines_cant_hold_is_refused(tmp_path: Path, entries: list[str]) -> None:
    with pytest.raises(ValueError, match=r"hint: name a file that ends in \.json"):
        listing.write(str(tmp_path / "list.txt"), entries)
    assert not list(tmp_path.iterdir())
    listing.write(str(tmp_path / "list.json"), entries)
    assert read_entries(str(tmp_path / "list.json")) == entries
