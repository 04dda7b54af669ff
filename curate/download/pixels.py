"""A fetched body judged by its first bytes and its header, before anything is decoded.

Nothing is taken from Content-Type or from the URL. What img2dataset's resizer would show wrongly
(EXIF orientation, 16-bit samples, transparent greys, formats its decoder lacks) is decoded here and
handed to it as 8-bit RGB, so that every picture goes through the same resize.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curate.download.guard import Refused
from curate.score import picture

if TYPE_CHECKING:
    from PIL import Image

_MAGIC = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\0",  # TIFF
    b"MM\0*",
    b"\0\0\0\x0cjP  ",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"\0\0\1\0",  # ICO
    b"8BPS",  # Photoshop
    b"\xff\x0a",  # JPEG XL
    b"\0\0\0\x0cJXL ",
)
_TEXT = (b"<", b"{", b"[", b"\xef\xbb\xbf", b"\x1f\x8b")
# Formats that img2dataset's resizer (cv2) shows as a viewer would; see `_shown_alike`.
_PLAIN_FORMATS = frozenset({"JPEG", "MPO", "PNG", "WEBP"})


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a header may announce. Sides and area in pixels, aspect as long side / short side."""

    min_image_size: int = 0
    max_image_area: float = math.inf
    max_aspect_ratio: float = math.inf


def looks_like_picture(data: bytes) -> bool:
    """Whether the first bytes are those of a raster picture format, decodable here or not."""
    if data[:4] == b"RIFF":
        return data[8:12] == b"WEBP"
    if data[4:8] == b"ftyp":
        return True  # AVIF, HEIC
    return data.startswith(_MAGIC)


def ready(data: bytes, bounds: Bounds) -> bytes:
    """Bytes for img2dataset's resizer: ``data`` itself, or the picture upright in 8-bit RGB as BMP.

    Raises Refused: not_an_image, too_small, too_large.pixels, too_large.aspect, decode.
    """
    if not looks_like_picture(data):
        raise Refused("not_an_image", _what_instead(data))
    try:
        with picture.opened(data) as image:
            _check(image.size, bounds)
            if _shown_alike(image, data):
                return data
        return _as_bmp(data)
    except picture.TooManyPixels as fault:
        raise Refused("too_large.pixels", str(fault)[:200]) from fault
    except ValueError as fault:
        raise Refused("decode", str(fault)[:200]) from fault


def _check(size: tuple[int, int], bounds: Bounds) -> None:
    short, long = sorted(size)
    if short < max(bounds.min_image_size, 1):
        raise Refused(
            "too_small", f"{size[0]} x {size[1]} px, short side below {bounds.min_image_size}"
        )
    if short * long > bounds.max_image_area:
        raise Refused(
            "too_large.pixels", f"{size[0]} x {size[1]} px, area over {bounds.max_image_area:.0f}"
        )
    if long > bounds.max_aspect_ratio * short:
        raise Refused(
            "too_large.aspect", f"{size[0]} x {size[1]} px, aspect over {bounds.max_aspect_ratio}"
        )


def _shown_alike(image: Image.Image, data: bytes) -> bool:
    """Whether cv2 shows this picture as a viewer would, so that it needs no help."""
    if image.format not in _PLAIN_FORMATS:
        return False
    if image.format == "PNG":
        bit_depth = data[24]
        hidden_alpha = image.mode not in ("P", "RGBA") and "transparency" in image.info
        turned = any(name in image.info for name in ("exif", "Raw profile type exif"))
        return bit_depth <= 8 and not hidden_alpha and not turned
    return picture.orientation(image) == 1


def _as_bmp(data: bytes) -> bytes:
    """24-bit BMP of the picture as it should be seen: nothing is compressed, so it costs a copy."""
    import cv2

    pixels = picture.decode_uncached(data)
    return cv2.imencode(".bmp", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def _what_instead(data: bytes) -> str:
    start = data.lstrip()[:64]
    if not start:
        return f"{len(data)} bytes and nothing in them" if data else "an empty body"
    kind = "text or markup" if start.startswith(_TEXT) else "an unknown format"
    return f"{kind}: {start[:40]!r}"
