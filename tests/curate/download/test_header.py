"""Headers read here agree with Pillow's, and what they cannot say they leave to it."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

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


def with_hidden_frame(body: bytes, marker: int) -> bytes:
    """A JPEG with another frame header, which only those see who take a lone marker for a segment."""
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, 300, 300, 1) + bytes([1, 0x11, 0])
    start = b"\xff\xd8\xff" + bytes([marker]) + b"\xff\xfe\xff\xf0" + bytes(0xFFF0 - 2)
    gap = bytes(4 + 0xFFFE - len(start) - 4)
    comment = gap + frame + b"\xff\xda\0\x0c" + bytes(12)
    return start + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + body[2:]


@pytest.mark.parametrize("marker", [0x01, *range(0xD0, 0xD8)])
def test_a_size_that_parsers_may_see_otherwise_is_not_believed(marker: int) -> None:
    assert header(with_hidden_frame(encoded(quadrants(), "JPEG"), marker)) is None


def test_two_frame_headers_are_not_believed() -> None:
    body = encoded(quadrants(64, 48), "JPEG")
    at = body.index(b"\xff\xc0")
    assert header(body[:at] + body[at : at + 19] + body[at:]) is None


def test_twelve_bits_are_not_plain() -> None:
    body = bytearray(encoded(quadrants(64, 48), "JPEG"))
    body[body.index(b"\xff\xc0") + 4] = 12
    assert header(bytes(body)) is None


def test_orientation_of_xmp_counts_where_exif_has_none() -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    segment = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    body = encoded(quadrants(64, 48), "JPEG")
    found = header(body[:2] + segment + body[2:])
    assert found is not None
    assert found.orientation == 6
    turned = with_orientation(quadrants(64, 48), 3)
    found = header(turned[:2] + segment + turned[2:])
    assert found is not None
    assert found.orientation == 3


def test_words_about_animation_are_no_animation() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", "how acTL chunks work")
    file = io.BytesIO()
    Image.fromarray(quadrants()).save(file, "PNG", pnginfo=notes)
    assert frames(file.getvalue(), 1000) == 1


def test_a_body_of_nothing_but_blocks_is_too_much_in_time() -> None:
    gif = b"GIF89a" + struct.pack("<HH", 64, 64) + b"\0\0\0" + b"\x21\x01\0" * 12_000_000
    webp = b"RIFF\0\0\0\0WEBP" + b"JUNK\0\0\0\0" * 4_000_000
    began_s = time.process_time()
    assert frames(gif, 1000) == 1001
    assert frames(webp, 1000) == 1001
    assert time.process_time() - began_s < 1.5  # 0.2 here; all blocks take 4


def test_counting_stops_past_the_most() -> None:
    for kind in ("GIF", "WEBP", "TIFF"):
        assert frames(moving(kind, 9), 4) == 5
