"""Bytes of a picture to RGB pixels, decoded once for all stages that run one after another.

Decodes with Pillow as a viewer would show it: first frame, EXIF orientation applied once, alpha laid
on white, palette and CMYK converted, 16-bit samples scaled to 8 bits and not cut off at 255: greys
rounded, colours by their high byte, as Pillow reads them, which is the same or 1 less.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO")
MAX_AREA_PX = 100_000_000
CACHE_BYTES = 256 << 20
_CACHE_PICTURES = 256
_ORIENTATION = 0x0112


class TooManyPixels(ValueError):
    """The header announces more pixels than may be decoded."""


class _Cache:
    """The newest pictures by their encoded bytes, bounded in count and in memory."""

    def __init__(self, pictures: int, size_bytes: int) -> None:
        self._most = pictures
        self._most_bytes = size_bytes
        self._bytes = 0
        self._found: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, data: bytes) -> np.ndarray | None:
        with self._lock:
            pixels = self._found.get(data)
            if pixels is not None:
                self._found.move_to_end(data)
            return pixels

    def put(self, data: bytes, pixels: np.ndarray) -> None:
        with self._lock:
            if data in self._found:
                return
            self._found[data] = pixels
            self._bytes += len(data) + pixels.nbytes
            while self._bytes > self._most_bytes or len(self._found) > self._most:
                old_data, old_pixels = self._found.popitem(last=False)
                self._bytes -= len(old_data) + old_pixels.nbytes

    def clear(self) -> None:
        with self._lock:
            self._found.clear()
            self._bytes = 0


_cache = _Cache(_CACHE_PICTURES, CACHE_BYTES)


def decode(data: bytes) -> np.ndarray:
    """The picture as it should be seen: uint8, shape (height, width, 3), RGB, read-only.

    Raises ValueError for bytes that are not a whole picture in one of ``FORMATS``, or that hold more
    than ``MAX_AREA_PX`` pixels. The newest pictures are remembered, so that stages that follow one
    another on the same rows decode each picture once.
    """
    pixels = _cache.get(data)
    if pixels is None:
        pixels = decode_uncached(data)
        _cache.put(data, pixels)
    return pixels


def decode_uncached(data: bytes) -> np.ndarray:
    """``decode`` without the memory of earlier calls."""
    with opened(data) as image:
        if image.width * image.height > MAX_AREA_PX:
            raise TooManyPixels(
                f"{image.width} x {image.height} px, at most {MAX_AREA_PX} px are decoded"
            )
        try:
            with quiet_stderr():
                pixels = _pixels(image)
        except Exception as fault:  # Pillow's decoders raise nearly anything on damaged data
            raise ValueError(f"damaged {image.format} picture: {fault}") from fault
    pixels.flags.writeable = False
    return pixels


def opened(data: bytes) -> Image.Image:
    """The picture with its header read and nothing decoded. Raises ValueError, TooManyPixels."""
    from PIL import Image, UnidentifiedImageError

    _quiet_pillow()
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as fault:
        raise TooManyPixels(str(fault)) from fault
    except UnidentifiedImageError as fault:
        raise ValueError("no header of a format that is read here") from fault
    except Exception as fault:  # struct.error, SyntaxError, TypeError, ... on damaged headers
        raise ValueError(f"damaged picture header: {fault}") from fault


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. What cannot be read says nothing, so it counts as upright (1)."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's EXIF reader raises nearly anything on damaged blocks
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _pixels(image: Image.Image) -> np.ndarray:
    """Decoded, upright, without alpha, 8 bits: a new array of shape (height, width, 3)."""
    from PIL import Image, ImageOps

    image.load()  # before the EXIF block is asked for: Pillow turns TIFF itself and then drops the tag
    shown: Image.Image = image
    if orientation(image) != 1:
        shown = ImageOps.exif_transpose(image)
    if shown.mode.startswith("I") or shown.mode == "F":
        return _from_deep_grey(np.asarray(shown), shown.mode)
    if shown.has_transparency_data:
        shown = shown.convert("RGBA")
        white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
        shown = Image.alpha_composite(white, shown)
    return np.array(shown.convert("RGB"))


def _from_deep_grey(grey: np.ndarray, mode: str) -> np.ndarray:
    """Greys of more than 8 bits, shape (height, width), to RGB, rounded to the nearest of 8 bits."""
    if mode == "F" or grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"samples of mode {mode} have no known white")
    eight_bit = ((grey.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(eight_bit[:, :, None], 3, axis=2)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Silence what libtiff, libpng and libjpeg write to file descriptor 2 about damaged pictures.

    Counted, not nested: threads that overlap never restore the wrong descriptor.
    """
    _hush(+1)
    try:
        yield
    finally:
        _hush(-1)


_hush_lock = threading.Lock()
_hush_depth = 0
_stderr_copy = -1


def _hush(change: int) -> None:
    global _hush_depth, _stderr_copy
    with _hush_lock:
        before, _hush_depth = _hush_depth, _hush_depth + change
        if before == 0:
            _stderr_copy = os.dup(2)
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 2)
            os.close(devnull)
        elif _hush_depth == 0:
            os.dup2(_stderr_copy, 2)
            os.close(_stderr_copy)


@functools.cache
def _quiet_pillow() -> None:
    """Pillow warns about odd metadata of pictures that decode well; the row's reason is enough."""
    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
