"""Headers read here agree with Pillow's, and what they cannot say they leave to it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from curate.download.header import ends_well, exif_orientation, frames, header
from curate.score import picture
from tests.tiny.pictures import encoded, quadrants, shared_data, tar_files, with_orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (64, 48), (300, 7)])
def test_size_and_format(kind: str, size: tuple[int, int]) -> None:
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    found = header(encoded(pixels, kind))
    assert found is not None
    assert (found.format, found.width, found.height) == (kind, *size)
    assert found.plain
    assert found.orientation == 1


def test_jpeg_says_grey_and_progressive() -> None:
    grey = header(encoded(quadrants()[:, :, 0], "JPEG"))
    assert grey is not None
    assert grey.channels == 1
    for quality, step in ((75, 6), (50, 11)):
        found = header(encoded(quadrants(), "JPEG", progressive=True, quality=quality))
        assert found is not None
        assert found.progressive
        assert found.step == step


def test_cmyk_is_left_to_pillow() -> None:
    file = io.BytesIO()
    Image.fromarray(quadrants()).convert("CMYK").save(file, "JPEG")
    assert header(file.getvalue()) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_the_size(orientation: int) -> None:
    found = header(with_orientation(quadrants(64, 48), orientation))
    assert found is not None
    assert found.orientation == orientation
    assert found.upright == ((48, 64) if orientation >= 5 else (64, 48))


def test_orientation_of_odd_blocks() -> None:
    assert exif_orientation(b"") is None
    assert exif_orientation(b"II*\0\x08\0\0\0\xff\xff") is None
    assert exif_orientation(b"II*\0\xff\xff\xff\xff") is None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {"transparency": (0, 0, 0)}),
        ("PNG", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),
        ("WEBP", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}),
    ],
)
def test_what_cv2_shows_wrongly_is_not_plain(kind: str, options: dict[str, object]) -> None:
    found = header(encoded(quadrants(), kind, **options))
    assert found is not None
    assert not found.plain


def test_deep_png_is_not_plain() -> None:
    found = header(encoded(np.zeros((20, 20), np.uint16), "PNG"))
    assert found is not None
    assert not found.plain


def moving(kind: str, count: int) -> bytes:
    file = io.BytesIO()
    pictures = [Image.fromarray(np.full((8, 8, 3), n * 30 % 256, np.uint8)) for n in range(count)]
    pictures[0].save(file, kind, save_all=True, append_images=pictures[1:])
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_frames_are_counted(kind: str) -> None:
    assert frames(moving(kind, 7), 1000) == 7
    assert frames(moving(kind, 7), 3) > 3
    assert frames(encoded(quadrants(), kind), 1000) == 1
    cut = moving(kind, 7)[:60]
    assert frames(cut, 1000) >= 1


def test_a_tiff_whose_pages_go_round_ends() -> None:
    looped = bytearray(encoded(quadrants(), "TIFF"))
    at = int.from_bytes(looped[4:8], "little")
    entries = int.from_bytes(looped[at : at + 2], "little")
    after = at + 2 + 12 * entries
    looped[after : after + 4] = at.to_bytes(4, "little")
    assert frames(bytes(looped), 10**9) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_end_is_found(kind: str) -> None:
    data = encoded(quadrants(300, 200), kind)
    assert ends_well(data)
    assert ends_well(data + b"\0\0")
    assert not ends_well(data + b"x" * 100)
    assert not ends_well(data + data)
    assert not ends_well(data[:-20])


def test_the_end_of_a_progressive_one_and_of_one_with_a_thumbnail() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    assert ends_well(encoded(noise, "JPEG", progressive=True))
    thumbnail = encoded(quadrants(), "JPEG")
    block = b"Exif\0\0" + thumbnail
    data = encoded(noise, "JPEG")
    with_thumbnail = data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    assert ends_well(with_thumbnail)


def test_real_files_agree_with_pillow() -> None:
    """Over every awkward file: size, orientation, and frames where Pillow can say."""
    compared = 0
    for name, data in tar_files(shared_data("awkward.tar")).items():
        found = header(data)
        if found is None:
            continue
        try:
            with picture.opened(data) as image:
                theirs = image.size, picture.orientation(image)
        except ValueError:
            continue
        assert (found.width, found.height) == theirs[0], name
        if found.plain:
            assert found.orientation == theirs[1], name
        compared += 1
    assert compared > 100
