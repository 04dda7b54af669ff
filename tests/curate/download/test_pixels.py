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
