"""Encoded bytes to 8-bit RGB: upright, first frame, transparency on white, 16 bits scaled down.

Plain JPEGs (8 bits, grey or three components) are decoded by libjpeg-turbo, at half, a quarter or an
eighth of their size where that is asked for: the inverse transform then makes fewer pixels of each
block, which is several times faster and needs no filter against aliasing. Pillow decodes all other
files, and every file that libjpeg-turbo has a complaint about, so what counts as a picture is
Pillow's judgement alone. At full size the pixels of the two are equal.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

MAX_PIXELS_PX = 100_000_000
SHRINKS = (8, 4, 2)
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_OTHER_FRAMES = frozenset((*range(0xC3, 0xD0), 0x00, 0x01, 0xD8, 0xD9)) - {0xC4, 0xC8, 0xCC}
_NO_TURN = 1
# Y, Cb, Cr by their usual numbers; both chroma whole, or halved across, down, or both ways.
_COLOURS = re.compile(rb"\x01[\x11\x12\x21\x22].\x02\x11.\x03\x11.", re.DOTALL)
_IN_A_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # a marker that is no restart
_YCC = 1  # Adobe's transform
# What Pillow may open: never EPS, whose reader starts a program on the bytes, nor formats it only
# knows by parsers that nobody uses for photographs. TIFF's library writes to the terminal.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "JPEG2000", "ICO")


class BadPicture(Exception):
    """Bytes that do not decode to a picture. ``kind`` is the reason's last word."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class Jpeg(NamedTuple):
    """What the header of a plain JPEG says; width and height as stored, in pixels."""

    width: int
    height: int
    orientation: int  # EXIF's 1 to 8

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) once turned as ``orientation`` says."""
        return (self.width, self.height) if self.orientation < 5 else (self.height, self.width)


def decode_rgb(data: bytes, shrink: int = 1) -> np.ndarray:
    """Pixels, uint8 of shape (height, width, 3). Raises BadPicture, and nothing else, for bad bytes.

    With ``shrink`` 2, 4 or 8, sides may be shorter by that factor (rounded up) where decoding so is
    cheaper; the caller looks at the shape.
    """
    jpeg = jpeg_header(data)
    if jpeg is None:
        return _by_pillow(data)
    if jpeg.width * jpeg.height > MAX_PIXELS_PX:
        raise BadPicture("too_many_pixels", f"{jpeg.width}x{jpeg.height}")
    height, width = -(-jpeg.height // shrink), -(-jpeg.width // shrink)
    try:
        pixels = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=shrink)
    except Exception:  # ValueError as a rule; whatever it is, Pillow decides
        return _by_pillow(data)
    if pixels.shape != (height, width, 3):
        return _by_pillow(data)
    return pixels if jpeg.orientation == _NO_TURN else _turned(pixels, jpeg.orientation)


def jpeg_header(data: bytes) -> Jpeg | None:
    """The header of a plain JPEG, from its markers alone; None for all else, also for odd ones."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    at, end, size, orientation = 2, len(data) - 10, None, _NO_TURN
    while at < end:
        marker = data[at + 1]
        if data[at] != 0xFF or marker in _OTHER_FRAMES:
            return None
        if marker == 0xDA:  # pixels begin
            return Jpeg(*size, orientation) if size else None
        if marker in _PLAIN_FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if size or bits != 8 or components not in (1, 3) or not height or not width:
                return None
            size = width, height
        length = data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1:
            found = _orientation(data[at + 4 : at + 2 + length])
            if found is None or (found != _NO_TURN and orientation != _NO_TURN):
                return None
            orientation = max(found, orientation)
        at += 2 + length
    return None


def baseline_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG that any decoder takes and gives alike; None for all that is odd.

    By its markers: upright, baseline, 8 bits, grey or YCbCr with chroma halved at most, one scan that
    reaches from the last header to the end of the file. Coefficients are not looked at.
    """
    jpeg = jpeg_header(data)
    if jpeg is None or jpeg.orientation != _NO_TURN or data[-2:] != b"\xff\xd9":
        return None
    at, components, seen = 2, 0, set()
    while True:  # jpeg_header has found every marker up to the scan in its place
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        body = data[at + 4 : at + 2 + length]
        seen.add(marker)
        if marker == 0xDA:
            break
        if marker in _PLAIN_FRAMES:
            components = _components(marker, body)
        elif marker == 0xEE and body[:5] == b"Adobe" and body[11:12] != bytes((_YCC,)):
            return None
        at += 2 + length
    whole = len(body) == 4 + 2 * components and body[0] == components and body[-3:] == b"\0\x3f\0"
    if not components or not whole or not {0xC4, 0xDB} <= seen:
        return None
    after = _IN_A_SCAN.search(data, at + 2 + length)
    return (jpeg.width, jpeg.height) if after and after.end() == len(data) else None


def _components(marker: int, frame: bytes) -> int:
    """1 or 3 for a baseline frame of the plain kinds, 0 for any other."""
    kinds = frame[6:]
    if marker != 0xC0 or len(kinds) != 3 * frame[5]:
        return 0
    if len(kinds) == 3 and kinds[1] == 0x11:
        return 1
    return 3 if len(kinds) == 9 and _COLOURS.fullmatch(kinds) else 0


def _orientation(segment: bytes) -> int | None:
    """EXIF's orientation in an APP1 segment, 1 where it has none; None for one that is not plain."""
    if segment[:6] != b"Exif\0\0":
        return None if b"Orientation" in segment else _NO_TURN  # XMP may have one too
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(segment[6:10])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", segment, 10)
        (count,) = struct.unpack_from(order + "H", segment, 6 + first)
        for entry in range(count):
            tag, kind, number, value = struct.unpack_from(
                order + "HHIH", segment, 8 + first + 12 * entry
            )
            if tag == 0x0112:
                return value if kind == 3 and number == 1 and 1 <= value <= 8 else None
    except struct.error:
        return None
    return _NO_TURN


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as they are meant to be seen."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    across, down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])


def _by_pillow(data: bytes) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS_PX:
                    raise BadPicture("too_many_pixels", f"{image.width}x{image.height}")
                image.load()
                return np.array(_rgb(image), order="C")
    except BadPicture:
        raise
    except Image.DecompressionBombError as fault:
        raise BadPicture("too_many_pixels", str(fault)) from fault
    except UnidentifiedImageError as fault:  # its own words hold an address, another in each run
        raise BadPicture("not_decodable", "no header of a format that is read here") from fault
    # Pillow raises OSError, ValueError, TypeError, IndexError, SyntaxError, struct.error and more.
    except Exception as fault:
        raise BadPicture("not_decodable", f"{type(fault).__name__}: {fault}"[:200]) from fault


def _rgb(image: Any) -> np.ndarray:
    """An opened Pillow image as uint8 (height, width, 3)."""
    from PIL import Image, ImageOps

    upright = image
    ImageOps.exif_transpose(upright, in_place=True)
    if upright.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        with_alpha = upright.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, with_alpha)
    return np.asarray(upright.convert("RGB"))
