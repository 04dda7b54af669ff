"""Writing an entry list so that ``read_entries`` gives the same entries with the same ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from curate.contract import storage


def write(path: str, entries: Sequence[str]) -> str:
    """Write ``entries`` one per line, or as JSON where ``path`` ends in .json. Returns the file's sha256.

    Raises ValueError for entries that a file of lines can't hold.
    """
    if path.endswith(".json"):
        data = (json.dumps(list(entries), ensure_ascii=False, indent=0) + "\n").encode()
    else:
        _check_lines(path, entries)
        data = "".join(f"{entry}\n" for entry in entries).encode()
    with storage.committed(path) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str) -> tuple[str, int]:
    """(sha256 in hex, size in bytes) of a file."""
    digest, size = hashlib.sha256(), 0
    with storage.open_file(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _check_lines(path: str, entries: Sequence[str]) -> None:
    broken = next((entry for entry in entries if "\n" in entry or entry.endswith("\r")), None)
    opening = next((entry for entry in entries if entry.strip()), "").lstrip("\ufeff \t\r")[:1]
    if broken is not None or opening in ("[", "{"):
        found = (
            f"the entry {broken!r}" if broken is not None else f"a list that opens with {opening!r}"
        )
        raise ValueError(
            f"{path}: {found} can't stand in a file of lines. hint: name a file that ends in .json"
        )
