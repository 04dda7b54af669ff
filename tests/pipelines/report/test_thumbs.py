"""Small WebP pictures of whatever the web gives; None for what is no picture."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipelines.report import thumbs
from tests.tiny.pictures import (
    corner_colours,
    encoded,
    quadrants,
    shared_data,
    tar_files,
    with_orientation,
)


def decoded(uri: str | None) -> np.ndarray:
    assert uri is not None
    prefix = "data:image/webp;base64,"
    assert uri.startswith(prefix)
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix))))
    assert image.format == "WEBP"
    return np.asarray(image.convert("RGB"))


def test_size_and_colours() -> None:
    pixels = decoded(thumbs.data_uri(encoded(quadrants(640, 480), "JPEG"), 100))
    assert pixels.shape == (75, 100, 3)
    assert corner_colours(pixels) == "rgbw"


def test_a_small_picture_is_not_blown_up() -> None:
    assert decoded(thumbs.data_uri(encoded(quadrants(20, 10)))).shape == (10, 20, 3)


def test_upright_and_on_white() -> None:
    assert corner_colours(decoded(thumbs.data_uri(with_orientation(quadrants(), 3)))) == "wbgr"
    clear = np.zeros((16, 16, 4), np.uint8)
    assert decoded(thumbs.data_uri(encoded(clear))).min() > 250


@pytest.mark.parametrize("data", [None, b"", b"<html>", b"\xff\xd8\xff", encoded(quadrants())[:60]])
def test_no_picture_is_none(data: bytes | None) -> None:
    assert thumbs.data_uri(data) is None


def test_a_bomb_is_not_decoded() -> None:
    bomb = Image.new("1", (9000, 9000))
    out = io.BytesIO()
    bomb.save(out, "PNG")
    assert thumbs.data_uri(out.getvalue()) is None


def test_the_same_bytes_every_time() -> None:
    data = encoded(quadrants(300, 200))
    assert thumbs.data_uri(data) == thumbs.data_uri(data)


def test_awkward_files_never_raise() -> None:
    files = tar_files(shared_data("awkward.tar"))
    made = [
        thumbs.data_uri(data)
        for name, data in files.items()
        if name != "manifest.json" and len(data) < 300_000
    ]
    assert any(made)
    assert None in made
