"""Bytes are judged by what they are, headers before pixels, and odd pictures become plain ones."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from curate.download import pixels
from curate.download.guard import Refused
from curate.download.pixels import Bounds, ready
from curate.score.picture import decode
from tests.tiny.pictures import corner_colours, encoded, quadrants, with_orientation


def kind_of(data: bytes, **bounds: float) -> str:
    with pytest.raises(Refused) as caught:
        ready(data, Bounds(**bounds))  # type: ignore[arg-type]
    return caught.value.kind


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds one row's worth of nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 10)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"  \n ",
        b"<!DOCTYPE html><html></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b'{"error": 404}',
        b"\x1f\x8b\x08\0",
        b"RIFF\0\0\0\0WAVE",
        b"plain words",
        bytes(range(32, 96)),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(data: bytes) -> None:
    assert kind_of(data) == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_plain_pictures_pass_untouched(kind: str) -> None:
    data = encoded(quadrants(), kind)
    assert ready(data, Bounds()) is data


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "JPEG2000", "ICO"])
def test_other_formats_become_plain(kind: str) -> None:
    data = ready(encoded(quadrants(64, 64), kind), Bounds())
    assert data[:2] == b"BM"
    assert corner_colours(decode(data)) == "rgbw"


@pytest.mark.parametrize(
    ("size", "bounds", "kind"),
    [
        ((1, 1), {"min_image_size": 16}, "too_small"),
        ((15, 4000), {"min_image_size": 16}, "too_small"),
        ((20, 4000), {"max_aspect_ratio": 20}, "too_large.aspect"),
        ((300, 300), {"max_image_area": 300 * 299}, "too_large.pixels"),
        ((12_000, 12_000), {"max_image_area": 100_000_000}, "too_large.pixels"),
        ((100_000, 100_000), {}, "too_large.pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # pytest sets the filters of picture.py back
def test_limits_hold_on_the_header_alone(
    size: tuple[int, int], bounds: dict[str, float], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_: bytes) -> np.ndarray:
        raise AssertionError("decoded")

    monkeypatch.setattr(pixels.picture, "decode_uncached", never)
    assert kind_of(png_header(*size), **bounds) == kind


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_pictures_are_set_upright(orientation: int) -> None:
    upright = {2: "grwb", 3: "wbgr", 4: "bwrg", 5: "rbgw", 6: "brwg", 7: "wgbr", 8: "gwrb"}
    data = ready(with_orientation(quadrants(), orientation), Bounds())
    assert corner_colours(decode(data)) == upright[orientation]


def test_deep_and_hidden_alpha_pictures_are_decoded_here() -> None:
    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    shown = decode(ready(encoded(deep), Bounds()))[:, :, 0].astype(int)
    assert abs(int(shown[32, 0]) - 128) <= 1
    assert shown.max() == 255
    assert shown.min() == 0
    see_through = encoded(np.zeros((32, 32), np.uint8), "PNG", transparency=0)
    assert decode(ready(see_through, Bounds())).min() == 255


def test_damage_is_a_reason() -> None:
    gif = encoded(quadrants(), "GIF")
    assert kind_of(gif[: len(gif) // 2]) == "decode"
    assert kind_of(b"\xff\xd8\xff\xe0" + b"\0" * 40) == "decode"
    assert kind_of(b"\0\0\0\x18ftypheic" + b"\0" * 40) == "decode"


def test_alpha_is_laid_on_white_as_img2dataset_does() -> None:
    """Its formula in floating point, over every pair of a colour and an alpha, across strips."""
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    clear = np.dstack([colour, colour, colour, alpha]).astype(np.uint8)
    clear = np.tile(clear, (20, 1, 1))
    share = clear[:, :, 3:] / 255
    expected = np.rint((share * clear[:, :, :3] + 255 - clear[:, :, 3:]).clip(0, 255))
    assert np.array_equal(pixels.on_white(clear), expected.astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_pillow_shows(orientation: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    shown = decode(with_orientation(stored, orientation, "PNG"))
    assert np.array_equal(pixels.upright(stored, orientation), shown)


@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("grey", [False, True])
def test_a_jpeg_is_decoded_smaller(by: int, grey: bool) -> None:
    stored = np.kron(quadrants(32, 24), np.ones((8, 8, 1), np.uint8))
    data = encoded(stored[:, :, 0] if grey else stored, "JPEG")
    head = pixels.announced(data, Bounds())
    found = pixels.decoded(data, head, by)
    assert found.pixels.shape[:2] == (192 // by, 256 // by)
    assert found.pixels.ndim == (2 if grey else 3)
    assert found.as_stored


def test_the_last_bit_is_left_out_of_progressive_ones_alone() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    data = encoded(noise, "JPEG", progressive=True, quality=90)
    shorter = pixels._without_last_bit(data)
    assert len(shorter) < 0.9 * len(data)
    assert shorter.endswith(b"\xff\xd9")
    assert decode(shorter).shape == (256, 256, 3)
    for other in (encoded(noise, "JPEG"), data[: len(data) // 2], b"\xff\xd8\xff\xda", b""):
        assert pixels._without_last_bit(other) is other


def test_frames_and_area_are_limited_on_the_header() -> None:
    gif = encoded(quadrants(), "GIF", save_all=True, append_images=[])
    assert ready(gif, Bounds(max_frames=1))[:2] == b"BM"
    assert kind_of(gif, max_frames=0) == "too_large.frames"


def test_what_cv2_cannot_read_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    data = encoded(quadrants(), "PNG")
    head = pixels.announced(data, Bounds())
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    found = pixels.decoded(data, head)
    assert not found.as_stored
    assert np.array_equal(found.pixels[:, :, ::-1], quadrants())
