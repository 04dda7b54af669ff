"""Small pictures made in memory, and where the shared real data is."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An encoded picture of uint8 or uint16 ``pixels``."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def quadrants(width: int = 64, height: int = 48) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right: shape (height, width, 3)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = 255
    return pixels


def corner_colours(pixels: np.ndarray) -> str:
    """The four corners in reading order as letters, such as "rgbw" for ``quadrants``."""
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    height, width = pixels.shape[:2]
    places = [
        (height // 8, width // 8),
        (height // 8, -width // 8),
        (-height // 8, width // 8),
        (-height // 8, -width // 8),
    ]
    return "".join(
        names.get(tuple((pixels[y, x] > 128).astype(int).tolist()), "?") for y, x in places
    )


def with_orientation(pixels: np.ndarray, orientation: int, kind: str = "JPEG") -> bytes:
    """The pixels as stored, with an EXIF orientation of 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, kind, exif=exif.tobytes(), quality=95)


def shared_data(name: str) -> Path:
    """A file of the shared real data; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("CLIP_PIPE_SHARED_DATA", beside)) / name
    if not path.exists():
        pytest.skip(f"real data {name} is not here; set CLIP_PIPE_SHARED_DATA to its folder")
    return path


def tar_files(path: Path) -> dict[str, bytes]:
    """Every regular file in a tar."""
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
