"""Small evaluation sets: plain coloured squares, as files of a tar or of a folder."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from curate.contract import tars
from tests.tiny.encoders import COLOURS
from tests.tiny.pictures import encoded

BAD = b"\xff\xd8\xff not a picture"


def square(colour: str, side_px: int = 12) -> bytes:
    """A PNG of one colour of ``COLOURS``."""
    return encoded(np.full((side_px, side_px, 3), np.array(COLOURS[colour]) * 255, np.uint8))


def tar(path: Path, files: Mapping[str, bytes]) -> str:
    """The files as a tar, packed by gzip where the name says so."""
    data = b"".join(tars.member(name, content) for name, content in files.items()) + tars.END
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def folder(path: Path, files: Mapping[str, bytes]) -> str:
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return str(path)
