"""Pictures are seen as a viewer shows them, decoded once for stages in a row, and damage is a ValueError."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from curate.score import picture
from curate.score.picture import decode
from tests.tiny.pictures import (
    corner_colours,
    encoded,
    quadrants,
    shared_data,
    tar_files,
    with_orientation,
)


@pytest.fixture(autouse=True)
def _forget() -> None:
    picture._cache.clear()


def test_pixels_are_rgb_and_read_only() -> None:
    found = decode(encoded(quadrants()))
    assert (found.dtype, found.shape) == (np.dtype(np.uint8), (48, 64, 3))
    assert np.array_equal(found, quadrants())
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0, 0] = 1


def test_stages_in_a_row_decode_each_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    real = picture.decode_uncached

    def counting(data: bytes) -> np.ndarray:
        decoded.append(data)
        return real(data)

    monkeypatch.setattr(picture, "decode_uncached", counting)
    batch = [encoded(np.full((8, 8, 3), value, np.uint8)) for value in range(64)]
    for _ in range(3):
        for data in batch:
            decode(bytes(bytearray(data)))  # equal bytes, another object, as from Arrow
    assert decoded == batch


def test_what_is_remembered_is_bounded_in_memory() -> None:
    cache = picture._Cache(pictures=3, size_bytes=1000)
    for value in range(5):
        cache.put(bytes([value]), np.zeros(100, np.uint8))
    assert [value for value in range(5) if cache.get(bytes([value])) is not None] == [2, 3, 4]
    cache.put(b"large", np.zeros(900, np.uint8))
    assert cache.get(b"large") is not None
    assert cache.get(b"\x04") is None
    cache.put(b"larger than all", np.zeros(2000, np.uint8))
    assert cache.get(b"larger than all") is None


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_orientation_is_applied_once(kind: str) -> None:
    stored = quadrants(64, 48)
    found = decode(with_orientation(stored, 6, kind))
    assert found.shape == (64, 48, 3)
    assert corner_colours(found) == "brwg"
    assert corner_colours(decode(encoded(found))) == "brwg"


def test_alpha_is_laid_on_white() -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8] = (0, 0, 0, 255)
    found = decode(encoded(pixels))
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[12, 0].tolist() == [255, 255, 255]
    palette = Image.fromarray(quadrants()).convert("P")
    assert (
        decode(encoded(np.asarray(palette.convert("L")), transparency=255))[-1, -1].tolist()
        == [255] * 3
    )


def test_sixteen_bit_greys_are_scaled_not_cut() -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    assert decode(encoded(deep))[:, :, 1].ravel().tolist() == list(range(256))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"\xff\xd8\xff\xe0",
        encoded(quadrants(), "JPEG")[:-200],
        encoded(quadrants())[:-60],
    ],
)
def test_damage_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_unreadable_messages_hold_no_addresses() -> None:
    with pytest.raises(ValueError, match=r"^no header of a format that is read here$"):
        decode(b"nothing")


def test_native_messages_are_silenced_and_stderr_comes_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with picture.quiet_stderr(), picture.quiet_stderr():
        os.write(2, b"hidden")
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"


@pytest.mark.filterwarnings("ignore")  # pytest sets the filters of picture.py back
def test_hostile_files_raise_value_error_only() -> None:
    files = {
        name: data
        for name, data in tar_files(shared_data("awkward.tar")).items()
        if name.startswith("files/")
    }
    outcomes = {"seen": 0, "refused": 0}
    for data in files.values():
        try:
            found = decode(data)
            assert found.ndim == 3
            assert found.dtype == np.uint8
            outcomes["seen"] += 1
        except ValueError:
            outcomes["refused"] += 1
    assert outcomes["seen"] > 120
    assert outcomes["refused"] > 100
